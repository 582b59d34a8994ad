"""The contract of `core/port.py`, on both stores."""

import threading
from collections.abc import Callable

import pytest

from kvp2p.core.messages import Designation, Member
from kvp2p.core.port import Identity, NamespaceTotals
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.errors import LocalProtocolError
from kvp2p.ids import Issuer, NamespaceId, NodeId, Stamp, Version, make_version
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.memory import MemoryStore
from kvp2p.store.tables import CHUNKS, EXPIRY, ROWS, TABLE_NAMES, TAILS

Store = LmdbStore | MemoryStore
MakeRow = Callable[..., bytes]

FIRST = NamespaceId(b"1" * 16)
SECOND = NamespaceId(b"2" * 16)
LAST = NamespaceId(b"\xff" * 16)
ISSUER = Issuer(b"issuer-1")
OTHER = Issuer(b"issuer-2")
# Every kind of key: the ends of the byte order, both sides of the split, the longest, and neighbours that share 511 bytes.
LONG = b"k" * 494
KEYS = [
    *(b"\x00", b"\x00\x00", b"a", b"a\x00", b"a\xff", b"b", b"\xff", b"\xff" * 512, b"\x00" * 512, b"\xff" * 495),
    *(LONG, LONG + b"\x00", LONG + b"k", LONG + b"k\x00", LONG + b"k" + b"x" * 17, LONG + b"k" + b"x" * 16 + b"y"),
    *(LONG + b"k" + b"x" * 16, LONG + b"l", LONG + b"k" + b"\xff" * 17, b"k" * 511 + b"\x00", b"k" * 511 + b"\xff"),
]


class Boom(Exception):
    pass


def test_new_store_knows_who_it_is_and_has_nothing(store: Store, identity: Identity) -> None:
    with store.read() as transaction:
        assert transaction.identity == identity
        assert transaction.vector == transaction.floor == transaction.above == EMPTY_VECTOR
        assert transaction.complete is True
        assert transaction.designation is None
        assert transaction.members == ()
        assert list(transaction.all_rows()) == []
        assert list(transaction.all_totals()) == []
        assert transaction.row(FIRST, b"a") is None
        assert transaction.position(ISSUER, Stamp(1)) is None
        assert transaction.totals(FIRST) is None


def test_facts_are_read_back_by_the_same_the_next_write_and_a_reader(store: Store) -> None:
    vector = VersionVector(
        [make_version(2**31, Stamp(9), OTHER), make_version(2**31, Stamp(2**64 - 1), ISSUER)], Version(b"f" * 20)
    )
    designation = Designation(7, ISSUER, NodeId(b"n" * 16))
    members = (Member(NodeId(b"m" * 16), 3, "naïve", "ws://h:1", "http://h:2", ""),)
    totals = NamespaceTotals(2**128 - 1, 2**63, 5)
    with store.write() as writer:
        writer.set_vector(vector)
        writer.set_floor(vector.raised(make_version(2**31, Stamp(1), Issuer(b"issuer-3"))))
        writer.set_above(EMPTY_VECTOR)
        writer.set_complete(False)
        assert writer.restored is False
        writer.set_restored(True)
        writer.set_designation(designation)
        writer.set_members(members)
        writer.set_totals(SECOND, NamespaceTotals(1, 2, 1))
        writer.set_totals(FIRST, totals)
        assert writer.vector == vector
        assert [namespace for namespace, _ in writer.all_totals()] == [FIRST, SECOND]
    for opened in (store.read, store.write):
        with opened() as transaction:
            assert transaction.vector == vector
            assert dict(transaction.floor.items()).get(Issuer(b"issuer-3"), 0) == 1
            assert transaction.above == EMPTY_VECTOR
            assert transaction.complete is False
            assert transaction.restored is True
            assert transaction.designation == designation
            assert transaction.members == members
            assert transaction.totals(FIRST) == totals
            assert list(transaction.all_totals()) == [(FIRST, totals), (SECOND, NamespaceTotals(1, 2, 1))]


def test_reader_follows_a_fact_that_changes(store: Store) -> None:
    for stamp in (1, 2, 3):
        with store.write() as writer:
            writer.set_vector(writer.vector.raised(make_version(1, Stamp(stamp), ISSUER)))
        with store.read() as reader:
            assert dict(reader.vector.items()).get(ISSUER, 0) == stamp


