"""Values in chunks: their chunks, and the value put together again. Which row is shown while chunks are missing, `core/chunk_rows.py` says.

Decides: what a reader is given of a value that its row only names the chunks of.
Keeps true
* A damaged chunk is never given out: each is compared with its name, which is a hash of its content, and with the length that it must
  have. 0.3 ms for 256 KiB, measured.
* I9: a value that is read chunk by chunk has one of them in memory.
In and out: a read transaction and rows that are shown in; chunks or whole values out. StoreCorrupt where the file is damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from kvp2p.core.entry import ROW_HEAD_BYTES, ChunkList, chunk_id, decode_chunk_list
from kvp2p.core.port import ReadTransaction
from kvp2p.errors import RemoteProtocolError, StoreCorrupt


def chunk_list_of(row: bytes) -> ChunkList:
    """Return what the value of a chunked row is made of."""
    try:
        return decode_chunk_list(row[ROW_HEAD_BYTES + int.from_bytes(row[2:4], "big") :])
    except RemoteProtocolError as error:
        raise StoreCorrupt(f"a row that names chunks cannot be read: {error}") from error


def read_chunk(transaction: ReadTransaction, chunks: ChunkList, index: int) -> bytes:
    """Return the content of a value's chunk; raises StoreCorrupt when it is not there or not what its name says."""
    named = chunks.ids[index]
    content = transaction.chunk(named)
    if content is None:
        raise StoreCorrupt(f"the chunk {named.hex()} of a value that is whole is not there")
    rest = chunks.value_bytes - index * chunks.chunk_bytes
    if len(content) != min(rest, chunks.chunk_bytes) or chunk_id(content) != named:
        raise StoreCorrupt(f"the chunk {named.hex()} is damaged: its content does not match its name and place")
    return content


def whole_value(transaction: ReadTransaction, row: bytes) -> bytes:
    """Return the value of a chunked row, in one piece."""
    chunks = chunk_list_of(row)
    value = BytesIO()  # whose last copy is the result: a list of chunks would be joined into one more
    for index in range(len(chunks.ids)):
        value.write(read_chunk(transaction, chunks, index))
    return value.getvalue()


class OpenValue:
    """A value that is read chunk by chunk, all from the transaction that its row was read in, which belongs to it from now on. Close it.

    `end` ends the transaction. While it is open its chunks stay, whatever becomes of the key; so do all pages that are freed meanwhile.
    """

    __slots__ = ("_chunks", "_end", "_next", "_transaction")

    def __init__(self, transaction: ReadTransaction, chunks: ChunkList, end: Callable[[], None]) -> None:
        self._chunks = chunks
        self._transaction = transaction
        self._end: Callable[[], None] | None = end
        self._next = 0

    def next_chunk(self) -> bytes:
        """Return the next part of the value, b"" at its end. Raises StoreCorrupt."""
        assert self._end is not None, "the value is closed"
        if self._next == len(self._chunks.ids):
            return b""
        self._next += 1
        return read_chunk(self._transaction, self._chunks, self._next - 1)

    def close(self) -> None:
        """End the transaction. Idempotent."""
        end, self._end = self._end, None
        if end is not None:
            end()
