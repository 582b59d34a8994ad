"""A peer that was away while others wrote: how fast it takes in what it missed, from the log of a member."""

from __future__ import annotations

from kvp2p.client import open_client
from kvp2p.core.port import ReadTransaction
from kvp2p.ids import Version
from scripts.benchmarks.arriving import seconds_until
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.filling import make_namespace, write_keys
from scripts.benchmarks.nodes import Cluster, Node, cluster
from scripts.benchmarks.results import Figure, Row, Spread, run_async

VALUE = b"v" * 200


def measure(effort: Effort) -> Figure:
    entries = effort.pick(5_000, 30_000)
    with cluster(2) as running:
        namespace = run_async(_make_namespace, running)
        leader, away = running.leader, running.others[0].name
        effort.tell(f"catch-up: {effort.repetitions} × {entries} entries missed")
        seconds = []
        for number in range(effort.repetitions):
            running.call("kill", away)
            newest = run_async(_write, running, leader, namespace, range(number * entries, (number + 1) * entries))

            def has_all(transaction: ReadTransaction, newest: Version = newest) -> bool:
                return transaction.vector.covers(newest)

            seconds.append(seconds_until(running, ("restart", away), away, "link_up", has_all))
    method = (
        f"two nodes, one gateway each; one is killed, {entries} new keys of {len(VALUE)} B are written at the other, it starts again; from its first "
        "link (log) until its file covers the last write."
    )
    cells = {
        "entries_per_s": Spread.of([entries / one for one in seconds]),
        "seconds": Spread.of(seconds),
    }
    return Figure("catch-up", method, effort.repetitions, (Row(f"{entries} entries missed", cells),))


async def _make_namespace(running: Cluster) -> str:
    async with open_client(running.leader.data_url, running.token) as client:
        return await make_namespace(client)


async def _write(running: Cluster, leader: Node, namespace: str, numbers: range) -> Version:
    async with open_client(leader.data_url, running.token) as client:
        return Version(bytes.fromhex(await write_keys(client, namespace, numbers, lambda _: VALUE)))
