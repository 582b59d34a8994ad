"""The port to the store: what a transaction offers to the pure code that applies batches and serves peers.

Decides: nothing; it is the contract between `core/apply.py`, `core/serve.py` and the two stores (LMDB, memory).
Keeps true: I4 by shape: everything that changes together is changed through one `WriteTransaction`, which commits or does not.
In and out: logical keys (namespace, key of 1..512 bytes in exact byte order) and rows as laid out by `core/entry.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kvp2p.core.entry import ChunkId
from kvp2p.core.messages import Designation, KeyedRow, Member, RowKey
from kvp2p.core.vector import VersionVector
from kvp2p.ids import AccountId, ClusterId, Issuer, NamespaceId, NodeId, Stamp, Version, version_issuer


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a data directory is. Written once by `kvp2p init`."""

    cluster: ClusterId
    account: AccountId  # the cluster's first account
    node: NodeId
    name: str


@dataclass(frozen=True, slots=True)
class ChunkState:
    """A chunk: how many stored rows name it (shown rows included), and whether its content is here."""

    references: int
    is_here: bool


class Hidden(NamedTuple):
    """Versions of one issuer, from the first to the last, some of which readers are not shown although the vector covers them."""

    first: Version
    last: Version


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A stored row that lacks chunks. `shown` is the row that readers see until it has them (a tombstone, too), empty for none [I3].

    It stands for its own position, and for those of the same key that it came in place of: `hidden` has one range for each issuer of these. A walk
    brings rows without positions: with `is_walked` it may hide any position that this log cannot serve (`ReadTransaction.floor`).
    """

    version: Version
    namespace: NamespaceId
    key: bytes
    shown: bytes
    hidden: tuple[Hidden, ...]
    is_walked: bool = False

    def may_hide_upto(self, version: Version) -> bool:
        """Tell whether readers may miss something of the log of a version's issuer, up to that version, because of this row."""
        issuer = version_issuer(version)
        return self.is_walked or any(
            hidden.first <= version and version_issuer(hidden.first) == issuer for hidden in self.hidden
        )


@dataclass(frozen=True, slots=True)
class NamespaceTotals:
    """State hash of one namespace (an integer below 2**128), its stored rows, and those of them that are not tombstones."""

    state_hash: int
    rows: int
    live: int


