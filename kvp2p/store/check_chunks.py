"""Checking chunks: are those that rows name here, are they what their names say, and is each kept for a reason?

Decides: what counts as damage of chunks, pending rows and reference counts.
Keeps true: as `check.py`, whose part this is: things that are compared were read in one transaction. References are counted over all rows, so
they are compared only when all of the check was one transaction.
In and out: rows and chunks as they are walked in, damage to `found` out.

A chunked row    names chunks that are known; it is pending if one of them is not here
A pending row    is stored in this version and chunked; what readers see meanwhile fits its digest
A chunk          is what its id says; its state tells whether it is here; some row names it, or a write under way has staged it
"""

from __future__ import annotations

from typing import Protocol

from kvp2p.core.entry import ROW_HEAD_BYTES, ChunkId, check_row, chunk_id, is_chunked, row_chunks, row_version
from kvp2p.errors import RemoteProtocolError
from kvp2p.store.layout import CONTENT_MARK, LayoutReader, decode_chunk_state, decode_pending


class Find(Protocol):
    """Take note of damage; `full_key` is namespace ‖ key, None when it is not known whose it is."""

    def __call__(self, what: str, full_key: bytes | None, message: str) -> None: ...


class ChunkCheck:
    """The part of a check that is about chunks."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._named: dict[ChunkId, tuple[bytes, int]] = {}  # the first row that names a chunk, and how many do

    def take_row(self, reader: LayoutReader, full_key: bytes, row: bytes) -> None:
        """Check what a stored, sound row names."""
        if not is_chunked(row):
            return
        is_whole = True
        for chunk in row_chunks(row):
            self._name(chunk, full_key)
            state = reader.chunk_state(chunk)
            if state is None or not state.references:
                self._find(
                    "chunk_unknown", full_key, f"the row names the chunk {chunk.hex()}, which is not kept for any row"
                )
            is_whole = is_whole and state is not None and state.is_here
        if not is_whole and reader.pending(row_version(row)) is None:
            self._find("chunk_missing", full_key, "a chunk of the value is not here, and the row does not wait for it")

    def take_pending(self, reader: LayoutReader, place: bytes, raw: bytes) -> None:
        """Check an entry of the pending rows."""
        pending = decode_pending(place, raw)
        full_key = pending.namespace + pending.key
        row = reader.row(pending.namespace, pending.key)
        if row is None or len(row) < ROW_HEAD_BYTES or not is_chunked(row) or row_version(row) != place:
            self._find("pending_stale", full_key, f"a row of version {place.hex()} waits for chunks, and is not stored")
        if pending.shown:
            self._take_shown(full_key, pending.key, pending.shown)

    def _take_shown(self, full_key: bytes, key: bytes, shown: bytes) -> None:
        try:
            check_row(key, shown)
        except RemoteProtocolError as error:
            self._find("row", full_key, f"of the row that readers see until its chunks are here: {error}")
            return
        for chunk in row_chunks(shown):
            self._name(chunk, full_key)

    def _name(self, chunk: ChunkId, full_key: bytes) -> None:
        first, count = self._named.get(chunk, (full_key, 0))
        self._named[chunk] = (first, count + 1)

    def take_chunk(self, reader: LayoutReader, place: bytes, raw: bytes, *, is_one_transaction: bool) -> None:
        """Check an entry of the chunks: a content or a state."""
        chunk = ChunkId(place[:-1])
        if place[-1:] == CONTENT_MARK:
            self._check_content(reader, chunk, raw)
        else:
            self._check_state(reader, chunk, raw, is_one_transaction=is_one_transaction)

    def _check_content(self, reader: LayoutReader, chunk: ChunkId, content: bytes) -> None:
        if chunk_id(content) != chunk:
            self._find("chunk", self._first_of(chunk), f"the chunk {chunk.hex()} is not what its id says")
        state = reader.chunk_state(chunk)
        if state is None or not state.is_here:
            self._find(
                "chunk_state", self._first_of(chunk), f"the chunk {chunk.hex()} is here, and its state denies it"
            )

    def _check_state(self, reader: LayoutReader, chunk: ChunkId, raw: bytes, *, is_one_transaction: bool) -> None:
        state = decode_chunk_state(raw)
        if state.is_here and reader.chunk(chunk) is None:
            self._find("chunk_state", self._first_of(chunk), f"the chunk {chunk.hex()} is said to be here, and is not")
        if not state.references and not reader.is_staged(chunk):
            self._find("chunk_unused", None, f"the chunk {chunk.hex()} is kept, and nothing names it")
        _, named = self._named.get(chunk, (b"", 0))
        if is_one_transaction and named != state.references:
            message = f"the chunk {chunk.hex()} counts {state.references} rows that name it, and {named} do"
            self._find("chunk_references", self._first_of(chunk), message)

    def _first_of(self, chunk: ChunkId) -> bytes | None:
        first, _ = self._named.get(chunk, (None, 0))
        return first
