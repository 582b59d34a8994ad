"""Purges: what one removes, who may apply it, and that nothing of it comes back [I8]."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.core import serve as serving
from kvp2p.core import system_rows
from kvp2p.core.apply import summarize
from kvp2p.core.batches import FrameBatch, NamespaceSweep, StampedWrite, WalkBatch, WriteGroup
from kvp2p.core.entry import is_tombstone
from kvp2p.core.messages import Frame, Message, Pull, PullEnd, WalkPart, WalkRequest
from kvp2p.core.operations import CreateNamespace, DeleteNamespace, Ending, Operation, Put
from kvp2p.core.purge import PLACE_BYTES, Obstacle, decode_purge, encode_purge, purge_at, purge_key
from kvp2p.core.vector import EMPTY_VECTOR
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import SYSTEM_NAMESPACE, VERSION_ZERO, Stamp
from kvp2p.limits import PULL_BYTES_MAX
from kvp2p.store.memory import MemoryStore
from tests.core.harness import (
    ACCOUNT,
    EPOCH_MS,
    SPACE,
    all_rows,
    answer,
    apply,
    frame_of,
    issuer_of,
    issuer_rows,
    new_store,
    recounted_hash,
    tombstone_row,
    value_at,
    value_row,
    vector,
    version,
)
from tests.core.purges import (
    below,
    fenced,
    filled,
    frame,
    give,
    issuer_row,
    order,
    part_of,
    purge_frame,
    purge_of,
    upto,
)

FLOOR = vector(x=10)
ALL = below(11)  # a fence over all that `filled` has


def keys(store: MemoryStore) -> list[bytes]:
    return [key for _, key, _ in all_rows(store)]


def pull(store: MemoryStore, after: int, issuer: str = "x", bytes_max: int = PULL_BYTES_MAX) -> list[Message]:
    return answer(store, Pull(1, issuer_of(issuer), Stamp(after), bytes_max))


def write(store: MemoryStore, stamp: int, *operations: Operation) -> None:
    """Write as the leader of issuer x."""
    group = WriteGroup(1, issuer_of("x"), (StampedWrite(Stamp(stamp), operations),), EPOCH_MS)
    assert apply(store, group).outcomes[0].ending is Ending.ACKED


# --- its bytes


@given(
    st.binary(min_size=PLACE_BYTES, max_size=PLACE_BYTES),
    st.integers(1, 9),
    st.integers(0, 9),
    st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9)),
)
def test_a_purge_is_read_back_from_its_position(place: bytes, fence: int, base: int, floor: dict[str, int]) -> None:
    purge = purge_of(below(base + fence), vector(**floor), below(base), place)
    assert purge_at(purge_key(purge)) == purge


def test_bytes_that_are_no_purge_are_refused() -> None:
    whole = encode_purge(purge_of(below(5), FLOOR))
    with pytest.raises(RemoteProtocolError, match="cannot have 60 bytes"):
        decode_purge(whole[:60])
    with pytest.raises(RemoteProtocolError, match="not above its base"):
        decode_purge(encode_purge(purge_of(below(5), FLOOR, base=below(5))))


def test_no_row_stands_where_a_purge_does() -> None:
    assert purge_at((SYSTEM_NAMESPACE, system_rows.LEADER_KEY)) is None
    assert purge_at((SPACE, purge_key(purge_of(below(5), FLOOR))[1])) is None


# --- what it removes


def test_tombstones_and_expired_rows_below_the_fence_go_and_nothing_else() -> None:
    store = filled(new_store())
    result = give(store, 10, 20, purge_of(below(7), FLOOR, expired_upto=upto(150)))
    assert keys(store) == [b"key1", b"key10", b"key5", b"key7", b"key8", b"key9"], "10 and 8 are beyond the fence"
    assert result.vector == fenced(below(7), x=20)
    assert result.rows_changed == 4
    assert result.state_hash == recounted_hash(store)


def test_a_row_that_expires_after_the_time_of_the_purge_stays() -> None:
    store = filled(new_store())
    give(store, 10, 20, purge_of(ALL, FLOOR, expired_upto=upto(199)))
    assert b"key9" in keys(store)
    assert b"key3" not in keys(store)


def test_a_row_that_has_expired_and_is_beyond_the_fence_stays() -> None:
    store = filled(new_store())
    give(store, 10, 20, purge_of(below(9), FLOOR, expired_upto=upto(300)))
    assert b"key9" in keys(store)


def test_after_a_purge_the_rows_are_those_that_live() -> None:
    store = filled(new_store())
    give(store, 10, 20, purge_of(ALL, FLOOR, expired_upto=upto(300)))
    with store.read() as txn:
        totals = txn.totals(SYSTEM_NAMESPACE)
        assert totals is not None
        assert (totals.rows, totals.live) == (3, 3)
        assert (txn.tombstones, list(txn.expiring()), len(list(txn.all_rows()))) == (0, [], 3)
        garbage = summarize(txn).garbage
        assert (garbage.oldest_grave, garbage.first_expiry_s, garbage.tombstones) == (None, 0, 0)
        assert garbage.log_positions == 11, "ten positions and the Purge are left in the log"


def test_rows_of_issuers_that_ended_below_the_fence_go_with_it() -> None:
    store = new_store()
    rows = (
        issuer_row(1, "e", closed=4),
        issuer_row(2, "o", closed=None),
        issuer_row(3, "l", closed=9),
        (SYSTEM_NAMESPACE, system_rows.issuer_key(issuer_of("u")), value_row(4, b"no issuer")),
        (SYSTEM_NAMESPACE, system_rows.issuer_key(issuer_of("d")), tombstone_row(9)),
        (SYSTEM_NAMESPACE, b"issues", value_row(6)),
        issuer_row(10, "n", closed=4),
    )
    stamps = (1, 2, 3, 4, 9, 6, 10)
    positions = tuple(sorted((Stamp(stamp), index) for index, stamp in enumerate(stamps)))
    apply(store, FrameBatch(Frame(1, issuer_of("x"), Stamp(0), Stamp(10), positions, rows)))
    result = give(store, 10, 20, purge_of(below(8), FLOOR))
    left = {issuer_of(name) for name in "oln"}  # open, ended beyond the fence, closed by a row beyond it
    assert set(issuer_rows(store)) == left
    assert result.issuers is not None
    assert {row.issuer for row in result.issuers} == left
    assert system_rows.issuer_key(issuer_of("u")) in keys(store), "what is not readable stays"
    assert b"issues" in keys(store)


# --- who may apply it


def test_a_replica_does_not_apply_a_purge_before_it_covers_the_floor() -> None:
    """Else a version below the fence that it has not had yet would count as covered."""
    store = filled(new_store())
    before = all_rows(store)
    purge = purge_of(ALL, vector(x=10, y=3))
    result = give(store, 10, 20, purge)
    assert result.obstacle is Obstacle.BEHIND
    assert result.vector == vector(x=19), "the vector ends before the Purge"
    assert result.vector.fence == VERSION_ZERO
    assert all_rows(store) == before
    apply(store, FrameBatch(frame_of(0, 3, issuer="y", key=b"of y %d")))
    result = give(store, 10, 20, purge)
    assert (result.obstacle, result.vector) == (Obstacle.NONE, fenced(ALL, x=20))
    assert value_at(store, b"of y 3") == b"value"


def test_a_replica_does_not_apply_a_purge_whose_base_it_has_not_reached() -> None:
    """An earlier Purge is missing, and what that one removed."""
    store = filled(new_store())
    assert give(store.snapshot(), 10, 20, purge_of(ALL, FLOOR)).obstacle is Obstacle.NONE
    later = purge_of(ALL, FLOOR, base=below(5))
    assert give(store.snapshot(), 10, 20, later).obstacle is Obstacle.BEHIND
    give(store, 10, 15, purge_of(below(5), FLOOR))
    assert give(store, 15, 20, later).obstacle is Obstacle.NONE


def test_a_replica_does_not_apply_a_purge_while_it_holds_foreign_versions_below_the_fence() -> None:
    """The leader has not heard of them: they may stand nowhere else, or have been removed everywhere else."""
    store = filled(new_store())
    apply(store, FrameBatch(frame_of(0, 5, issuer="y", key=b"of y %d")))
    result = give(store, 10, 20, purge_of(ALL, FLOOR))
    assert (result.obstacle, result.vector) == (Obstacle.FOREIGN, vector(x=19, y=5))
    assert value_at(store, b"of y 5") == b"value"


def test_foreign_versions_beyond_the_fence_are_no_obstacle() -> None:
    store = filled(new_store())
    apply(store, FrameBatch(frame_of(0, 15, issuer="y", key=b"of y %d")))
    floor = vector(x=10, y=12)  # what y adds next is beyond the fence
    apply(store, FrameBatch(Frame(1, issuer_of("x"), Stamp(10), Stamp(15), (), ())))
    result = give(store, 15, 20, purge_of(ALL, floor))
    assert (result.obstacle, result.vector) == (Obstacle.NONE, fenced(ALL, x=20, y=15))
    assert value_at(store, b"of y 15") == b"value"


def test_a_foreign_row_above_the_vector_is_an_obstacle_too() -> None:
    """It came along as the newer row of a key, and its log is not here."""
    store = filled(new_store())
    newer = (SYSTEM_NAMESPACE, b"key", value_row(5, issuer="y"))
    apply(store, FrameBatch(Frame(1, issuer_of("w"), Stamp(0), Stamp(1), ((Stamp(1), 0),), (newer,))))
    result = give(store, 10, 20, purge_of(ALL, vector(x=10, w=1)))
    assert result.above == vector(y=5)
    assert result.obstacle is Obstacle.FOREIGN


@pytest.mark.parametrize("is_above", [False, True])
def test_a_walk_that_was_given_up_does_not_make_foreign_versions_known(is_above: bool) -> None:
    """Its peer has the fence already; this replica has not, until the walk's end removes what is foreign."""
    store = filled(new_store())
    rows = ((SYSTEM_NAMESPACE, b"of y", value_row(5, issuer="y")),)
    issuer, floor = ("w", vector(x=10, w=5)) if is_above else ("y", FLOOR)
    apply(store, FrameBatch(Frame(1, issuer_of(issuer), Stamp(0), Stamp(5), ((Stamp(5), 0),), rows)))
    purge = purge_of(ALL, floor)
    assert give(store, 10, 20, purge).obstacle is Obstacle.FOREIGN
    peers = fenced(ALL, x=20)
    living = [row for row in all_rows(store) if not is_tombstone(row[2])]
    apply(store, WalkBatch(part_of(peers, living[0], to=living[0][1]), None))
    assert give(store, 10, 20, purge).obstacle is Obstacle.FOREIGN
    assert value_at(store, b"of y") == b"value"
    result = apply(store, WalkBatch(part_of(peers, *living[:-1]), peers))
    assert (result.vector, result.above) == (peers, EMPTY_VECTOR)
    assert value_at(store, b"of y") is None, "nobody else has it: it was removed there [I6]"


