"""What a run comes to: figures of rows, a spread for each number, budgets. `as_json` is the document of `--json`.

Every number is the median of the repetitions with the least and the greatest of them. A budget is judged by the median.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import trio

from kvp2p.client import ClientError
from kvp2p.client.load import percentile
from kvp2p.errors import KvError

ROOT = Path(__file__).resolve().parents[2]
_T = TypeVar("_T")


class CannotMeasure(Exception):
    """A figure that cannot be had here and now; the text says why."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of the repetitions."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Budget:
    """What DESIGN §8, or an issue, asks of the median in one column. `is_most` says which way."""

    column: str
    limit: float
    is_most: bool

    def is_kept_by(self, spread: Spread) -> bool:
        return spread.median <= self.limit if self.is_most else spread.median >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line: `what` was measured, and its numbers by column, a unit at the end of each column's name."""

    what: str
    cells: Mapping[str, Spread]
    budgets: tuple[Budget, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "cells": {column: asdict(spread) for column, spread in self.cells.items()},
            "budgets": [
                {
                    "column": one.column,
                    "at_most" if one.is_most else "at_least": one.limit,
                    "is_kept": one.is_kept_by(self.cells[one.column]),
                }
                for one in self.budgets
            ],
        }


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with the way it was measured."""

    name: str
    method: str
    repetitions: int
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "method": self.method,
            "repetitions": self.repetitions,
            "rows": [row.as_json() for row in self.rows],
        }


def run_async(measure: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
    """Run in trio, and raise what went wrong as it is: KeyboardInterrupt, or CannotMeasure for what nodes and clients say."""
    try:
        # The client reschedules tasks itself, which an interrupt in the middle of it would spoil: only where a task waits.
        return trio.run(measure, *arguments, restrict_keyboard_interrupt_to_checkpoints=True)
    except (ClientError, KvError, trio.TooSlowError) as error:
        raise CannotMeasure(repr(error)) from error
    except BaseExceptionGroup as group:
        for kind in (KeyboardInterrupt, CannotMeasure, ClientError, KvError, trio.TooSlowError):
            found = group.subgroup(kind)
            if found is not None:
                first: BaseException = found
                while isinstance(first, BaseExceptionGroup):
                    first = first.exceptions[0]
                raise (first if kind in {KeyboardInterrupt, CannotMeasure} else CannotMeasure(repr(first))) from group
        raise


def at_most(limit: float, column: str) -> Budget:
    """Return a budget that the median must not exceed."""
    return Budget(column, limit, is_most=True)


def at_least(limit: float, column: str) -> Budget:
    """Return a budget that the median must reach."""
    return Budget(column, limit, is_most=False)


def quantiles_ms(runs: Sequence[Sequence[float]]) -> dict[str, Spread]:
    """Return p50, p99 and mean of samples in ms, each with its spread over the repetitions that they came from."""
    ordered = [sorted(run) for run in runs if run]
    if not ordered:
        raise CannotMeasure("nothing was seen that could be measured")
    return {
        "p50_ms": Spread.of([percentile(run, 50) for run in ordered]),
        "p99_ms": Spread.of([percentile(run, 99) for run in ordered]),
        "mean_ms": Spread.of([statistics.fmean(run) for run in ordered]),
    }


def cores() -> int:
    """Return how many processors there are for all of this."""
    return len(os.sched_getaffinity(0))


def document_head() -> dict[str, Any]:
    """Return what a reader must know of a run besides its figures. To be called before the first of them."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "machine": {
            "processor": model or platform.machine(),
            "cores": cores(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "load_average": os.getloadavg()[0],
        },
        "commit": _commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """Return the commit of this checkout, marked when files differ from it."""
    run = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no git"
    return described.stdout.strip()
