"""Values of 25 MiB beside small writes: what they add to the latency of small writes and to digests, and how fast they are.

Five nodes; small writes go through the nodes that do not lead, in turn: alone, and then while a client process writes values of 25 MiB one after the
other through one of those nodes, on their way to the leader and from there to the other three. What they add is the difference of two neighbouring
phases at p99. When a node has a write, and how old a digest is when it comes, is told by marks of the nodes (`kvp2p/node/spans.py`).

A small write counts as stored where its group is durable: from then on a reader gets it. (One who asks with KV-Min-Version waits for everything
before that version too, so for the large values: this is how long these take to be everywhere.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

from kvp2p.client.load import percentile
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.hops import MS, NodeMarks, digest_gaps_ms, stored_everywhere_ms
from scripts.benchmarks.moving import Moved, Mover
from scripts.benchmarks.nodes import Cluster, busy_seconds, cluster, cpu_seconds, node_port
from scripts.benchmarks.propagation import ASK_SECONDS, Door, Load, Marks, Writers, open_doors
from scripts.benchmarks.results import CannotMeasure, Figure, Row, Spread, at_most, cores, quantiles_ms, run_async

NODES = 5
RATE_PER_S = 200
KEYS = 4  # that the large values are written to, again and again, so that the disk holds few of them
ADDED_MS_MAX = 50  # issue 3
PHASE_SECONDS_MIN = 3.0  # a value has to be on its way to the last nodes while small writes are
WARM_SECONDS = 0.5
STORED_SECONDS_MAX = 10.0
VALUE_BYTES = 26_214_400
WRITE, STORED, AGE, GAP = (
    "small write, sent → acknowledged",
    "small write, sent → stored at every node",
    "digest, age when taken in",
    "digest, since the one before",
)


@dataclass(slots=True)
class Phase:
    """What one phase came to: ms of each kind, and how busy the processors were, in percent of all."""

    samples_ms: dict[str, list[float]]
    machine_percent: float
    cluster_percent: float


@dataclass(slots=True)
class Found:
    """All phases, two by two, and the MB/s of single values."""

    alone: list[Phase] = field(default_factory=list)
    beside: list[Phase] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)


def measure(
    effort: Effort, nodes: int = NODES, value_bytes: int = VALUE_BYTES, seconds_min: float = PHASE_SECONDS_MIN
) -> Figure:
    seconds = max(2 * effort.seconds, seconds_min)
    with cluster(nodes) as running:
        found = run_async(_measure, running, effort, value_bytes, seconds)
    size = f"{value_bytes / 2**20:.3g} MiB"
    method = (
        f"{nodes} nodes, one gateway each; {RATE_PER_S} small writes/s through the {nodes - 1} nodes that do not lead, {seconds:g} s alone and as long beside a process that "
        f"writes {value_bytes} B after {value_bytes} B through one of them. Stored at every node, and digests: by marks of the nodes. Added: at p99, of neighbouring "
        f"phases. All {nodes} nodes and the clients share {cores()} processors and one disk: how busy, by anything and by the nodes, stands below, in percent of all. "
        "MB/s (10^6 bytes): one value at a time; everywhere: until the last node has it whole, from the first byte."
    )
    return Figure("large", method, effort.repetitions, tuple(_rows(found, size)))


async def _measure(running: Cluster, effort: Effort, value_bytes: int, seconds: float) -> Found:
    found = Found()
    async with AsyncExitStack() as stack:
        doors, namespace = await open_doors(stack, running)
        through = running.others
        mover = Mover(running, through[0], namespace, value_bytes, KEYS)
        marks = Marks({node.name: await stack.enter_async_context(node_port(node)) for node in running.nodes})
        writers = Writers(doors, [node.name for node in through], namespace)
        await writers.run(RATE_PER_S, WARM_SECONDS)
        await _until_everywhere(doors, namespace, (await mover.move("put", count=1))[-1])
        for number in range(effort.repetitions):
            effort.tell(f"large: small writes alone and beside large values, {number + 1} of {effort.repetitions}")
            found.alone.append(await _run_phase(running, writers, marks, seconds))
            with mover.process("put", seconds=seconds) as process:
                found.beside.append(await _run_phase(running, writers, marks, seconds))
                moved = await mover.ending_of(process)
            found.rates.setdefault("PUT, beside small writes", []).extend(one.mb_per_s for one in moved)
            await _until_everywhere(doors, namespace, moved[-1])
        effort.tell("large: throughput of single values")
        for _ in range(effort.repetitions):
            (put,) = await mover.move("put", count=1)
            everywhere_s = put.seconds + await _until_everywhere(doors, namespace, put)
            (got,) = await mover.move("get", count=1)
            found.rates.setdefault("PUT", []).append(put.mb_per_s)
            found.rates.setdefault("PUT, until everywhere", []).append(value_bytes / 1e6 / everywhere_s)
            found.rates.setdefault("GET", []).append(got.mb_per_s)
    return found


async def _run_phase(running: Cluster, writers: Writers, marks: Marks, seconds: float) -> Phase:
    processes = [one for node in running.nodes for one in node.processes]
    await marks.start()
    began_ns, busy, used = time.monotonic_ns(), busy_seconds(), cpu_seconds(processes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(marks.keep)
        load = await writers.run(RATE_PER_S, seconds)
        nursery.cancel_scope.cancel()
    ended_ns, busy, used = time.monotonic_ns(), busy_seconds() - busy, cpu_seconds(processes) - used
    digests = [mark for found in marks.found.values() for mark in found if mark[0] == "digest"]
    samples = {
        WRITE: load.latencies_ms,
        STORED: await _stored_ms(load, marks),
        AGE: [float(mark[3]) for mark in digests],
        GAP: digest_gaps_ms(marks.found.values()),
    }
    all_s = cores() * (ended_ns - began_ns) / MS / 1_000
    return Phase(samples, busy / all_s * 100, used / all_s * 100)


async def _stored_ms(load: Load, marks: Marks) -> list[float]:
    """Wait until the last small writes are on every disk, and return the ms that each took."""
    with trio.fail_after(STORED_SECONDS_MAX):
        while True:
            await marks.fetch()
            node_marks = {name: NodeMarks(found) for name, found in marks.found.items()}
            stored_ms = stored_everywhere_ms(load.traces, node_marks)
            if len(stored_ms) == len(load.traces):
                return stored_ms
            await trio.sleep(ASK_SECONDS)


async def _until_everywhere(doors: Sequence[Door], namespace: str, put: Moved) -> float:
    """Wait until all nodes have a large value, and everything before it, whole; return the seconds since it was acknowledged."""
    for door in doors:
        status = 503
        while status == 503:  # it waited in vain: asking again goes on counting
            status = (await door.reader.head(namespace, put.key, min_version=put.version)).status
        if status != 200:
            raise CannotMeasure(f"{door.node.name} answered {status} for a large value that was written")
    return (time.monotonic_ns() - put.ended_ns) / MS / 1_000


def _rows(found: Found, size: str) -> list[Row]:
    rows = []
    for what in (WRITE, STORED, AGE, GAP):
        alone, beside = ([phase.samples_ms[what] for phase in phases] for phases in (found.alone, found.beside))
        rows += [
            Row(f"{what}: alone", quantiles_ms(alone)),
            Row(f"{what}: beside {size}", quantiles_ms(beside)),
            Row(f"{what}: added", {"p99_ms": _added(alone, beside)}, (at_most(ADDED_MS_MAX, "p99_ms"),)),
        ]
    for name, phases in (("alone", found.alone), (f"beside {size}", found.beside)):
        cells = {
            "processors_percent": Spread.of([phase.machine_percent for phase in phases]),
            "nodes_percent": Spread.of([phase.cluster_percent for phase in phases]),
        }
        rows.append(Row(f"busy: {name}", cells))
    return rows + [Row(f"{what} of {size}", {"mb_per_s": Spread.of(rates)}) for what, rates in found.rates.items()]


def _added(alone: Sequence[Sequence[float]], beside: Sequence[Sequence[float]]) -> Spread:
    p99s = [[percentile(sorted(samples), 99) for samples in runs] for runs in (alone, beside)]
    return Spread.of([after - before for before, after in zip(*p99s, strict=True)])
