"""Full disks: what may go into the reserve that a store keeps, and what a group does in it."""

from __future__ import annotations

import pytest

from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import Batch, FrameBatch, NamespaceSweep, Settle, StampedWrite, WalkBatch, WriteGroup
from kvp2p.core.messages import Frame, KeyedRow, WalkPart
from kvp2p.core.operations import Condition, CreateNamespace, Delete, DeleteNamespace, Ending, Operation
from kvp2p.ids import SYSTEM_NAMESPACE, Stamp
from tests.core.harness import (
    ACCOUNT,
    EPOCH_MS,
    SPACE,
    apply,
    designated,
    issuer_of,
    new_store,
    put,
    recounted_hash,
    tombstone_row,
    value_at,
    value_row,
    vector,
    version,
)

X = issuer_of("x")
DELETE = Delete(SYSTEM_NAMESPACE, b"k")
VALUE: KeyedRow = (SYSTEM_NAMESPACE, b"a", value_row(1))
TOMBSTONE: KeyedRow = (SYSTEM_NAMESPACE, b"b", tombstone_row(2))


def group(*writes: tuple[Operation, ...], first: int = 1) -> WriteGroup:
    stamped = tuple(StampedWrite(Stamp(first + 10 * number), write) for number, write in enumerate(writes))
    return WriteGroup(1, X, stamped, EPOCH_MS)


def frame(*rows: KeyedRow) -> FrameBatch:
    positions = tuple((Stamp(index + 1), index) for index in range(len(rows)))
    return FrameBatch(Frame(1, X, Stamp(0), Stamp(len(rows)), positions, rows))


def walk(*rows: KeyedRow) -> WalkBatch:
    return WalkBatch(WalkPart(1, None, None, rows, vector(x=9)), None)


@pytest.mark.parametrize(
    ("batch", "may"),
    [
        (group((DELETE,), (put(b"l"),)), True),
        (group((DeleteNamespace(SPACE), DELETE)), True),
        (group((DELETE, put(b"l"))), False),
        (group((CreateNamespace(SPACE, ACCOUNT, "t"),)), False),
        (WriteGroup(2, X, (StampedWrite(Stamp(1), (put(b"leader"),)),), EPOCH_MS, designated("a", 2)), True),
        (frame(TOMBSTONE), True),
        (frame(TOMBSTONE, VALUE), False),
        (walk(), True),
        (walk(TOMBSTONE), False),
        (Settle(designated("a")), True),
        (NamespaceSweep(SPACE, 1), True),
    ],
)
def test_a_full_disk_takes_what_makes_room_and_who_leads(batch: Batch, may: bool) -> None:
    assert batch.may_use_reserve is may


def test_on_a_full_disk_a_group_deletes_and_refuses_what_needs_room() -> None:
    store = new_store()
    apply(store, group((put(b"k"),), (put(b"keep"),)))
    mixed = group(
        (put(b"l"),), (DELETE,), (DELETE, put(b"m")), (Delete(SYSTEM_NAMESPACE, b"n", Condition.PRESENT),), first=100
    )
    with store.write() as txn:
        result = apply_batch(txn, mixed, is_full=True)
    endings = [(outcome.ending, outcome.code) for outcome in result.outcomes]
    assert endings == [
        (Ending.REFUSED, "disk_full"),
        (Ending.ACKED, ""),
        (Ending.REFUSED, "disk_full"),
        (Ending.REFUSED, "precondition_failed"),
    ]
    assert result.outcomes[1].version == version(110)
    assert result.frame is not None
    assert [stamp for stamp, _ in result.frame.positions] == [110]
    assert (result.vector, result.state_hash) == (vector(x=110), recounted_hash(store))
    assert [value_at(store, key) for key in (b"k", b"keep", b"l", b"m")] == [None, b"value", None, None]


def test_on_a_full_disk_a_new_term_is_stored_with_its_rows() -> None:
    store = new_store()
    begun = WriteGroup(2, X, (StampedWrite(Stamp(1), (put(b"leader"),)),), EPOCH_MS, designated("a", 2))
    with store.write() as txn:
        result = apply_batch(txn, begun, is_full=True)
    assert [outcome.ending for outcome in result.outcomes] == [Ending.ACKED]
    assert value_at(store, b"leader") == b"value"
