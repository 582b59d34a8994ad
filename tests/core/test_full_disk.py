"""Full disks: what may go into the reserve that a store keeps, what a group does in it, and what a node says of it."""

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
    SETTINGS,
    SPACE,
    Cluster,
    Node,
    apply,
    designated,
    digest_of,
    frame_of,
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


# --- readiness


def replica_with_a_full_disk() -> Node:
    """A replica that was ready, is shown an entry by its leader z, and finds no room for it."""
    a = Cluster().add("a", knows="z")
    a.meets("z", digest_of(vector(x=1), designation=designated("z")))
    a.hears("z", frame_of(0, 1))
    assert a.machine.readiness.is_ready
    a.hold_disk()
    finds_no_room(a, 1, 2)
    return a


def finds_no_room(a: Node, *stamps: int) -> None:
    a.hears("z", frame_of(*stamps))
    a.fail()


def test_a_replica_with_a_full_disk_is_unready_as_soon_as_it_hears_of_what_it_cannot_store() -> None:
    a = replica_with_a_full_disk()
    readiness = a.machine.readiness
    assert readiness.is_ready, "nobody has shown that it is durable anywhere else"
    a.hears("z", digest_of(vector(x=2)))
    assert (readiness.is_ready, readiness.has_fallen_behind) == (False, True)
    assert a.notices.count("fallen_behind") == 1
    assert value_at(a.store, b"key1") == b"value", "what it has is served"


def test_a_replica_whose_disk_has_room_again_is_ready_when_it_has_all_that_was_shown_meanwhile() -> None:
    a = replica_with_a_full_disk()
    readiness = a.machine.readiness
    for stamp in (3, 4):
        finds_no_room(a, 1, 2)
        a.hears("z", digest_of(vector(x=stamp)))
        a.cluster.pass_ms(SETTINGS.digest_idle_ms)
    a.release_disk()
    a.hears("z", frame_of(1, 2))
    assert (a.machine.board.full_reason, readiness.is_ready) == ("", False)
    a.hears("z", digest_of(vector(x=9)))
    a.hears("z", frame_of(2, 3, 4))
    assert (readiness.is_ready, readiness.has_fallen_behind) == (True, False), "what came later is not waited for"
    assert (a.notices.count("disk_full"), a.notices.count("disk_has_room")) == (1, 1)


def test_a_new_node_that_cannot_store_a_walk_does_not_count_as_fallen_behind() -> None:
    a = Cluster().add("a", complete=False, knows="z")
    a.meets("z", digest_of(vector(x=2)))
    a.meets("y", digest_of(vector(x=7), complete=False))
    a.hold_disk()
    a.hears("z", WalkPart(1, None, (SYSTEM_NAMESPACE, b"a"), (VALUE,), vector(x=2)))
    a.fail()
    assert (a.machine.readiness.is_ready, a.machine.readiness.has_fallen_behind) == (False, False)


def test_a_leader_with_a_full_disk_stays_ready_and_says_why_it_refuses() -> None:
    a = Cluster().add("a", leads=True)
    a.meets("b", digest_of())
    a.hold_disk()
    requests = []
    for _ in range(3):
        requests.append(a.write(put(b"k")))
        a.fail()
    a.hears("b", digest_of())
    assert a.machine.readiness.is_ready
    assert {a.replies[request].code for request in requests} == {"disk_full"}
    assert a.machine.board.full_reason == "disk full"
    a.release_disk()
    a.write(DELETE)
    assert a.machine.board.full_reason, "a deletion may use the reserve: it does not tell that there is room"
    a.write(put(b"k"))
    assert a.machine.board.full_reason == ""
    assert (a.notices.count("disk_full"), a.notices.count("disk_has_room")) == (1, 1)
