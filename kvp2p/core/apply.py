"""Applying batches: the only code that changes a store, run inside one write transaction.

Decides: what each batch does to rows, log index, vector, floor and state hash.
Keeps true
* I1: an entry that the vector covers is dropped, on every path; any other is joined.
* I3: a frame is applied only when its `after` is covered, and the vector rises with the rows it vouches for.
* I4: the caller commits everything this module did, or nothing of it.
* I6: a row that a walk's part lacks was removed there if the part's vector covers it; the vector rises at the walk's end only.
* I7: a namespace's tombstone beats every entry of that id; its rows leave H at once, its space is freed in slices.
* I8: what a Purge names goes in the transaction that raises the fence, here and at the leader alike; the vector does not pass one that cannot be applied.
* I9: a walk's part is looked through in slices, since any number of rows may stand here where it has none.
In and out: a `Batch` in, a `BatchResult` out. What a group of writes does is in `group_writing.py`, what goes for good in `removal.py`.
Source: DESIGN.md §2 and §3; last-writer-wins registers after Shapiro et al. (2011).
"""

from __future__ import annotations

from itertools import islice
from typing import assert_never

from kvp2p.core import system_rows
from kvp2p.core.batches import (
    Batch,
    BatchResult,
    ChunkBatch,
    FrameBatch,
    Garbage,
    LogTrim,
    NamespaceSweep,
    PurgeBatch,
    Settle,
    StoreSummary,
    WalkBatch,
    WriteGroup,
)
from kvp2p.core.chunk_rows import pending_of
from kvp2p.core.entry import (
    ChunkId,
    decode_row,
    is_chunked,
    is_tombstone,
    is_value,
    row_chunks,
    row_version,
)
from kvp2p.core.group_writing import GroupWriter
from kvp2p.core.joining import Joining
from kvp2p.core.messages import Frame, Purge, WalkPart
from kvp2p.core.operations import (
    Outcome,
)
from kvp2p.core.port import ReadTransaction, WriteTransaction
from kvp2p.core.purge import PLACE_BYTES, Obstacle, obstacle
from kvp2p.core.removal import Removal, trim_log
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    NamespaceId,
    Stamp,
    Version,
    make_version,
)
from kvp2p.limits import CHUNKS_SWEPT_MAX, WALK_ROWS_LOOKED_AT_MAX


def apply_batch(txn: WriteTransaction, batch: Batch, *, is_full: bool = False) -> BatchResult:
    """Apply one batch to an open write transaction and say how the store stands after it.

    With `is_full` there is room for deletions only: the other writes of a group are refused.
    """
    application = _Application(txn)
    outcomes: tuple[Outcome, ...] = ()
    frame: Frame | None = None
    match batch:
        case WriteGroup():
            outcomes, frame = GroupWriter(txn, application.rows).write(batch, is_full=is_full)
        case FrameBatch(frame=received):
            application.frame(received)
        case WalkBatch():
            application.walk(batch)
        case Settle():
            application.settle(batch)
        case NamespaceSweep(namespace=namespace, rows_max=rows_max):
            application.sweep(namespace, rows_max)
        case PurgeBatch():
            frame = application.order_purge(batch)
        case LogTrim():
            application.trim(batch)
        case ChunkBatch():
            application.chunk_batch(batch)
        case _:
            assert_never(batch)
    return application.result(outcomes, frame)


def summarize(txn: ReadTransaction) -> StoreSummary:
    """Return what a machine must know of the store when it starts."""
    return StoreSummary(
        vector=txn.vector,
        floor=txn.floor,
        above=txn.above,
        state_hash=txn.state_hash,
        complete=txn.complete,
        clock_offset_ms=txn.clock_offset_ms,
        designation=txn.designation,
        identity=txn.identity,
        members=txn.members,
        candidates=_candidates(txn),
        issuers=issuers_of(txn),
        namespaces_to_sweep=_dead_namespaces_with_rows(txn),
        garbage=_garbage(txn),
        pending=pending_of(txn),
        staged=tuple(txn.staged()),
        restored=txn.restored,
    )


