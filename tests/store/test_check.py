"""The check of a store against itself: each kind of damage is found where it is, and nothing is found where there is none."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from kvp2p.core.apply import apply_batch, state_hash_seed
from kvp2p.core.batches import FrameBatch, NamespaceSweep, StampedWrite, WalkBatch, WriteGroup
from kvp2p.core.entry import STATE_HASH_MASK, Kind, encode_row, is_tombstone, row_state_hash
from kvp2p.core.messages import Frame, WalkPart
from kvp2p.core.operations import CreateNamespace, Delete, DeleteNamespace, Operation, Put
from kvp2p.core.port import NamespaceTotals
from kvp2p.core.system_rows import namespace_key
from kvp2p.core.vector import VersionVector
from kvp2p.errors import StoreError
from kvp2p.ids import SYSTEM_NAMESPACE, NamespaceId, Stamp, make_version
from kvp2p.store.check import Damage, StoreCheck
from kvp2p.store.layout import encode_totals, short_hash, tail_key
from kvp2p.store.layout_writer import LayoutWriter
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.meta import VECTOR
from kvp2p.store.scrub import check_store
from kvp2p.store.tables import EXPIRY, HASHES, LOG, META, ROWS, TAILS
from tests.store.batches import EXPIRES_AT, IDENTITY, LONG, NAMESPACES, OTHER, OWN, apply, draw_batches

SPACE, GONE = NAMESPACES[:2]
OPERATIONS: tuple[Operation, ...] = (
    CreateNamespace(SPACE, IDENTITY.account, "one"),
    CreateNamespace(GONE, IDENTITY.account, "two"),
    Put(SPACE, b"plain", b"value"),
    Put(SPACE, b"expires", b"value", None, EXPIRES_AT),
    Put(SPACE, LONG, b"value"),
    Delete(SPACE, b"deleted"),
    Put(GONE, b"of the deleted", b"value", None, EXPIRES_AT),
    DeleteNamespace(GONE),
)  # each stands at the position that is its place here, counted from 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    """Give a store with plain, long, expiring and deleted keys, and a deleted namespace that is not swept yet."""
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=True) as store:
        writes = tuple(StampedWrite(Stamp(stamp), (one,)) for stamp, one in enumerate(OPERATIONS, 1))
        apply(store, WriteGroup(2, OWN, writes, 0))
        yield store


def position(stamp: int) -> bytes:
    return OWN + stamp.to_bytes(8, "big")


def expiry(key: bytes, expires_at: int = EXPIRES_AT) -> bytes:
    return expires_at.to_bytes(8, "big") + short_hash(SPACE + key)


def row(stamp: int, value: bytes = b"value", expires_at: int = 0) -> bytes:
    return encode_row(Kind.VALUE, value, None, expires_at, make_version(2, Stamp(stamp), OWN))


def damaged(writer: LayoutWriter, key: bytes) -> bytes:
    """Return a row with one bit of its value turned over."""
    sound = writer.row(SPACE, key)
    assert sound is not None
    return sound[:-1] + bytes([sound[-1] ^ 1])


Plant = Callable[[LayoutWriter], object]

PLANTED: dict[str, tuple[Plant, list[tuple[str, NamespaceId | None, bytes | None]]]] = {
    "a bit of a value": (
        lambda writer: writer._tables.put(ROWS, SPACE + b"plain", damaged(writer, b"plain")),
        [("row", SPACE, b"plain")],
    ),
    "a bit of a value under a long key": (
        lambda writer: writer._tables.put(TAILS, tail_key(SPACE + LONG), damaged(writer, LONG)),
        [("row", SPACE, LONG)],
    ),
    "a row that is cut short": (
        lambda writer: writer._tables.put(ROWS, SPACE + b"plain", b"\x01"),
        [("row", SPACE, b"plain"), ("totals", SPACE, None), ("position_without_row", SPACE, b"plain")],
    ),
    "a row that is lost": (
        lambda writer: writer._tables.delete(ROWS, SPACE + b"plain"),
        [("totals", SPACE, None), ("position_without_row", SPACE, b"plain")],
    ),
    "a row of an older version": (
        lambda writer: writer._tables.put(ROWS, SPACE + b"plain", row(1)),
        [("position_missing", SPACE, b"plain"), ("totals", SPACE, None), ("row_too_old", SPACE, b"plain")],
    ),
    "a row of a version that is not covered": (
        lambda writer: writer._tables.put(ROWS, SPACE + b"plain", row(99)),
        [("row_above_vector", SPACE, b"plain"), ("totals", SPACE, None)],
    ),
    "a tail whose marker is lost": (
        lambda writer: writer._tables.delete(ROWS, (SPACE + LONG)[:511]),
        [("totals", SPACE, None)],
    ),
    "a marker whose tail is lost": (
        lambda writer: writer._tables.delete(TAILS, tail_key(SPACE + LONG)),
        [
            ("marker_without_rows", SPACE, (SPACE + LONG)[16:511]),
            ("totals", SPACE, None),
            ("position_without_row", SPACE, LONG),
        ],
    ),
    "an expiry entry that is lost": (
        lambda writer: writer._tables.delete(EXPIRY, expiry(b"expires")),
        [("expiry_missing", SPACE, b"expires")],
    ),
    "an expiry entry too many": (
        lambda writer: writer._tables.put(EXPIRY, expiry(b"plain"), SPACE + b"plain"),
        [("expiry_stale", SPACE, b"plain")],
    ),
    "an expiry entry of another time": (
        lambda writer: writer._tables.put(EXPIRY, expiry(b"expires", 7), SPACE + b"expires"),
        [("expiry_stale", SPACE, b"expires")],
    ),
    "a position that is lost": (
        lambda writer: writer._tables.delete(LOG, position(3)),
        [("position_missing", SPACE, b"plain")],
    ),
    "a position above the vector": (
        lambda writer: writer._tables.put(LOG, position(99), SPACE + b"plain"),
        [("position_above_vector", SPACE, b"plain")],
    ),
    "a position of an unknown issuer": (
        lambda writer: writer._tables.put(LOG, OTHER + position(3)[8:], SPACE + b"plain"),
        [("position_above_vector", SPACE, b"plain")],
    ),
    "a position of a key that never was": (
        lambda writer: writer._tables.put(LOG, position(3), SPACE + b"nothing"),
        [("position_missing", SPACE, b"plain"), ("position_without_row", SPACE, b"nothing")],
    ),
    "totals that are wrong": (
        lambda writer: writer.set_totals(SPACE, NamespaceTotals(1, 4, 3)),
        [("totals", SPACE, None)],
    ),
    "totals that are lost": (lambda writer: writer.set_totals(SPACE, None), [("totals", SPACE, None)]),
    "totals of nothing": (
        lambda writer: writer._tables.put(HASHES, NAMESPACES[2], encode_totals(NamespaceTotals(1, 1, 1))),
        [("totals", NAMESPACES[2], None)],
    ),
    "totals of a deleted namespace with rows": (
        lambda writer: writer.set_totals(GONE, NamespaceTotals(1, 1, 1)),
        [("totals", GONE, None)],
    ),
    "a vector that cannot be read": (
        lambda writer: writer._tables.put(META, VECTOR.name, b"?"),
        [("fact", None, None)],
    ),
}


def what(damage: list[Damage]) -> list[tuple[str, NamespaceId | None, bytes | None]]:
    return [(one.what, one.namespace, one.key) for one in damage]


@pytest.mark.parametrize("name", PLANTED)
def test_planted_damage_is_found_where_it_is(store: LmdbStore, name: str) -> None:
    assert check_store(store.directory) == []
    plant, found = PLANTED[name]
    with store.write() as writer:
        plant(writer)
    assert what(check_store(store.directory)) == found


@pytest.mark.parametrize("seed", range(5))
def test_store_that_took_all_kinds_of_batches_is_sound_after_each(tmp_path: Path, seed: int) -> None:
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=True) as store:
        for batch in islice(draw_batches(seed), 150):
            apply(store, batch)
            assert check_store(store.directory) == []


def test_slices_find_what_one_transaction_finds(store: LmdbStore) -> None:
    for plant in ("a bit of a value under a long key", "an expiry entry too many", "a position that is lost"):
        with store.write() as writer:
            PLANTED[plant][0](writer)
    check, damage, slices = StoreCheck(), [], 0
    while check.stage:
        with store.read() as reader:
            damage += check.go_on(reader, bytes_max=1).damage
        slices += 1
    assert what(damage) == [
        ("row", SPACE, LONG),
        ("position_missing", SPACE, b"plain"),
        ("expiry_stale", SPACE, b"plain"),
    ]
    assert damage == check_store(store.directory)
    assert (check.rows_seen, check.positions_seen) == (7, 7)
    assert slices > check.rows_seen + check.positions_seen


@pytest.mark.parametrize("bytes_max", [1, 2_000, 50_000])
def test_store_that_is_written_to_between_slices_is_not_taken_for_damaged(tmp_path: Path, bytes_max: int) -> None:
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=True) as store:
        batches = draw_batches(11)
        for batch in islice(batches, 60):
            apply(store, batch)
        check = StoreCheck()
        while check.stage:
            with store.read() as reader:
                assert check.go_on(reader, bytes_max).damage == []
            apply(store, next(batches))
        assert check.not_compared, "their rows changed while they were read"


def test_namespace_that_got_its_first_row_behind_the_walk_is_not_compared(store: LmdbStore) -> None:
    check = StoreCheck()
    new = NAMESPACES[2]
    with store.write() as writer:
        apply_batch(writer, group(20, CreateNamespace(new, IDENTITY.account, "three")))
        writer.put_row(NamespaceId(b"Z" * 16), b"k", row(3))
    with store.read() as reader:
        while check._after[:16] != b"Z" * 16:
            check.go_on(reader, 1)
    with store.write() as writer:
        apply_batch(writer, group(40, Put(new, b"k", b"v")))
    with store.read() as reader:
        rest = check.go_on(reader)
    assert new in check.not_compared
    assert {one.namespace for one in rest.damage if one.what == "totals"} == {b"Z" * 16}


def group(stamp: int, *operations: Operation) -> WriteGroup:
    return WriteGroup(2, OWN, (StampedWrite(Stamp(stamp), operations),), 0)


def test_positions_whose_rows_are_gone_for_a_reason_are_no_damage(store: LmdbStore) -> None:
    apply(store, NamespaceSweep(GONE, 10))
    assert check_store(store.directory) == [], "a deleted namespace"
    with store.write() as writer:
        writer.delete_row(SPACE, b"plain")
        writer.set_totals(SPACE, recounted(writer))
    assert what(check_store(store.directory)) == [("position_without_row", SPACE, b"plain")]
    facts: list[Plant] = [
        lambda writer: writer.set_floor(VersionVector([make_version(2, Stamp(3), OWN)])),
        lambda writer: writer.set_above(VersionVector([make_version(3, Stamp(3), OTHER)])),
        lambda writer: writer.set_vector(VersionVector((), make_version(3, Stamp(1), OTHER))),
    ]
    for change in facts:
        with store.write() as writer:
            before = (writer.vector, writer.floor, writer.above)
            change(writer)
        assert check_store(store.directory) == []
        with store.write() as writer:
            writer.set_vector(before[0])
            writer.set_floor(before[1])
            writer.set_above(before[2])


def recounted(writer: LayoutWriter) -> NamespaceTotals:
    rows = list(writer.rows(SPACE))
    state_hash = sum(row_state_hash(SPACE, *one, state_hash_seed(writer)) for one in rows)
    return NamespaceTotals(state_hash & STATE_HASH_MASK, len(rows), sum(not is_tombstone(one) for _, one in rows))


def test_positions_of_an_issuer_that_the_fence_has_passed_are_covered_and_those_of_any_other_are_not(
    store: LmdbStore,
) -> None:
    with store.write() as writer:
        writer._tables.put(LOG, position(99), SPACE + b"plain")
        writer._tables.put(LOG, OTHER + position(3)[8:], SPACE + b"plain")
    assert ("position_above_vector", SPACE, b"plain") in what(check_store(store.directory))
    with store.write() as writer:
        writer.set_vector(VersionVector((), make_version(9, Stamp(60), OTHER)))
    assert check_store(store.directory) == [], "both were dropped"


def test_namespaces_tombstone_is_no_older_than_a_later_write_to_the_namespaces_row(store: LmdbStore) -> None:
    key = namespace_key(GONE)
    late = (SYSTEM_NAMESPACE, key, encode_row(Kind.VALUE, b"{}", None, 0, make_version(3, Stamp(5), OTHER)))
    apply(store, FrameBatch(Frame(3, OTHER, Stamp(0), Stamp(5), ((Stamp(5), 0),), (late,))))
    with store.read() as reader:
        assert reader.row(SYSTEM_NAMESPACE, key) != late[2], "the tombstone wins by its kind"
    assert check_store(store.directory) == []


def test_walk_that_is_under_way_is_no_damage(tmp_path: Path) -> None:
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=False) as store:
        vector = VersionVector([make_version(2, Stamp(9), OWN)])
        part = WalkPart(1, None, (SPACE, b"plain"), ((SPACE, b"plain", row(3)),), vector)
        apply(store, WalkBatch(part, None))
        assert check_store(store.directory) == []
        end = WalkPart(1, part.upto, None, ((SPACE, b"z", row(4)),), vector)
        apply(store, WalkBatch(end, vector))
        assert check_store(store.directory) == []


def lose_large_value(file: Path, full_key: bytes) -> None:
    """Let the entry of a key lead to a page that the file does not have, wherever it stands.

    A node of a leaf has flags (2), the key's length (2), the key and, with flag 1, the number of the page with the value (8).
    """
    data = file.read_bytes()
    node = (1).to_bytes(2, "little") + len(full_key).to_bytes(2, "little") + full_key
    assert node in data
    at = data.index(node) + len(node)
    lost = data[at : at + 8]
    file.write_bytes(data.replace(node + lost, node + (1 << 40).to_bytes(8, "little")))


def test_page_that_lmdb_does_not_find_is_damage_and_a_store_that_is_not_there_an_error(
    store: LmdbStore, tmp_path: Path
) -> None:
    apply(store, group(20, Put(SPACE, b"m", bytes(20_000))))
    with store.write() as writer:
        PLANTED["an expiry entry that is lost"][0](writer)
    store.close()
    lose_large_value(store.directory / "data.mdb", SPACE + b"m")
    found = check_store(store.directory)
    assert what(found) == [("expiry_missing", SPACE, b"expires"), ("file", None, None)]
    assert "MDB_PAGE_NOTFOUND" in found[-1].message
    with pytest.raises(StoreError, match="there is no store"):
        check_store(tmp_path / "nothing")
