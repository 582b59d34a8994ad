"""Events into a replica machine and effects out of it.

Decides: the contract between the machine and its host (the node's driver, the simulator).
Keeps true: the host performs effects in order. What is persisted before what is sent follows from that: an acknowledgement
is an effect of `Persisted`, never of the write [I5].
In and out: `machine.handle(event, now) -> list[Effect]`.

What the host promises
* `Persist` batches are applied in the order given, each atomically (`core.apply.apply_batch` inside one write transaction), and each ends in
  exactly one `Persisted` or `PersistFailed`, in the same order.
* `PeerUp` and `PeerDown` of a peer alternate; `Received` comes only in between; `PeerDown` means that nothing of that
  link will still arrive. Messages of one lane arrive in order, but any of them may be missing at the end, and a
  `Send` of a Frame, Digest or Roster may be dropped when the link's queue is full: anti-entropy resends. A Forward
  that finds no room comes back as `SendFailed`; any other message that finds none costs the link.
* `Serve` is answered from a fresh read transaction by `core.serve`, at the link's own pace; a ChunkPull keeps no other question waiting.
* Timers fire at or after their time, once. The machine ignores a token it no longer waits for; nothing is cancelled.
"""

from __future__ import annotations

from dataclasses import field

from kvp2p.core.batches import Batch, BatchResult, StoreSummary
from kvp2p.core.entry import ChunkId
from kvp2p.core.messages import ChunkPull, Forward, Member, Message, Pull, WalkRequest
from kvp2p.core.operations import Operation, Outcome
from kvp2p.ids import Issuer, NodeId, Version
from kvp2p.values import value

# --- events


@value
class Start:
    """The node starts with what its store holds. `me` is this node's own roster row, incarnation already raised."""

    store: StoreSummary
    me: Member
    seeds: tuple[str, ...] = ()  # mesh URLs from `--join`, dialled until their owners are in the roster


@value
class Stop:
    """The node drains: no new writes; those waiting are refused, those being persisted still end."""


@value
class PeerUp:
    """A link to a peer is open and authenticated."""

    peer: NodeId


@value
class PeerDown:
    """The link to a peer has ended."""

    peer: NodeId
    reason: str = ""


@value
class Received:
    """A checked message came from a peer."""

    peer: NodeId
    message: Message


@value
class SendFailed:
    """A Forward was not taken by the link (its queue is full): nothing of it was or will be sent."""

    peer: NodeId
    message: Forward


@value
class TimerFired:
    """A timer that the machine set has fired."""

    token: int


@value
class Write:
    """A local client's write. `request` is the host's; it comes back in one Reply. `deadline_ns` is monotonic."""

    request: int
    operations: tuple[Operation, ...]
    deadline_ns: int


@value
class StageChunk:
    """A part of a large value that a local client is sending. Ends in one Reply: acked when it is durable here.

    `upload` is the host's number for the value; its chunks are kept until `EndUpload`.
    """

    request: int
    upload: int
    chunk: ChunkId
    content: bytes


@value
class EndUpload:
    """Nothing more comes of an upload: its write has ended, or will not be sent."""

    upload: int


@value
class Await:
    """A local reader waits until all up to a version is here, whole (KV-Min-Version); ends in one Reply."""

    request: int
    version: Version
    deadline_ns: int


@value
class Persisted:
    """A batch is durable."""

    ticket: int
    result: BatchResult


@value
class PersistFailed:
    """A batch was not applied, and the store is as it was (a full disk). Any other failure ends the node."""

    ticket: int
    reason: str


@value
class Promote:
    """Make this node the leader at a new term. `override` skips the candidate list and the wait for a peer."""

    request: int
    override: bool = False


@value
class CloseIssuer:
    """Take an operator's word that nothing more is added under an issuer: its node is gone for ever. Only the leader can."""

    request: int
    issuer: Issuer


Event = (
    Start
    | Stop
    | PeerUp
    | PeerDown
    | Received
    | SendFailed
    | TimerFired
    | Write
    | StageChunk
    | EndUpload
    | Await
    | Persisted
    | PersistFailed
    | Promote
    | CloseIssuer
)

# --- effects


@value
class Send:
    """Send a message; its lane follows from its type (`messages.LANE_OF`)."""

    peer: NodeId
    message: Message


@value
class Serve:
    """Answer a peer's Pull, WalkRequest or ChunkPull from the store."""

    peer: NodeId
    request: Pull | WalkRequest | ChunkPull


@value
class SetTimer:
    """Fire `TimerFired(token)` at `at_ns` (monotonic)."""

    token: int
    at_ns: int


@value
class Persist:
    """Apply a batch durably."""

    ticket: int
    batch: Batch


@value
class Reply:
    """The end of a Write, StageChunk, Await, Promote or CloseIssuer. An Await that ran out of time is REFUSED with code `not_caught_up`."""

    request: int
    outcome: Outcome


@value
class Connect:
    """Dial a mesh URL and keep dialling with back-off while no link to `node` is up. `node` is None for a seed."""

    node: NodeId | None
    url: str


@value
class Disconnect:
    """Close the link to a peer (its PeerDown follows)."""

    peer: NodeId
    reason: str


@value
class Notice:
    """Something an operator may want to read. `kind` is a stable word; the host logs it, `level` is a logging level's name."""

    kind: str
    level: str = "info"
    fields: dict[str, object] = field(default_factory=dict)


Effect = Send | Serve | SetTimer | Persist | Reply | Connect | Disconnect | Notice