def mark_restored(txn: WriteTransaction, *, leads_alone: bool = False) -> None:
    """Make a store that was put back from a copy fit to be started: with `leads_alone` its node may lead without having heard a peer [I2].

    Whatever the copy had, the clock's offset is forgotten: it was that of another moment, and perhaps of another machine.
    """
    txn.set_restored(not leads_alone)
    txn.set_clock_offset_ms(0)


def is_namespace_deleted(txn: ReadTransaction, namespace: NamespaceId) -> bool:
    """Tell whether a tombstone stands over a namespace."""
    if namespace == SYSTEM_NAMESPACE:
        return False
    row = txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(namespace))
    return row is not None and is_tombstone(row)


def state_hash_seed(txn: ReadTransaction) -> int:
    """Return the cluster's 64-bit seed of the state hash: the first half of its id."""
    return int.from_bytes(txn.identity.cluster[:8], "big")


def _garbage(txn: ReadTransaction) -> Garbage:
    grave = next(txn.graves(), None)
    expiring = next(txn.expiring(), None)
    first_expiry_s = 0 if expiring is None else int.from_bytes(expiring[0][:8], "big")
    return Garbage(None if grave is None else grave[0], first_expiry_s, txn.log_positions, txn.tombstones)


def _candidates(txn: ReadTransaction) -> tuple[bytes, ...]:
    row = txn.row(SYSTEM_NAMESPACE, system_rows.CANDIDATES_KEY)
    if row is None or not is_value(row):
        return ()
    return system_rows.decode_candidates(decode_row(SYSTEM_NAMESPACE, system_rows.CANDIDATES_KEY, row).value)


def issuers_of(txn: ReadTransaction) -> tuple[system_rows.IssuerRow, ...]:
    """Return the issuers that have a row, in byte order. They are few: one for each start of a leader."""
    rows = []
    for key, row in system_rows.rows_under(txn, system_rows.ISSUER_PREFIX):
        if is_value(row):
            rows.append(system_rows.decode_issuer(key, decode_row(SYSTEM_NAMESPACE, key, row).value))
    return tuple(row for row in rows if row is not None)


def _above(above: VersionVector, part: WalkPart, fence: Version) -> VersionVector:
    """Return up to where rows may stand above the vector, with what a part of a walk has brought; `fence` is this replica's own.

    The peer's fence does not go along: it would hide what is held here below it, of which the peer may never have heard, and a Purge looks for
    just that [I8]. Nor is it needed: the position of the Purge that raised it is among the peer's entries, and whoever covers that has the fence.
    """
    tops = (*above.tops(), *part.vector.tops(), *part.above.tops())
    return VersionVector(top for top in tops if top >= fence)


def _dead_namespaces_with_rows(txn: ReadTransaction) -> tuple[NamespaceId, ...]:
    dead = []
    for key, row in system_rows.rows_under(txn, system_rows.NAMESPACE_PREFIX):
        namespace = system_rows.namespace_of_key(key)
        if namespace is not None and is_tombstone(row) and next(txn.rows(namespace), None) is not None:
            dead.append(namespace)
    return tuple(dead)


