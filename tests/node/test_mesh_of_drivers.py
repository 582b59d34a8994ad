"""Two or three whole replicas, driver and store, linked in memory: writes through followers, leaders that end, nodes that join."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from kvp2p.core.messages import Forward, ForwardOutcome, Frame, Message, WalkPart
from kvp2p.core.operations import Ending, Outcome
from kvp2p.ids import NodeId
from kvp2p.limits import CHUNK_BYTES
from tests.node.rig import (
    FakeMesh,
    Node,
    a_put,
    chunked_put,
    chunks_kept,
    fake_mesh,
    has_key,
    in_ms,
    large_value,
    make_namespace,
    make_store,
    state_of,
    until,
    upload,
    write,
    write_large,
)

A, B, C = NodeId(b"a" * 16), NodeId(b"b" * 16), NodeId(b"c" * 16)
Loses = Callable[[NodeId, NodeId, Message], bool]


def nothing_is_lost(source: NodeId, target: NodeId, message: Message) -> bool:
    return False


def frames_are_lost(source: NodeId, target: NodeId, message: Message) -> bool:
    return isinstance(message, Frame)


def has_delivered(mesh: FakeMesh, kind: type, target: NodeId) -> bool:
    return any(to == target and isinstance(message, kind) for _, to, message in mesh.delivered)


@asynccontextmanager
async def cluster(tmp_path: Path, *followers: NodeId) -> AsyncIterator[tuple[FakeMesh, list[Node]]]:
    """Run a leader with one namespace, and followers that have it too."""
    stores = {node: make_store(tmp_path / node[:1].decode(), node, leader=A) for node in (A, *followers)}
    try:
        async with fake_mesh() as mesh:
            first = await mesh.start(stores[A], A)
            nodes = [first, *[await mesh.start(stores[follower], follower, A) for follower in followers]]
            await until(lambda: first.leads)
            await make_namespace(first.driver)
            await until(
                lambda: (
                    are_equal(nodes) and all(len(node.driver.machine.board.peers) == len(followers) for node in nodes)
                )
            )
            mesh.delivered.clear()
            yield mesh, nodes
    finally:
        for store in stores.values():
            store.open_gate()
            store.close()


def are_equal(nodes: list[Node]) -> bool:
    states = [state_of(node.store) for node in nodes]
    return all(state == states[0] for state in states) and len(states[0][0]) > 0


async def test_a_write_through_a_follower_is_told_when_its_own_store_has_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, B) as (mesh, (leader, follower)):
        at_the_end: list[tuple[Outcome, bool, bool]] = []

        def tell(outcome: Outcome) -> None:
            at_the_end.append((outcome, has_key(follower.store, b"k"), has_key(leader.store, b"k")))

        follower.store.close_gate()
        await follower.driver.write(a_put(b"k"), in_ms(5_000), tell)
        await until(lambda: has_delivered(mesh, ForwardOutcome, B) and has_delivered(mesh, Frame, B))
        assert has_key(leader.store, b"k")
        await trio.sleep(0.05)
        assert at_the_end == [], "held until this replica has the write"
        follower.store.open_gate()
        await until(lambda: bool(at_the_end))
        [(outcome, has_follower, has_leader)] = at_the_end
    assert (outcome.ending, outcome.visible) == (Ending.ACKED, True)
    assert has_follower
    assert has_leader


async def test_when_the_frame_came_before_the_leader_ended_the_write_is_visible(tmp_path: Path) -> None:
    async with cluster(tmp_path, B) as (mesh, (leader, follower)):
        outcomes: list[Outcome] = []
        seen: list[bool] = []

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            seen.append(has_key(follower.store, b"k"))

        follower.store.close_gate()
        await follower.driver.write(a_put(b"k"), in_ms(5_000), tell)
        await until(lambda: has_delivered(mesh, ForwardOutcome, B) and has_delivered(mesh, Frame, B))
        await mesh.stop(leader)
        assert outcomes == []
        follower.store.open_gate()
        await until(lambda: bool(outcomes))
    assert (outcomes[0].ending, outcomes[0].visible) == (Ending.ACKED, True)
    assert seen == [True]


async def test_when_the_frame_was_lost_with_the_leader_the_write_is_acknowledged_as_pending(tmp_path: Path) -> None:
    async with cluster(tmp_path, B) as (mesh, (leader, follower)):
        mesh.loses = frames_are_lost
        outcomes: list[Outcome] = []
        await follower.driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        await until(lambda: has_delivered(mesh, ForwardOutcome, B))
        await mesh.stop(leader)
        told_before_the_hold_ended = list(outcomes)
        await until(lambda: bool(outcomes))
        assert not has_key(follower.store, b"k")
        assert has_key(leader.store, b"k"), "acknowledged means synced at the leader [I5]"
    assert told_before_the_hold_ended == []
    assert (outcomes[0].ending, outcomes[0].visible) == (Ending.ACKED, False)


async def test_when_the_leader_ends_before_its_answer_the_write_is_unknown_and_then_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path, B) as (mesh, (leader, follower)):
        leader.store.close_gate()
        outcomes: list[Outcome] = []
        await follower.driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        await until(lambda: has_delivered(mesh, Forward, A))
        leader.is_up = False
        mesh.cut(A, B)
        await until(lambda: bool(outcomes))
        refused = await write(follower.driver, a_put(b"k"))
        leader.store.open_gate()
    assert outcomes[0].ending is Ending.UNKNOWN
    assert (refused.ending, refused.code) == (Ending.REFUSED, "no_leader")


async def test_a_lost_frame_is_pulled_while_the_leader_lives(tmp_path: Path) -> None:
    async with cluster(tmp_path, B) as (mesh, (leader, follower)):
        lost: list[Message] = []

        def the_first_frame_is_lost(source: NodeId, target: NodeId, message: Message) -> bool:
            if isinstance(message, Frame) and not lost:
                lost.append(message)
                return True
            return False

        mesh.loses = the_first_frame_is_lost
        outcome = await write(follower.driver, a_put(b"k"))
        await until(lambda: are_equal([leader, follower]))
    assert len(lost) == 1
    assert (outcome.ending, outcome.visible) == (Ending.ACKED, True)


@pytest.mark.parametrize("ahead", [B, C])
async def test_survivors_become_equal_when_the_leader_ends_in_the_middle_of_a_stream(
    tmp_path: Path, ahead: NodeId
) -> None:
    async with cluster(tmp_path, B, C) as (mesh, (leader, *survivors)):
        one_hears = {node.node: node for node in survivors}[ahead]
        mesh.loses = lambda source, target, message: isinstance(message, Frame) and target != ahead and source == A
        acked: list[bytes] = []
        for number in range(40):
            key = b"key-%d" % number
            if (await write(leader.driver, a_put(key))).ending is Ending.ACKED:
                acked.append(key)
            if number == 20:
                mesh.loses = frames_from_the_leader_are_lost
        await until(lambda: has_key(one_hears.store, b"key-20"))
        await mesh.stop(leader)
        mesh.loses = nothing_is_lost
        await until(lambda: are_equal(survivors))
        assert len(acked) == 40
        kept = [key for key in acked if has_key(survivors[0].store, key)]
        assert kept == acked[: len(kept)], "what is missing is the end of the log, never its middle [I3]"
        assert len(kept) >= 21
        assert all(not node.driver.machine.readiness.is_diverged for node in survivors)


def frames_from_the_leader_are_lost(source: NodeId, target: NodeId, message: Message) -> bool:
    return isinstance(message, Frame) and source == A


async def test_an_empty_node_joins_by_a_walk_while_writes_go_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (mesh, [leader]):
        for number in range(30):
            await write(leader.driver, tuple(a_put(b"%d-%d" % (number, one), bytes(2_000))[0] for one in range(20)))
        store = make_store(tmp_path / "joining", C, complete=False)
        joining = await mesh.start(store, C, A)
        assert not joining.driver.machine.readiness.is_ready
        for number in range(20):
            await write(leader.driver, a_put(b"0-%d" % number, b"newer"))
        await until(lambda: joining.driver.machine.board.complete and are_equal([leader, joining]))
        await until(lambda: joining.driver.machine.readiness.is_ready)
        parts = [message for _, target, message in mesh.delivered if target == C and isinstance(message, WalkPart)]
        assert len(parts) >= 4
        outcome = await write(joining.driver, a_put(b"by the new one"))
        assert (outcome.ending, outcome.visible) == (Ending.ACKED, True)
        assert has_key(joining.store, b"by the new one")
        await mesh.stop(joining)
        store.close()


async def test_a_leader_that_starts_again_leads_under_a_new_issuer_and_followers_go_on(tmp_path: Path) -> None:
    async with cluster(tmp_path, B) as (mesh, (leader, follower)):
        before = await write(follower.driver, a_put(b"before"))
        await mesh.stop(leader)
        again = await mesh.start(leader.store, A, B)
        await until(lambda: again.leads and A in follower.driver.machine.board.peers)
        await until(lambda: B in again.driver.machine.board.peers)
        after = await write(follower.driver, a_put(b"after"))
        await until(lambda: are_equal([again, follower]))
    assert before.version is not None
    assert after.version is not None
    assert before.version < after.version
    assert before.version[12:] != after.version[12:], "one start, one issuer [I2]"


# --- large values


async def test_a_large_value_through_a_follower_is_whole_everywhere_and_goes_when_it_is_superseded(
    tmp_path: Path,
) -> None:
    value = Random(1).randbytes(5 * CHUNK_BYTES + 7)
    async with cluster(tmp_path, B, C) as (_, nodes):
        leader, follower, _ = nodes
        outcome = await write_large(follower.driver, b"k", value)
        assert (outcome.ending, outcome.visible) == (Ending.ACKED, True)
        assert large_value(follower.store, b"k") == value
        await until(lambda: all(large_value(node.store, b"k") == value for node in nodes))
        assert are_equal(nodes)
        await write(leader.driver, a_put(b"k"))
        await until(lambda: all(chunks_kept(node.store) == 0 for node in nodes))


async def test_a_leader_that_ends_under_a_large_write_leaves_nothing_of_it(tmp_path: Path) -> None:
    value = Random(1).randbytes(3 * CHUNK_BYTES)
    operations, chunks = chunked_put(b"k", value, CHUNK_BYTES)
    async with cluster(tmp_path, B) as (mesh, (leader, follower)):
        number = await upload(follower.driver, chunks)
        leader.store.close_gate()
        outcomes: list[Outcome] = []
        await follower.driver.write(operations, in_ms(10_000), outcomes.append)
        await until(lambda: has_delivered(mesh, Forward, A))
        mesh.cut(A, B)
        await until(lambda: bool(outcomes))
        assert outcomes[0].ending is Ending.UNKNOWN
        leader.store.open_gate()
        follower.driver.end_upload(number)
        await until(lambda: chunks_kept(leader.store) == chunks_kept(follower.store) == 0)
        await until(lambda: not leader.driver.machine.board.batches_in_flight())
        assert not has_key(leader.store, b"k")