def test_a_purge_waits_until_a_deleted_namespace_is_swept() -> None:
    """Its tombstone would go, and nobody would free its rows then."""
    store = new_store()
    write(store, 1, CreateNamespace(SPACE, ACCOUNT, "t"))
    write(store, 2, Put(SPACE, b"a", b"v"), Put(SPACE, b"b", b"v"))
    write(store, 4, DeleteNamespace(SPACE))
    purge = purge_of(below(5), vector(x=4))
    result = give(store, 4, 20, purge)
    assert (result.obstacle, result.vector) == (Obstacle.SWEEPING, vector(x=19))
    assert order(store, 30, below(5), vector(x=4)).frame is None, "nor does a leader order one"
    apply(store, NamespaceSweep(SPACE, 1))
    assert give(store, 4, 20, purge).obstacle is Obstacle.SWEEPING
    apply(store, NamespaceSweep(SPACE, 1))
    assert give(store, 4, 20, purge).obstacle is Obstacle.NONE
    with store.read() as txn:
        assert list(txn.all_rows()) == []
        assert list(txn.all_totals()) == [(SYSTEM_NAMESPACE, txn.totals(SYSTEM_NAMESPACE))]


def test_an_unswept_namespace_whose_tombstone_stays_is_no_obstacle() -> None:
    store = filled(new_store())
    write(store, 11, CreateNamespace(SPACE, ACCOUNT, "t"))
    write(store, 12, Put(SPACE, b"a", b"v"))
    write(store, 13, DeleteNamespace(SPACE))
    assert give(store, 13, 20, purge_of(ALL, FLOOR)).obstacle is Obstacle.NONE


