"""What gateways and the api process say to their node over the unix socket, as values.

Decides: the vocabulary; `wire/local.py` makes the bytes.
Keeps true: I10, a write is sent once; when the socket ends before its outcome, the sender answers `unknown`.
One machine has one CLOCK_MONOTONIC, so a deadline travels as its reading: time in a queue or in a stopped process counts [I10].
In and out: requests carry a number that the sender draws; the node answers each with exactly one `LocalOutcome` or `QueryAnswer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvp2p.core.entry import ChunkId
from kvp2p.core.operations import Operation, Outcome
from kvp2p.ids import Version


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a process: its role (`gateway`, `api`) and its process id."""

    role: str
    process_id: int


# Not frozen, as LocalOutcome: there is one of each in every write, and a frozen field costs three times as much to set.
@dataclass(slots=True)
class SubmitWrite:
    """A write; `deadline_ns` as CLOCK_MONOTONIC tells it. Answered by LocalOutcome."""

    request: int
    deadline_ns: int
    operations: tuple[Operation, ...]


@dataclass(slots=True)
class StageChunk:
    """Store a chunk of a large value that is on its way in. Answered by LocalOutcome: acked when it is durable at this node.

    `upload` is a number that the sender draws for each value. Its chunks are kept until EndUpload, or until the connection ends.
    """

    request: int
    upload: int
    chunk: ChunkId
    content: bytes


@dataclass(frozen=True, slots=True)
class EndUpload:
    """Nothing more comes of an upload: its write has ended, or will not be sent. Not answered."""

    upload: int


@dataclass(frozen=True, slots=True)
class AwaitVersion:
    """Wait until this node shows all up to a version, whole. Answered by LocalOutcome: acked, or refused with code `not_caught_up`."""

    request: int
    version: Version
    deadline_ns: int


@dataclass(frozen=True, slots=True)
class Report:
    """All counters of a process since it started, about once a second. Names are Prometheus samples, labels included."""

    counters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Query:
    """Ask the node for a JSON document: `status` or `metrics`. Answered by QueryAnswer."""

    request: int
    what: str


@dataclass(slots=True)
class LocalOutcome:
    """The end of a SubmitWrite, StageChunk or AwaitVersion."""

    request: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """A JSON document as bytes."""

    request: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Readiness:
    """Pushed at connect and at each change: may this node's reads be trusted to be complete, and if not, why.

    `clock_ahead_ms` is the node's estimate of the leader's clock less this machine's CLOCK_MONOTONIC: by it values expire [I7]. It may
    fall, but what is shown as expired stays so. 0: not known yet.
    """

    ready: bool
    reason: str
    clock_ahead_ms: int = 0


@dataclass(frozen=True, slots=True)
class SetClock:
    """Shift the node's wall clock, in a test: its offset to the system's clock from now on. Answered by LocalOutcome: acked, or
    refused with code `clock_fixed` by a node that was not started for it.
    """

    request: int
    offset_ms: int  # negative: behind


LocalMessage = (
    Hello
    | SubmitWrite
    | StageChunk
    | EndUpload
    | AwaitVersion
    | Report
    | Query
    | LocalOutcome
    | QueryAnswer
    | Readiness
    | SetClock
)
