"""What becomes of chunks when rows change: references, rows that wait for chunks, and what readers see meanwhile.

Decides: when a chunk's content is kept, when a row is whole, and which row readers see until then.
Keeps true
* I3: a row whose chunks are not all here is *pending*: it counts for vector and H at once, and readers see the row it replaced until it is whole. What
  it hides from them meanwhile is noted: its own position, and those of the same key that were covered by it (frames name the newest row of a key only).
* I4: references change in the transaction that changes the rows. A chunk is kept while a stored or shown row names it, or a write under way has
  staged it, and goes in the transaction that ends the last of these.
* I9: what a result tells of pending rows and missing chunks is bounded; more is told when these have come.
In and out: rows as they are joined and removed, positions as they are covered, and contents by the chunk id that they must hash to, in; what is missing out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from kvp2p.core.entry import ChunkId, chunk_id, is_chunked, row_chunks, row_version
from kvp2p.core.messages import RowKey
from kvp2p.core.port import ChunkState, Hidden, PendingRow, ReadTransaction, WriteTransaction
from kvp2p.ids import Issuer, NamespaceId, Stamp, Version, make_version, version_issuer
from kvp2p.limits import CHUNK_ROWS_MAX, CHUNKS_WANTED_FIRST_MAX, CHUNKS_WANTED_MAX, PENDING_TOLD_MAX

_UNKNOWN = ChunkState(0, is_here=False)


class Pending(NamedTuple):
    """The rows that lack chunks: the versions of the first ones in order, whether there are more, and some of the chunks they lack.

    `hidden` is what these rows hide, and with `is_walked` some of them may hide anything up to the floor. More rows may hide anything. As long as there
    are rows, chunks are wanted.
    """

    versions: tuple[Version, ...] = ()
    has_more: bool = False
    wanted: tuple[ChunkId, ...] = ()
    hidden: tuple[Hidden, ...] = ()
    is_walked: bool = False


NOTHING_PENDING = Pending()


def pending_of(txn: ReadTransaction) -> Pending:
    """Return what is told of the rows that lack chunks. Those of the first rows are wanted first, so that these become whole.

    Of the rows behind them one chunk each is named: chunks that nobody has any more must not keep away all that come later.
    """
    versions: list[Version] = []
    wanted: dict[ChunkId, None] = {}
    hidden: list[Hidden] = []
    is_walked = has_more = False
    for pending in txn.pending_rows():
        if len(versions) == PENDING_TOLD_MAX:
            has_more = True
            break
        versions.append(pending.version)
        hidden += pending.hidden
        is_walked = is_walked or pending.is_walked
        if len(wanted) < CHUNKS_WANTED_MAX and len(versions) <= CHUNK_ROWS_MAX:
            row = txn.row(pending.namespace, pending.key)
            assert row is not None, "a pending row is stored"
            missing = (chunk for chunk in row_chunks(row) if not _state(txn, chunk).is_here)
            wanted.update(dict.fromkeys(islice(missing, max(1, CHUNKS_WANTED_FIRST_MAX - len(wanted)))))
    return Pending(tuple(versions), has_more, tuple(wanted), tuple(hidden), is_walked)


def shown_row(txn: ReadTransaction, namespace: NamespaceId, key: bytes) -> bytes | None:
    """Return the row that a reader sees at a key, None for none: not the stored one while that lacks chunks. It may be hidden all the same."""
    row = txn.row(namespace, key)
    return None if row is None else shown_of(txn, row)


def shown_of(txn: ReadTransaction, row: bytes) -> bytes | None:
    """Return what a reader sees in place of a stored row, of which the head is enough: what was given, or another row, or None for none."""
    pending = txn.pending(row_version(row)) if is_chunked(row) else None
    return row if pending is None else pending.shown or None


class ChunkRows:
    """Keeps references and pending rows for one batch."""

    __slots__ = ("_txn", "is_changed")

    def __init__(self, txn: WriteTransaction) -> None:
        self._txn = txn
        self.is_changed = False

    # --- rows

    def replace(self, namespace: NamespaceId, key: bytes, mine: bytes | None, row: bytes) -> None:
        """Take note that `row` stands at a key in place of `mine`."""
        if not is_chunked(row) and (mine is None or not is_chunked(mine)):
            return
        self.is_changed = True
        is_whole = self._add_references(row)  # before any is dropped: both may name one chunk
        shown, hidden, is_walked = self._let_go(mine)
        if is_whole:
            self._drop_references(shown)
            return
        version = row_version(row)
        hidden = _widened(hidden, version)
        self._txn.put_pending(PendingRow(version, namespace, key, shown, hidden, is_walked))

    def cover(self, term: int, issuer: Issuer, positions: Iterable[tuple[Stamp, RowKey]]) -> None:
        """Take note that positions are covered by what stands at their keys: a pending row hides them until it is whole."""
        if next(self._txn.pending_rows(), None) is None:
            return  # as nearly always
        for stamp, (namespace, key) in positions:
            pending = self._pending_at(namespace, key)
            if pending is not None:
                hidden = _widened(pending.hidden, make_version(term, stamp, issuer))
                if hidden is not pending.hidden:
                    self._txn.put_pending(replace(pending, hidden=hidden))
                    self.is_changed = True

    def walk_over(self, namespace: NamespaceId, key: bytes, row: bytes) -> None:
        """Take note that a walk came by a key at which `row` stands or was sent: what it covers there is not known by position."""
        pending = self._pending_at(namespace, key) if is_chunked(row) else None
        if pending is not None and not pending.is_walked:
            self._txn.put_pending(replace(pending, is_walked=True))
            self.is_changed = True

    def _pending_at(self, namespace: NamespaceId, key: bytes) -> PendingRow | None:
        row = self._txn.row(namespace, key)
        return self._txn.pending(row_version(row)) if row is not None and is_chunked(row) else None

    def remove(self, row: bytes) -> None:
        """Take note that a row is gone from its key."""
        if is_chunked(row):
            self.is_changed = True
            self._drop_references(self._let_go(row)[0])

    def _let_go(self, row: bytes | None) -> tuple[bytes, tuple[Hidden, ...], bool]:
        """Return what readers saw where `row` stands (with its references; empty for no row), and what was hidden from them."""
        if row is None:
            return b"", (), False
        pending = self._txn.pending(row_version(row)) if is_chunked(row) else None
        if pending is None:
            return row, (), False
        self._txn.delete_pending(pending.version)
        self._drop_references(row)
        return pending.shown, pending.hidden, pending.is_walked

    def _add_references(self, row: bytes) -> bool:
        is_whole = True
        for chunk in row_chunks(row):
            state = _state(self._txn, chunk)
            self._txn.set_chunk_state(chunk, ChunkState(state.references + 1, state.is_here))
            is_whole = is_whole and state.is_here
        return is_whole

    def _drop_references(self, row: bytes) -> None:
        for chunk in row_chunks(row) if row else ():
            state = _state(self._txn, chunk)
            assert state.references > 0, "a stored row names the chunk"
            self._set_state(chunk, ChunkState(state.references - 1, state.is_here))

    def _set_state(self, chunk: ChunkId, state: ChunkState) -> None:
        is_kept = state.references > 0 or self._txn.is_staged(chunk)
        self._txn.set_chunk_state(chunk, state if is_kept else None)

    # --- chunks

    def stage(self, chunks: Iterable[ChunkId]) -> None:
        """Keep chunks, which may be missing as yet, for a write under way."""
        for chunk in chunks:
            self._txn.set_staged(chunk, staged=True)

    def release(self, chunks: Iterable[ChunkId]) -> None:
        """End that a write under way keeps chunks."""
        for chunk in chunks:
            self._txn.set_staged(chunk, staged=False)
            self._set_state(chunk, _state(self._txn, chunk))

    def store(self, contents: Iterable[tuple[ChunkId, bytes]]) -> tuple[ChunkId, ...]:
        """Store contents that something waits for; return the ids that are not those of their contents. Nothing of these is stored."""
        refused: list[ChunkId] = []
        for chunk, content in contents:
            state = _state(self._txn, chunk)
            if chunk_id(content) != chunk:
                refused.append(chunk)
            elif not state.is_here and (state.references or self._txn.is_staged(chunk)):  # else superseded, or here
                self._txn.put_chunk(chunk, content)
                self._txn.set_chunk_state(chunk, ChunkState(state.references, is_here=True))
                self.is_changed = True
        return tuple(refused)

    def missing(self, chunks: Iterable[ChunkId]) -> tuple[ChunkId, ...]:
        """Return those whose content is not here."""
        return tuple(chunk for chunk in chunks if not _state(self._txn, chunk).is_here)

    def settle(self) -> None:
        """Show the rows that have become whole, before a batch ends that changed anything about chunks.

        Only those whose chunks may be wanted are looked at [I9]: none of these stays that lacks nothing, or nobody would come back to it.
        """
        txn = self._txn
        is_settled = not self.is_changed
        while not is_settled:
            is_settled = True
            for pending in list(islice(txn.pending_rows(), CHUNK_ROWS_MAX)):
                row = txn.row(pending.namespace, pending.key)
                assert row is not None, "a pending row is stored"
                if all(_state(txn, chunk).is_here for chunk in row_chunks(row)):
                    txn.delete_pending(pending.version)
                    self._drop_references(pending.shown)
                    is_settled = False


def _widened(hidden: tuple[Hidden, ...], version: Version) -> tuple[Hidden, ...]:
    """Return ranges, one an issuer, that have a version as well; the same ones when they have it."""
    for index, one in enumerate(hidden):
        if version_issuer(one.first) == version_issuer(version):
            if one.first <= version <= one.last:
                return hidden
            wider = Hidden(min(one.first, version), max(one.last, version))
            return (*hidden[:index], wider, *hidden[index + 1 :])
    return (*hidden, Hidden(version, version))


def _state(txn: ReadTransaction, chunk: ChunkId) -> ChunkState:
    return txn.chunk_state(chunk) or _UNKNOWN
