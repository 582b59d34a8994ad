"""The figures of large values, with values of 1 MB, on real processes; and that no mark gets lost on the way to them."""

import json
from typing import Any, cast

import pytest
import trio

from kvp2p.runtime.node_port import NodePort
from scripts.benchmarks import large, large_memory
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.propagation import Marks

VALUE_BYTES = 1_000_000  # not a whole number of chunks, nor of the pieces that a client sends
EFFORT = Effort(seconds=0.4, repetitions=3, is_quick=True)


class SlowNode:
    """Answers a question for marks after a while, and forgets what it has told, as a node does."""

    def __init__(self) -> None:
        self.noted = 0
        self.is_asked = trio.Event()

    async def query(self, what: str) -> bytes:
        assert what == "spans"
        marks = [["frame", number, "", ""] for number in range(self.noted)]
        self.noted = 0
        self.is_asked.set()
        await trio.sleep(0.05)
        return json.dumps({"marks": marks, "lost": 0}).encode()


async def test_marks_that_were_asked_for_are_kept_when_the_asking_ends() -> None:
    node = SlowNode()
    marks = Marks({"n1": cast("NodePort", node)})
    await marks.start()
    node.noted, node.is_asked = 3, trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(marks.keep)
        await node.is_asked.wait()
        nursery.cancel_scope.cancel()
    assert len(marks.found["n1"]) == 3


@pytest.mark.slow
def test_delays_beside_large_values_and_their_throughput_are_told() -> None:
    figure = large.measure(EFFORT, nodes=3, value_bytes=VALUE_BYTES, seconds_min=0.8)
    cells: dict[str, Any] = {row.what: row.cells for row in figure.rows}
    size = "0.954 MiB"
    for what in (large.WRITE, large.STORED):
        assert 0 < cells[f"{what}: alone"]["p50_ms"].least < 1_000
        assert 0 < cells[f"{what}: beside {size}"]["p50_ms"].least < 1_000
    for phase in ("alone", f"beside {size}"):
        assert 100 < cells[f"{large.GAP}: {phase}"]["p50_ms"].median < 500  # of 250 ms
        busy = cells[f"busy: {phase}"]
        assert 0 < busy["nodes_percent"].median <= busy["processors_percent"].median * 1.05  # counted in ticks of 10 ms
    added = {row.what for row in figure.rows if row.budgets}
    assert added == {f"{what}: added" for what in (large.WRITE, large.STORED, large.AGE, large.GAP)}
    put, everywhere = cells[f"PUT of {size}"]["mb_per_s"], cells[f"PUT, until everywhere of {size}"]["mb_per_s"]
    assert 0 < everywhere.least < put.least
    assert cells[f"GET of {size}"]["mb_per_s"].least > 0
    assert cells[f"PUT, beside small writes of {size}"]["mb_per_s"].least > 0
    assert "3 nodes" in figure.method


@pytest.mark.slow
def test_memory_with_large_values_at_once_is_told_with_what_was_refused() -> None:
    figure = large_memory.measure(EFFORT, VALUE_BYTES, at_once=4)
    before, put, get = figure.rows
    assert put.what == "4 × PUT at once"
    assert get.what == "4 × GET at once"
    assert len(put.budgets) == len(get.budgets) == 2
    for process in ("leader_node_mb", "peer_node_mb", "gateway_mb", "api_mb"):
        assert 5 < before.cells[process].least <= put.cells[process].greatest < 200
    for row in (put, get):
        assert row.cells["refused"].greatest == 0
        assert row.cells["mb_per_s"].least > 0