def test_a_purge_that_the_fence_has_passed_removes_what_it_names_and_asks_for_nothing() -> None:
    """The fence came with another leader's Purge. What this one calls expired goes here as it does elsewhere."""
    store = filled(new_store())
    give(store, 10, 20, purge_of(ALL, FLOOR, expired_upto=upto(100)))
    assert b"key9" in keys(store)
    older = purge_of(below(10), vector(z=99), base=VERSION_ZERO, expired_upto=upto(200))
    result = apply(store, FrameBatch(purge_frame(0, 30, older, issuer="y")))
    assert (result.obstacle, result.vector) == (Obstacle.NONE, fenced(ALL, x=20, y=30))
    assert keys(store) == [b"key1", b"key5", b"key7"]


def test_a_purge_that_is_covered_is_not_applied_again() -> None:
    store = filled(new_store())
    purge = purge_of(ALL, FLOOR)
    give(store, 10, 20, purge)
    apply(store, FrameBatch(frame(tombstone_row(21), after=20, first=21)))
    before = all_rows(store)
    assert give(store, 10, 20, purge).rows_changed == 0
    assert all_rows(store) == before


def test_a_purge_over_a_gap_is_not_applied() -> None:
    store = filled(new_store())
    assert give(store, 12, 20, purge_of(ALL, FLOOR)).vector == vector(x=10)


