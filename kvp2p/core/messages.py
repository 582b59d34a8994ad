"""The messages that peers exchange, as values. Their bytes are made in `kvp2p/wire`.

Decides: what a peer can say. One dataclass a message; everything a machine receives or sends is one of them.
Keeps true: a message means the same whoever relays it; none carries a secret.
In and out: `Message` is the union; `LANE_OF` gives the lane of each (control before data before chunks).
"""

from __future__ import annotations

from enum import IntEnum

from kvp2p.core.entry import ChunkId
from kvp2p.core.operations import Operation, Outcome
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import Issuer, NamespaceId, NodeId, Stamp, Version
from kvp2p.values import value

RowKey = tuple[NamespaceId, bytes]
KeyedRow = tuple[NamespaceId, bytes, bytes]  # namespace, key, row as laid out by core/entry.py


class Lane(IntEnum):
    """Order in which a link's writer takes messages."""

    CONTROL = 0
    DATA = 1
    CHUNKS = 2


@value
class Purge:
    """A log entry that removes for good [I8]: tombstones below `fence`, and rows below it that have expired.

    Expired are those up to a place in the index of expiries (`expired_upto`: unix seconds (8) ‖ hash of the key (16)), which is the same everywhere. `floor` is what every candidate had whole, `base` the fence before. From then on every version below `fence` counts as covered.
    """

    expired_upto: bytes
    floor: VersionVector
    fence: Version
    base: Version


@value
class Frame:
    """A piece of one issuer's log: for every position in (after, upto] the row that stands there.

    `rows` holds each row once, as the sender has it now; `positions` are (stamp, index into `rows`), stamps ascending. Two
    positions share a row when a key was written more than once. With `purge`, that stands at `upto`. `term` is the issuer's.
    """

    term: int
    issuer: Issuer
    after: Stamp
    upto: Stamp
    positions: tuple[tuple[Stamp, int], ...]
    rows: tuple[KeyedRow, ...]
    purge: Purge | None = None


@value
class Designation:
    """Leadership given to a node. Orders by (term, tie): of two that meet, the lower steps down.

    `tie` is the first issuer of the designation, so two promotions to one term are never equal.
    """

    term: int
    tie: Issuer
    node: NodeId

    def order(self) -> tuple[int, Issuer]:
        """Return what two designations are compared by."""
        return (self.term, self.tie)


@value
class Digest:
    """What the sender has, at least every 250 ms while anything changes and every 2 s when idle.

    `state_hash` is H over all namespaces (16 bytes); `comparable` says that no row stands above the vector. `floor`: the
    sender can serve positions above it. `leads` is the issuer under which the sender leads, or led and may still add what is on its
    way to its disk; None when it can add nothing under any.
    `complete` is False until a new node has everything it was to be given at first contact. `wall_ms` is the sender's clock, `clock_ms` what
    it believes the leader's to be at least, 0 when it never heard. `whole` is what it has with all chunks, None for all of `vector` [I3].
    """

    vector: VersionVector
    state_hash: bytes
    comparable: bool
    floor: VersionVector
    designation: Designation | None
    leads: Issuer | None
    complete: bool
    wall_ms: int
    clock_ms: int = 0
    whole: VersionVector | None = None


@value
class Pull:
    """Ask for an issuer's log after a position: Frames follow, then one PullEnd. `term` is the issuer's."""

    term: int
    issuer: Issuer
    after: Stamp
    bytes_max: int


@value
class PullEnd:
    """The end of the answer to a Pull. `trimmed`: the log cannot serve what was asked, the peer must reconcile."""

    issuer: Issuer
    upto: Stamp
    trimmed: bool


@value
class WalkRequest:
    """Ask for the rows after a key (None: from the start), in order of namespace and key."""

    walk: int
    after: RowKey | None


@value
class WalkPart:
    """All rows in (after, upto] (upto None: to the end) and the vector of the read transaction that produced them [I6].

    `above`: up to where rows stand above that vector there, or are gone that it covers: the sender has walked itself, and not caught up since.
    """

    walk: int
    after: RowKey | None
    upto: RowKey | None
    rows: tuple[KeyedRow, ...]
    vector: VersionVector
    above: VersionVector = EMPTY_VECTOR


@value
class Forward:
    """A write sent on to the leader, once [I10].

    `deadline_ns` is the reading of CLOCK_MONOTONIC at which its sender gives it up: of the sender's clock on the way, of the
    receiver's once the link has handed it out (never a later moment).
    """

    request: int
    deadline_ns: int
    operations: tuple[Operation, ...]


@value
class ForwardOutcome:
    """The leader's answer to a Forward, after it was persisted [I5]."""

    request: int
    outcome: Outcome


@value
class Member:
    """A roster row; each member issues its own, the greater incarnation wins. URLs are "" when not known."""

    node: NodeId
    incarnation: int
    name: str
    mesh_url: str
    data_url: str
    api_url: str


@value
class Roster:
    """The members that the sender knows, itself included."""

    members: tuple[Member, ...]


@value
class ChunkPull:
    """Ask for a chunk's content from an offset on: ChunkParts of at most `part_bytes` follow, or one ChunkMissing."""

    chunk: ChunkId
    offset: int
    part_bytes: int


@value
class ChunkPart:
    """A piece of a chunk's content, of `total_bytes` in all. That it belongs there shows when all pieces hash to the id."""

    chunk: ChunkId
    offset: int
    total_bytes: int
    data: bytes


@value
class ChunkMissing:
    """The answer to a ChunkPull by a node that does not have the chunk."""

    chunk: ChunkId


Message = (
    Frame
    | Digest
    | Pull
    | PullEnd
    | WalkRequest
    | WalkPart
    | Forward
    | ForwardOutcome
    | Roster
    | ChunkPull
    | ChunkPart
    | ChunkMissing
)

LANE_OF: dict[type, Lane] = {
    Frame: Lane.DATA,
    Digest: Lane.CONTROL,
    Pull: Lane.CONTROL,
    PullEnd: Lane.DATA,  # behind the frames it ends
    WalkRequest: Lane.CONTROL,
    WalkPart: Lane.DATA,
    Forward: Lane.DATA,
    ForwardOutcome: Lane.CONTROL,
    Roster: Lane.CONTROL,
    ChunkPull: Lane.CONTROL,
    ChunkPart: Lane.CHUNKS,
    ChunkMissing: Lane.CONTROL,
}
