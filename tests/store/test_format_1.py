"""Format 1 as a committed file: a data directory of that format is brought to format 2 when it is opened for writing, and loses nothing.

`format_1/data.mdb.gz` was written once, by the last code that wrote format 1, and is never written again.
"""

import gzip
from pathlib import Path

import lmdb
import pytest

from kvp2p import Replica
from kvp2p.core.apply import summarize
from kvp2p.core.entry import STATE_HASH_MASK, Kind, encode_row, row_digest_holds, row_state_hash
from kvp2p.core.messages import Designation, KeyedRow, Member
from kvp2p.core.port import Identity, NamespaceTotals
from kvp2p.core.system_rows import IssuerRow, Namespace, encode_issuer, encode_namespace
from kvp2p.core.vector import VersionVector
from kvp2p.errors import StoreFormatError
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NamespaceId, NodeId, Stamp, Version, make_version
from kvp2p.store.lmdb_store import LmdbStore

FIXTURE = Path(__file__).parent / "format_1" / "data.mdb.gz"

IDENTITY = Identity(ClusterId(b"cluster-of-tests"), AccountId(b"account-of-tests"), NodeId(b"node-number-one!"), "n1")
SPACE = NamespaceId(bytes(range(16)))
FIRST = Issuer(b"issuer-1")
SECOND = Issuer(b"issuer-2")
DESIGNATION = Designation(3, FIRST, IDENTITY.node)
MEMBERS = (
    Member(IDENTITY.node, 5, "n1", "ws://127.0.0.1:8789", "http://127.0.0.1:8787", "http://127.0.0.1:8788"),
    Member(NodeId(b"node-number-two!"), 2, "zwölf", "", "", ""),
)
VECTOR = VersionVector(
    [make_version(3, Stamp(40), FIRST), make_version(3, Stamp(2**63), SECOND)], make_version(2, Stamp(9), FIRST)
)
FLOOR = VersionVector([make_version(3, Stamp(7), SECOND)])
ABOVE = VersionVector([make_version(3, Stamp(2**63 + 1), SECOND)])
LONG = b"long/" + b"k" * 490  # 495 bytes: the shortest key that is split


def _version(stamp: int, issuer: Issuer = FIRST) -> Version:
    return make_version(3, Stamp(stamp), issuer)


def _rows() -> list[KeyedRow]:
    space_key, space_value = encode_namespace(Namespace(SPACE, IDENTITY.account, "strings", 1_700_000_000_000))
    return [
        (SYSTEM_NAMESPACE, space_key, encode_row(Kind.VALUE, space_value, None, 0, _version(1))),
        (SPACE, b"\x00", encode_row(Kind.VALUE, b"", None, 0, _version(2))),
        (SPACE, b"deleted", encode_row(Kind.TOMBSTONE, b"", None, 0, _version(3))),
        (SPACE, b"expires", encode_row(Kind.VALUE, b"later", None, 4_000_000_000, _version(4))),
        (SPACE, b"large", encode_row(Kind.VALUE, bytes(range(256)) * 40, None, 0, _version(5))),
        (SPACE, LONG, encode_row(Kind.VALUE, b"495", None, 0, _version(6))),
        (SPACE, LONG + b"\x00", encode_row(Kind.VALUE, b"496", None, 4_000_000_001, _version(7))),
        (SPACE, LONG + b"t" * 17, encode_row(Kind.VALUE, b"512", None, 0, _version(8))),
        (SPACE, "ключ".encode(), encode_row(Kind.VALUE, b"value", '{"ö":1}'.encode(), 0, _version(9, SECOND))),
        (SPACE, b"\xff" * 512, encode_row(Kind.VALUE, b"last", b'{"a":1}', 0, _version(10))),
    ]


# What the file must hold, said in numbers so that a change of the code that made them is noticed: the state hash of the
# namespace, and the digest inside one row.
STATE_HASH = 0xB78A11C956DC20AD9BE1C03D1BEF0E00
LAST_DIGEST = "8fdf000d9511966193ec988f054544fb"


