"""Five nodes under a steady load of small writes: from the acknowledgement until every peer shows the write, and where the time goes.

Writes are offered open-loop through the nodes that do not lead, in turn. When one in PROBE_EVERY is acknowledged, a GET with its version as
KV-Min-Version goes to every other node at once, and to the node that acknowledged it: a node answers as soon as it shows the write, so the slowest
answer is "visible at every peer", an HTTP round trip included. The node that acknowledged has it already, so its answer tells what that
round trip takes.

The breakdown is of repetitions of their own: while it is taken, nodes note marks, and this program asks for them four times a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

from kvp2p.client import Acked, Client, ClientConfig, ReadUnavailable, open_client, run_open_loop
from kvp2p.runtime.node_port import NodePort
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.filling import make_namespace, until_known
from scripts.benchmarks.hops import MS, TO_A_PEER, TO_THE_CLIENT, NodeMarks, Trace, hops_ms
from scripts.benchmarks.nodes import Cluster, Node, ask, cluster, node_port
from scripts.benchmarks.results import CannotMeasure, Figure, Row, at_most, quantiles_ms, run_async

NODES = 5
RATE_PER_S = 1_000
VALUE = b"v" * 200
KEYS = 10_000
PROBE_EVERY = 10
ASK_SECONDS = 0.25
WARM_SECONDS = 0.5
CLIENT = ClientConfig(connections=4)  # 4 × 64 writes under way at each node
VISIBLE_P50_MS_MAX, VISIBLE_P99_MS_MAX = 4, 20  # DESIGN §8


@dataclass(slots=True)
class Load:
    """What one repetition came to: traces of the acknowledged writes; of those that were probed, the ms until they were seen."""

    traces: list[Trace] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    visible_ms: list[float] = field(default_factory=list)  # at every peer
    round_trip_ms: list[float] = field(default_factory=list)  # at the node that acknowledged
    lag_ms_max: float = 0.0


@dataclass(slots=True)
class Door:
    """A node's clients: reads do not wait behind the answers to writes."""

    node: Node
    writer: Client
    reader: Client


class Writers:
    """Writes through some nodes, and looks for one in `probe_every` at all; for none when that is 0."""

    def __init__(self, doors: Sequence[Door], through: Sequence[str], namespace: str, probe_every: int = 0) -> None:
        self._doors = doors
        self._through = [door for door in doors if door.node.name in through]
        self._namespace = namespace
        self._probe_every = probe_every
        self._number = 0

    async def run(self, rate_per_s: float, seconds: float) -> Load:
        """Offer writes at a rate for so long; what is not acknowledged ends the measurement."""
        load = Load()
        async with trio.open_nursery() as nursery:

            async def write(number: int) -> str:
                door = self._through[number % len(self._through)]
                self._number += 1
                key = f"key/{self._number % KEYS}"
                sent_ns = time.monotonic_ns()
                outcome = await door.writer.put(self._namespace, key, VALUE)
                acked_ns = time.monotonic_ns()
                if isinstance(outcome, Acked):
                    trace = Trace(door.node.name, outcome.version, sent_ns, acked_ns, {})
                    load.traces.append(trace)
                    load.latencies_ms.append((acked_ns - sent_ns) / MS)
                    if self._probe_every and number % self._probe_every == 0:
                        nursery.start_soon(self._probe, load, trace, key)
                return outcome.outcome

            summary = await run_open_loop(write, rate_per_s=rate_per_s, duration_s=seconds, outstanding_max=2_000)
        load.lag_ms_max = summary.start_lag_ms_max
        if set(summary.outcomes) != {"acked"}:
            raise CannotMeasure(
                f"{rate_per_s:g} writes/s through {len(self._through)} nodes came to {summary.outcomes}"
            )
        return load

    async def _probe(self, load: Load, trace: Trace, key: str) -> None:
        seen_ns: dict[str, int] = {}

        async def look(door: Door) -> None:
            while True:
                try:
                    await door.reader.get(self._namespace, key, min_version=trace.version)
                    break
                except ReadUnavailable:
                    continue  # it waited in vain: asking again goes on counting
            seen_ns[door.node.name] = time.monotonic_ns()

        async with trio.open_nursery() as nursery:
            for door in self._doors:
                nursery.start_soon(look, door)
        load.round_trip_ms.append((seen_ns.pop(trace.via) - trace.acked_ns) / MS)
        load.visible_ms.append((max(seen_ns.values()) - trace.acked_ns) / MS)
        trace.seen_ns.update(seen_ns)


