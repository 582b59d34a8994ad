"""Format 1 as a committed file: a data directory made by it opens now, and reads back exactly.

`format_1/data.mdb.gz` was written by `write_format_1` below, once, when format 1 was fixed; it is never written again. A
change that cannot read it is a new format. It holds what `write_contents` puts into a new store, copied with LMDB's
compaction (fewer and deterministic pages) and packed. To see what the present code would write:
`PYTHONPATH=. python tests/store/test_format_1.py DIRECTORY`.
"""

import gzip
import sys
import tempfile
from pathlib import Path

import pytest

from kvp2p import Replica
from kvp2p.core.apply import summarize
from kvp2p.core.entry import STATE_HASH_MASK, Kind, encode_row, row_digest_holds, row_state_hash
from kvp2p.core.messages import Designation, KeyedRow, Member
from kvp2p.core.port import Identity, NamespaceTotals
from kvp2p.core.system_rows import Namespace, encode_namespace
from kvp2p.core.vector import VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NamespaceId, NodeId, Stamp, Version, make_version
from kvp2p.store.layout import LayoutWriter
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.tables import TABLE_NAMES

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
VECTOR = VersionVector({FIRST: Stamp(40), SECOND: Stamp(2**63)}, make_version(2, Stamp(9), FIRST))
FLOOR = VersionVector({SECOND: Stamp(7)})
ABOVE = VersionVector({SECOND: Stamp(2**63 + 1)})
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


def write_contents(writer: LayoutWriter) -> None:
    """Put one of everything that format 1 can hold into a new store."""
    for number, (namespace, key, row) in enumerate(_rows(), 1):
        writer.put_row(namespace, key, row)
        writer.put_positions(FIRST, [(Stamp(number), (namespace, key))])
    writer.put_positions(SECOND, [(Stamp(2**63), (SPACE, "ключ".encode()))])
    for namespace in (SYSTEM_NAMESPACE, SPACE):
        writer.set_totals(namespace, _totals(namespace))
    writer.set_vector(VECTOR)
    writer.set_floor(FLOOR)
    writer.set_above(ABOVE)
    writer.set_complete(True)
    writer.set_members(MEMBERS)


def write_format_1(target: Path) -> None:
    """Write `data.mdb.gz` into a directory."""
    with tempfile.TemporaryDirectory() as place:
        made, copied = Path(place) / "made", Path(place) / "copied"
        copied.mkdir()
        with LmdbStore.create(made, IDENTITY, complete=False, designation=DESIGNATION) as store:
            with store.write() as writer:
                write_contents(writer)
            store.environment.handle.copy(str(copied), compact=True)
        target.mkdir(parents=True, exist_ok=True)
        (target / "data.mdb.gz").write_bytes(gzip.compress((copied / "data.mdb").read_bytes(), 9, mtime=0))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a store directory with the committed file."""
    (tmp_path / "data.mdb").write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    return tmp_path


@pytest.mark.parametrize("readonly", [True, False])
def test_directory_made_by_format_1_reads_back_exactly(directory: Path, *, readonly: bool) -> None:
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
        assert list(reader.expiring()) == [
            (4_000_000_000, (SPACE, b"expires")),
            (4_000_000_001, (SPACE, LONG + b"\x00")),
        ]
        assert dict(reader.all_totals()) == {one: _totals(one) for one in (SYSTEM_NAMESPACE, SPACE)}
        counts = {name: reader._tables.count(name) for name in TABLE_NAMES}
        assert counts == {"rows": 8, "tails": 4, "log": 11, "expiry": 2, "chunks": 0, "hashes": 2, "meta": 8}


def test_state_hash_and_digest_of_format_1_are_the_numbers_they_were(directory: Path) -> None:
    with LmdbStore.open(directory, readonly=True) as store, store.read() as reader:
        totals = reader.totals(SPACE)
        row = reader.row(SPACE, b"\xff" * 512)
        assert totals is not None
        assert row is not None
        assert (totals.state_hash, totals.rows, totals.live) == (STATE_HASH, 9, 8)
        assert row[32:48].hex() == LAST_DIGEST
        assert summarize(reader).state_hash == sum(one.state_hash for _, one in reader.all_totals()) & STATE_HASH_MASK


def test_directory_made_by_format_1_is_read_by_the_embedded_reader(directory: Path) -> None:
    with Replica(directory, now=lambda: 1_800_000_000) as replica:
        assert [one.title for one in replica.namespaces()] == ["strings"]
        shown = [key for namespace, key, row in sorted(_rows()) if namespace == SPACE and row[0] == Kind.VALUE]
        assert [one.key for one in replica.list("strings").keys] == shown
        assert replica.get_with_metadata("strings", "ключ") == (b"value", '{"ö":1}'.encode())
        assert replica.get("strings", LONG + b"t" * 17) == b"512"


def test_directory_made_by_format_1_can_be_written_on(directory: Path) -> None:
    row = encode_row(Kind.VALUE, b"new", None, 0, _version(41))
    with LmdbStore.open(directory) as store:
        with store.write() as writer:
            writer.put_row(SPACE, LONG + b"\x00", row)
            writer.delete_row(SPACE, b"expires")
            writer.set_vector(writer.vector.raised(FIRST, Stamp(41)))
        with store.read() as reader:
            assert reader.row(SPACE, LONG + b"\x00") == row
            assert list(reader.expiring()) == []
            assert dict(reader.vector.items()).get(FIRST, 0) == 41


def test_present_code_writes_format_1_as_it_was(tmp_path: Path) -> None:
    write_format_1(tmp_path / "now")
    for name in ("now", "then"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "now" / "data.mdb").write_bytes(gzip.decompress((tmp_path / "now" / "data.mdb.gz").read_bytes()))
    (tmp_path / "then" / "data.mdb").write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    contents = []
    for name in ("now", "then"):
        with LmdbStore.open(tmp_path / name, readonly=True) as store, store.read() as reader:
            tables = {table: dict(reader._tables.scan(table)) for table in TABLE_NAMES}
            del tables["meta"][b"format"]  # it names the version of kvp2p, which goes on
            contents.append(tables)
    assert contents[0] == contents[1]


if __name__ == "__main__":
    write_format_1(Path(sys.argv[1]))