def _totals(namespace: NamespaceId) -> NamespaceTotals:
    seed = int.from_bytes(IDENTITY.cluster[:8], "big")
    rows = [one for one in _rows() if one[0] == namespace]
    state_hash = sum(row_state_hash(*one, seed) for one in rows) & STATE_HASH_MASK
    return NamespaceTotals(state_hash, len(rows), sum(row[0] != Kind.TOMBSTONE for _, _, row in rows))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a store directory with the committed file."""
    (tmp_path / "data.mdb").write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    return tmp_path


def test_a_store_of_format_1_reads_back_exactly_once_it_was_opened_for_writing(directory: Path) -> None:
    for readonly in (False, True):
        with LmdbStore.open(directory, readonly=readonly) as store, store.read() as reader:
            assert reader.identity == IDENTITY
            assert reader.designation == DESIGNATION
            assert reader.members == MEMBERS
            assert reader.complete is True
            assert (reader.vector, reader.floor, reader.above) == (VECTOR, FLOOR, ABOVE)
            assert list(reader.all_rows()) == sorted(_rows())
            assert all(row_digest_holds(row) for _, _, row in reader.all_rows())
            for namespace, key, row in _rows():
                assert reader.row(namespace, key) == row
            assert [key for _, key in reader.positions(FIRST, Stamp(0))] == [(one[0], one[1]) for one in _rows()]
            assert list(reader.positions(SECOND, Stamp(0))) == [(2**63, (SPACE, "ключ".encode()))]
            assert [row_key for _, row_key in reader.expiring()] == [(SPACE, b"expires"), (SPACE, LONG + b"\x00")]
            assert list(reader.graves()) == [(_version(3), (SPACE, b"deleted"))]
            assert not list(reader.pending_rows())
            assert not list(reader.staged())
            assert dict(reader.all_totals()) == {one: _totals(one) for one in (SYSTEM_NAMESPACE, SPACE)}
            assert reader.clock_offset_ms == 0


def test_state_hash_and_digest_of_format_1_are_the_numbers_they_were(directory: Path) -> None:
    with LmdbStore.open(directory) as store, store.read() as reader:
        totals = reader.totals(SPACE)
        row = reader.row(SPACE, b"\xff" * 512)
        assert totals is not None
        assert row is not None
        assert (totals.state_hash, totals.rows, totals.live) == (STATE_HASH, 9, 8)
        assert row[32:48].hex() == LAST_DIGEST
        assert summarize(reader).state_hash == sum(one.state_hash for _, one in reader.all_totals()) & STATE_HASH_MASK


def test_a_reader_refuses_format_1_until_its_node_was_started(directory: Path) -> None:
    with pytest.raises(StoreFormatError, match=r"has format 1, .* Start its node once"):
        Replica(directory)
    LmdbStore.open(directory).close()
    with Replica(directory, now=lambda: 1_800_000_000) as replica:
        assert [one.title for one in replica.namespaces()] == ["strings"]
        shown = [key for namespace, key, row in sorted(_rows()) if namespace == SPACE and row[0] == Kind.VALUE]
        assert [one.key for one in replica.list("strings").keys] == shown
        assert replica.get_with_metadata("strings", "ключ") == (b"value", '{"ö":1}'.encode())
        assert replica.get("strings", LONG + b"t" * 17) == b"512"


def test_a_store_of_format_1_can_be_written_on(directory: Path) -> None:
    row = encode_row(Kind.VALUE, b"new", None, 0, _version(41))
    with LmdbStore.open(directory) as store:
        with store.write() as writer:
            writer.put_row(SPACE, LONG + b"\x00", row)
            writer.delete_row(SPACE, b"expires")
            writer.set_vector(writer.vector.raised(_version(41)))
        with store.read() as reader:
            assert reader.row(SPACE, LONG + b"\x00") == row
            assert list(reader.expiring()) == []
            assert dict(reader.vector.items())[FIRST] == 41


def test_issuer_whose_rows_were_all_overwritten_has_the_term_of_its_own_row(directory: Path) -> None:
    third = Issuer(b"issuer-3")
    key, value = encode_issuer(IssuerRow(third, IDENTITY.node, 3, Stamp(77)))
    with lmdb.open(str(directory / "data.mdb"), subdir=False, max_dbs=16) as handle, handle.begin(write=True) as writer:
        meta, rows = (handle.open_db(name, txn=writer, create=False) for name in (b"meta", b"rows"))
        writer.put(SYSTEM_NAMESPACE + key, encode_row(Kind.VALUE, value, None, 0, _version(39)), db=rows)
        vector = writer.get(b"vector", db=meta) or b""
        writer.put(b"vector", vector + third + (77).to_bytes(8, "big"), db=meta)
    with LmdbStore.open(directory, map_bytes=1 << 26) as store, store.read() as txn:
        assert make_version(3, Stamp(77), third) in set(txn.vector.tops())
