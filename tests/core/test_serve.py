"""Serving: how a log and a store are cut into messages, and what is never sent."""

from __future__ import annotations

from kvp2p.core import system_rows
from kvp2p.core.batches import FrameBatch, WalkBatch
from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.messages import Frame, Pull, PullEnd, WalkPart, WalkRequest
from kvp2p.core.serve import split_frame
from kvp2p.ids import SYSTEM_NAMESPACE, NamespaceId, Stamp
from kvp2p.limits import FRAME_BYTES_MAX, FRAME_POSITIONS_MAX, PULL_BYTES_MAX
from kvp2p.store.memory import MemoryStore
from tests.core.harness import (
    SPACE,
    all_rows,
    answer,
    apply,
    frame_of,
    issuer_of,
    new_store,
    tombstone_row,
    value_row,
    vector,
    version,
)

X = issuer_of("x")
BIG = 100 * 1024


def pull(store: MemoryStore, after: int = 0, bytes_max: int = PULL_BYTES_MAX) -> tuple[list[Frame], PullEnd]:
    *frames, end = answer(store, Pull(1, X, Stamp(after), bytes_max))
    assert isinstance(end, PullEnd)
    return [frame for frame in frames if isinstance(frame, Frame)], end


def walk(store: MemoryStore) -> list[WalkPart]:
    parts: list[WalkPart] = []
    while not parts or parts[-1].upto is not None:
        (part,) = answer(store, WalkRequest(1, parts[-1].upto if parts else None))
        assert isinstance(part, WalkPart)
        parts.append(part)
    return parts


def big_store(count: int) -> MemoryStore:
    store = new_store()
    for stamp in range(1, count + 1):
        row = value_row(stamp, bytes(BIG))
        positions = ((Stamp(stamp), 0),)
        apply(
            store,
            FrameBatch(
                Frame(1, X, Stamp(stamp - 1), Stamp(stamp), positions, ((SYSTEM_NAMESPACE, b"%d" % stamp, row),))
            ),
        )
    return store


def damage(store: MemoryStore, key: bytes) -> None:
    with store.write() as txn:
        row = txn.row(SYSTEM_NAMESPACE, key)
        assert row is not None
        txn.put_row(SYSTEM_NAMESPACE, key, row[:-1] + b"!")


def test_a_pull_is_answered_with_frames_that_follow_on_each_other() -> None:
    frames, end = pull(big_store(5))
    assert [(frame.after, frame.upto) for frame in frames] == [(0, 2), (2, 4), (4, 5)]
    assert end == PullEnd(X, Stamp(5), trimmed=False)
    follower = new_store()
    for frame in frames:
        apply(follower, FrameBatch(frame))
    assert len(all_rows(follower)) == 5


def test_a_pull_ends_at_the_bytes_that_were_asked_for() -> None:
    frames, end = pull(big_store(5), after=1, bytes_max=1)
    assert [(frame.after, frame.upto) for frame in frames] == [(1, 3)]
    assert end == PullEnd(X, Stamp(3), trimmed=False)


def test_a_pull_of_what_is_not_there_ends_at_once() -> None:
    assert pull(big_store(1), after=1) == ([], PullEnd(X, Stamp(1), trimmed=False))


def test_a_row_is_sent_once_for_all_its_positions_and_positions_are_bounded() -> None:
    count = FRAME_POSITIONS_MAX + 1
    positions = tuple((Stamp(stamp), 0) for stamp in range(1, count + 1))
    frame = Frame(1, X, Stamp(0), Stamp(count), positions, ((SYSTEM_NAMESPACE, b"k", value_row(count)),))
    first, second = split_frame(frame)
    assert (len(first.positions), len(first.rows)) == (FRAME_POSITIONS_MAX, 1)
    assert (second.after, second.upto, len(second.rows)) == (FRAME_POSITIONS_MAX, count, 1)


def test_a_log_below_its_floor_is_trimmed() -> None:
    store = new_store(complete=False)
    assert pull(store)[1].trimmed, "a node that is not complete serves nobody"
    row = (SYSTEM_NAMESPACE, b"k", value_row(5))
    apply(store, WalkBatch(WalkPart(1, None, None, (row,), vector(x=5)), vector(x=5)))
    assert pull(store, after=4) == ([], PullEnd(X, Stamp(4), trimmed=True))
    assert pull(store, after=5) == ([], PullEnd(X, Stamp(5), trimmed=False))


def test_a_frame_ends_before_a_row_that_is_gone_or_damaged() -> None:
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 1, 2, 3)))
    damage(store, b"key2")
    frames, end = pull(store)
    assert [frame.upto for frame in frames] == [1]
    assert end == PullEnd(X, Stamp(1), trimmed=True)
    with store.write() as txn:
        txn.delete_row(SYSTEM_NAMESPACE, b"key2")
    assert pull(store)[1] == PullEnd(X, Stamp(1), trimmed=True)


def test_a_deleted_namespace_is_served_as_its_tombstone() -> None:
    store = new_store()
    namespace_row = (SYSTEM_NAMESPACE, system_rows.namespace_key(SPACE), tombstone_row(3))
    rows = ((SPACE, b"a", value_row(1)), (SPACE, b"b", value_row(2)), namespace_row)
    positions = ((Stamp(1), 0), (Stamp(2), 1), (Stamp(3), 2))
    apply(store, FrameBatch(Frame(1, X, Stamp(0), Stamp(3), positions, rows)))
    ((frame,), _) = pull(store)
    assert frame.rows == (namespace_row,)
    assert frame.positions == ((1, 0), (2, 0), (3, 0))
    (part,) = walk(store)
    assert part.rows == (namespace_row,)


def test_a_walk_gives_every_row_once_in_order() -> None:
    store = big_store(5)
    parts = walk(store)
    assert [len(part.rows) for part in parts] == [2, 2, 1]
    assert [row for part in parts for row in part.rows] == all_rows(store)
    assert all(part.vector == vector(x=5) for part in parts)


def test_a_part_of_a_walk_has_no_more_positions_than_a_frame() -> None:
    """Its bytes see to that: a row of no value and a key of one byte takes over 80."""
    store = new_store()
    with store.write() as txn:
        for n in range(FRAME_POSITIONS_MAX):
            txn.put_row(NamespaceId(b"N" * 16), b"%d" % n, encode_row(Kind.VALUE, b"", None, 0, version(1)))
    parts = walk(store)
    assert sum(len(part.rows) for part in parts) == FRAME_POSITIONS_MAX
    assert all(sum(len(row) for _, _, row in part.rows) <= FRAME_BYTES_MAX for part in parts)
    assert len(parts) == 2


def test_a_walk_of_an_empty_store_is_one_empty_part() -> None:
    assert [part.rows for part in walk(new_store())] == [()]


def test_a_walk_ends_before_a_damaged_row_instead_of_telling_its_removal() -> None:
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 1, 2, 3)))
    damage(store, b"key2")
    (part,) = answer(store, WalkRequest(1, None))
    assert isinstance(part, WalkPart)
    assert part.upto == (SYSTEM_NAMESPACE, b"key1")
    assert answer(store, WalkRequest(1, part.upto)) == []
