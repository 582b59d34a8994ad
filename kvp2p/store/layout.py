"""The layout of a store, format 2: what stands where, and the transactions of `core/port.py` on ordered tables.

Decides: the physical key of every row, log position, expiry entry and total, and how they are read; `layout_writer.py` writes them.
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
from typing import Final, TypeVar

from kvp2p.core.entry import STATE_HASH_MASK, ChunkId
from kvp2p.core.messages import Designation, KeyedRow, Member, RowKey
from kvp2p.core.port import ChunkState, Hidden, Identity, NamespaceTotals, PendingRow
from kvp2p.core.vector import VersionVector
from kvp2p.errors import StoreFormatError
from kvp2p.ids import ID_BYTES, ISSUER_BYTES, Issuer, NamespaceId, Stamp, Version
from kvp2p.store import meta
from kvp2p.store.meta import Decoded, Field, cached_field
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
)

T = TypeVar("T")

MARKER_BYTES: Final = TABLE_KEY_BYTES_MAX
LONG_KEY_BYTES_MIN: Final = MARKER_BYTES - ID_BYTES  # 495
HASH_BYTES = 16
NEVER = bytes(8)  # where a row has its expiry
HIDDEN = struct.Struct(">20s20s")
CONTENT_MARK = b"c"
STATE_MARK = b"r"


def short_hash(data: bytes) -> bytes:
    """Return the 16 bytes that stand for a long key."""
    return blake2b(data, digest_size=HASH_BYTES).digest()


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


def sum_hashes(totals: Iterable[NamespaceTotals]) -> int:
    """Return H over these totals."""
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
    shown_at = first + int.from_bytes(raw[end + 1 : first], "big") * HIDDEN.size
    hidden = [Hidden(Version(least), Version(greatest)) for least, greatest in HIDDEN.iter_unpack(raw[first:shown_at])]
    return PendingRow(Version(version), *_split(raw[2:end]), raw[shown_at:], tuple(hidden), raw[end] == 1)


def _split(full_key: bytes) -> RowKey:
    return NamespaceId(full_key[:ID_BYTES]), full_key[ID_BYTES:]


def scan_rows(
    tables: ReadableTables, start: bytes, *, after: bool, tells_markers: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over (namespace ‖ key, row) of all namespaces in byte order; a marker expands to its tails.

    `tells_markers` is for checks: a marker with nothing behind it comes as a row that is empty.
    """
    head = start[:MARKER_BYTES]
    for physical, row in tables.scan(ROWS, head, after=after and len(start) < MARKER_BYTES):
        if len(physical) < MARKER_BYTES:
            yield bytes(physical), row
            continue
        marker = bytes(physical)
        place = short_hash(marker)
        is_first = marker == head
        first = place + start[MARKER_BYTES:] if is_first else place
        has_rows = is_first  # perhaps before the start
        for tail, tail_row in tables.scan(TAILS, first, after=after and is_first):
            if tail[:HASH_BYTES] != place:
                break
            has_rows = True
            yield marker + tail[HASH_BYTES:], tail_row
        if tells_markers and not has_rows:
            yield marker, b""


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
        return self._tables.get(CHUNKS, chunk + CONTENT_MARK)

    def chunk_state(self, chunk: ChunkId) -> ChunkState | None:
        raw = self._tables.get(CHUNKS, chunk + STATE_MARK)
        return None if raw is None else decode_chunk_state(raw)

    def chunk_states(self) -> Iterator[tuple[ChunkId, ChunkState, bytes | None]]:
        """Iterate over all chunks with what is known of them and their contents: for those who check a store."""
        for place, raw in self._tables.scan(CHUNKS):
            if place[32:] == STATE_MARK:
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
        return sum_hashes(totals for _, totals in self.all_totals())
