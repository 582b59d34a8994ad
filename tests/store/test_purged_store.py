"""A store after Purges and trims, table by table: what lives is in it, and nothing besides [I8]."""

from __future__ import annotations

from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import Batch, BatchResult, LogTrim, NamespaceSweep, PurgeBatch, StampedWrite, WriteGroup
from kvp2p.core.operations import CreateNamespace, Delete, DeleteNamespace, Ending, Operation, Put
from kvp2p.core.vector import EMPTY_VECTOR
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, Issuer, NamespaceId, Stamp, make_version
from kvp2p.store.check import StoreCheck
from kvp2p.store.tables import CHUNKS, EXPIRY, GRAVES, HASHES, LOG, PENDING, ROWS, STAGING, TAILS
from tests.store.conftest import Store

ISSUER, NOBODY = Issuer(b"issuer-1"), Issuer(bytes(8))
ACCOUNT = AccountId(b"a" * 16)
KEPT, DELETED = NamespaceId(b"K" * 16), NamespaceId(b"D" * 16)
WALL_MS = 1_790_000_000_000
LONG = b"long/" + b"k" * 500  # beyond what the rows' table takes in one piece
TABLES = (ROWS, TAILS, LOG, EXPIRY, GRAVES, HASHES, CHUNKS, PENDING, STAGING)


class Leader:
    """What a leader does to its store; the store is checked against itself after every batch."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stamp = 0

    def apply(self, batch: Batch) -> BatchResult:
        with self.store.write() as txn:
            result = apply_batch(txn, batch)
        with self.store.read() as txn:
            assert StoreCheck().go_on(txn).damage == []
        return result

    def write(self, *operations: Operation) -> None:
        group = WriteGroup(1, ISSUER, (StampedWrite(Stamp(self.stamp + 1), operations),), WALL_MS)
        self.stamp += len(operations)
        assert self.apply(group).outcomes[0].ending is Ending.ACKED

    def purge(self, before_s: int) -> BatchResult:
        with self.store.read() as txn:
            floor = txn.vector
        self.stamp += 1
        fence = make_version(1, Stamp(self.stamp), NOBODY)
        return self.apply(PurgeBatch(1, ISSUER, Stamp(self.stamp), floor, fence, before_s, 1_000))

    def trim(self) -> BatchResult:
        with self.store.read() as txn:
            keep = txn.vector
        return self.apply(LogTrim(keep, Stamp(self.stamp + 1), 0, 1_000))

    def counts(self) -> dict[str, int]:
        with self.store.read() as txn:
            return {table: txn._tables.count(table) for table in TABLES}


def filled(store: Store) -> Leader:
    """Write short keys and long ones, of which some are deleted and some expire, and a namespace that is deleted in the end."""
    leader = Leader(store)
    leader.write(CreateNamespace(KEPT, ACCOUNT, "kept"), CreateNamespace(DELETED, ACCOUNT, "deleted"))
    for namespace in (KEPT, DELETED):
        leader.write(*(Put(namespace, b"key %d" % number, b"v" * 100) for number in range(12)))
        leader.write(*(Put(namespace, LONG + b" %d" % number, b"v" * 100) for number in range(6)))
        leader.write(Put(namespace, b"other " + LONG, b"v"))
        leader.write(*(Put(namespace, b"soon %d" % number, b"v", expires_in=60 + number) for number in range(5)))
        leader.write(
            Put(namespace, LONG + b" soon", b"v", expires_in=60), Put(namespace, b"late", b"v", expires_in=900)
        )
        leader.write(*(Delete(namespace, b"key %d" % number) for number in range(0, 12, 2)))
        leader.write(Delete(namespace, LONG + b" 1"), Delete(namespace, b"other " + LONG), Delete(namespace, b"never"))
    leader.write(DeleteNamespace(DELETED))
    return leader


def test_after_purges_and_trims_every_table_counts_what_lives_and_nothing_else(store: Store) -> None:
    leader = filled(store)
    before = leader.counts()
    assert (before[GRAVES], before[EXPIRY], before[LOG]) == (19, 14, 73)
    while leader.apply(NamespaceSweep(DELETED, 7)).namespaces_to_sweep:
        pass
    assert leader.counts()[GRAVES] == 10, "those of the deleted namespace went with it; its own stays"
    assert leader.purge(WALL_MS // 1_000 + 100).rows_changed == 16
    leader.trim()
    with store.read() as txn:
        rows = list(txn.all_rows())
        assert txn.tombstones == 0
        live = sum(totals.live for _, totals in txn.all_totals())
    keys = sorted(key for namespace, key, _ in rows if namespace == KEPT)
    assert keys == sorted(
        [b"key %d" % number for number in range(1, 12, 2)]
        + [LONG + b" %d" % number for number in (0, 2, 3, 4, 5)]
        + [b"late"]
    )
    assert live == len(rows) == 13, "and the row of the namespace"
    assert leader.counts() == {
        ROWS: 9,  # eight with short keys, and what says that keys with one beginning stand in the tails
        TAILS: 5,
        LOG: 0,
        EXPIRY: 1,
        GRAVES: 0,
        HASHES: 2,
        CHUNKS: 0,
        PENDING: 0,
        STAGING: 0,
    }


def test_a_namespace_of_which_everything_is_deleted_leaves_not_one_entry(store: Store) -> None:
    leader = filled(store)
    leader.write(DeleteNamespace(KEPT))
    for namespace in (KEPT, DELETED):
        leader.apply(NamespaceSweep(namespace, 1_000))
    leader.purge(0)
    leader.trim()
    assert {table: count for table, count in leader.counts().items() if count} == {HASHES: 1}
    with store.read() as txn:
        totals = txn.totals(SYSTEM_NAMESPACE)
        assert totals is not None
        assert (totals.rows, totals.live, totals.state_hash, txn.state_hash) == (0, 0, 0, 0)
        assert txn.above == EMPTY_VECTOR


def test_a_key_that_was_purged_can_be_written_and_deleted_and_purged_again(store: Store) -> None:
    leader = filled(store)
    leader.apply(NamespaceSweep(DELETED, 1_000))
    rows = []
    for _ in range(3):
        leader.purge(WALL_MS // 1_000 + 1_000)
        rows.append(leader.counts())
        leader.write(*(Put(KEPT, key, b"again", expires_in=60) for key in (b"key 0", LONG + b" 1", b"other " + LONG)))
        leader.write(*(Delete(KEPT, key) for key in (b"key 0", LONG + b" 1", b"other " + LONG)))
    kept = [{**counts, LOG: 0} for counts in rows]
    assert kept[0] == kept[1] == kept[2]
