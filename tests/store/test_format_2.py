"""Format 2 as a committed file: a data directory made by it opens now, and reads back exactly.

`format_2/data.mdb.gz` was written by `write_format_2` below, once, when format 2 was fixed; it is never written again. A
change that cannot read it is a new format. It holds what `write_contents` puts into a new store, copied with LMDB's
compaction (fewer and deterministic pages) and packed. To see what the present code would write:
`PYTHONPATH=. python tests/store/test_format_2.py DIRECTORY`.
"""

import gzip
import sys
import tempfile
from pathlib import Path

import pytest

from kvp2p import Replica
from kvp2p.core.entry import ChunkList, Kind, chunk_id, encode_chunk_list, encode_row
from kvp2p.core.messages import Designation, KeyedRow, Member, Purge
from kvp2p.core.port import ChunkState, Hidden, Identity, NamespaceTotals, PendingRow
from kvp2p.core.purge import purge_at, purge_key
from kvp2p.core.system_rows import Namespace, encode_namespace
from kvp2p.core.vector import VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NamespaceId, NodeId, Stamp, Version, make_version
from kvp2p.store.layout_writer import LayoutWriter
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.tables import TABLE_NAMES

FIXTURE = Path(__file__).parent / "format_2" / "data.mdb.gz"

IDENTITY = Identity(ClusterId(b"cluster-of-tests"), AccountId(b"account-of-tests"), NodeId(b"node-number-one!"), "n1")
SPACE = NamespaceId(bytes(range(16)))
FIRST = Issuer(b"issuer-1")
SECOND = Issuer(b"issuer-2")
DESIGNATION = Designation(3, FIRST, IDENTITY.node)
MEMBERS = (Member(NodeId(b"node-number-two!"), 2, "zwölf", "", "", ""),)
FENCE = make_version(2, Stamp(9), FIRST)
VECTOR = VersionVector([make_version(3, Stamp(40), FIRST), make_version(2, Stamp(2**58), SECOND)], FENCE)
FLOOR = VersionVector([make_version(2, Stamp(10), SECOND)], FENCE)
ABOVE = VersionVector([make_version(2, Stamp(2**58 + 1), SECOND)])
PURGE = Purge(bytes(range(24)), VersionVector([make_version(3, Stamp(3), FIRST)]), FENCE, Version(bytes(20)))
LONG = b"long/" + b"k" * 490  # 495 bytes: the shortest key that is split
CHUNKS = (b"one " * 100, b"two " * 100, b"three")
IDS = tuple(map(chunk_id, CHUNKS))
LARGE = encode_chunk_list(ChunkList(805, 400, IDS))


def _version(stamp: int, issuer: Issuer = FIRST) -> Version:
    return make_version(3, Stamp(stamp), issuer)


def _rows() -> list[KeyedRow]:
    space_key, space_value = encode_namespace(Namespace(SPACE, IDENTITY.account, "strings", 1_700_000_000_000))
    return [
        (SYSTEM_NAMESPACE, space_key, encode_row(Kind.VALUE, space_value, None, 0, _version(1))),
        (SPACE, b"deleted", encode_row(Kind.TOMBSTONE, b"", None, 0, _version(3))),
        (SPACE, b"expires", encode_row(Kind.VALUE, b"later", None, 4_000_000_000, _version(4))),
        (SPACE, b"inline", encode_row(Kind.VALUE, b"inline", b'{"a":1}', 0, _version(5))),
        (SPACE, b"large", encode_row(Kind.CHUNKED, LARGE, b'{"type":"text"}', 0, _version(6))),
        (SPACE, b"pending", encode_row(Kind.CHUNKED, LARGE, None, 0, _version(7))),
        (SPACE, LONG, encode_row(Kind.VALUE, b"495", None, 0, _version(8))),
    ]


SHOWN = encode_row(Kind.VALUE, b"before", None, 0, _version(2))
HIDDEN = (Hidden(_version(6), _version(7)), Hidden(_version(5, SECOND), _version(5, SECOND)))
PENDING = PendingRow(_version(7), SPACE, b"pending", SHOWN, HIDDEN, is_walked=True)


def write_contents(writer: LayoutWriter) -> None:
    """Put one of everything that format 2 can hold into a new store; what it does not keep by itself need not agree."""
    for number, (namespace, key, row) in enumerate(_rows(), 1):
        writer.put_row(namespace, key, row)
        writer.put_positions(FIRST, [(Stamp(number), (namespace, key))])
        writer.set_totals(namespace, NamespaceTotals(number << 100, number, number - 1))
    writer.put_positions(FIRST, [(Stamp(40), purge_key(PURGE))])
    for chunk, content in zip(IDS, CHUNKS, strict=True):
        writer.put_chunk(chunk, content)
        writer.set_chunk_state(chunk, ChunkState(2, is_here=True))
    writer.set_chunk_state(chunk_id(b"missing"), ChunkState(1, is_here=False))
    writer.set_staged(chunk_id(b"staged"), staged=True)
    writer.put_pending(PENDING)
    writer.set_vector(VECTOR)
    writer.set_floor(FLOOR)
    writer.set_above(ABOVE)
    writer.set_complete(True)
    writer.set_members(MEMBERS)
    writer.set_clock_offset_ms(-1_234)


def write_format_2(target: Path) -> None:
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
def test_directory_made_by_format_2_reads_back_exactly(directory: Path, *, readonly: bool) -> None:
    with LmdbStore.open(directory, readonly=readonly) as store, store.read() as reader:
        assert (reader.identity, reader.designation, reader.members) == (IDENTITY, DESIGNATION, MEMBERS)
        assert (reader.complete, reader.clock_offset_ms) == (True, -1_234)
        assert (reader.vector, reader.floor, reader.above) == (VECTOR, FLOOR, ABOVE)
        assert list(reader.all_rows()) == sorted(_rows())
        *rows, (stamp, last) = reader.positions(FIRST, Stamp(0))
        assert [row_key for _, row_key in rows] == [(one[0], one[1]) for one in _rows()]
        assert (stamp, purge_at(last)) == (40, PURGE)
        assert list(reader.log_issuers()) == [FIRST]
        assert [row_key for _, row_key in reader.expiring()] == [(SPACE, b"expires")]
        assert list(reader.graves()) == [(_version(3), (SPACE, b"deleted"))]
        assert [reader.chunk(chunk) for chunk in IDS] == list(CHUNKS)
        assert [reader.chunk_state(chunk) for chunk in IDS] == [ChunkState(2, is_here=True)] * 3
        assert reader.chunk_state(chunk_id(b"missing")) == ChunkState(1, is_here=False)
        assert list(reader.staged()) == [chunk_id(b"staged")]
        assert list(reader.pending_rows()) == [PENDING]
        assert reader.totals(SPACE) == NamespaceTotals(7 << 100, 7, 6)


def test_directory_made_by_format_2_is_read_by_the_embedded_reader(directory: Path) -> None:
    with Replica(directory, now=lambda: 1_800_000_000) as replica:
        assert replica.get("strings", "inline") == b"inline"
        assert replica.get("strings", LONG) == b"495"


def test_present_code_writes_format_2_as_it_was(tmp_path: Path) -> None:
    write_format_2(tmp_path / "now")
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
    write_format_2(Path(sys.argv[1]))
