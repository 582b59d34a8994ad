"""Answers to a peer's Pull, WalkRequest or ChunkPull, read from one transaction.

Decides: how a log, the whole store or a chunk is cut into messages.
Keeps true: I3, a frame names every position in (after, upto] or ends before the first it cannot serve; I6, a walk's part carries
the vector of the transaction that produced it; I7, positions of a deleted namespace are served as its tombstone. A row whose
digest does not hold is never sent, and never left out either: to leave it out would say that it was removed. (A chunk is checked by its
receiver, who knows its id and can ask somebody else: hashing it takes too long for whoever serves.)
In and out: a read transaction and a request in; messages out, each within FRAME_BYTES_MAX (plus one row).
"""

from __future__ import annotations

from collections.abc import Iterator

from kvp2p.core.apply import is_namespace_deleted
from kvp2p.core.entry import row_digest_holds
from kvp2p.core.group_writing import key_served_for
from kvp2p.core.messages import (
    ChunkMissing,
    ChunkPart,
    ChunkPull,
    Frame,
    KeyedRow,
    Message,
    Pull,
    PullEnd,
    Purge,
    RowKey,
    WalkPart,
    WalkRequest,
)
from kvp2p.core.port import ReadTransaction
from kvp2p.core.purge import PURGE_BYTES, purge_at
from kvp2p.core.vector import VersionVector
from kvp2p.ids import Issuer, NamespaceId, Stamp
from kvp2p.limits import FRAME_BYTES_MAX, FRAME_POSITIONS_MAX, KEY_BYTES_MAX, WALK_ABOVE_ISSUERS_MAX

_POSITION_BYTES = 12  # a stamp and an index in CBOR
_ROW_OVERHEAD_BYTES = 32  # the namespace and the heads of three byte strings; the price of a deleted namespace too
_LAST_KEY = b"\xff" * KEY_BYTES_MAX


def serve(txn: ReadTransaction, request: Pull | WalkRequest | ChunkPull) -> Iterator[Message]:
    """Yield the answer to a request: frames and one PullEnd, one WalkPart, or the parts of a chunk.

    A walk that cannot be served gets no answer, and whoever asked turns elsewhere when its time is up.
    """
    if isinstance(request, Pull):
        yield from _serve_pull(txn, request)
    elif isinstance(request, WalkRequest):
        yield from _serve_walk(txn, request)
    else:
        yield from _serve_chunk(txn, request)


def split_frame(frame: Frame) -> Iterator[Frame]:
    """Cut a frame into frames that each fit a message. One with a Purge has nothing else."""
    if frame.purge is not None:
        yield frame
        return
    builder = _FrameBuilder(frame.term, frame.issuer, frame.after)
    for stamp, index in frame.positions:
        if builder.is_full_for(frame.rows[index]):
            yield builder.take()
        builder.add(stamp, frame.rows[index])
    yield builder.take()


class _FrameBuilder:
    """Collects positions until a frame is full."""

    def __init__(self, term: int, issuer: Issuer, after: Stamp) -> None:
        self.term = term
        self.issuer = issuer
        self.after = after
        self.bytes_sent = 0
        self._clear()

    def _clear(self) -> None:
        self.positions: list[tuple[Stamp, int]] = []
        self.rows: list[KeyedRow] = []
        self.index_of: dict[RowKey, int] = {}
        self.bytes_used = 0

    def is_full_for(self, row: KeyedRow) -> bool:
        """Tell whether a frame must end before this row."""
        if not self.positions:
            return False
        more = _POSITION_BYTES
        if (row[0], row[1]) not in self.index_of:
            more += _row_bytes(row)
        return self.bytes_used + more > FRAME_BYTES_MAX or len(self.positions) >= FRAME_POSITIONS_MAX

    def add(self, stamp: Stamp, row: KeyedRow) -> None:
        """Add a position; its row is sent once."""
        key = (row[0], row[1])
        index = self.index_of.get(key)
        if index is None:
            index = self.index_of[key] = len(self.rows)
            self.rows.append(row)
            self.bytes_used += _row_bytes(row)
        self.positions.append((stamp, index))
        self.bytes_used += _POSITION_BYTES

    def take(self) -> Frame:
        """Return the frame so far and start the next where it ends."""
        return self._take(self.positions[-1][0], None)

    def take_purge(self, stamp: Stamp, purge: Purge) -> Frame:
        """Return a frame that ends with a Purge."""
        self.bytes_used += PURGE_BYTES + len(purge.floor.encode())
        return self._take(stamp, purge)

    def _take(self, upto: Stamp, purge: Purge | None) -> Frame:
        frame = Frame(self.term, self.issuer, self.after, upto, tuple(self.positions), tuple(self.rows), purge)
        self.bytes_sent += self.bytes_used
        self.after = upto
        self._clear()
        return frame


