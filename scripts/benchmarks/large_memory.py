"""Anonymous memory of a node's processes while many clients write, or read, values of 25 MiB at once.

Two nodes; the requests go to the one that does not lead, so that a written value passes its gateway, its node, the mesh and the leader.
"""

from __future__ import annotations

from functools import partial

import trio

from kvp2p.client import open_client
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.filling import make_namespace, until_known
from scripts.benchmarks.large import VALUE_BYTES
from scripts.benchmarks.memory import NODE_BUDGETS, Memory, Watch, spreads
from scripts.benchmarks.moving import Moved, Mover
from scripts.benchmarks.nodes import Cluster, cluster
from scripts.benchmarks.results import Figure, Row, Spread, run_async

AT_ONCE = 50  # issue 3
SETTLE_SECONDS = 0.5


def measure(effort: Effort, value_bytes: int = VALUE_BYTES, at_once: int = 0) -> Figure:
    at_once = at_once or effort.pick(8, AT_ONCE)
    with cluster(2) as running:
        rows = run_async(_measure, running, at_once, value_bytes, effort)
    method = (
        f"two nodes, one gateway each; {at_once} clients write {value_bytes} B each at the same time through the peer, then as many read them. Greatest RssAnon in "
        f"MB (10^6 bytes), looked at every 50 ms; gateway and api are the peer's. MB/s: of all together. Refused: requests answered 429 or 503 and asked again."
    )
    return Figure("large-memory", method, effort.repetitions, tuple(rows))


async def _measure(running: Cluster, at_once: int, value_bytes: int, effort: Effort) -> list[Row]:
    peer = running.others[0]
    watch = Watch(running.leader, peer)
    memory: dict[str, list[Memory]] = {"at rest, before": []}
    moved: dict[str, list[list[Moved]]] = {}
    async with open_client(peer.data_url, running.token) as client:
        namespace = await make_namespace(client)
        await until_known(client, namespace)
        mover = Mover(running, peer, namespace, value_bytes, keys=1)
        for number in range(effort.repetitions):
            effort.tell(f"large-memory: {at_once} requests at once, {number + 1} of {effort.repetitions}")
            await trio.sleep(SETTLE_SECONDS)
            memory["at rest, before"].append(watch.look())
            for kind in ("PUT", "GET"):
                what = f"{at_once} × {kind} at once"
                answers = moved.setdefault(what, [])
                work = partial(_move, mover, kind.lower(), at_once, answers)
                memory.setdefault(what, []).append(await watch.during(work))
    return [Row("at rest, before", spreads(memory.pop("at rest, before")))] + [
        Row(what, spreads(found) | _cells(moved[what]), NODE_BUDGETS) for what, found in memory.items()
    ]


async def _move(mover: Mover, kind: str, at_once: int, answers: list[list[Moved]]) -> None:
    answers.append(await mover.move(kind, at_once=at_once, count=1))


def _cells(runs: list[list[Moved]]) -> dict[str, Spread]:
    return {
        "mb_per_s": Spread.of(
            [sum(one.value_bytes for one in run) / 1e6 / max(one.seconds for one in run) for run in runs]
        ),
        "refused": Spread.of([sum(one.refused for one in run) for run in runs]),
    }
