"""Values of 25 MiB beside small writes: what they add to the latency of small writes and to the age of digests, and what they take.

Five nodes; small writes go through the nodes that do not lead, in turn, alone and then while a client process writes values of 25 MiB one after the
other through one of those nodes, on their way to the four others. What the large values add is the difference of two neighbouring phases at p99.
Digests tell when they were made, so their age when a node takes them in is known (`kvp2p/node/spans.py`).
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import trio

from kvp2p.client.load import percentile
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.large_client import PIECE_BYTES
from scripts.benchmarks.memory import NODE_BUDGETS, Memory, Watch, spreads
from scripts.benchmarks.nodes import Cluster, Node, cluster, node_port
from scripts.benchmarks.propagation import Door, Marks, Writers, open_doors
from scripts.benchmarks.results import ROOT, CannotMeasure, Figure, Row, Spread, at_most, quantiles_ms, run_async

NODES = 5
RATE_PER_S = 200
PROBE_EVERY = 2
KEYS = 4  # that the large values are written to, again and again, so that the disk holds few of them
ADDED_MS_MAX = 50  # issue 3
AT_ONCE = 50
SETTLE_SECONDS = 0.5
VALUE_BYTES = 26_214_400
WRITE, VISIBLE, DIGEST = "small write", "small write, visible at every peer", "digest, age when taken in"
Phase = dict[str, list[float]]


class Mover:
    """Runs client processes that move large values through one node."""

    def __init__(self, running: Cluster, node: Node, namespace: str) -> None:
        assert not VALUE_BYTES % PIECE_BYTES, "a value is whole pieces"
        self._task = {
            "value_bytes": VALUE_BYTES,
            "data_url": node.data_url,
            "token": running.token,
            "namespace": namespace,
        }
        self._first = itertools.count(0, 1_000_000)  # no value is written twice

    @contextmanager
    def process(self, kind: str, **task: float) -> Iterator[subprocess.Popen[str]]:
        """Start a process, and end it with the block if it has not ended by then."""
        whole = {"at_once": 1, "count": 1_000, "keys": KEYS, "first": next(self._first), **self._task, "kind": kind}
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks.large_client", json.dumps({**whole, **task})],
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

    async def move(self, kind: str, **task: float) -> list[Mapping[str, Any]]:
        """Run a process to its end and return what came of its requests."""
        with self.process(kind, **task) as process:
            return await self.answers(process)

    @staticmethod
    async def answers(process: subprocess.Popen[str]) -> list[Mapping[str, Any]]:
        """Wait for a process's end. Raises CannotMeasure when a request was not answered with 200."""
        output, _ = await trio.to_thread.run_sync(process.communicate, abandon_on_cancel=True)
        if process.returncode:
            raise CannotMeasure("the client process of large values failed, see above")
        answers: list[Mapping[str, Any]] = json.loads(output)
        for answer in answers:
            if answer["status"] == 413:
                raise CannotMeasure(
                    f"this version takes no values of {VALUE_BYTES} bytes. It answers 413 {answer['body']}"
                )
            if answer["status"] != 200:
                raise CannotMeasure(f"a request for a large value was answered {answer['status']} {answer['body']}")
        if not answers:
            raise CannotMeasure("no large value was moved")
        return answers


def measure(effort: Effort) -> Figure:
    at_once = effort.pick(8, AT_ONCE)
    with cluster(NODES) as running:
        rows = run_async(_measure_delays, running, effort)
    with cluster(2) as running:
        rows += run_async(_measure_memory, running, at_once, effort)
    method = (
        f"{NODES} nodes, one gateway each; {RATE_PER_S} small writes/s through the {NODES - 1} nodes that do not lead, {2 * effort.seconds:g} s alone and as long beside a "
        f"process that writes {VALUE_BYTES} B after {VALUE_BYTES} B through one of them; visible as in propagation, one in {PROBE_EVERY}. Added: at p99, of neighbouring phases. "
        f"MB/s: one request at a time, MB are 10^6 bytes. Memory: two nodes, {at_once} requests at once through the peer, greatest RssAnon."
    )
    return Figure("large", method, effort.repetitions, tuple(rows))


# --- delays


