"""Writing to the layout of `layout.py`: one write transaction on ordered tables.

Decides: how rows keep their indexes, and when facts and totals reach their tables.
Keeps true
* I4: everything goes through one write transaction; the vector and the totals are written when it is flushed.
* The expiry index has one entry for each stored row that expires, the graves one for each tombstone, and no other.
In and out: the calls of `core/port.py` in, changed tables out. What the next transaction may start from is carried in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from kvp2p.core.entry import STATE_HASH_MASK, ChunkId, is_tombstone
from kvp2p.core.messages import Designation, Member, RowKey
from kvp2p.core.port import ChunkState, Identity, NamespaceTotals, PendingRow
from kvp2p.core.vector import VersionVector
from kvp2p.ids import ID_BYTES, Issuer, NamespaceId, Stamp, Version
from kvp2p.limits import KEY_BYTES_MAX, REMEMBERED_ROWS_MAX
from kvp2p.store import meta
from kvp2p.store.layout import (
    CONTENT_MARK,
    HASH_BYTES,
    HIDDEN,
    MARKER_BYTES,
    NEVER,
    STATE_MARK,
    LayoutReader,
    encode_chunk_state,
    encode_totals,
    short_hash,
    sum_hashes,
    tail_key,
)
from kvp2p.store.meta import Field, decode_field
from kvp2p.store.tables import (
    CHUNKS,
    EXPIRY,
    GRAVES,
    HASHES,
    LOG,
    META,
    PENDING,
    ROWS,
    STAGING,
    TAILS,
    WritableTables,
)

T = TypeVar("T")


class Carried:
    """What one write transaction leaves in memory for the next, so that a commit decodes nothing.

    It is true only of the state that its transaction committed: a store drops it when a transaction fails.
    """

    __slots__ = ("facts", "state_hash", "totals")

    def __init__(self) -> None:
        self.facts: dict[bytes, Any] = {}
        self.totals: dict[NamespaceId, NamespaceTotals] | None = None  # in byte order
        self.state_hash = 0  # the sum of those of the totals


class LayoutWriter(LayoutReader):
    """A WriteTransaction. Facts and totals are kept in memory until `flush`, which the store calls before it commits."""

    __slots__ = ("_carried", "_changed_facts", "_changed_totals", "_rows")

    def __init__(self, tables: WritableTables, carried: Carried) -> None:
        super().__init__(tables, {})
        self._tables: WritableTables
        self._carried = carried
        self._changed_facts: dict[bytes, Field[Any]] = {}
        self._changed_totals: dict[NamespaceId, None] = {}
        # Rows read or written in this transaction: applying an entry asks for its row, and its namespace's, several times.
        self._rows: dict[bytes, bytes | None] = {}

    def _fact(self, field: Field[T]) -> T:
        facts = self._carried.facts
        if field.name not in facts:
            facts[field.name] = decode_field(field, self._tables.get(META, field.name))
        value: T = facts[field.name]
        return value

    def _set_fact(self, field: Field[T], value: T) -> None:
        self._carried.facts[field.name] = value
        self._changed_facts[field.name] = field

    def _all_totals(self) -> dict[NamespaceId, NamespaceTotals]:
        totals = self._carried.totals
        if totals is None:
            totals = self._carried.totals = dict(super().all_totals())
            self._carried.state_hash = sum_hashes(totals.values())
        return totals

    def _row_at(self, full_key: bytes) -> bytes | None:
        rows = self._rows
        if full_key in rows:
            return rows[full_key]
        if len(rows) >= REMEMBERED_ROWS_MAX:
            rows.clear()
        row = rows[full_key] = super()._row_at(full_key)
        return row

    def put_row(self, namespace: NamespaceId, key: bytes, row: bytes) -> None:
        assert len(namespace) == ID_BYTES
        assert 1 <= len(key) <= KEY_BYTES_MAX
        assert row
        full_key = namespace + key
        before = self._row_at(full_key)
        if len(full_key) < MARKER_BYTES:
            self._tables.put(ROWS, full_key, row)
        else:
            if before is None:
                self._tables.put(ROWS, full_key[:MARKER_BYTES], b"")
            self._tables.put(TAILS, tail_key(full_key), row)
        self._rows[full_key] = row
        self._index(full_key, before, row)

    def delete_row(self, namespace: NamespaceId, key: bytes) -> None:
        full_key = namespace + key
        before = self._row_at(full_key)
        if before is None:
            return
        if len(full_key) < MARKER_BYTES:
            self._tables.delete(ROWS, full_key)
        else:
            self._delete_tail(full_key)
        self._rows[full_key] = None
        self._index(full_key, before, None)

    def _delete_tail(self, full_key: bytes) -> None:
        place = tail_key(full_key)
        self._tables.delete(TAILS, place)
        following = next(self._tables.scan(TAILS, place[:HASH_BYTES]), None)
        if following is None or following[0][:HASH_BYTES] != place[:HASH_BYTES]:
            self._tables.delete(ROWS, full_key[:MARKER_BYTES])

    def _index(self, full_key: bytes, before: bytes | None, row: bytes | None) -> None:
        """Keep the expiry index and the graves."""
        if before is not None and is_tombstone(before):
            self._tables.delete(GRAVES, before[12:32])
        if row is not None and is_tombstone(row):
            self._tables.put(GRAVES, row[12:32], full_key)
        old = NEVER if before is None else before[4:12]
        new = NEVER if row is None else row[4:12]
        if old == new:
            return
        if old != NEVER:
            self._tables.delete(EXPIRY, old + short_hash(full_key))
        if new != NEVER:
            self._tables.put(EXPIRY, new + short_hash(full_key), full_key)

    def put_positions(self, issuer: Issuer, positions: Iterable[tuple[Stamp, RowKey]]) -> None:
        self._tables.put_many(
            LOG, [(issuer + stamp.to_bytes(8, "big"), namespace + key) for stamp, (namespace, key) in positions]
        )

    def remove_positions(self, issuer: Issuer, stamps: Iterable[Stamp]) -> None:
        for stamp in stamps:
            self._tables.delete(LOG, issuer + stamp.to_bytes(8, "big"))

    def put_chunk(self, chunk: ChunkId, content: bytes) -> None:
        self._tables.put(CHUNKS, chunk + CONTENT_MARK, content)

    def set_chunk_state(self, chunk: ChunkId, state: ChunkState | None) -> None:
        if state is not None:
            self._tables.put(CHUNKS, chunk + STATE_MARK, encode_chunk_state(state))
        else:
            self._tables.delete(CHUNKS, chunk + STATE_MARK)
            self._tables.delete(CHUNKS, chunk + CONTENT_MARK)

    def set_staged(self, chunk: ChunkId, staged: bool) -> None:
        if staged:
            self._tables.put(STAGING, chunk, b"")
        else:
            self._tables.delete(STAGING, chunk)

    def put_pending(self, row: PendingRow) -> None:
        full_key = row.namespace + row.key
        head = len(full_key).to_bytes(2, "big") + full_key + bytes([row.is_walked]) + len(row.hidden).to_bytes(2, "big")
        self._tables.put(PENDING, row.version, head + b"".join(HIDDEN.pack(*one) for one in row.hidden) + row.shown)

    def delete_pending(self, version: Version) -> None:
        self._tables.delete(PENDING, version)

    def set_identity(self, identity: Identity) -> None:
        """Say whose store this is: once, when it is made."""
        self._set_fact(meta.IDENTITY, identity)

    def set_vector(self, vector: VersionVector) -> None:
        self._set_fact(meta.VECTOR, vector)

    def set_floor(self, floor: VersionVector) -> None:
        self._set_fact(meta.FLOOR, floor)

    def set_above(self, above: VersionVector) -> None:
        self._set_fact(meta.ABOVE, above)

    def set_complete(self, complete: bool) -> None:
        self._set_fact(meta.COMPLETE, complete)

    def set_clock_offset_ms(self, offset_ms: int) -> None:
        self._set_fact(meta.CLOCK_OFFSET, offset_ms)

    def set_restored(self, restored: bool) -> None:
        self._set_fact(meta.RESTORED, restored)

    def set_designation(self, designation: Designation) -> None:
        self._set_fact(meta.DESIGNATION, designation)

    def set_members(self, members: tuple[Member, ...]) -> None:
        self._set_fact(meta.MEMBERS, members)

    def totals(self, namespace: NamespaceId) -> NamespaceTotals | None:
        return self._all_totals().get(namespace)

    def all_totals(self) -> Iterator[tuple[NamespaceId, NamespaceTotals]]:
        return iter(self._all_totals().items())

    @property
    def state_hash(self) -> int:
        self._all_totals()
        return self._carried.state_hash

    def set_totals(self, namespace: NamespaceId, totals: NamespaceTotals | None) -> None:
        carried, everything = self._carried, self._all_totals()
        before = everything.get(namespace)
        difference = (totals.state_hash if totals else 0) - (before.state_hash if before else 0)
        carried.state_hash = (carried.state_hash + difference) & STATE_HASH_MASK
        if totals is None:
            everything.pop(namespace, None)
        else:
            everything[namespace] = totals
            if before is None:
                carried.totals = dict(sorted(everything.items()))
        self._changed_totals[namespace] = None

    def flush(self) -> Carried:
        """Write changed facts and totals to the tables; returns what the next transaction may start from."""
        for name, field in self._changed_facts.items():
            self._tables.put(META, name, field.encode(self._carried.facts[name]))
        for namespace in self._changed_totals:
            totals = self._all_totals().get(namespace)
            if totals is None:
                self._tables.delete(HASHES, namespace)
            else:
                self._tables.put(HASHES, namespace, encode_totals(totals))
        self._changed_facts.clear()
        self._changed_totals.clear()
        return self._carried


def found_store(tables: WritableTables, identity: Identity, *, complete: bool, designation: Designation | None) -> None:
    """Write the first facts of a new store into its empty tables."""
    tables.put(META, meta.FORMAT_KEY, meta.encode_format())
    writer = LayoutWriter(tables, Carried())
    writer.set_identity(identity)
    writer.set_complete(complete)
    if designation is not None:
        writer.set_designation(designation)
    writer.flush()