class ReadTransaction(Protocol):
    """One consistent view."""

    @property
    def identity(self) -> Identity: ...

    @property
    def vector(self) -> VersionVector: ...

    @property
    def floor(self) -> VersionVector:
        """For each issuer the position up to which this log cannot serve: it was trimmed, a fence has passed it, or a walk brought rows without it."""
        ...

    @property
    def above(self) -> VersionVector:
        """Rows may stand above the vector until the vector covers this one; empty when none do."""
        ...

    @property
    def complete(self) -> bool:
        """False from `init --join` until the first walk has ended."""
        ...

    @property
    def clock_offset_ms(self) -> int:
        """By how much the leader's clock was ahead of this machine's wall clock, as last written down; 0 before."""
        ...

    @property
    def restored(self) -> bool:
        """True from `kvp2p restore` until this node has caught up with a peer, or leads: newer acknowledged writes may be elsewhere."""
        ...

    @property
    def designation(self) -> Designation | None: ...

    @property
    def members(self) -> tuple[Member, ...]: ...

    def row(self, namespace: NamespaceId, key: bytes) -> bytes | None:
        """Return a row (a tombstone too), copied out of the store."""
        ...

    def rows(
        self, namespace: NamespaceId, start: bytes = b"", after: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over (key, row) of one namespace in byte order, from `start` inclusive, or strictly after `after`."""
        ...

    def all_rows(self, after: RowKey | None = None) -> Iterator[KeyedRow]:
        """Iterate over every row of every namespace, ordered by (namespace, key), strictly after `after`."""
        ...

    def position(self, issuer: Issuer, stamp: Stamp) -> RowKey | None:
        """Return the key that the log has at a position."""
        ...

    def positions(self, issuer: Issuer, after: Stamp) -> Iterator[tuple[Stamp, RowKey]]:
        """Iterate over an issuer's log strictly after a stamp, ascending."""
        ...

    def log_issuers(self) -> Iterator[Issuer]:
        """Iterate over the issuers that have positions in the log, in byte order."""
        ...

    @property
    def log_positions(self) -> int:
        """The number of positions in the log, of all issuers."""
        ...

    @property
    def tombstones(self) -> int:
        """The number of tombstones, those in deleted namespaces included."""
        ...

    def graves(self) -> Iterator[tuple[Version, RowKey]]:
        """Iterate over the tombstones by version."""
        ...

    def expiring(self) -> Iterator[tuple[bytes, RowKey]]:
        """Iterate over the rows that expire, soonest first, each with its place: unix seconds (8) ‖ hash of its key (16)."""
        ...

    def chunk(self, chunk: ChunkId) -> bytes | None:
        """Return the content of a chunk, None when it is not here."""
        ...

    def chunk_state(self, chunk: ChunkId) -> ChunkState | None:
        """Tell what is known of a chunk, None when nothing is."""
        ...

    def is_staged(self, chunk: ChunkId) -> bool:
        """Tell whether a write under way keeps the chunk."""
        ...

    def staged(self) -> Iterator[ChunkId]:
        """Iterate over the chunks that writes under way keep; those of an earlier life of the process, too."""
        ...

    def pending(self, version: Version) -> PendingRow | None:
        """Return what readers see in place of the row of that version, None when the row is whole."""
        ...

    def pending_rows(self) -> Iterator[PendingRow]:
        """Iterate over the rows that lack chunks, by version."""
        ...

    def totals(self, namespace: NamespaceId) -> NamespaceTotals | None:
        """Return a namespace's totals, None if it never had a row or is deleted."""
        ...

    def all_totals(self) -> Iterator[tuple[NamespaceId, NamespaceTotals]]: ...

    @property
    def state_hash(self) -> int:
        """H: the sum of the state hashes of all totals, below 2**128."""
        ...


class WriteTransaction(ReadTransaction, Protocol):
    """The one open write transaction of a store."""

    def put_row(self, namespace: NamespaceId, key: bytes, row: bytes) -> None:
        """Store a row, replacing one of the same key; keeps the indexes of tombstones and expiries, not the totals."""
        ...

    def delete_row(self, namespace: NamespaceId, key: bytes) -> None:
        """Remove a row if it is there, from these indexes, too; keeps not the totals."""
        ...

    def put_positions(self, issuer: Issuer, positions: Iterable[tuple[Stamp, RowKey]]) -> None:
        """Add positions to an issuer's log."""
        ...

    def remove_positions(self, issuer: Issuer, stamps: Iterable[Stamp]) -> None:
        """Remove positions from an issuer's log."""
        ...

    def put_chunk(self, chunk: ChunkId, content: bytes) -> None:
        """Store the content of a chunk; keeps not its state."""
        ...

    def set_chunk_state(self, chunk: ChunkId, state: ChunkState | None) -> None:
        """Store a chunk's state; None forgets the chunk, its content included."""
        ...

    def set_staged(self, chunk: ChunkId, staged: bool) -> None:
        """Note that a write under way keeps a chunk, or no longer does."""
        ...

    def put_pending(self, row: PendingRow) -> None:
        """Note that the row of a version lacks chunks."""
        ...

    def delete_pending(self, version: Version) -> None:
        """Note that the row of a version is whole, or gone."""
        ...

    def set_vector(self, vector: VersionVector) -> None: ...

    def set_floor(self, floor: VersionVector) -> None: ...

    def set_above(self, above: VersionVector) -> None: ...

    def set_complete(self, complete: bool) -> None: ...

    def set_clock_offset_ms(self, offset_ms: int) -> None: ...

    def set_restored(self, restored: bool) -> None: ...

    def set_designation(self, designation: Designation) -> None: ...

    def set_members(self, members: tuple[Member, ...]) -> None: ...

    def set_totals(self, namespace: NamespaceId, totals: NamespaceTotals | None) -> None:
        """Store or (None) forget a namespace's totals."""
        ...
