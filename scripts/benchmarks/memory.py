"""Anonymous memory of a node's processes with no keys, with some and with ten times as many: what the number of keys adds to it.

RssAnon of /proc/PID/status (proc(5)): mapped pages of the store do not count, the kernel takes them back when it needs them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import trio

from kvp2p.client import Client, open_client
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.filling import make_namespace, until_known, write_keys
from scripts.benchmarks.nodes import Cluster, Node, anonymous_mb, cluster
from scripts.benchmarks.results import Figure, Row, Spread, at_most, run_async

VALUE = b"v" * 200
NODE_MB_MAX = 100  # DESIGN §8
NODE_BUDGETS = (at_most(NODE_MB_MAX, "leader_node_mb"), at_most(NODE_MB_MAX, "peer_node_mb"))
SETTLE_SECONDS = 0.5
SAMPLE_SECONDS = 0.05

Memory = dict[str, float]


class Watch:
    """The greatest memory of each process of some nodes since it began."""

    def __init__(self, leader: Node, peer: Node) -> None:
        self._processes = {
            "leader_node_mb": (leader.node_process,),
            "peer_node_mb": (peer.node_process,),
            "gateway_mb": peer.gateway_processes,
            "api_mb": (peer.api_process,),
        }
        self.greatest: Memory = {}

    def look(self) -> Memory:
        """Return the memory of now, the greatest where there are several gateways."""
        now = {name: max(map(anonymous_mb, processes)) for name, processes in self._processes.items()}
        self.greatest = {name: max(amount, self.greatest.get(name, 0.0)) for name, amount in now.items()}
        return now

    async def during(self, work: Callable[[], Awaitable[object]]) -> Memory:
        """Look again and again while something is done, and return the greatest."""
        self.greatest = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_looking)
            await work()
            nursery.cancel_scope.cancel()
        self.look()
        return self.greatest

    async def _keep_looking(self) -> None:
        while True:
            self.look()
            await trio.sleep(SAMPLE_SECONDS)


def measure(effort: Effort) -> Figure:
    sizes = effort.pick(500, 10_000), effort.pick(5_000, 100_000)
    found: dict[str, list[Memory]] = {}
    for number in range(effort.repetitions):
        effort.tell(f"memory: {sizes[-1]} keys, {number + 1} of {effort.repetitions}")
        with cluster(2) as running:
            for what, memory in run_async(_measure_once, running, sizes).items():
                found.setdefault(what, []).append(memory)
    method = (
        f"two nodes, one gateway each, new in each repetition; {len(VALUE)} B values written through the peer as fast as that goes. RssAnon "
        f"in MB (10^6 bytes): at rest {SETTLE_SECONDS:g} s after the last write is everywhere, or the greatest seen every {SAMPLE_SECONDS * 1000:g} ms while writing. "
        "Gateway and api are the peer's."
    )
    *first, last = (Row(what, spreads(samples)) for what, samples in found.items())
    return Figure("memory", method, effort.repetitions, (*first, replace(last, budgets=NODE_BUDGETS)))


def spreads(found: Sequence[Memory]) -> dict[str, Spread]:
    """Return the spread of each process's memory over repetitions."""
    return {name: Spread.of([memory[name] for memory in found]) for name in found[0]}


async def _measure_once(running: Cluster, sizes: tuple[int, int]) -> dict[str, Memory]:
    watch = Watch(running.leader, running.others[0])
    found = {"0 keys, at rest": watch.look()}
    async with (
        open_client(running.others[0].data_url, running.token) as writer,
        open_client(running.leader.data_url, running.token) as reader,
    ):
        namespace = await make_namespace(writer)
        await until_known(writer, namespace)
        written = 0
        for size in sizes:
            numbers = range(written, size)
            found[f"up to {size} keys, while writing"] = await watch.during(
                partial(_write, writer, reader, namespace, numbers)
            )
            await trio.sleep(SETTLE_SECONDS)
            found[f"{size} keys, at rest"] = watch.look()
            written = size
    return found


async def _write(writer: Client, reader: Client, namespace: str, numbers: range) -> None:
    newest = await write_keys(writer, namespace, numbers, lambda _: VALUE)
    await reader.get(namespace, f"key/{numbers[-1]}", min_version=newest)
