"""The layout of a store, format 2: what stands where, and the transactions of `core/port.py` on ordered tables.

Decides: the physical key of every row, log position, expiry entry and total.
Keeps true
* I4: everything goes through one write transaction; the vector and the totals are written when it is flushed.
* Rows are read in exact byte order of (namespace, key), whatever the length of the key.
* The expiry index has one entry for each stored row that expires, the graves one for each tombstone, and no other.
In and out: logical keys (16 bytes of namespace, 1 to 512 bytes of key) and rows of `core/entry.py`; tables of `tables.py`.

    rows     namespace ‖ key → row, for a key below 495 bytes
             namespace ‖ key[:495] → empty: a marker (511 bytes), the keys that start so stand in tails
    tails    blake2b-16(namespace ‖ key[:495]) ‖ key[495:] → row
    log      issuer (8) ‖ stamp (8) → namespace ‖ key; or a Purge, as `core/purge.py` has it
    expiry   expires_at (8) ‖ blake2b-16(namespace ‖ key) → namespace ‖ key
    hashes   namespace → state hash (16) ‖ rows (8) ‖ rows that are no tombstones (8)
    meta     format, identity, vector, floor, above, complete, restored, clock offset, designation, members: see meta.py
    graves   version (20) of each tombstone → namespace ‖ key
    chunks   chunk id (32, blake2b-256 of the content) ‖ 'c' → content, at most 256 KiB
             chunk id (32)                             ‖ 'r' → number of stored rows that name the chunk (8) ‖ 1 if its content is here
             Two rows a chunk, so that a changed count does not rewrite the content; a count without content is a chunk
             that is still to be pulled. A chunk goes when nothing names it and no write under way has staged it.
    staging  chunk id (32) → empty: kept for a write under way
    pending  version (20) of a row that lacks chunks → bytes of the next (2) ‖ namespace ‖ key ‖ 1 if a walk brought it ‖ ranges (2)
             ‖ first (20) ‖ last (20) of each range of versions that it hides ‖ the row that readers see meanwhile

Format 1 had no graves, pending and staging, and vectors without terms: `migration.py` makes a store of format 2 of it.

Why long keys are split: LMDB takes keys of at most 511 bytes, ours have up to 528. Two keys that differ within their first
511 bytes are ordered by `rows`; two that do not share a marker, and are ordered by the rest in `tails`. A key that ends
before its 511th byte sorts before a marker exactly when it sorts before the keys behind it. Two markers share a place in
`tails` only if 128-bit hashes collide (2^64 chosen keys for one chance of two).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final, TypeVar

from kvp2p.core.entry import STATE_HASH_MASK, ChunkId, is_tombstone
from kvp2p.core.messages import Designation, KeyedRow, Member, RowKey
from kvp2p.core.port import ChunkState, Hidden, Identity, NamespaceTotals, PendingRow
from kvp2p.core.vector import VersionVector
from kvp2p.errors import StoreFormatError
from kvp2p.ids import ID_BYTES, ISSUER_BYTES, Issuer, NamespaceId, Stamp, Version
from kvp2p.limits import KEY_BYTES_MAX, REMEMBERED_ROWS_MAX
from kvp2p.store import meta
from kvp2p.store.meta import Decoded, Field, cached_field, decode_field
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
    TABLE_KEY_BYTES_MAX,
    TAILS,
    ReadableTables,
    WritableTables,
)

T = TypeVar("T")

MARKER_BYTES: Final = TABLE_KEY_BYTES_MAX
LONG_KEY_BYTES_MIN: Final = MARKER_BYTES - ID_BYTES  # 495
_HASH_BYTES = 16
_NEVER = bytes(8)
_HIDDEN = struct.Struct(">20s20s")
_CONTENT = b"c"
_STATE = b"r"


def short_hash(data: bytes) -> bytes:
    """Return the 16 bytes that stand for a long key."""
    return blake2b(data, digest_size=_HASH_BYTES).digest()


def tail_key(full_key: bytes) -> bytes:
    """Return where a row with a long key stands in `tails`; `full_key` is namespace ‖ key, 511 bytes or more."""
    return short_hash(full_key[:MARKER_BYTES]) + full_key[MARKER_BYTES:]


def encode_totals(totals: NamespaceTotals) -> bytes:
    """Return 32 bytes: state hash (16) ‖ rows (8) ‖ live (8)."""
    return totals.state_hash.to_bytes(16, "big") + totals.rows.to_bytes(8, "big") + totals.live.to_bytes(8, "big")


def decode_totals(raw: bytes) -> NamespaceTotals:
    """Read what `encode_totals` wrote."""
    return NamespaceTotals(
        int.from_bytes(raw[:16], "big"), int.from_bytes(raw[16:24], "big"), int.from_bytes(raw[24:], "big")
    )


def _sum_hashes(totals: Iterable[NamespaceTotals]) -> int:
    return sum(one.state_hash for one in totals) & STATE_HASH_MASK


def encode_chunk_state(state: ChunkState) -> bytes:
    """Return 9 bytes: references (8) ‖ whether the content is here (1)."""
    return state.references.to_bytes(8, "big") + bytes([state.is_here])


def decode_chunk_state(raw: bytes) -> ChunkState:
    """Read what `encode_chunk_state` wrote."""
    return ChunkState(int.from_bytes(raw[:8], "big"), raw[8] == 1)


def decode_pending(version: bytes, raw: bytes) -> PendingRow:
    """Read a value of the table `pending`."""
    end = 2 + int.from_bytes(raw[:2], "big")
    first = end + 3
    shown_at = first + int.from_bytes(raw[end + 1 : first], "big") * _HIDDEN.size
    hidden = [Hidden(Version(least), Version(greatest)) for least, greatest in _HIDDEN.iter_unpack(raw[first:shown_at])]
    return PendingRow(Version(version), *_split(raw[2:end]), raw[shown_at:], tuple(hidden), raw[end] == 1)


def _split(full_key: bytes) -> RowKey:
    return NamespaceId(full_key[:ID_BYTES]), full_key[ID_BYTES:]


def scan_rows(tables: ReadableTables, start: bytes, *, after: bool) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over (namespace ‖ key, row) of all namespaces in byte order; a marker expands to its tails."""
    head = start[:MARKER_BYTES]
    for physical, row in tables.scan(ROWS, head, after=after and len(start) < MARKER_BYTES):
        if len(physical) < MARKER_BYTES:
            yield bytes(physical), row
            continue
        marker = bytes(physical)
        place = short_hash(marker)
        is_first = marker == head
        first = place + start[MARKER_BYTES:] if is_first else place
        for tail, tail_row in tables.scan(TAILS, first, after=after and is_first):
            if tail[:_HASH_BYTES] != place:
                break
            yield marker + tail[_HASH_BYTES:], tail_row