def _row_bytes(row: KeyedRow) -> int:
    return len(row[1]) + len(row[2]) + _ROW_OVERHEAD_BYTES


def _serve_pull(txn: ReadTransaction, pull: Pull) -> Iterator[Message]:
    if txn.floor.reach(pull.term, pull.issuer) > pull.after or not txn.complete:
        yield PullEnd(pull.issuer, pull.after, trimmed=True)
        return
    builder = _FrameBuilder(pull.term, pull.issuer, pull.after)
    dead = _DeadNamespaces(txn)
    trimmed = False
    for stamp, row_key in txn.positions(pull.issuer, pull.after):
        purge = purge_at(row_key)
        if purge is not None:
            if builder.positions:
                yield builder.take()
            yield builder.take_purge(stamp, purge)
            if builder.bytes_sent >= pull.bytes_max:
                break
            continue
        key = key_served_for(row_key, dead.has)
        row = txn.row(*key)
        if row is None or not row_digest_holds(row):
            trimmed = True  # gone, or damaged: neither can be served
            break
        keyed_row = (*key, row)
        if builder.is_full_for(keyed_row):
            yield builder.take()
            if builder.bytes_sent >= pull.bytes_max:
                break
        builder.add(stamp, keyed_row)
    if builder.positions:
        yield builder.take()
    yield PullEnd(pull.issuer, builder.after, trimmed)


def _serve_walk(txn: ReadTransaction, request: WalkRequest) -> Iterator[Message]:
    vector = txn.vector
    above = VersionVector(top for top in txn.above.tops() if not vector.covers(top))
    if len(above) > WALK_ABOVE_ISSUERS_MAX:
        return  # so far from what it covers that others are better asked
    rows: list[KeyedRow] = []
    bytes_used = len(vector.encode()) + len(above.encode())  # they travel along
    reached, upto = request.after, None
    for row_key, row in _living_rows(txn, request.after):
        is_sound = row is None or row_digest_holds(row)
        more = _ROW_OVERHEAD_BYTES if row is None else _row_bytes((*row_key, row))
        if reached != request.after and (not is_sound or bytes_used + more > FRAME_BYTES_MAX):
            upto = reached
            break
        if not is_sound:
            return  # damaged: its absence from a part would remove it there [I6]
        if row is not None:
            rows.append((*row_key, row))
        bytes_used += more
        reached = row_key
    yield WalkPart(request.walk, request.after, upto, tuple(rows), vector, above)


def _serve_chunk(txn: ReadTransaction, pull: ChunkPull) -> Iterator[Message]:
    content = txn.chunk(pull.chunk)
    if content is None or pull.offset >= len(content):
        yield ChunkMissing(pull.chunk)
        return
    for offset in range(pull.offset, len(content), pull.part_bytes):
        yield ChunkPart(pull.chunk, offset, len(content), content[offset : offset + pull.part_bytes])


def _living_rows(txn: ReadTransaction, after: RowKey | None) -> Iterator[tuple[RowKey, bytes | None]]:
    """Iterate over rows; those of a deleted namespace are passed over at one step, told as its last key without a row.

    Not one by one: there may be millions that are not swept yet, and whoever serves is the node's only actor [I9].
    """
    dead = _DeadNamespaces(txn)
    start = after
    is_ahead = True
    while is_ahead:
        is_ahead = False
        for namespace, key, row in txn.all_rows(after=start):
            if dead.has(namespace):
                start = (namespace, _LAST_KEY)
                is_ahead = True
                yield start, None
                break
            yield (namespace, key), row


class _DeadNamespaces:
    """Remembers, within one transaction, which namespaces are deleted."""

    def __init__(self, txn: ReadTransaction) -> None:
        self._txn = txn
        self._dead: dict[NamespaceId, bool] = {}

    def has(self, namespace: NamespaceId) -> bool:
        """Tell whether a tombstone stands over the namespace."""
        dead = self._dead.get(namespace)
        if dead is None:
            dead = self._dead[namespace] = is_namespace_deleted(self._txn, namespace)
        return dead
