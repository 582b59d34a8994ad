"""Large values in a simulated cluster: how clients send them, what readers see, and what a store says of its chunks.

Decides: how a value is cut, and the order in which a client sends it: each chunk when the one before is acknowledged, the write, and the end of the upload.
Keeps true: a reader sees what a gateway would: the row that is shown, its value put together from its chunks. A chunk that is not there makes a value
that nobody wrote.
In and out: whole values from the workload in (a Put with `is_chunked` has its whole value here), chunks and writes at a host out; facts for checkers.
"""

from __future__ import annotations

from collections.abc import Callable

from kvp2p.core.chunk_rows import shown_row
from kvp2p.core.entry import (
    ChunkId,
    ChunkList,
    Kind,
    chunk_id,
    decode_chunk_list,
    decode_row,
    encode_chunk_list,
    row_chunks,
    row_version,
)
from kvp2p.core.events import EndUpload, StageChunk
from kvp2p.core.operations import Ending, Operation, Outcome, Put, refused
from kvp2p.core.port import ReadTransaction
from kvp2p.ids import NamespaceId, Version
from kvp2p.sim.history import ABSENT_CONTENT, content_of
from kvp2p.sim.host import Host
from kvp2p.store.layout import LayoutReader

CHUNK_BYTES = 1024
PART_BYTES = 400  # asked for: a chunk takes three
MISSING = b"<a chunk that is not here>"
GIVEN_UP = refused("given_up", "the client went away before its value was sent")


def is_cut(operation: Operation) -> bool:
    """Tell whether a client sends a value in chunks."""
    return isinstance(operation, Put) and operation.is_chunked


def cut(operation: Operation) -> tuple[Operation, list[tuple[ChunkId, bytes]]]:
    """Return an operation as its write has it, and the chunks that go before."""
    if not isinstance(operation, Put) or not operation.is_chunked:
        return operation, []
    value = operation.value
    contents = [value[at : at + CHUNK_BYTES] for at in range(0, len(value), CHUNK_BYTES)]
    chunks = [(chunk_id(content), content) for content in contents]
    body = encode_chunk_list(ChunkList(len(value), CHUNK_BYTES, tuple(chunk for chunk, _ in chunks)))
    return operation._replace(value=body), chunks


class Upload:
    """One write with large values on its way. `told` gets its outcome, None when the node's process ended first."""

    def __init__(
        self,
        host: Host,
        number: int,
        operations: tuple[Operation, ...],
        write: Callable[[tuple[Operation, ...], Callable[[Outcome | None], None]], None],
        told: Callable[[Outcome | None], None],
        gives_up_after: int | None,
    ) -> None:
        """Begin. `write` asks the host for a write; `gives_up_after` so many chunks the client goes away."""
        self._host = host
        self._life = host.life
        self._number = number
        self._write = write
        self._told = told
        cuts = [cut(operation) for operation in operations]
        self._operations = tuple(operation for operation, _ in cuts)
        self._chunks = [chunk for _, chunks in cuts for chunk in chunks]
        self._sent = 0
        self._gives_up_after = len(self._chunks) + 1 if gives_up_after is None else gives_up_after
        self._send_next()

    def _send_next(self) -> None:
        if self._sent >= self._gives_up_after:
            self._end(GIVEN_UP)
        elif self._sent < len(self._chunks):
            chunk, content = self._chunks[self._sent]
            self._sent += 1
            self._host.request(lambda request: StageChunk(request, self._number, chunk, content), self._staged)
        else:
            self._write(self._operations, self._end)

    def _staged(self, outcome: Outcome | None) -> None:
        if outcome is None or outcome.ending is not Ending.ACKED:
            self._end(outcome)
        else:
            self._send_next()

    def _end(self, outcome: Outcome | None) -> None:
        # Not inside the event that told the outcome: a client takes its time.
        self._host.world.schedule.after(0, self._end_upload)
        self._told(outcome)

    def _end_upload(self) -> None:
        if self._host.is_alive and self._host.life == self._life:
            self._host.deliver(EndUpload(self._number))


# --- readers


def content_of_row(txn: ReadTransaction, namespace: NamespaceId, key: bytes, row: bytes) -> str:
    """Return what stands for a row's value in a history."""
    entry = decode_row(namespace, key, row)
    if entry.kind is Kind.TOMBSTONE:
        return ABSENT_CONTENT
    if entry.kind is Kind.VALUE:
        return content_of(entry.value, entry.metadata)
    chunks = decode_chunk_list(entry.value)
    contents = [txn.chunk(chunk) for chunk in chunks.ids]
    value = b"".join(MISSING if content is None else content for content in contents)
    return content_of(value, entry.metadata)


def shows(txn: ReadTransaction, namespace: NamespaceId, key: bytes, version: Version) -> bool:
    """Tell whether a reader sees a version of a key, or a newer one.

    Where no row is, something newer has removed it: a Purge, or a walk over a namespace whose deletion is still to come. Where a pending row is and
    nothing is shown, a version below the fence may have been purged before.
    """
    if txn.row(namespace, key) is None:
        return True
    shown = shown_row(txn, namespace, key)
    return version < txn.vector.fence if shown is None else row_version(shown) >= version


# --- what a store says


def chunk_counts(txn: LayoutReader) -> tuple[tuple[tuple[str, int, bool], ...], tuple[tuple[str, int], ...]]:
    """Return the chunks of a store as it counts them (id, references, whether the content is here and right), and as its rows name them."""
    counted = []
    for chunk, state, content in txn.chunk_states():
        is_sound = state.is_here and content is not None and chunk_id(content) == chunk
        counted.append((chunk.hex(), state.references, is_sound))
    named: dict[ChunkId, int] = {}
    rows = [row for _, _, row in txn.all_rows()] + [pending.shown for pending in txn.pending_rows() if pending.shown]
    for row in rows:
        for chunk in row_chunks(row):
            named[chunk] = named.get(chunk, 0) + 1
    return tuple(counted), tuple((chunk.hex(), named[chunk]) for chunk in sorted(named))


def is_at_rest(txn: LayoutReader) -> bool:
    """Tell whether nothing is staged and no row lacks chunks."""
    return next(txn.staged(), None) is None and next(txn.pending_rows(), None) is None
