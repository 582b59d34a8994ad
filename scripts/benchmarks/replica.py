"""`kvp2p.Replica.get` against a bare LMDB get of the same rows, in turn; each read is a transaction of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvp2p import Replica
from kvp2p.store.tables import ROWS
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.filling import fill
from scripts.benchmarks.nodes import cluster
from scripts.benchmarks.results import CannotMeasure, Figure, Row, Spread, at_least

KEYS = 10_000
VALUE_BYTES = 200
RATIO_MIN = 0.5  # DESIGN §8


def measure(effort: Effort) -> Figure:
    seconds = effort.seconds / 4
    ours, bare = [], []
    with cluster(1) as running:
        namespace = fill(running.leader.data_url, running.token, KEYS, b"v" * VALUE_BYTES)
        effort.tell(f"Replica.get and LMDB get in turn: {effort.repetitions} × {seconds:g} s each")
        with Replica(running.leader.directory) as replica:
            for _ in range(effort.repetitions):
                ours.append(rate_of(_getter(replica, namespace), seconds))
                bare.append(rate_of(_bare_getter(replica, namespace), seconds))
    method = (
        f"one process reads {KEYS} keys of {VALUE_BYTES} B one after the other, a transaction each, for {seconds:g} s by Replica.get, "
        "then by py-lmdb's Transaction.get from the same file, and so on in turn; a ratio is that of two neighbours."
    )
    ratios = [mine / theirs for mine, theirs in zip(ours, bare, strict=True)]
    cells = {"per_s": Spread.of(ours), "ratio_to_lmdb": Spread.of(ratios)}
    rows = (
        Row("Replica.get", cells, (at_least(RATIO_MIN, "ratio_to_lmdb"),)),
        Row("LMDB get", {"per_s": Spread.of(bare)}),
    )
    return Figure("replica", method, effort.repetitions, rows)


def _getter(replica: Replica, namespace: str) -> Callable[[], None]:
    names = [f"key/{number}" for number in range(KEYS)]

    def get_all() -> None:
        for name in names:
            if replica.get(namespace, name) is None:
                raise CannotMeasure(f"the replica does not have {name}")

    return get_all


def _bare_getter(replica: Replica, namespace: str) -> Callable[[], None]:
    begin, rows, prefix = replica.begin, replica.tables[ROWS], bytes.fromhex(namespace)
    names = [prefix + f"key/{number}".encode() for number in range(KEYS)]

    def get_all() -> None:
        for name in names:
            with begin(rows) as transaction:
                if transaction.get(name) is None:
                    raise CannotMeasure(f"LMDB does not have {name!r}")

    return get_all


def rate_of(read_all: Callable[[], None], seconds: float) -> float:
    """Return reads per second of a function that reads all keys, called until the time is over."""
    rounds, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or not rounds:
        read_all()
        rounds += 1
    return rounds * KEYS / taken
