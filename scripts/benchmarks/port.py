"""The data port of one node with one gateway, driven from client processes in closed loops.

Each connection sends its next request when the answer is there, or keeps `depth` requests in its pipeline. Clients run on the same
machine and take processor time from the node: `client cpu percent` near 100 says that a client process was the bottleneck,
`gateway µs` and `node µs` are what a request cost those processes (user and system time).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from scripts.benchmarks.effort import Effort
from scripts.benchmarks.filling import fill
from scripts.benchmarks.nodes import Cluster, Node, cluster, cpu_seconds
from scripts.benchmarks.results import ROOT, CannotMeasure, Figure, Row, Spread

KEYS = 10_000
VALUE_BYTES = 200
START_SECONDS = 0.7  # a client process imports and connects before the common start
PAUSE_SECONDS = 0.1


class Case(NamedTuple):
    kind: str
    connections: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.connections} × {self.depth}"


GETS = (Case("GET", 32, 1), Case("GET", 128, 1), Case("GET", 32, 16))
PUTS = (Case("PUT", 32, 1), Case("PUT", 128, 1))
WANTED = {"GET": "found", "PUT": "acked"}


def measure_get(effort: Effort) -> Figure:
    return _measure("get", GETS, effort, "")


def measure_put(effort: Effort) -> Figure:
    return _measure("put", PUTS, effort, " Every write is synced before it is acknowledged.")


def _measure(name: str, cases: tuple[Case, ...], effort: Effort, more: str) -> Figure:
    with cluster(1) as running:
        node = running.leader
        namespace = fill(node.data_url, running.token, KEYS, b"v" * VALUE_BYTES)
        rows = tuple(_measure_case(case, running, node, namespace, effort) for case in cases)
    method = (
        f"one node, one gateway, {VALUE_BYTES} B values, {KEYS} keys; closed loop of connections × depth from "
        f"{effort.clients} client process(es) on the same machine, {effort.seconds:g} s each.{more}"
    )
    return Figure(name, method, effort.repetitions, rows)


def _measure_case(case: Case, running: Cluster, node: Node, namespace: str, effort: Effort) -> Row:
    effort.tell(f"{case.name}: {effort.repetitions} × {effort.seconds:g} s")
    first = time.monotonic() + START_SECONDS + case.connections * 0.003
    starts = [first + index * (effort.seconds + PAUSE_SECONDS) for index in range(effort.repetitions)]
    task = {
        "data_url": node.data_url,
        "token": running.token,
        "namespace": namespace,
        "keys": KEYS,
        "value_bytes": VALUE_BYTES,
        "kind": case.kind,
        "connections": case.connections // effort.clients,
        "depth": case.depth,
        "starts": starts,
        "seconds": effort.seconds,
    }
    run = [sys.executable, "-m", "scripts.benchmarks.port_client", json.dumps(task)]
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(effort.clients)]
    try:
        taken = [_cpu_taken(node, start, effort.seconds) for start in starts]
        outputs = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()  # after Ctrl-C; one that has ended is left alone
    if any(process.returncode for process in processes):
        raise CannotMeasure("a client process failed, see above")
    runs = list(zip(*[json.loads(output) for output in outputs], strict=True))  # by repetition
    counts = [sum(client["outcomes"].get(WANTED[case.kind], 0) for client in run) for run in runs]
    others = {word for run in runs for client in run for word in client["outcomes"]} - {WANTED[case.kind], "unfinished"}
    if others or not all(counts):
        raise CannotMeasure(f"{case.name} came to {sorted(others)}, {counts} {WANTED[case.kind]}")
    return Row(case.name, _cells(runs, counts, taken, effort))


def _cells(
    runs: list[tuple[Mapping[str, Any], ...]], counts: list[int], taken: list[tuple[float, float]], effort: Effort
) -> dict[str, Spread]:
    return {
        "per_s": Spread.of([sum(client["per_s"] for client in run) for run in runs]),
        "p50_ms": Spread.of([max(client["p50_ms"] for client in run) for run in runs]),
        "p99_ms": Spread.of([max(client["p99_ms"] for client in run) for run in runs]),
        "client_cpu_percent": Spread.of(
            [max(client["cpu_s"] for client in run) / effort.seconds * 100 for run in runs]
        ),
        "gateway_µs": Spread.of([one[0] * 1e6 / count for one, count in zip(taken, counts, strict=True)]),
        "node_µs": Spread.of([one[1] * 1e6 / count for one, count in zip(taken, counts, strict=True)]),
    }


def _cpu_taken(node: Node, start: float, seconds: float) -> tuple[float, float]:
    """Return the processor time that gateways and node take from `start` on for so long."""
    time.sleep(max(0.0, start - time.monotonic()))
    before = cpu_seconds(node.gateway_processes), cpu_seconds([node.node_process])
    time.sleep(max(0.0, start + seconds - time.monotonic()))
    return cpu_seconds(node.gateway_processes) - before[0], cpu_seconds([node.node_process]) - before[1]
