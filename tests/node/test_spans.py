"""The marks that a node keeps of its writes: only for who asks, in the order of a write's way, never more than fit one answer."""

import json
from pathlib import Path

from kvp2p.core.events import Received, Write
from kvp2p.core.messages import Digest, ForwardOutcome
from kvp2p.core.operations import Ending, Outcome
from kvp2p.core.vector import EMPTY_VECTOR
from kvp2p.ids import NodeId
from kvp2p.limits import LOCAL_MESSAGE_BYTES_MAX, SPAN_MARKS_MAX
from kvp2p.node.spans import Spans
from kvp2p.runtime.wall_clock import WallClock
from tests.node.rig import a_put, fake_mesh, in_ms, make_namespace, make_store, until, write

A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)
U64_MAX = 2**64 - 1


async def test_a_forwarded_write_leaves_a_mark_at_each_step_of_its_way(tmp_path: Path) -> None:
    stores = [make_store(tmp_path / "a", A, leader=A), make_store(tmp_path / "b", B, leader=A)]
    async with fake_mesh() as mesh:
        leader = await mesh.start(stores[0], A)
        via = await mesh.start(stores[1], B, A)
        await until(lambda: leader.leads)
        await make_namespace(leader.driver)
        await until(lambda: A in via.driver.machine.board.peers and len(via.driver.machine.board.vector) > 0)
        spans = [Spans(leader.driver), Spans(via.driver)]
        assert [one.take() for one in spans] == [{"marks": [], "lost": 0}] * 2
        deadline_ns = in_ms(5_000)
        outcomes: list[Outcome] = []
        await via.driver.write(a_put(b"k"), deadline_ns, outcomes.append)
        await until(lambda: bool(outcomes))
        version = outcomes[0].version
        assert version is not None
        at_leader, at_via = ({mark[0]: mark for mark in one.take()["marks"]} for one in spans)
    for store in stores:
        store.close()
    stamp, issuer = version[4:12].hex(), version[12:].hex()
    request = at_via["write"][2]
    assert at_via["write"][3] == deadline_ns
    assert at_leader["forward"][2:] == (B.hex(), request)
    assert at_leader["stored"][2:4] == at_via["stored"][2:4] == at_via["frame"][2:] == (issuer, stamp)
    assert at_via["outcome"][2] == request
    assert at_via["reply"][2:] == (request, version.hex())
    to_leader = [at_via["write"][1], at_leader["forward"][1], at_leader["stored"][4], at_leader["stored"][1]]
    told = [*to_leader, at_via["outcome"][1], at_via["reply"][1]]
    shown = [*to_leader, at_via["frame"][1], at_via["stored"][4], at_via["stored"][1]]
    assert told == sorted(told)
    assert shown == sorted(shown)
    assert at_via["stored"][1] <= at_via["reply"][1]  # the reply is held until the write is here


async def test_a_node_is_watched_only_while_somebody_asks(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", A, leader=A)
    async with fake_mesh() as mesh:
        driver = (await mesh.start(store, A)).driver
        await make_namespace(driver)
        spans, machine = Spans(driver), driver.machine
        spans.take()
        spans.take()
        await write(driver, a_put(b"k"))
        assert driver.machine is not machine
        assert spans.take()["marks"]
        spans._until_ns = 0
        await write(driver, a_put(b"k"))
        assert driver.machine is machine
        assert spans.take() == {"marks": [], "lost": 0}
    store.close()


async def test_age_of_a_digest_goes_by_the_clock_that_the_node_was_given(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", A, leader=A)
    async with fake_mesh() as mesh:
        driver = (await mesh.start(store, A)).driver
        driver.clock = WallClock(-3_600_000)
        spans = Spans(driver)
        spans.take()
        made_ms = driver.clock.now_ms() - 40
        digest = Digest(EMPTY_VECTOR, bytes(16), True, EMPTY_VECTOR, None, None, True, made_ms)
        spans.note(Received(B, digest), [], 5)
        (mark,) = [mark for mark in spans.take()["marks"] if mark[0] == "digest"]
    store.close()
    assert mark[:3] == ("digest", 5, B.hex())
    assert 40 <= mark[3] < 10_000


async def test_marks_that_nobody_fetches_are_bounded_and_counted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", A, leader=A)
    async with fake_mesh() as mesh:
        spans = Spans((await mesh.start(store, A)).driver)
        spans.take()
        for _ in range(SPAN_MARKS_MAX // 2):
            spans._add("forward", U64_MAX, A.hex(), U64_MAX)
            spans._add("stored", U64_MAX, "f" * 16, "f" * 16, U64_MAX)
        spans.note(Write(7, a_put(b"k"), U64_MAX), [], 5)
        spans.note(Received(B, ForwardOutcome(7, Outcome(Ending.ACKED))), [], 6)
        document = spans.take()
    store.close()
    assert document["lost"] == 2
    assert document["marks"][-2:] == [("write", 5, 7, U64_MAX), ("outcome", 6, 7)]
    assert len(json.dumps(document)) < LOCAL_MESSAGE_BYTES_MAX - 100