async def _measure_delays(running: Cluster, effort: Effort) -> list[Row]:
    through = running.others
    alone: list[Phase] = []
    beside: list[Phase] = []
    put_beside: list[float] = []
    async with AsyncExitStack() as stack:
        doors, namespace = await open_doors(stack, running)
        mover = Mover(running, through[0], namespace)
        await mover.move("put", count=1)  # whether it can be done at all
        marks = Marks({node.name: await stack.enter_async_context(node_port(node)) for node in running.nodes})
        writers = Writers(doors, [node.name for node in through], namespace, PROBE_EVERY)
        seconds = 2 * effort.seconds
        for number in range(effort.repetitions):
            effort.tell(f"large: small writes alone and beside 25 MiB, {number + 1} of {effort.repetitions}")
            alone.append(await _run_phase(writers, marks, seconds))
            with mover.process("put", seconds=seconds) as process:
                beside.append(await _run_phase(writers, marks, seconds))
                answers = await mover.answers(process)
            put_beside += [VALUE_BYTES / 1e6 / answer["seconds"] for answer in answers]
            await _until_everywhere(doors, namespace)
        effort.tell("large: throughput of single values")
        put = [VALUE_BYTES / 1e6 / one["seconds"] for one in await mover.move("put", count=effort.repetitions)]
        await _until_everywhere(doors, namespace)
        got = await mover.move("get", count=effort.repetitions, keys=1)
        if any(one["body_bytes"] != VALUE_BYTES for one in got):
            raise CannotMeasure(f"values of {VALUE_BYTES} B were read as {[one['body_bytes'] for one in got]}")
        get = [VALUE_BYTES / 1e6 / one["seconds"] for one in got]
    rows = []
    for what in (WRITE, VISIBLE, DIGEST):
        rows += [
            Row(f"{what}, alone", quantiles_ms([phase[what] for phase in alone])),
            Row(f"{what}, beside 25 MiB", quantiles_ms([phase[what] for phase in beside])),
            Row(f"{what}, added", {"p99_ms": _added(alone, beside, what)}, (at_most(ADDED_MS_MAX, "p99_ms"),)),
        ]
    told = {"PUT of 25 MiB": put, "PUT of 25 MiB, beside small writes": put_beside, "GET of 25 MiB": get}
    return [*rows, *(Row(what, {"mb_per_s": Spread.of(rates)}) for what, rates in told.items())]


async def _run_phase(writers: Writers, marks: Marks, seconds: float) -> Phase:
    await marks.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(marks.keep)
        load = await writers.run(RATE_PER_S, seconds)
        nursery.cancel_scope.cancel()
    await marks.fetch()
    ages = [float(mark[3]) for found in marks.found.values() for mark in found if mark[0] == "digest"]
    return {WRITE: load.latencies_ms, VISIBLE: load.visible_ms, DIGEST: ages}


def _added(alone: Sequence[Phase], beside: Sequence[Phase], what: str) -> Spread:
    p99s = [[percentile(sorted(phase[what]), 99) for phase in phases] for phases in (alone, beside)]
    return Spread.of([after - before for before, after in zip(*p99s, strict=True)])


async def _until_everywhere(doors: Sequence[Door], namespace: str) -> None:
    """Wait until all nodes have the newest write whole: the next phase begins with nothing on its way."""
    outcome = await doors[0].writer.put(namespace, "between", b"phases")
    version = getattr(outcome, "version", None)
    if not version:
        raise CannotMeasure(f"a small write between two phases ended so: {outcome}")
    for door in doors:
        await door.reader.get(namespace, "between", min_version=version)


# --- memory


async def _measure_memory(running: Cluster, at_once: int, effort: Effort) -> list[Row]:
    peer = running.others[0]
    found: dict[str, list[Memory]] = {}
    async with AsyncExitStack() as stack:
        doors, namespace = await open_doors(stack, running)
        mover, watch = Mover(running, peer, namespace), Watch(running.leader, peer)
        for number in range(effort.repetitions):
            effort.tell(f"large: {at_once} requests at once, {number + 1} of {effort.repetitions}")
            found.setdefault("at rest, before", []).append(watch.look())
            for kind in ("put", "get"):
                work = partial(mover.move, kind, at_once=at_once, count=1, keys=1)
                found.setdefault(f"{at_once} × {kind.upper()} at once", []).append(await watch.during(work))
                await _until_everywhere(doors, namespace)
            await trio.sleep(SETTLE_SECONDS)
    return [Row(what, spreads(samples), NODE_BUDGETS if "at once" in what else ()) for what, samples in found.items()]