class LayoutReader:
    """A ReadTransaction on the tables of one transaction. `decoded` is shared by all readers of a store."""

    __slots__ = ("_decoded", "_tables")

    def __init__(self, tables: ReadableTables, decoded: Decoded) -> None:
        self._tables = tables
        self._decoded = decoded

    @property
    def tables(self) -> ReadableTables:
        """The tables themselves, for code that checks the layout."""
        return self._tables

    def _fact(self, field: Field[T]) -> T:
        return cached_field(field, self._tables.get(META, field.name), self._decoded)

    @property
    def identity(self) -> Identity:
        identity = self._fact(meta.IDENTITY)
        if identity is None:
            raise StoreFormatError("the store does not say whose it is")
        return identity

    @property
    def vector(self) -> VersionVector:
        return self._fact(meta.VECTOR)

    @property
    def floor(self) -> VersionVector:
        return self._fact(meta.FLOOR)

    @property
    def above(self) -> VersionVector:
        return self._fact(meta.ABOVE)

    @property
    def complete(self) -> bool:
        return self._fact(meta.COMPLETE)

    @property
    def clock_offset_ms(self) -> int:
        return self._fact(meta.CLOCK_OFFSET)

    @property
    def restored(self) -> bool:
        return self._fact(meta.RESTORED)

    @property
    def designation(self) -> Designation | None:
        return self._fact(meta.DESIGNATION)

    @property
    def members(self) -> tuple[Member, ...]:
        return self._fact(meta.MEMBERS)

    def row(self, namespace: NamespaceId, key: bytes) -> bytes | None:
        return self._row_at(namespace + key)

    def _row_at(self, full_key: bytes) -> bytes | None:
        if len(full_key) < MARKER_BYTES:
            return self._tables.get(ROWS, full_key)
        return self._tables.get(TAILS, tail_key(full_key))

    def rows(
        self, namespace: NamespaceId, start: bytes = b"", after: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        first = namespace + (start if after is None else after)
        for full_key, row in scan_rows(self._tables, first, after=after is not None):
            if full_key[:ID_BYTES] != namespace:
                return
            yield full_key[ID_BYTES:], row

    def all_rows(self, after: RowKey | None = None) -> Iterator[KeyedRow]:
        first = b"" if after is None else after[0] + after[1]
        for full_key, row in scan_rows(self._tables, first, after=after is not None):
            yield NamespaceId(full_key[:ID_BYTES]), full_key[ID_BYTES:], row

    def position(self, issuer: Issuer, stamp: Stamp) -> RowKey | None:
        full_key = self._tables.get(LOG, issuer + stamp.to_bytes(8, "big"))
        return None if full_key is None else _split(full_key)

    def positions(self, issuer: Issuer, after: Stamp) -> Iterator[tuple[Stamp, RowKey]]:
        for place, full_key in self._tables.scan(LOG, issuer + after.to_bytes(8, "big"), after=True):
            if place[:ISSUER_BYTES] != issuer:
                return
            yield Stamp(int.from_bytes(place[ISSUER_BYTES:], "big")), _split(full_key)

    def log_issuers(self) -> Iterator[Issuer]:
        before = b""
        while (found := next(self._tables.scan(LOG, before), None)) is not None:
            issuer = Issuer(found[0][:ISSUER_BYTES])
            yield issuer
            before = issuer + b"\xff" * 9  # behind its last position

    @property
    def log_positions(self) -> int:
        return self._tables.count(LOG)

    @property
    def tombstones(self) -> int:
        return self._tables.count(GRAVES)

    def expiring(self) -> Iterator[tuple[bytes, RowKey]]:
        for place, full_key in self._tables.scan(EXPIRY):
            yield bytes(place), _split(full_key)

    def graves(self) -> Iterator[tuple[Version, RowKey]]:
        for version, full_key in self._tables.scan(GRAVES):
            yield Version(version), _split(full_key)

    def chunk(self, chunk: ChunkId) -> bytes | None:
        return self._tables.get(CHUNKS, chunk + _CONTENT)

    def chunk_state(self, chunk: ChunkId) -> ChunkState | None:
        raw = self._tables.get(CHUNKS, chunk + _STATE)
        return None if raw is None else decode_chunk_state(raw)

    def chunk_states(self) -> Iterator[tuple[ChunkId, ChunkState, bytes | None]]:
        """Iterate over all chunks with what is known of them and their contents: for those who check a store."""
        for place, raw in self._tables.scan(CHUNKS):
            if place[32:] == _STATE:
                chunk = ChunkId(bytes(place[:32]))
                yield chunk, decode_chunk_state(raw), self.chunk(chunk)

    def is_staged(self, chunk: ChunkId) -> bool:
        return self._tables.get(STAGING, chunk) is not None

    def staged(self) -> Iterator[ChunkId]:
        for chunk, _ in self._tables.scan(STAGING):
            yield ChunkId(chunk)

    def pending(self, version: Version) -> PendingRow | None:
        raw = self._tables.get(PENDING, version)
        return None if raw is None else decode_pending(version, raw)

    def pending_rows(self) -> Iterator[PendingRow]:
        for version, raw in self._tables.scan(PENDING):
            yield decode_pending(version, raw)

    def totals(self, namespace: NamespaceId) -> NamespaceTotals | None:
        raw = self._tables.get(HASHES, namespace)
        return None if raw is None else decode_totals(raw)

    def all_totals(self) -> Iterator[tuple[NamespaceId, NamespaceTotals]]:
        for namespace, raw in self._tables.scan(HASHES):
            yield NamespaceId(namespace), decode_totals(raw)

    @property
    def state_hash(self) -> int:
        return _sum_hashes(totals for _, totals in self.all_totals())


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
            self._carried.state_hash = _sum_hashes(totals.values())
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
        following = next(self._tables.scan(TAILS, place[:_HASH_BYTES]), None)
        if following is None or following[0][:_HASH_BYTES] != place[:_HASH_BYTES]:
            self._tables.delete(ROWS, full_key[:MARKER_BYTES])

    def _index(self, full_key: bytes, before: bytes | None, row: bytes | None) -> None:
        """Keep the expiry index and the graves."""
        if before is not None and is_tombstone(before):
            self._tables.delete(GRAVES, before[12:32])
        if row is not None and is_tombstone(row):
            self._tables.put(GRAVES, row[12:32], full_key)
        old = _NEVER if before is None else before[4:12]
        new = _NEVER if row is None else row[4:12]
        if old == new:
            return
        if old != _NEVER:
            self._tables.delete(EXPIRY, old + short_hash(full_key))
        if new != _NEVER:
            self._tables.put(EXPIRY, new + short_hash(full_key), full_key)

    def put_positions(self, issuer: Issuer, positions: Iterable[tuple[Stamp, RowKey]]) -> None:
        self._tables.put_many(
            LOG, [(issuer + stamp.to_bytes(8, "big"), namespace + key) for stamp, (namespace, key) in positions]
        )

    def remove_positions(self, issuer: Issuer, stamps: Iterable[Stamp]) -> None:
        for stamp in stamps:
            self._tables.delete(LOG, issuer + stamp.to_bytes(8, "big"))

    def put_chunk(self, chunk: ChunkId, content: bytes) -> None:
        self._tables.put(CHUNKS, chunk + _CONTENT, content)

    def set_chunk_state(self, chunk: ChunkId, state: ChunkState | None) -> None:
        if state is not None:
            self._tables.put(CHUNKS, chunk + _STATE, encode_chunk_state(state))
        else:
            self._tables.delete(CHUNKS, chunk + _STATE)
            self._tables.delete(CHUNKS, chunk + _CONTENT)

    def set_staged(self, chunk: ChunkId, staged: bool) -> None:
        if staged:
            self._tables.put(STAGING, chunk, b"")
        else:
            self._tables.delete(STAGING, chunk)

    def put_pending(self, row: PendingRow) -> None:
        full_key = row.namespace + row.key
        head = len(full_key).to_bytes(2, "big") + full_key + bytes([row.is_walked]) + len(row.hidden).to_bytes(2, "big")
        self._tables.put(PENDING, row.version, head + b"".join(_HIDDEN.pack(*one) for one in row.hidden) + row.shown)

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