def test_forgotten_totals_are_gone(store: Store) -> None:
    with store.write() as writer:
        writer.set_totals(FIRST, NamespaceTotals(1, 1, 1))
        writer.set_totals(SECOND, NamespaceTotals(2, 2, 2))
    with store.write() as writer:
        writer.set_totals(FIRST, None)
        assert writer.totals(FIRST) is None
        writer.set_totals(LAST, None)  # forgetting what was never there changes nothing
    with store.read() as reader:
        assert list(reader.all_totals()) == [(SECOND, NamespaceTotals(2, 2, 2))]


def test_state_hash_is_the_sum_of_all_totals_at_any_moment(store: Store) -> None:
    """A writer keeps a running sum, from one transaction to the next; a reader adds up."""
    most = 2**128 - 1
    first = [(FIRST, most), (LAST, most), (FIRST, 5)], 4
    second = [(SECOND, most), (LAST, None), (SECOND, 1), (LAST, None)], 6
    for changes, expected in (first, second):
        with store.write() as writer:
            for namespace, state_hash in changes:
                writer.set_totals(namespace, None if state_hash is None else NamespaceTotals(state_hash, 1, 1))
                assert writer.state_hash == sum(one.state_hash for _, one in writer.all_totals()) % 2**128
        with store.read() as reader:
            assert reader.state_hash == expected
        with store.write() as writer:
            assert writer.state_hash == expected


def test_rows_of_every_key_are_read_back_in_byte_order(store: Store, make_row: MakeRow) -> None:
    rows = {key: make_row(key) for key in KEYS}
    with store.write() as writer:
        for key, row in rows.items():
            writer.put_row(SECOND, key, row)
            assert writer.row(SECOND, key) == row
        writer.put_row(FIRST, b"\xff" * 512, make_row(b"before"))
        writer.put_row(LAST, b"\xff" * 512, make_row(b"after"))
        assert list(writer.rows(SECOND)) == sorted(rows.items())
    with store.read() as reader:
        assert list(reader.rows(SECOND)) == sorted(rows.items())
        for key, row in rows.items():
            assert reader.row(SECOND, key) == row
            assert [one for one, _ in reader.rows(SECOND, after=key)] == sorted(one for one in rows if one > key)
            assert [one for one, _ in reader.rows(SECOND, start=key)] == sorted(one for one in rows if one >= key)
        everything = [(FIRST, b"\xff" * 512), *((SECOND, key) for key in sorted(rows)), (LAST, b"\xff" * 512)]
        assert [(namespace, key) for namespace, key, _ in reader.all_rows()] == everything
        for index, after in enumerate(everything):
            assert [one[:2] for one in reader.all_rows(after=after)] == everything[index + 1 :]


def test_keys_that_differ_only_in_their_last_byte_do_not_meet(store: Store, make_row: MakeRow) -> None:
    with store.write() as writer:
        for last in (b"\x01", b"\x02"):
            writer.put_row(FIRST, b"k" * 511 + last, make_row(last))
    with store.write() as writer:
        writer.delete_row(FIRST, b"k" * 511 + b"\x01")
        assert writer.row(FIRST, b"k" * 511 + b"\x02") == make_row(b"\x02")
        assert writer.row(FIRST, b"k" * 511) is None
        assert writer.row(FIRST, b"k" * 495) is None


def test_marker_goes_with_its_last_tail(store: Store, make_row: MakeRow) -> None:
    keys = [b"k" * 495, b"k" * 500, b"k" * 512]
    with store.write() as writer:
        for key in keys:
            writer.put_row(FIRST, key, make_row(key))
            writer.put_row(FIRST, key, make_row(key + b"again"))
        assert writer._tables.count(ROWS) == 1
        assert writer._tables.count(TAILS) == 3
    for left in (2, 1, 0):
        with store.write() as writer:
            writer.delete_row(FIRST, keys[left])
            writer.delete_row(FIRST, keys[left])
            assert writer._tables.count(TAILS) == left
            assert writer._tables.count(ROWS) == min(left, 1)
            assert [key for key, _ in writer.rows(FIRST)] == keys[:left]


