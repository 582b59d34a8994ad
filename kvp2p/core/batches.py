"""Batches: everything that a machine asks its store to change, each applied whole in one transaction [I4].

Decides: the vocabulary of changes, and what comes back from each.
Keeps true: a batch is a value: it names no transaction, so the same one runs on LMDB and in the simulator. Each says whether it
`may_use_reserve`: a full disk must be recoverable by deleting, and must not keep a node from knowing who leads.
In and out: `Persist(ticket, batch)` out of a machine, `Persisted(ticket, result)` back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvp2p.core.chunk_rows import Pending
from kvp2p.core.entry import ChunkId, is_tombstone
from kvp2p.core.messages import Designation, Frame, Member, RowKey, WalkPart
from kvp2p.core.operations import Delete, DeleteNamespace, Operation, Outcome
from kvp2p.core.port import Identity
from kvp2p.core.purge import Obstacle
from kvp2p.core.system_rows import IssuerRow
from kvp2p.core.vector import VersionVector
from kvp2p.ids import Issuer, NamespaceId, Stamp, Version


class StampedWrite(NamedTuple):
    """One write of a group. Its n-th operation stands at position `first_stamp` + n of the issuer's log."""

    first_stamp: Stamp
    operations: tuple[Operation, ...]

    @property
    def makes_room(self) -> bool:
        """Tell whether the write does nothing but delete: tombstones are small, and what they stand for is freed."""
        return all(isinstance(operation, Delete | DeleteNamespace) for operation in self.operations)


@dataclass(frozen=True, slots=True)
class WriteGroup:
    """The leader's own writes: conditions are checked inside the transaction, against the rows as they stand there.

    `wall_ms` is the leader's clock: by it values expire [I7].
    """

    term: int
    issuer: Issuer
    writes: tuple[StampedWrite, ...]
    wall_ms: int
    designation: Designation | None = None  # persisted with the group when it is the first of a new term

    @property
    def may_use_reserve(self) -> bool:
        """On a full disk those writes go on that only delete; `apply_batch` refuses the others when it is told so."""
        return self.designation is not None or any(write.makes_room for write in self.writes)


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """A frame received from a peer."""

    frame: Frame

    @property
    def may_use_reserve(self) -> bool:
        """A frame that only deletes may, and one that purges."""
        return all(is_tombstone(row) for _, _, row in self.frame.rows)


@dataclass(frozen=True, slots=True)
class WalkBatch:
    """A part of a walk. `end` is the vector of the walk's first part, given with the last part only [I6].

    What was removed at the peer is looked for in slices: `looked_upto` is where the slice before has ended.
    """

    part: WalkPart
    end: VersionVector | None
    looked_upto: RowKey | None = None

    @property
    def may_use_reserve(self) -> bool:
        """A part that only removes may: a row that is sent would stay."""
        return not self.part.rows


@dataclass(frozen=True, slots=True)
class Settle:
    """Facts a node keeps for itself: the newest designation it heard of, its roster, its clock, whether its store is a backup's. None: as it was."""

    designation: Designation | None = None
    members: tuple[Member, ...] | None = None
    clock_offset_ms: int | None = None
    restored: bool | None = None

    may_use_reserve = True


@dataclass(frozen=True, slots=True)
class NamespaceSweep:
    """Free some rows of deleted namespaces [I7]; `rows_max` bounds the transaction."""

    namespace: NamespaceId
    rows_max: int

    may_use_reserve = True


@dataclass(frozen=True, slots=True)
class PurgeBatch:
    """The leader's order to let go of what is under `floor` and old enough: a Purge at `stamp`, unless there is nothing to remove.

    The fence is `fence_max`, or lower, so that about `rows_max` rows go at most: how many there are is known in the transaction.
    """

    term: int
    issuer: Issuer
    stamp: Stamp
    floor: VersionVector
    fence_max: Version
    before_s: int
    rows_max: int

    may_use_reserve = True


@dataclass(frozen=True, slots=True)
class LogTrim:
    """Forget the oldest positions: those issued before `older_than`, and any beyond `positions_max`, but none that `keep` does not cover.

    `count_max` bounds the transaction.
    """

    keep: VersionVector
    older_than: Stamp
    positions_max: int
    count_max: int

    may_use_reserve = True


@dataclass(frozen=True, slots=True)
class ChunkBatch:
    """Chunks: some to be kept for a write under way, contents that came, and some that no write under way keeps any longer."""

    stage: tuple[ChunkId, ...] = ()
    contents: tuple[tuple[ChunkId, bytes], ...] = ()
    release: tuple[ChunkId, ...] = ()

    @property
    def may_use_reserve(self) -> bool:
        """One that only releases may."""
        return not (self.stage or self.contents)


Batch = WriteGroup | FrameBatch | WalkBatch | Settle | NamespaceSweep | PurgeBatch | LogTrim | ChunkBatch


class Garbage(NamedTuple):
    """What a Purge or a trim could remove: the least version of a tombstone, the first second at which a row expires (0 none), the log's length.

    How many tombstones there are is for `status` only.
    """

    oldest_grave: Version | None = None
    first_expiry_s: int = 0
    log_positions: int = 0
    tombstones: int = 0

    @property
    def has_any(self) -> bool:
        """Tell whether there is anything that a Purge might remove."""
        return self.oldest_grave is not None or self.first_expiry_s > 0


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a machine must know of its store; true of the transaction that produced it."""

    vector: VersionVector
    floor: VersionVector
    above: VersionVector
    state_hash: int
    complete: bool
    clock_offset_ms: int
    designation: Designation | None
    identity: Identity
    members: tuple[Member, ...]
    candidates: tuple[bytes, ...]
    issuers: tuple[IssuerRow, ...]
    namespaces_to_sweep: tuple[NamespaceId, ...]  # deleted, rows still to be freed
    garbage: Garbage
    pending: Pending
    staged: tuple[ChunkId, ...]  # for writes of an earlier life, which have ended with it; as many as one life may have
    restored: bool = False  # made of a backup, and not caught up with anybody since


class BatchResult(NamedTuple):
    """What a batch did. `outcomes` and `frame` answer a WriteGroup or PurgeBatch (frame None: nothing was applied)."""

    vector: VersionVector
    floor: VersionVector
    above: VersionVector
    state_hash: int
    complete: bool
    garbage: Garbage
    outcomes: tuple[Outcome, ...] = ()
    frame: Frame | None = None
    namespaces_to_sweep: tuple[NamespaceId, ...] = ()  # newly deleted, or not yet empty
    candidates: tuple[bytes, ...] | None = None  # when a system row changed them
    issuers: tuple[IssuerRow, ...] | None = None  # all of them, when the row of one changed
    rows_changed: int = 0
    obstacle: Obstacle = Obstacle.NONE  # why the Purge of a frame was not applied; the vector ends before it
    trimmed: int = 0  # positions that a LogTrim removed
    pending: Pending | None = None  # the rows that lack chunks, when that may have changed
    chunks_missing: tuple[ChunkId, ...] = ()  # of those that a ChunkBatch staged
    chunks_refused: tuple[ChunkId, ...] = ()  # of its contents: these are not what their ids say
    walk_rest: WalkBatch | None = (
        None  # the next slice of a WalkBatch: nothing of its rows and vectors is stored before it
    )