# --- nothing comes back


@pytest.fixture
def purged() -> MemoryStore:
    """Give a store from which all tombstones of `filled`, and all that expired, are gone."""
    store = filled(new_store())
    give(store, 10, 20, purge_of(ALL, FLOOR, expired_upto=upto(300)))
    return store


def test_a_late_copy_of_a_row_below_the_fence_is_dropped(purged: MemoryStore) -> None:
    before = all_rows(purged)
    late = (SYSTEM_NAMESPACE, b"key2", value_row(1))
    frames = [
        Frame(1, issuer_of("x"), Stamp(0), Stamp(25), ((Stamp(1), 0), (Stamp(25), 0)), (late,)),
        Frame(1, issuer_of("y"), Stamp(0), Stamp(4), ((Stamp(4), 0),), (late,)),  # of a deposed leader, never heard of
    ]
    for one in frames:
        apply(purged, FrameBatch(one))
        assert all_rows(purged) == before
    apply(purged, WalkBatch(part_of(vector(x=3), *before, late), vector(x=3)))
    assert all_rows(purged) == before


def test_a_lower_version_of_a_deposed_leader_does_not_come_back_after_the_tombstone_is_gone(
    purged: MemoryStore,
) -> None:
    late = frame(value_row(9, issuer="y"), first=9, issuer="y")
    result = apply(purged, FrameBatch(late))
    assert value_at(purged, b"key9") is None
    assert result.vector.covers(version(9, "y"))


def test_an_issuer_that_the_fence_has_dropped_is_not_read_as_one_of_which_nothing_is_known(purged: MemoryStore) -> None:
    other = new_store()
    apply(other, FrameBatch(frame_of(0, 4, 6, issuer="y", key=b"of y %d")))
    peers = fenced(ALL, x=20)
    assert peers.top_of(issuer_of("y")) is None
    apply(other, WalkBatch(part_of(peers), peers))
    assert all_rows(other) == [], "the peer has had them, and removed them [I6]"
    assert peers.reach(1, issuer_of("y")) == 10
    assert pull(purged, 4, issuer="y") == [PullEnd(issuer_of("y"), Stamp(4), trimmed=True)]


def test_a_walk_takes_the_peers_older_row_in_place_of_one_that_its_vector_covers() -> None:
    """A leader with a rolled-back disk wrote it below a fence that it had forgotten: it stands nowhere else."""
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 9, issuer="y")))
    peers = fenced(ALL, x=20)
    older = (SYSTEM_NAMESPACE, b"key9", value_row(3, b"older"))
    result = apply(store, WalkBatch(part_of(peers, older), peers))
    assert value_at(store, b"key9") == b"older"
    assert result.state_hash == recounted_hash(store)


def test_a_walk_keeps_a_newer_row_that_the_peer_does_not_cover() -> None:
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 15, issuer="y")))
    older = (SYSTEM_NAMESPACE, b"key15", value_row(3, b"older"))
    apply(store, WalkBatch(part_of(fenced(ALL, x=20), older), fenced(ALL, x=20)))
    assert value_at(store, b"key15") == b"value"


def test_the_log_is_not_served_below_a_fence_that_came_with_a_walk() -> None:
    store = filled(new_store())
    peers = fenced(below(7), x=20)
    living = tuple(row for row in all_rows(store) if not is_tombstone(row[2]))
    result = apply(store, WalkBatch(part_of(peers, *living), peers))
    assert result.floor == fenced(below(7), x=20)
    assert pull(store, 8) == [PullEnd(issuer_of("x"), Stamp(8), trimmed=True)]