class Marks:
    """Fetches the marks of all nodes while a load runs."""

    def __init__(self, ports: Mapping[str, NodePort]) -> None:
        self._ports = ports
        self.found: dict[str, list[Sequence[str | int]]] = {name: [] for name in ports}

    async def start(self) -> None:
        """Let marks be noted, and forget those of before."""
        for name, port in self._ports.items():
            await ask(port, "spans")
            self.found[name] = []

    async def keep(self) -> None:
        """Fetch marks until cancelled."""
        while True:
            await trio.sleep(ASK_SECONDS)
            with trio.CancelScope(
                shield=True
            ):  # a node forgets what it has told: an answer that is cut off would be missing
                await self.fetch()

    async def fetch(self) -> None:
        """Fetch what there is."""
        for name, port in self._ports.items():
            document = await ask(port, "spans")
            if document["lost"]:
                raise CannotMeasure(f"{name} lost {document['lost']} marks: it was asked too seldom")
            self.found[name] += document["marks"]


async def open_doors(stack: AsyncExitStack, running: Cluster) -> tuple[list[Door], str]:
    """Connect to all nodes, and make a namespace that all of them know."""
    doors = []
    for node in running.nodes:
        clients = [
            await stack.enter_async_context(open_client(node.data_url, running.token, config=CLIENT)) for _ in range(2)
        ]
        doors.append(Door(node, *clients))
    namespace = await make_namespace(doors[0].writer)
    for door in doors:
        await until_known(door.reader, namespace)
    return doors, namespace


def measure(effort: Effort, nodes: int = NODES, rate_per_s: int = RATE_PER_S) -> Figure:
    with cluster(nodes) as running:
        return run_async(_measure, running, rate_per_s, effort)


async def _measure(running: Cluster, rate_per_s: int, effort: Effort) -> Figure:
    seconds = effort.seconds * 2
    repetitions = range(effort.repetitions)
    async with AsyncExitStack() as stack:
        doors, namespace = await open_doors(stack, running)
        writers = Writers(doors, [node.name for node in running.others], namespace, PROBE_EVERY)
        await writers.run(rate_per_s, WARM_SECONDS)
        effort.tell(f"propagation at {rate_per_s} writes/s: {effort.repetitions} × {seconds:g} s")
        plain = [await writers.run(rate_per_s, seconds) for _ in repetitions]
        effort.tell(f"propagation by hop: {effort.repetitions} × {seconds:g} s")
        marks = Marks({node.name: await stack.enter_async_context(node_port(node)) for node in running.nodes})
        taken_apart = [await _run_with_marks(writers, marks, running, rate_per_s, seconds) for _ in repetitions]
    method = (
        f"{len(running.nodes)} nodes, one gateway each; {rate_per_s} writes/s of {len(VALUE)} B offered open-loop through the {len(running.others)} nodes "
        f"that do not lead, for {seconds:g} s each. One in {PROBE_EVERY} acknowledged writes is read with its version as KV-Min-Version at all nodes at once; "
        "visible: the last peer's answer, round trip included. Hops: repetitions of their own, from marks of the nodes by the clock that all "
        "processes of a machine share; the first eight add up to the write, the last three are of each peer."
    )
    return Figure("propagation", method, effort.repetitions, (*_plain_rows(plain), *_hop_rows(taken_apart)))


async def _run_with_marks(
    writers: Writers, marks: Marks, running: Cluster, rate_per_s: int, seconds: float
) -> tuple[Load, dict[str, list[float]]]:
    await marks.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(marks.keep)
        load = await writers.run(rate_per_s, seconds)
        nursery.cancel_scope.cancel()
    await marks.fetch()
    node_marks = {name: NodeMarks(found) for name, found in marks.found.items()}
    node_ids = {node.name: node.node_id for node in running.nodes}
    return load, hops_ms(load.traces, node_marks, running.leader.name, node_ids)


def _plain_rows(loads: Sequence[Load]) -> list[Row]:
    budgets = (at_most(VISIBLE_P50_MS_MAX, "p50_ms"), at_most(VISIBLE_P99_MS_MAX, "p99_ms"))
    return [
        Row("sent → acknowledged", quantiles_ms([load.latencies_ms for load in loads])),
        Row("acknowledged → visible at every peer", quantiles_ms([load.visible_ms for load in loads]), budgets),
        Row("the same read where it was acknowledged", quantiles_ms([load.round_trip_ms for load in loads])),
    ]


def _hop_rows(taken_apart: Sequence[tuple[Load, dict[str, list[float]]]]) -> list[Row]:
    rows = [
        Row("with marks: sent → acknowledged", quantiles_ms([load.latencies_ms for load, _ in taken_apart])),
        Row("with marks: acknowledged → visible", quantiles_ms([load.visible_ms for load, _ in taken_apart])),
    ]
    rows += [
        Row(f"hop: {name}", quantiles_ms([hops[name] for _, hops in taken_apart])) for name in TO_THE_CLIENT + TO_A_PEER
    ]
    return rows
