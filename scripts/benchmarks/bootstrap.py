"""An empty peer that joins: how fast it gets everything, against what a bare websocket carries on this machine in the same run."""

from __future__ import annotations

from kvp2p.client import open_client
from kvp2p.core.port import ReadTransaction
from scripts.benchmarks.arriving import seconds_until
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.filling import make_namespace, write_keys
from scripts.benchmarks.nodes import Cluster, cluster
from scripts.benchmarks.results import Figure, Row, Spread, at_least, run_async
from scripts.benchmarks.websocket import mb_per_s, other_end

SMALL_BYTES, LARGE_BYTES = 200, 65_536
RATIO_MIN = 0.7  # DESIGN §8


def measure(effort: Effort) -> Figure:
    with other_end() as port:
        websocket: list[tuple[float, float]] = []
        rows = []
        for value_bytes, keys in (
            (SMALL_BYTES, effort.pick(10_000, 100_000)),
            (LARGE_BYTES, effort.pick(400, 4_000)),
        ):
            rows.append(_measure_joining(value_bytes, keys, port, websocket, effort))
    down, up = zip(*websocket, strict=True)
    rows += [
        Row("websocket, server to client", {"mb_per_s": Spread.of(down)}),
        Row("websocket, client to server", {"mb_per_s": Spread.of(up)}),
    ]
    method = (
        f"nodes join a cluster of one with {effort.pick(10_000, 100_000)} keys of {SMALL_BYTES} B or {effort.pick(400, 4_000)} of {LARGE_BYTES} B, "
        "one after the other; from the start of the walk (log) until the file of the new node has everything. MB are 10^6 bytes of keys and values. Websocket: "
        "trio-websocket between two processes, messages of 256 KiB, before each joining; the ratio is to the faster direction of that moment."
    )
    return Figure("bootstrap", method, effort.repetitions, tuple(rows))


def _measure_joining(
    value_bytes: int, keys: int, port: int, websocket: list[tuple[float, float]], effort: Effort
) -> Row:
    with cluster(1) as running:
        effort.tell(f"bootstrap: writing {keys} keys of {value_bytes} B")
        megabytes = run_async(_fill, running, value_bytes, keys) / 1e6
        effort.tell(f"bootstrap: {effort.repetitions} nodes join and get {megabytes:.0f} MB each")
        rates, ratios = [], []
        for number in range(2, effort.repetitions + 2):
            websocket.append(mb_per_s(port, effort.pick(30, 200)))
            name = f"n{number}"
            seconds = seconds_until(running, ("add",), name, "walk_started", _has_all)
            running.call("kill", name)  # it has shown what it was to show, and would take from the next one
            rates.append(megabytes / seconds)
            ratios.append(rates[-1] / max(websocket[-1]))
    cells = {"mb_per_s": Spread.of(rates), "ratio_to_websocket": Spread.of(ratios)}
    return Row(f"joining, {keys} keys of {value_bytes} B", cells, (at_least(RATIO_MIN, "ratio_to_websocket"),))


def _has_all(transaction: ReadTransaction) -> bool:
    """Tell whether the walk has ended and every value is whole."""
    return transaction.complete and next(transaction.pending_rows(), None) is None


async def _fill(running: Cluster, value_bytes: int, keys: int) -> int:
    """Write distinct values and return the bytes of keys and values."""
    value = bytes(value_bytes - 8)
    async with open_client(running.leader.data_url, running.token) as client:
        namespace = await make_namespace(client)
        depth = max(8, min(512, 4_000_000 // value_bytes))
        await write_keys(client, namespace, range(keys), lambda number: number.to_bytes(8, "big") + value, depth=depth)
    return sum(len(f"key/{number}") for number in range(keys)) + keys * value_bytes
