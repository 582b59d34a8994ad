"""Entries, the row that stores one, and `join`, which is the whole CRDT.

Decides: the byte layout of a row, its digest, its share of the state hash, how a large value is named by its chunks, and which of two
rows of a key stays.
Keeps true: I1, `join_rows` is commutative, associative and idempotent.
In and out: an `Entry` or a row, both whole; the layout is the same in the store and on the wire.

Row layout, big-endian, 48 bytes of head:

    0   kind (1)           0 tombstone, 1 value, 2 chunked value (from format 2 of the store on)
    1   flags (1)          bit 0 metadata present, bit 1 metadata is pure ASCII
    2   metadata length (2)
    4   expires_at (8)     unix seconds, 0 = never
    12  version (20)
    32  row digest (16)    xxh3-128 over bytes 0..12 ‖ metadata ‖ body
    48  metadata (UTF-8 JSON, compact) ‖ body

The body of a chunked value: its length (8) ‖ bytes of each chunk but the last (4) ‖ chunk ids (32 each, BLAKE2b-256 of the content).
Chunks are named by what they hold: equal ones are stored once, and whoever sends one cannot send another.

Source: last-writer-wins register of Shapiro et al., *Conflict-free Replicated Data Types* (2011), with versions that no two
writes share.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple, NewType

from xxhash import xxh3_128_digest, xxh3_128_intdigest

from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import NamespaceId, Version
from kvp2p.limits import (
    CHUNK_BYTES,
    CHUNKS_PER_VALUE_MAX,
    KEY_BYTES_MAX,
    METADATA_BYTES_MAX,
    ROW_VALUE_BYTES_MAX,
    VALUE_BYTES_MAX,
)

ChunkId = NewType("ChunkId", bytes)  # 32 bytes: BLAKE2b-256 of the chunk's content

_HEAD = struct.Struct(">BBHQ")
_HEAD_BYTES = 12
CHUNK_ID_BYTES = 32
_CHUNK_LIST_HEAD = struct.Struct(">QI")
ROW_HEAD_BYTES = 48
FLAG_METADATA = 1
FLAG_METADATA_ASCII = 2
STATE_HASH_MASK = (1 << 128) - 1


class Kind(IntEnum):
    """What a row holds."""

    TOMBSTONE = 0
    VALUE = 1
    CHUNKED = 2


# Looking up an enum's member takes 0.1 us in Python 3.11, as long as a comparison of rows; these are looked at for each row.
_TOMBSTONE = int(Kind.TOMBSTONE)
_VALUE = int(Kind.VALUE)
_CHUNKED = int(Kind.CHUNKED)
_KINDS = (_TOMBSTONE, _VALUE, _CHUNKED)


class ChunkList(NamedTuple):
    """What a chunked value is made of, in order: `chunk_bytes` of each but the last. An id may stand here more than once."""

    value_bytes: int
    chunk_bytes: int
    ids: tuple[ChunkId, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's newest write: a value or a tombstone. `expires_at` is unix seconds, 0 for never.

    `value` of a chunked one is its chunk list as `encode_chunk_list` lays it out.
    """

    namespace: NamespaceId
    key: bytes
    kind: Kind
    value: bytes
    metadata: bytes | None
    expires_at: int
    version: Version


def encode_row(kind: Kind, value: bytes, metadata: bytes | None, expires_at: int, version: Version) -> bytes:
    """Lay out a row, digest included."""
    if metadata is None:
        head, body = _HEAD.pack(kind, 0, 0, expires_at), value
    else:
        flags = FLAG_METADATA | (FLAG_METADATA_ASCII if metadata.isascii() else 0)
        head, body = _HEAD.pack(kind, flags, len(metadata), expires_at), metadata + value
    return head + version + xxh3_128_digest(head + body) + body


def decode_row(namespace: NamespaceId, key: bytes, row: bytes) -> Entry:
    """Read a row that the store or `check_row` vouches for."""
    kind, flags, metadata_bytes, expires_at = _HEAD.unpack_from(row)
    value_at = ROW_HEAD_BYTES + metadata_bytes
    metadata = row[ROW_HEAD_BYTES:value_at] if flags & FLAG_METADATA else None
    return Entry(namespace, key, Kind(kind), row[value_at:], metadata, expires_at, Version(row[12:32]))


def row_kind(row: bytes) -> int:
    """Return the kind of a row as a plain integer."""
    return row[0]


def is_tombstone(row: bytes) -> bool:
    """Tell whether a row says that there is nothing."""
    return row[0] == _TOMBSTONE


def is_value(row: bytes) -> bool:
    """Tell whether a row holds its value."""
    return row[0] == _VALUE


def is_chunked(row: bytes) -> bool:
    """Tell whether a row names the chunks of its value."""
    return row[0] == _CHUNKED


def chunk_id(content: bytes) -> ChunkId:
    """Return what a chunk is named by."""
    return ChunkId(blake2b(content, digest_size=CHUNK_ID_BYTES).digest())