def test_expiry_index_has_one_entry_for_each_row_that_expires(store: Store, make_row: MakeRow) -> None:
    with store.write() as writer:
        for key, expires_at in ((b"a", 30), (b"k" * 512, 10), (b"never", 0), (b"b", 20)):
            writer.put_row(FIRST, key, make_row(b"v", expires_at=expires_at))
        expected = [(10, (FIRST, b"k" * 512)), (20, (FIRST, b"b")), (30, (FIRST, b"a"))]
        assert [(int.from_bytes(place[:8], "big"), row_key) for place, row_key in writer.expiring()] == expected
    with store.write() as writer:
        writer.put_row(FIRST, b"a", make_row(b"v", expires_at=5))
        writer.put_row(FIRST, b"b", make_row(b"v"))
        writer.delete_row(FIRST, b"k" * 512)
        writer.put_row(FIRST, b"never", make_row(b"v", expires_at=2**64 - 1))
    with store.read() as reader:
        soonest_first = [(int.from_bytes(place[:8], "big"), row_key) for place, row_key in reader.expiring()]
        assert soonest_first == [(5, (FIRST, b"a")), (2**64 - 1, (FIRST, b"never"))]
    with store.write() as writer:
        writer.put_row(FIRST, b"a", make_row(None))
        writer.delete_row(FIRST, b"never")
        assert writer._tables.count(EXPIRY) == 0


def test_log_is_read_in_order_of_stamps_issuer_by_issuer(store: Store) -> None:
    with store.write() as writer:
        for stamp in (300, 1, 2, 2**64 - 1):
            writer.put_positions(ISSUER, [(Stamp(stamp), (FIRST, b"key-%d" % stamp))])
        writer.put_positions(OTHER, [(Stamp(2), (SECOND, b"\xff" * 512))])
    with store.read() as reader:
        assert [stamp for stamp, _ in reader.positions(ISSUER, Stamp(0))] == [1, 2, 300, 2**64 - 1]
        assert list(reader.positions(ISSUER, Stamp(300))) == [(2**64 - 1, (FIRST, b"key-%d" % (2**64 - 1)))]
        assert list(reader.positions(OTHER, Stamp(1))) == [(2, (SECOND, b"\xff" * 512))]
        assert list(reader.positions(OTHER, Stamp(2))) == []
        assert reader.position(ISSUER, Stamp(300)) == (FIRST, b"key-300")
        assert reader.position(ISSUER, Stamp(3)) is None


def test_write_that_raises_leaves_no_trace(store: Store, make_row: MakeRow) -> None:
    with store.write() as writer:
        writer.put_row(FIRST, b"kept", make_row(b"kept"))
        writer.set_vector(VersionVector([make_version(1, Stamp(1), ISSUER)]))
        writer.set_totals(FIRST, NamespaceTotals(1, 1, 1))
    with pytest.raises(Boom), store.write() as writer:
        writer.put_row(FIRST, b"kept", make_row(b"lost", expires_at=9))
        writer.put_row(FIRST, b"k" * 512, make_row(b"lost"))
        writer.delete_row(FIRST, b"kept")
        writer.put_positions(ISSUER, [(Stamp(2), (FIRST, b"kept"))])
        writer.set_vector(VersionVector([make_version(1, Stamp(2), ISSUER)]))
        writer.set_totals(FIRST, NamespaceTotals(2, 2, 2))
        writer.set_totals(SECOND, NamespaceTotals(2, 2, 2))
        raise Boom
    for opened in (store.read, store.write):
        with opened() as transaction:
            assert list(transaction.all_rows()) == [(FIRST, b"kept", make_row(b"kept"))]
            assert list(transaction.expiring()) == []
            assert transaction.position(ISSUER, Stamp(2)) is None
            assert transaction.vector == VersionVector([make_version(1, Stamp(1), ISSUER)])
            assert list(transaction.all_totals()) == [(FIRST, NamespaceTotals(1, 1, 1))]
            assert transaction.state_hash == 1


