"""Walks with bounds: a part is looked through in slices, and a deleted namespace is passed over at one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvp2p.core import apply as applying
from kvp2p.core import system_rows
from kvp2p.core.batches import FrameBatch, WalkBatch
from kvp2p.core.messages import Frame, KeyedRow, RowKey, WalkPart, WalkRequest
from kvp2p.core.serve import serve
from kvp2p.core.vector import EMPTY_VECTOR
from kvp2p.ids import SYSTEM_NAMESPACE, NamespaceId, Stamp
from kvp2p.limits import FRAME_BYTES_MAX, KEY_BYTES_MAX
from kvp2p.store.memory import MemoryStore
from tests.core.harness import (
    SPACE,
    Cluster,
    all_rows,
    apply,
    digest_of,
    frame_of,
    issuer_of,
    new_store,
    recounted_hash,
    tombstone_row,
    value_row,
    vector,
)

SENT: KeyedRow = (SYSTEM_NAMESPACE, b"key4", value_row(4))
LAST_KEY = b"\xff" * KEY_BYTES_MAX


def keys_in(store: MemoryStore) -> list[bytes]:
    return [key for _, key, _ in all_rows(store)]


@pytest.fixture
def _two_rows_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "WALK_ROWS_LOOKED_AT_MAX", 2)


@pytest.mark.usefixtures("_two_rows_a_slice")
def test_what_a_part_tells_to_be_gone_goes_in_slices_and_the_vector_rises_with_the_last() -> None:
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 1, 2, 3, 4, 5)))
    batch = WalkBatch(WalkPart(1, None, None, (SENT,), vector(x=5, y=9)), vector(x=5, y=9))
    first = apply(store, batch)
    assert keys_in(store) == [b"key3", b"key4", b"key5"]
    assert first.walk_rest == WalkBatch(batch.part, batch.end, (SYSTEM_NAMESPACE, b"key2"))
    assert (first.vector, first.above) == (vector(x=5), vector(x=5, y=9)), (
        "not comparable: rows are missing that it covers"
    )
    assert first.state_hash == recounted_hash(store)
    second = apply(store, first.walk_rest)
    assert keys_in(store) == [b"key4", b"key5"]
    assert second.walk_rest is not None
    third = apply(store, second.walk_rest)
    assert keys_in(store) == [b"key4"]
    assert (third.walk_rest, third.vector, third.above) == (None, vector(x=5, y=9), EMPTY_VECTOR)
    assert third.state_hash == recounted_hash(store)


@pytest.mark.usefixtures("_two_rows_a_slice")
def test_a_slice_ends_where_its_part_ends() -> None:
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 1, 2, 3)))
    part = WalkPart(1, None, (SYSTEM_NAMESPACE, b"key2"), (), vector(x=9))
    result = apply(store, WalkBatch(part, None))
    assert result.walk_rest is not None
    assert apply(store, result.walk_rest).walk_rest is None
    assert keys_in(store) == [b"key3"]


@pytest.mark.usefixtures("_two_rows_a_slice")
def test_a_node_stores_all_slices_of_a_part_before_it_goes_on() -> None:
    cluster = Cluster()
    a = cluster.add("a")
    apply(a.store, FrameBatch(frame_of(0, 1, 2, 3, 4, 5)))
    a.start()
    a.meets("z", digest_of(vector(x=9), floor=vector(x=9)))
    assert a.sent_to("z", WalkRequest) == [WalkRequest(1, None)]
    a.hold_disk()
    a.hears("z", WalkPart(1, None, None, (SENT,), vector(x=9)))
    for left in ([b"key3", b"key4", b"key5"], [b"key4", b"key5"]):
        a.finish()
        assert keys_in(a.store) == left
        assert len(a.disk) == 1, "the next slice is on its way"
        assert a.machine.board.vector == vector(x=5)
    a.finish()
    assert keys_in(a.store) == [b"key4"]
    assert a.machine.board.vector == vector(x=9)
    assert not a.disk


class Counting:
    """A read transaction that counts the rows that were looked at."""

    def __init__(self, txn: Any) -> None:
        self.txn = txn
        self.looked_at = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.txn, name)

    def all_rows(self, after: RowKey | None = None) -> Iterator[KeyedRow]:
        for row in self.txn.all_rows(after):
            self.looked_at += 1
            yield row


@contextmanager
def counted(store: MemoryStore) -> Iterator[Any]:
    with store.read() as txn:
        yield Counting(txn)


def space(number: int) -> NamespaceId:
    return NamespaceId(number.to_bytes(16, "big"))


def store_with_dead(namespaces: list[NamespaceId], rows: int) -> MemoryStore:
    """Make a store with deleted namespaces that are not swept yet."""
    store = new_store()
    dead = tuple((SYSTEM_NAMESPACE, system_rows.namespace_key(one), tombstone_row(1)) for one in namespaces)
    apply(store, FrameBatch(Frame(1, issuer_of("x"), Stamp(0), Stamp(1), ((Stamp(1), 0),), dead)))
    with store.write() as txn:
        for one in namespaces:
            for number in range(rows):
                txn.put_row(one, b"%d" % number, value_row(1))
            txn.put_row(one, LAST_KEY, value_row(1))
    return store


def test_rows_of_a_deleted_namespace_are_not_looked_at_one_by_one() -> None:
    store = store_with_dead([SPACE], 500)
    with store.write() as txn:
        txn.put_row(NamespaceId(b"\xff" * 16), b"k", value_row(1))
    with counted(store) as txn:
        (part,) = serve(txn, WalkRequest(1, None))
        assert txn.looked_at == 3
    assert isinstance(part, WalkPart)
    assert [key for _, key, _ in part.rows] == [system_rows.namespace_key(SPACE), b"k"]
    assert part.upto is None


def test_a_part_ends_among_deleted_namespaces_when_it_has_passed_enough_of_them() -> None:
    """So many that passing them is work too: each counts as much as the bytes that say so little as a key."""
    count = FRAME_BYTES_MAX // 32 + 100
    namespaces = [space(number) for number in range(1, count)]
    store = store_with_dead(namespaces, 0)
    after: RowKey | None = (SYSTEM_NAMESPACE, LAST_KEY)
    parts: list[WalkPart] = []
    while not parts or after is not None:
        with store.read() as txn:
            (part,) = serve(txn, WalkRequest(1, after))
        assert isinstance(part, WalkPart)
        assert part.rows == ()
        assert part.upto is None or after is None or part.upto > after
        parts.append(part)
        after = part.upto
    assert len(parts) == 2
    assert parts[0].upto is not None
    assert parts[0].upto[0] in namespaces


def test_a_damaged_row_behind_a_deleted_namespace_ends_the_part_there() -> None:
    store = store_with_dead([SPACE], 3)
    with store.write() as txn:
        txn.put_row(NamespaceId(b"\xff" * 16), b"k", value_row(1)[:-1] + b"!")
    after = (SYSTEM_NAMESPACE, LAST_KEY)
    with store.read() as txn:
        (part,) = serve(txn, WalkRequest(1, after))
        assert isinstance(part, WalkPart)
        assert (part.rows, part.upto) == ((), (SPACE, LAST_KEY))
        assert list(serve(txn, WalkRequest(1, part.upto))) == []