def encode_chunk_list(chunks: ChunkList) -> bytes:
    """Lay out the body of a chunked row."""
    return _CHUNK_LIST_HEAD.pack(chunks.value_bytes, chunks.chunk_bytes) + b"".join(chunks.ids)


def decode_chunk_list(body: bytes) -> ChunkList:
    """Read the body of a chunked row.

    Raises RemoteProtocolError when it names another number of chunks than its length takes, or breaks a limit.
    """
    ids, rest = divmod(len(body) - _CHUNK_LIST_HEAD.size, CHUNK_ID_BYTES)
    if rest or not 1 <= ids <= CHUNKS_PER_VALUE_MAX:
        raise RemoteProtocolError(f"a chunk list cannot have {len(body)} bytes")
    value_bytes, chunk_bytes = _CHUNK_LIST_HEAD.unpack_from(body)
    if not 1 <= chunk_bytes <= CHUNK_BYTES or not 1 <= value_bytes <= VALUE_BYTES_MAX:
        raise RemoteProtocolError("the lengths in a chunk list break a limit")
    if -(-value_bytes // chunk_bytes) != ids:
        raise RemoteProtocolError(
            f"a value of {value_bytes} bytes in chunks of {chunk_bytes} does not have {ids} chunks"
        )
    starts = range(_CHUNK_LIST_HEAD.size, len(body), CHUNK_ID_BYTES)
    return ChunkList(value_bytes, chunk_bytes, tuple(ChunkId(body[at : at + CHUNK_ID_BYTES]) for at in starts))


def row_chunks(row: bytes) -> tuple[ChunkId, ...]:
    """Return the chunks that a row names, each once, in the order of their first use; none for a row that is not chunked."""
    if row[0] != _CHUNKED:
        return ()
    body_at = ROW_HEAD_BYTES + int.from_bytes(row[2:4], "big")
    starts = range(body_at + _CHUNK_LIST_HEAD.size, len(row), CHUNK_ID_BYTES)
    return tuple(dict.fromkeys(ChunkId(row[at : at + CHUNK_ID_BYTES]) for at in starts))


def row_version(row: bytes) -> Version:
    """Return the version of a row."""
    return Version(row[12:32])


def row_expires_at(row: bytes) -> int:
    """Return the second at which a row is hidden, 0 for never."""
    return int.from_bytes(row[4:12], "big")


def row_digest_holds(row: bytes) -> bool:
    """Tell whether the digest in a row is the digest of what the row holds."""
    return row[32:ROW_HEAD_BYTES] == xxh3_128_digest(row[:_HEAD_BYTES] + row[ROW_HEAD_BYTES:])


def check_row(key: bytes, row: bytes) -> None:
    """Check key and row as they come from a peer.

    Raises RemoteProtocolError when lengths, kind, flags or digest are wrong.
    """
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise RemoteProtocolError(f"a key has {len(key)} bytes; 1 to {KEY_BYTES_MAX} are allowed")
    if len(row) < ROW_HEAD_BYTES:
        raise RemoteProtocolError(f"a row has {len(row)} bytes; its head alone has {ROW_HEAD_BYTES}")
    kind, flags, metadata_bytes, _ = _HEAD.unpack_from(row)
    if kind not in _KINDS:
        raise RemoteProtocolError(f"a row has the unknown kind {kind}")
    value_bytes = len(row) - ROW_HEAD_BYTES - metadata_bytes
    if metadata_bytes > METADATA_BYTES_MAX or not 0 <= value_bytes <= ROW_VALUE_BYTES_MAX:
        raise RemoteProtocolError("the lengths in a row contradict each other or a limit")
    expected_flags = 0
    if flags & FLAG_METADATA:
        metadata = row[ROW_HEAD_BYTES : ROW_HEAD_BYTES + metadata_bytes]
        expected_flags = FLAG_METADATA | (FLAG_METADATA_ASCII if metadata.isascii() else 0)
    elif metadata_bytes:
        raise RemoteProtocolError("a row has metadata that its flags deny")
    if flags != expected_flags or (kind == _TOMBSTONE and (value_bytes or metadata_bytes)):
        raise RemoteProtocolError("the flags or the kind of a row contradict its contents")
    if kind == _CHUNKED:
        decode_chunk_list(row[ROW_HEAD_BYTES + metadata_bytes :])
    if not row_digest_holds(row):
        raise RemoteProtocolError("a row does not match its digest")


def join_rows(mine: bytes | None, other: bytes) -> bytes:
    """Return the row that stays: the greater version; of equal versions the greater bytes, so that every replica agrees."""
    if mine is None:
        return other
    mine_version, other_version = mine[12:32], other[12:32]
    if mine_version != other_version:
        return mine if mine_version > other_version else other
    return max(mine, other)


def row_state_hash(namespace: NamespaceId, key: bytes, row: bytes, seed: int) -> int:
    """Return a row's addend to the state hash H, an integer below 2**128. Version and digest are adjacent in the row."""
    return xxh3_128_intdigest(namespace + key + row[12:ROW_HEAD_BYTES], seed)
