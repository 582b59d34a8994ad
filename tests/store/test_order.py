"""Byte order and the physical layout, against a plain dict, with keys that hypothesis picks around the split."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvp2p.core.port import Identity
from kvp2p.ids import AccountId, ClusterId, NamespaceId, NodeId
from kvp2p.store.layout import LONG_KEY_BYTES_MIN, MARKER_BYTES, short_hash, tail_key
from kvp2p.store.layout_writer import LayoutWriter
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.memory import MemoryStore
from kvp2p.store.tables import EXPIRY, ROWS, TAILS

Store = LmdbStore | MemoryStore
MakeRow = Callable[..., bytes]

NAMESPACES = [NamespaceId(bytes(16)), NamespaceId(b"\x00" * 15 + b"\x01"), NamespaceId(b"\xff" * 16)]

# Few different bytes, the extremes among them, and lengths around the split: keys share prefixes and nest often.
edge_bytes = st.sampled_from([b"\x00", b"\x01", b"k", b"\xfe", b"\xff"])
short_keys = st.lists(edge_bytes, min_size=1, max_size=4).map(b"".join)
long_keys = st.builds(
    lambda fill, length, tail: (fill * 512)[:length] + b"".join(tail),
    edge_bytes,
    st.integers(LONG_KEY_BYTES_MIN - 3, 509),
    st.lists(edge_bytes, max_size=3),
)
keys = st.one_of(short_keys, long_keys, st.binary(min_size=1, max_size=512))
row_keys = st.tuples(st.sampled_from(NAMESPACES), keys)
# (key, seconds at which it expires; None deletes)
steps = st.lists(st.tuples(row_keys, st.sampled_from([0, 0, 5, 6, None])), max_size=30)


class Undo(Exception):
    """Ends an example: the transaction is undone, so that each begins with an empty store and no sync is paid for."""


def check_physical_layout(writer: LayoutWriter, model: dict[tuple[NamespaceId, bytes], bytes]) -> None:
    tables = writer._tables
    full = {namespace + key: row for (namespace, key), row in model.items()}
    rows = {key: row for key, row in full.items() if len(key) < MARKER_BYTES}
    rows |= {key[:MARKER_BYTES]: b"" for key in full if len(key) >= MARKER_BYTES}
    assert dict(tables.scan(ROWS)) == rows
    assert dict(tables.scan(TAILS)) == {tail_key(key): row for key, row in full.items() if len(key) >= MARKER_BYTES}
    expiring = {row[4:12] + short_hash(key): key for key, row in full.items() if row[4:12] != bytes(8)}
    assert dict(tables.scan(EXPIRY)) == expiring


@settings(max_examples=150, database=None)
@given(steps=steps, probe=row_keys)
@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_scans_agree_with_sorted_after_any_puts_and_deletes(
    kind: str,
    steps: list[tuple[tuple[NamespaceId, bytes], int | None]],
    probe: tuple[NamespaceId, bytes],
    stores: dict[str, Store],
    make_row: MakeRow,
) -> None:
    model: dict[tuple[NamespaceId, bytes], bytes] = {}
    with pytest.raises(Undo), stores[kind].write() as writer:
        for number, ((namespace, key), expires_at) in enumerate(steps):
            if expires_at is None:
                model.pop((namespace, key), None)
                writer.delete_row(namespace, key)
            else:
                row = model[namespace, key] = make_row(b"%d" % number, expires_at=expires_at)
                writer.put_row(namespace, key, row)
        writer._rows.clear()  # what follows reads the tables, not the writer's memory
        ordered = sorted(model.items())
        assert [((namespace, key), row) for namespace, key, row in writer.all_rows()] == ordered
        after = [(namespace, key) for namespace, key, _ in writer.all_rows(after=probe)]
        assert after == [row_key for row_key, _ in ordered if row_key > probe]
        here = [key for (namespace, key), _ in ordered if namespace == probe[0]]
        assert [key for key, _ in writer.rows(probe[0], start=probe[1])] == [key for key in here if key >= probe[1]]
        assert [key for key, _ in writer.rows(probe[0], after=probe[1])] == [key for key in here if key > probe[1]]
        assert writer.row(*probe) == model.get(probe)
        for (namespace, key), row in ordered:
            assert writer.row(namespace, key) == row
        check_physical_layout(writer, model)
        raise Undo


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Give one store of each kind, for all examples."""
    identity = Identity(ClusterId(b"c" * 16), AccountId(b"a" * 16), NodeId(b"n" * 16), "n1")
    directory = tmp_path_factory.mktemp("order") / "store"
    return {"lmdb": LmdbStore.create(directory, identity, complete=True), "memory": MemoryStore(identity)}
