"""Rows that name chunks: counted references, and what readers see until every chunk is here [I3, I4]."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from kvp2p.core import apply as apply_module
from kvp2p.core import chunk_rows, system_rows
from kvp2p.core.batches import ChunkBatch, FrameBatch, NamespaceSweep, WalkBatch
from kvp2p.core.chunk_rows import Pending, pending_of, shown_row
from kvp2p.core.entry import ChunkId, ChunkList, chunk_id, decode_chunk_list, encode_chunk_list, row_version
from kvp2p.core.messages import Frame, KeyedRow, WalkPart
from kvp2p.core.port import Hidden, PendingRow
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.core.whole import Whole
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import SYSTEM_NAMESPACE, VERSION_ZERO, Stamp, version_term
from kvp2p.limits import CHUNK_BYTES, VALUE_BYTES_MAX
from kvp2p.store.memory import MemoryStore
from tests.core.harness import (
    SPACE,
    apply,
    chunked_row,
    chunks_in,
    chunks_of_value,
    frame_with,
    issuer_of,
    new_store,
    shown_value,
    tombstone_row,
    value_row,
    vector,
    version,
)

OLD = Random(1).randbytes(200)
NEW = Random(2).randbytes(252)


def frame(store: MemoryStore, stamp: int, row: bytes, key: bytes = b"k", issuer: str = "x") -> None:
    """Apply the next position of a log."""
    term = version_term(row_version(row))
    with store.read() as txn:
        after = txn.vector.reach(term, issuer_of(issuer))
    apply(store, FrameBatch(frame_with(after, stamp, key=key, row=row, issuer=issuer, term=term)))


def give(store: MemoryStore, value: bytes) -> None:
    """Let all chunks of a value arrive."""
    for content in chunks_of_value(value):
        apply(store, ChunkBatch(contents=((chunk_id(content), content),)))


def pending(store: MemoryStore) -> Pending:
    with store.read() as txn:
        return pending_of(txn)


def whole(store: MemoryStore) -> Whole:
    with store.read() as txn:
        return Whole(txn.vector, txn.floor, pending_of(txn))


def chunk_ids(value: bytes) -> tuple[ChunkId, ...]:
    return tuple(chunk_id(content) for content in chunks_of_value(value))


def test_readers_see_the_old_value_until_the_new_one_is_whole() -> None:
    store = new_store()
    frame(store, 1, chunked_row(1, OLD))
    assert shown_value(store, b"k") is None
    assert pending(store).wanted == chunk_ids(OLD)
    give(store, OLD)
    assert shown_value(store, b"k") == OLD
    frame(store, 2, chunked_row(2, NEW))
    first, second, last = chunks_of_value(NEW)
    assert pending(store) == Pending((version(2),), wanted=chunk_ids(NEW), hidden=(Hidden(version(2), version(2)),))
    for content in (last, first):
        apply(store, ChunkBatch(contents=((chunk_id(content), content),)))
        assert shown_value(store, b"k") == OLD
        chunks_in(store)
    give(store, second)
    assert shown_value(store, b"k") == NEW
    assert set(chunks_in(store)) == set(chunk_ids(NEW))
    assert pending(store) == Pending()


def test_a_pending_value_that_is_superseded_lets_go_of_its_chunks_and_readers_go_on() -> None:
    store = new_store()
    frame(store, 1, value_row(1, b"small"))
    frame(store, 2, chunked_row(2, OLD))
    give(store, OLD[:100])
    assert len(chunks_in(store)) == 1
    frame(store, 3, chunked_row(3, NEW))
    assert shown_value(store, b"k") == b"small"
    assert chunks_in(store) == []
    frame(store, 4, tombstone_row(4))
    assert shown_value(store, b"k") is None
    assert pending(store) == Pending()
    frame(store, 5, chunked_row(5, NEW))
    assert shown_value(store, b"k") is None, "the tombstone is shown"
    with store.read() as txn:
        shown = shown_row(txn, SPACE, b"k")
    assert shown == tombstone_row(4)


def test_chunks_that_values_share_are_kept_while_one_needs_them() -> None:
    store = new_store()
    frame(store, 1, chunked_row(1, OLD), b"k")
    frame(store, 2, chunked_row(2, OLD + NEW), b"l")
    give(store, OLD)
    give(store, OLD + NEW)
    assert shown_value(store, b"k") == OLD
    assert shown_value(store, b"l") == OLD + NEW
    frame(store, 3, chunked_row(3, OLD), b"l")
    assert shown_value(store, b"l") == OLD, "all of it is here"
    frame(store, 4, tombstone_row(4), b"k")
    assert set(chunks_in(store)) == set(chunk_ids(OLD))
    frame(store, 5, tombstone_row(5), b"l")
    assert chunks_in(store) == []


def test_contents_nobody_waits_for_are_dropped_and_wrong_ones_refused() -> None:
    store = new_store()
    frame(store, 1, chunked_row(1, OLD))
    result = apply(store, ChunkBatch(contents=((chunk_id(NEW), NEW), (chunk_ids(OLD)[0], b"wrong"))))
    assert result.chunks_refused == (chunk_ids(OLD)[0],)
    assert chunks_in(store) == []
    assert result.pending is None
    content = chunks_of_value(OLD)[0]
    assert apply(store, ChunkBatch(contents=2 * ((chunk_id(content), content),))).pending is not None
    assert len(chunks_in(store)) == 1


def test_what_is_told_of_pending_rows_is_bounded_and_begins_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_rows, "PENDING_TOLD_MAX", 2)
    monkeypatch.setattr(chunk_rows, "CHUNK_ROWS_MAX", 2)
    store = new_store()
    for n in (1, 2, 3):
        frame(store, n, chunked_row(n, b"%d" % n), b"%d" % n)
    told = pending(store)
    assert (told.versions, told.has_more) == ((version(1), version(2)), True)
    assert told.wanted == (chunk_id(b"1"), chunk_id(b"2"))
    give(store, b"3")
    assert shown_value(store, b"3") is None, "only the first ones are looked at"
    give(store, b"1")
    assert shown_value(store, b"3") == b"3", "and as soon as it is one of these"
    assert pending(store).versions == (version(2),)


def test_of_the_rows_behind_the_first_ones_a_chunk_each_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_rows, "CHUNKS_WANTED_FIRST_MAX", 2)
    monkeypatch.setattr(chunk_rows, "CHUNKS_WANTED_MAX", 4)
    store = new_store()
    values = [Random(n).randbytes(200) for n in range(5)]
    for n, value in enumerate(values, 1):
        frame(store, n, chunked_row(n, value), b"%d" % n)
    ids = [chunk_ids(value) for value in values]
    assert pending(store).wanted == (*ids[0], ids[1][0], ids[2][0])
    give(store, values[1])
    assert pending(store).wanted == (*ids[0], ids[2][0], ids[3][0])


def test_a_row_whose_chunks_are_wanted_is_shown_behind_any_number_that_share_a_lost_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_rows, "CHUNKS_WANTED_MAX", 3)
    monkeypatch.setattr(chunk_rows, "CHUNK_ROWS_MAX", 7)
    store = new_store()
    for n in range(1, 7):
        frame(store, n, chunked_row(n, b"lost"), b"%d" % n)
    frame(store, 7, chunked_row(7, b"seventh"), b"seventh")
    frame(store, 8, chunked_row(8, b"eighth"), b"eighth")
    assert pending(store).wanted == (chunk_id(b"lost"), chunk_id(b"seventh")), "of rows that will be looked at only"
    give(store, b"seventh")
    assert shown_value(store, b"seventh") == b"seventh"
    assert pending(store).wanted == (chunk_id(b"lost"), chunk_id(b"eighth"))


def test_rows_behind_those_that_were_looked_at_are_shown_when_the_first_are_superseded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_rows, "CHUNK_ROWS_MAX", 1)
    store = new_store()
    for n in (1, 2, 3):
        frame(store, n, chunked_row(n, b"%d" % n), b"%d" % n)
    give(store, b"2")
    give(store, b"3")
    assert len(pending(store).versions) == 3
    frame(store, 4, tombstone_row(4), b"1")
    assert pending(store) == Pending()
    assert shown_value(store, b"3") == b"3"


# --- what is hidden


def test_positions_that_a_pending_row_came_in_place_of_are_hidden_until_it_is_whole() -> None:
    """A frame names the newest row of a key only: readers may have missed the one before it."""
    store = new_store()
    frame(store, 1, value_row(1, b"first"))
    apply(store, FrameBatch(frame_with(1, 3, 5, 7, key=b"k", row=chunked_row(7, NEW))))
    frame(store, 8, value_row(8), b"other")
    assert pending(store).hidden == (Hidden(version(3), version(7)),)
    assert [stamp for stamp in range(1, 10) if whole(store).shows(version(stamp))] == [1, 2, 8]
    assert [stamp for stamp in range(1, 10) if whole(store).covers(version(stamp))] == [1, 2]
    assert not whole(store).shows(version(8), count=2), "a write with an operation that is hidden"
    assert whole(store).vector() == vector(x=2)
    frame(store, 9, chunked_row(9, OLD))
    assert whole(store).vector() == vector(x=2), "what one pending row hid, the next one hides"
    give(store, OLD)
    assert whole(store).vector() == vector(x=9)
    assert whole(store).covers(version(9))


def test_a_pending_row_tells_by_itself_what_it_may_hide() -> None:
    row = PendingRow(
        version(7), SPACE, b"k", b"", (Hidden(version(3), version(7)), Hidden(version(5, "y"), version(5, "y")))
    )
    assert [row.may_hide_upto(version(stamp)) for stamp in (2, 3, 9)] == [False, True, True]
    assert [row.may_hide_upto(version(stamp, "y")) for stamp in (4, 5)] == [False, True]
    assert not row.may_hide_upto(version(9, "z"))
    assert replace(row, is_walked=True).may_hide_upto(version(1, "z"))


def test_a_position_of_another_issuer_that_lost_to_a_pending_row_is_hidden() -> None:
    store = new_store()
    frame(store, 1, value_row(1, b"first"))
    frame(store, 5, chunked_row(5, NEW, "y", term=2), issuer="y")
    frame(store, 2, value_row(2, b"second"))
    frame(store, 3, value_row(3, b"third"))
    frame(store, 4, value_row(4), b"other")
    assert shown_value(store, b"k") == b"first"
    assert whole(store).vector() == VersionVector([version(1), version(4, "y", term=2)])
    assert not whole(store).shows(version(2))
    assert not whole(store).shows(version(5, "y", term=2))
    assert whole(store).shows(version(4))
    give(store, NEW)
    assert whole(store).vector() == VersionVector([version(4), version(5, "y", term=2)])


def walk(store: MemoryStore, rows: tuple[KeyedRow, ...], peer: VersionVector) -> None:
    apply(store, WalkBatch(WalkPart(1, None, None, rows, peer), peer))


def test_a_pending_row_that_a_walk_brought_hides_all_that_came_without_a_log() -> None:
    store = new_store()
    frame(store, 1, value_row(1, b"first"))
    walk(store, ((SPACE, b"k", chunked_row(7, NEW)), (SPACE, b"other", value_row(4, issuer="z"))), vector(x=9, z=4))
    assert pending(store).is_walked
    assert whole(store).vector() == EMPTY_VECTOR
    assert not whole(store).covers(version(1))
    assert not whole(store).shows(version(8))
    frame(store, 10, value_row(10), b"other")
    assert whole(store).shows(version(10))
    assert not whole(store).covers(version(10))
    frame(store, 11, chunked_row(11, OLD))
    assert pending(store).is_walked, "what it hid is hidden still"
    give(store, OLD)
    assert whole(store).vector() == vector(x=11, z=4)


@pytest.mark.parametrize("looked_at_max", [1, 100])
def test_a_row_that_was_pending_before_a_walk_hides_what_that_covered(
    looked_at_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "WALK_ROWS_LOOKED_AT_MAX", looked_at_max)
    store = new_store()
    frame(store, 5, chunked_row(5, NEW, "y", term=2), issuer="y")
    frame(store, 6, value_row(6, issuer="y", term=2), b"l", issuer="y")
    peer = VersionVector([version(9), version(5, "y", term=2)])
    rows = ((SPACE, b"k", chunked_row(5, NEW, "y", term=2)),)
    result = apply(store, WalkBatch(WalkPart(1, None, None, rows, peer), peer))
    while result.walk_rest is not None:
        result = apply(store, result.walk_rest)
    assert pending(store).is_walked
    assert not whole(store).shows(version(3))
    give(store, NEW)
    assert whole(store).vector() == VersionVector([version(9), version(6, "y", term=2)])


def test_nothing_is_claimed_where_not_all_pending_rows_are_told() -> None:
    told = Pending((version(3),), has_more=True, hidden=(Hidden(version(3), version(3)),))
    judged = Whole(vector(x=9, y=9), EMPTY_VECTOR, told)
    assert judged.vector() == EMPTY_VECTOR
    assert not judged.shows(version(2))
    assert not judged.covers(version(1, "y"))


def test_a_pending_row_below_the_fence_lets_nothing_count() -> None:
    fence = version(50, "z", term=1)
    behind = Pending((version(60),), hidden=(Hidden(version(60), version(60)),))
    below = Pending((version(40),), hidden=(Hidden(version(40), version(40)),))
    has = VersionVector([version(70)], fence)
    assert Whole(has, EMPTY_VECTOR, behind).vector() == VersionVector([version(59)], fence)
    assert Whole(has, EMPTY_VECTOR, below).vector() == EMPTY_VECTOR
    for told, is_there in ((behind, True), (below, False)):
        assert Whole(has, EMPTY_VECTOR, told).covers(version(41)) is is_there
        assert Whole(has, EMPTY_VECTOR, told).covers(version(9, "w"))
    assert Whole(has, EMPTY_VECTOR).vector() == has
    assert Whole(has, EMPTY_VECTOR).covers(VERSION_ZERO)
    for judged in (Whole(has, EMPTY_VECTOR), Whole(has, EMPTY_VECTOR, behind)):
        assert not judged.covers(version(1, "w", term=9))
        assert not judged.shows(version(1, "w", term=9))
    assert Whole(has, EMPTY_VECTOR, behind).at(vector(x=80), EMPTY_VECTOR).vector() == vector(x=59)
    assert Whole(has, EMPTY_VECTOR).at(vector(x=80), EMPTY_VECTOR).vector() == vector(x=80)
    assert Whole(
        vector(x=1), EMPTY_VECTOR, Pending((version(1),), hidden=(Hidden(version(1), version(1)),))
    ).vector() == (EMPTY_VECTOR)


def test_the_chunks_of_a_deleted_namespace_go_when_it_is_swept() -> None:
    store = new_store()
    frame(store, 1, chunked_row(1, OLD), b"k")
    frame(store, 2, chunked_row(2, NEW), b"l")
    give(store, OLD)
    rows = ((SYSTEM_NAMESPACE, system_rows.namespace_key(SPACE), tombstone_row(3)),)
    gone = Frame(1, issuer_of("x"), Stamp(2), Stamp(3), ((Stamp(3), 0),), rows)
    apply(store, FrameBatch(gone))
    apply(store, NamespaceSweep(SPACE, 10))
    assert chunks_in(store) == []
    assert pending(store) == Pending()


def test_a_slice_of_a_sweep_ends_early_when_its_rows_name_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_module, "CHUNKS_SWEPT_MAX", 3)
    store = new_store()
    for n in range(4):
        frame(store, n + 1, chunked_row(n + 1, OLD), b"%d" % n)
    rows = ((SYSTEM_NAMESPACE, system_rows.namespace_key(SPACE), tombstone_row(5)),)
    apply(store, FrameBatch(Frame(1, issuer_of("x"), Stamp(4), Stamp(5), ((Stamp(5), 0),), rows)))
    swept = [apply(store, NamespaceSweep(SPACE, 10)) for _ in range(2)]
    assert [(one.rows_changed, one.namespaces_to_sweep) for one in swept] == [(2, (SPACE,)), (2, ())]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (bytes(12), "cannot have 12 bytes"),
        (bytes(12) + bytes(33), "cannot have 45 bytes"),
        (bytes(12) + bytes(32 * 101), "cannot have"),
        (encode_chunk_list(ChunkList(1, 0, (ChunkId(bytes(32)),))), "break a limit"),
        (encode_chunk_list(ChunkList(1, CHUNK_BYTES + 1, (ChunkId(bytes(32)),))), "break a limit"),
        (encode_chunk_list(ChunkList(0, 1, (ChunkId(bytes(32)),))), "break a limit"),
        (encode_chunk_list(ChunkList(VALUE_BYTES_MAX + 1, CHUNK_BYTES, 100 * (ChunkId(bytes(32)),))), "break a limit"),
        (encode_chunk_list(ChunkList(3, 1, 2 * (ChunkId(bytes(32)),))), "does not have 2 chunks"),
    ],
)
def test_a_chunk_list_that_contradicts_itself_or_a_limit_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(RemoteProtocolError, match=told):
        decode_chunk_list(body)