class _Application:
    """One batch on one transaction; remembers what the result has to tell."""

    def __init__(self, txn: WriteTransaction) -> None:
        self.txn = txn
        self.rows = Joining(txn, state_hash_seed(txn))
        self.walk_rest: WalkBatch | None = None
        self.obstacle = Obstacle.NONE
        self.trimmed = 0
        self.chunks_missing: tuple[ChunkId, ...] = ()
        self.chunks_refused: tuple[ChunkId, ...] = ()

    def result(self, outcomes: tuple[Outcome, ...], frame: Frame | None) -> BatchResult:
        txn, rows = self.txn, self.rows
        rows.chunks.settle()
        rows.finish()
        if not txn.above.is_empty and txn.vector.covers_vector(txn.above):
            txn.set_above(EMPTY_VECTOR)
        return BatchResult(
            vector=txn.vector,
            floor=txn.floor,
            above=txn.above,
            state_hash=txn.state_hash,
            complete=txn.complete,
            garbage=_garbage(txn),
            outcomes=outcomes,
            frame=frame,
            namespaces_to_sweep=tuple(rows.newly_dead),
            candidates=_candidates(txn) if rows.candidates_changed else None,
            issuers=issuers_of(txn) if rows.issuers_changed else None,
            rows_changed=rows.rows_changed,
            obstacle=self.obstacle,
            trimmed=self.trimmed,
            pending=pending_of(txn) if rows.chunks.is_changed else None,
            chunks_missing=self.chunks_missing,
            chunks_refused=self.chunks_refused,
            walk_rest=self.walk_rest,
        )

    # --- what peers send

    def frame(self, frame: Frame) -> None:
        term, issuer, upto = frame.term, frame.issuer, frame.upto
        vector, above = self.txn.vector, self.txn.above
        covered = vector.reach(term, issuer)
        if covered < frame.after:
            return  # a gap: nothing is applied, the log is pulled first [I3]
        if frame.purge is not None:
            upto = Stamp(upto - 1)  # until it is applied [I8]
        raised = vector.raised(make_version(term, upto, issuer))
        for namespace, key, row in frame.rows:
            version = row_version(row)
            if vector.covers(version):
                continue  # [I1]
            self.rows.join(namespace, key, row)
            if not raised.covers(version):  # of another issuer, or later: it came along as the newer row of a key
                above = above.raised(version)
        rows = frame.rows
        positions = [(stamp, rows[index][:2]) for stamp, index in frame.positions if stamp > covered]
        self.txn.put_positions(issuer, positions)
        self.rows.chunks.cover(frame.term, issuer, positions)
        if above is not self.txn.above:
            self.txn.set_above(above)
        self.txn.set_vector(raised)
        if frame.purge is not None and covered < frame.upto:
            self._purge_from_log(frame.purge, make_version(term, frame.upto, issuer))

    def walk(self, batch: WalkBatch) -> None:
        part, vector = batch.part, self.txn.vector
        # Until the vector covers what the peer covered when it read this part, rows may stand above the vector, and others
        # may be gone that it still covers.
        above = _above(self.txn.above, part, vector.fence)
        for _, _, row in part.rows:
            version = row_version(row)
            if not above.covers(version):  # above the vector there, too
                above = above.raised(version)
        self.txn.set_above(above)
        if not self._remove_what_is_gone(batch):
            return  # the next slice stores the rest
        for namespace, key, row in part.rows:
            mine = self.txn.row(namespace, key)
            if mine is not None and row_version(row) < row_version(mine) and part.vector.covers(row_version(mine)):
                # By I3 nobody who has had mine stands at less. It was written by a leader whose disk had been rolled back, below a fence
                # that it had forgotten, and is gone everywhere else: this replica must not stay the only one that shows it.
                self.rows.remove(namespace, key, mine)
                self.rows.join(namespace, key, row)
            elif not vector.covers(row_version(row)):  # [I1]
                self.rows.join(namespace, key, row)
            self.rows.chunks.walk_over(namespace, key, row)
        if batch.end is not None:
            floor = self.txn.floor
            for top in batch.end.tops():
                if not vector.covers(top):
                    floor = floor.raised(top)  # these positions came without a log
            if vector.fence < batch.end.fence:
                floor = floor.fenced(batch.end.fence)  # rows at positions below it are gone
            self.txn.set_floor(floor)
            self.txn.set_vector(vector.join(batch.end))
            self.txn.set_complete(True)

    def _remove_what_is_gone(self, batch: WalkBatch) -> bool:
        """Remove what the peer has removed, as its absence tells [I6]; tell whether all of the part was looked at."""
        part = batch.part
        sent = {(namespace, key) for namespace, key, _ in part.rows}
        gone = []
        chunked = []
        start = part.after if batch.looked_upto is None else batch.looked_upto
        for looked_at, (namespace, key, row) in enumerate(self.txn.all_rows(after=start), 1):
            row_key = (namespace, key)
            if part.upto is not None and row_key > part.upto:
                break
            if row_key not in sent and part.vector.covers(row_version(row)):
                gone.append((namespace, key, row))
            elif is_chunked(row):
                chunked.append((namespace, key, row))
            if looked_at == WALK_ROWS_LOOKED_AT_MAX:
                self.walk_rest = WalkBatch(part, batch.end, row_key)
                break
        for namespace, key, row in gone:
            self.rows.remove(namespace, key, row)
        for namespace, key, row in chunked:
            self.rows.chunks.walk_over(namespace, key, row)
        return self.walk_rest is None

    # --- what a node keeps for itself

    def settle(self, batch: Settle) -> None:
        if batch.designation is not None:
            self.txn.set_designation(batch.designation)
        if batch.members is not None:
            self.txn.set_members(batch.members)
        if batch.clock_offset_ms is not None:
            self.txn.set_clock_offset_ms(batch.clock_offset_ms)
        if batch.restored is not None:
            self.txn.set_restored(batch.restored)

    def sweep(self, namespace: NamespaceId, rows_max: int) -> None:
        if not self.rows.is_dead(namespace):
            return
        rows = list(islice(self.txn.rows(namespace), rows_max + 1))
        removed = chunks = 0
        for key, row in rows[:rows_max]:
            self.rows.remove(namespace, key, row)
            removed += 1
            chunks += len(row_chunks(row))
            if chunks >= CHUNKS_SWEPT_MAX:
                break
        if len(rows) > removed:
            self.rows.newly_dead.append(namespace)

    # --- removal

    def order_purge(self, batch: PurgeBatch) -> Frame | None:
        """Write a Purge into this leader's log and apply it, if there is anything to remove and nothing stands against it."""
        txn = self.txn
        base, fence = txn.vector.fence, batch.fence_max
        due = [version for version, _ in islice(txn.graves(), batch.rows_max + 1) if version < fence]
        if len(due) > batch.rows_max:
            fence = due[-1]  # the rest goes with the next one
        if fence <= base:
            return None
        last = batch.before_s.to_bytes(8, "big") + b"\xff" * (PLACE_BYTES - 8)
        expired = [place for place, _ in islice(txn.expiring(), batch.rows_max)]
        if len(expired) == batch.rows_max:
            last = min(last, expired[-1])
        purge = Purge(last, batch.floor, fence, base)
        removal = Removal(txn, self.rows)
        if not removal.has_work(purge) or self._obstacle(purge, removal):
            return None
        at = make_version(batch.term, batch.stamp, batch.issuer)
        after = txn.vector.reach(batch.term, batch.issuer)
        removal.apply(purge, at)
        return Frame(batch.term, batch.issuer, after, batch.stamp, (), (), purge)

    def _purge_from_log(self, purge: Purge, at: Version) -> None:
        removal = Removal(self.txn, self.rows)
        if purge.fence > self.txn.vector.fence:
            self.obstacle = self._obstacle(purge, removal)
        if not self.obstacle:
            removal.apply(purge, at)

    def _obstacle(self, purge: Purge, removal: Removal) -> Obstacle:
        """Tell what keeps this store from raising its fence by a Purge."""
        found = obstacle(purge, self.txn.vector, self.txn.above)
        return Obstacle.SWEEPING if not found and removal.waits_for_sweep(purge.fence) else found

    def trim(self, batch: LogTrim) -> None:
        self.trimmed = trim_log(self.txn, batch)

    # --- chunks

    def chunk_batch(self, batch: ChunkBatch) -> None:
        chunks = self.rows.chunks
        chunks.stage(batch.stage)
        if batch.contents:
            self.chunks_refused = chunks.store(batch.contents)
        self.chunks_missing = chunks.missing(batch.stage)
        chunks.release(batch.release)