def test_who_walks_a_node_that_has_not_caught_up_with_its_own_walk_is_not_comparable_either() -> None:
    """Rows are gone there that its vector still covers: another node with that vector has them, and H would be called a fault."""
    walked = filled(new_store())
    later = fenced(ALL, x=20)
    apply(walked, WalkBatch(part_of(vector(x=10), *all_rows(walked)[:1], to=b"key1"), None))
    rest = WalkPart(1, (SYSTEM_NAMESPACE, b"key1"), None, (), later)
    result = apply(walked, WalkBatch(rest, vector(x=10)))
    assert (result.vector, result.above, keys(walked)) == (vector(x=10), vector(x=20), [b"key1"])
    (part,) = answer(walked, WalkRequest(1, None))
    assert isinstance(part, WalkPart)
    assert (part.vector, part.above) == (vector(x=10), vector(x=20))
    third = new_store(complete=False)
    result = apply(third, WalkBatch(part, part.vector))
    assert (result.vector, result.above) == (vector(x=10), vector(x=20))
    assert give(third, 10, 20, purge_of(ALL, FLOOR)).above == EMPTY_VECTOR


def test_a_node_that_is_far_from_what_it_covers_serves_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WALK_ABOVE_ISSUERS_MAX", 1)
    store = filled(new_store())
    with store.write() as txn:
        txn.set_above(vector(x=10, y=5))
    (part,) = answer(store, WalkRequest(1, None))
    assert isinstance(part, WalkPart)
    assert part.above == vector(y=5), "what is covered by now is left out"
    with store.write() as txn:
        txn.set_above(vector(y=5, z=5))
    assert answer(store, WalkRequest(1, None)) == []


# --- how it is served


def test_a_purge_stands_in_the_log_and_is_served_at_its_position() -> None:
    store = filled(new_store())
    first, second = purge_of(below(5), FLOOR), purge_of(below(7), FLOOR, base=below(5))
    give(store, 10, 20, first)
    give(store, 20, 22, second)
    apply(store, FrameBatch(frame(value_row(23), value_row(24), after=22, first=23)))
    *frames, end = pull(store, 8)
    assert all(isinstance(one, Frame) for one in frames)
    told = [(one.after, one.upto, one.purge, len(one.rows)) for one in frames if isinstance(one, Frame)]
    assert told == [(8, 10, None, 2), (10, 20, first, 0), (20, 22, second, 0), (22, 24, None, 2)]
    assert end == PullEnd(issuer_of("x"), Stamp(24), trimmed=False)
    follower = filled(new_store())
    for one in frames:
        assert isinstance(one, Frame)
        assert not apply(follower, FrameBatch(one)).obstacle
    assert all_rows(follower) == all_rows(store)


def test_positions_below_the_fence_are_not_served_any_more() -> None:
    """Each may be that of a row that is gone."""
    store = filled(new_store())
    give(store, 10, 20, purge_of(below(7), FLOOR))
    assert pull(store, 3) == [PullEnd(issuer_of("x"), Stamp(3), trimmed=True)]
    assert isinstance(pull(store, 6)[0], Frame)


def test_a_frame_ends_before_a_position_whose_row_is_gone() -> None:
    """A walk that was given up has removed it; the Purge that explains it has not come yet."""
    store = filled(new_store())
    peers = fenced(ALL, x=20)
    apply(store, WalkBatch(part_of(peers, to=b"key3"), None))
    *frames, end = pull(store, 0)
    assert frames == []
    assert end == PullEnd(issuer_of("x"), Stamp(0), trimmed=True)
    *frames, end = pull(store, 3)
    assert [one.upto for one in frames if isinstance(one, Frame)] == [9], "10 is the next that is gone"
    assert end == PullEnd(issuer_of("x"), Stamp(9), trimmed=True)


def test_an_answer_of_many_purges_is_bounded_as_any_other() -> None:
    store = filled(new_store())
    for number in range(8):
        give(
            store,
            10 + number,
            11 + number,
            purge_of(below(3 + number), FLOOR, base=below(2 + number) if number else VERSION_ZERO),
        )
    *frames, end = pull(store, 10, bytes_max=300)
    assert len(frames) == 3, "each has about a hundred bytes"
    assert end == PullEnd(issuer_of("x"), Stamp(13), trimmed=False)


def test_a_walk_from_a_node_that_has_purged_brings_its_fence() -> None:
    store = filled(new_store())
    give(store, 10, 20, purge_of(ALL, FLOOR))
    (part,) = answer(store, WalkRequest(1, None))
    assert isinstance(part, WalkPart)
    empty = new_store(complete=False)
    result = apply(empty, WalkBatch(part, part.vector))
    assert result.vector == fenced(ALL, x=20)
    assert result.state_hash == recounted_hash(store)
    assert result.floor == result.vector