def test_reader_sees_the_state_it_began_with(store: Store, make_row: MakeRow) -> None:
    with store.write() as writer:
        for key in (b"a", b"b", b"c"):
            writer.put_row(FIRST, key, make_row(b"old"))
    with store.read() as reader:
        walk = reader.rows(FIRST)
        assert next(walk) == (b"a", make_row(b"old"))
        with store.write() as writer:
            writer.put_row(FIRST, b"aa", make_row(b"new"))
            writer.delete_row(FIRST, b"b")
            writer.put_row(FIRST, b"c", make_row(b"new"))
            writer.set_vector(VersionVector([make_version(1, Stamp(2), ISSUER)]))
            # An open write is seen by nobody else either.
            with store.read() as during:
                assert [key for key, _ in during.rows(FIRST)] == [b"a", b"b", b"c"]
        assert list(walk) == [(b"b", make_row(b"old")), (b"c", make_row(b"old"))]
        assert reader.row(FIRST, b"aa") is None
        assert reader.vector == EMPTY_VECTOR
    with store.read() as reader:
        assert [key for key, _ in reader.rows(FIRST)] == [b"a", b"aa", b"c"]


def test_every_table_is_there_from_the_start(store: Store) -> None:
    with store.read() as reader:
        assert {name for name in TABLE_NAMES if reader._tables.count(name)} == {"meta"}
        assert list(reader._tables.scan(CHUNKS)) == []


def test_count_of_a_table_includes_what_the_transaction_changed(store: Store, make_row: MakeRow) -> None:
    with store.write() as writer:
        writer.put_row(FIRST, b"a", make_row(b"a"))
        writer.put_row(FIRST, b"b", make_row(b"b"))
    with store.write() as writer:
        writer.put_row(FIRST, b"a", make_row(b"a", stamp=2))
        writer.delete_row(FIRST, b"b")
        writer.put_row(FIRST, b"c", make_row(b"c"))
        writer.put_row(FIRST, b"d", make_row(b"d"))
        assert writer._tables.count(ROWS) == 3
        assert [key for key, _ in writer.rows(FIRST, after=b"a")] == [b"c", b"d"]


def test_writer_that_reads_more_rows_than_it_remembers_reads_them_right(
    store: Store, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvp2p.store.layout_writer.REMEMBERED_ROWS_MAX", 3)
    with store.write() as writer:
        for round_ in range(3):
            for number in range(10):
                key = b"%d" % number
                before = writer.row(FIRST, key)
                assert before == (make_row(b"v%d" % (round_ - 1)) if round_ else None)
                writer.put_row(FIRST, key, make_row(b"v%d" % round_))
                assert len(writer._rows) <= 4


def test_readers_in_other_threads_see_whole_transactions(store: Store, make_row: MakeRow) -> None:
    torn: list[object] = []
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            with store.read() as reader:
                stamp = dict(reader.vector.items()).get(ISSUER, 0)
                rows = [row for _, row in reader.rows(FIRST)]
                if rows != [make_row(b"%d" % stamp)] * (2 if stamp else 0):
                    torn.append((stamp, rows))

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for stamp in range(1, 100):
            with store.write() as writer:
                for key in (b"a", b"k" * 512):
                    writer.put_row(FIRST, key, make_row(b"%d" % stamp))
                writer.set_vector(VersionVector([make_version(1, Stamp(stamp), ISSUER)]))
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
    assert torn == []


def test_snapshot_of_a_memory_store_is_a_copied_disk(identity: Identity, make_row: MakeRow) -> None:
    store = MemoryStore(identity)
    with store.write() as writer:
        writer.put_row(FIRST, b"a", make_row(b"a"))
    copy = store.snapshot()
    for changed, value in ((store, b"b"), (copy, b"c")):
        with changed.write() as writer:
            writer.put_row(FIRST, value, make_row(value))
            writer.set_vector(VersionVector([make_version(1, Stamp(1), Issuer(value * 8))]))
    with store.read() as reader, copy.read() as other:
        assert [key for key, _ in reader.rows(FIRST)] == [b"a", b"b"]
        assert [key for key, _ in other.rows(FIRST)] == [b"a", b"c"]
        assert reader.vector != other.vector


def test_memory_store_refuses_a_second_writer(identity: Identity) -> None:
    store = MemoryStore(identity)
    with store.write(), pytest.raises(LocalProtocolError), store.write():
        raise AssertionError("two writers")
    with store.write() as writer:
        writer.set_complete(True)
    assert store.reader_check() == 0
