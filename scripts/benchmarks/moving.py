"""Client processes that move large values through one node, and what came of their requests."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from scripts.benchmarks.nodes import Cluster, Node
from scripts.benchmarks.results import ROOT, CannotMeasure


@dataclass(frozen=True, slots=True)
class Moved:
    """One value, written or read. `version` is empty for a read; `ended_ns` is a reading of the clock that all processes of a machine share."""

    key: str
    version: str
    value_bytes: int
    seconds: float
    ended_ns: int
    refused: int  # how often it was refused with 429 or 503 before, and asked again

    @property
    def mb_per_s(self) -> float:
        """MB (10^6 bytes) a second."""
        return self.value_bytes / 1e6 / self.seconds


class Mover:
    """Starts them. What each of them writes goes to `keys` keys a connection, again and again."""

    def __init__(self, running: Cluster, node: Node, namespace: str, value_bytes: int, keys: int) -> None:
        self._task = {
            "value_bytes": value_bytes,
            "data_url": node.data_url,
            "token": running.token,
            "namespace": namespace,
            "keys": keys,
        }
        self._value_bytes = value_bytes
        self._first = itertools.count(0, 1_000_000)  # no value is written twice

    @contextmanager
    def process(self, kind: str, **task: float) -> Iterator[subprocess.Popen[str]]:
        """Start a process that does `put` or `get` (`large_client.move`), and end it with the block if it has not ended by then."""
        whole = {"at_once": 1, "count": 1_000, "first": next(self._first), **self._task, "kind": kind, **task}
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks.large_client", json.dumps(whole)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "connected\n":
                raise CannotMeasure("the client process of large values did not start, see above")
            yield process
        finally:
            process.kill()
            process.wait()

    async def move(self, kind: str, **task: float) -> list[Moved]:
        """Run a process to its end and return what came of its requests."""
        with self.process(kind, **task) as process:
            return await self.ending_of(process)

    async def ending_of(self, process: subprocess.Popen[str]) -> list[Moved]:
        """Wait for a process's end. Raises CannotMeasure when a request failed, or a value was not read whole."""
        output, _ = await trio.to_thread.run_sync(process.communicate, abandon_on_cancel=True)
        if process.returncode:
            raise CannotMeasure("the client process of large values failed, see above")
        moved = [Moved(**one) for one in json.loads(output)]
        if not moved:
            raise CannotMeasure("no large value was moved")
        if any(one.value_bytes != self._value_bytes for one in moved):
            raise CannotMeasure(f"values of {self._value_bytes} B came as {sorted({one.value_bytes for one in moved})}")
        return moved
