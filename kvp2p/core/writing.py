"""The write path: groups at the leader, and forwards to it.

Decides: which writes share a group, what is refused before it is tried, and when an acknowledgement may be told (`holds.py`).
Keeps true: I5, replies and frames are effects of `Persisted`; I9, queues are bounded; I10, a forward is sent once on one link,
ends `unknown` with that link or its deadline, and the leader drops what waits past its deadline or came over a link that
has closed.
In and out: `Write` and Forward in; Persist, Reply, ForwardOutcome and frames out.
Source: group commit, DeWitt et al., *Implementation Techniques for Main Memory Database Systems* (1984).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvp2p.core.batches import BatchResult, PurgeBatch, StampedWrite, WriteGroup
from kvp2p.core.board import MS, Board, Deadlines, Peer
from kvp2p.core.events import Reply, Write
from kvp2p.core.hlc import HybridClock
from kvp2p.core.holds import Holds
from kvp2p.core.messages import Designation, Forward, ForwardOutcome
from kvp2p.core.operations import (
    Ending,
    Operation,
    Outcome,
    chunked_value_bytes,
    operation_bytes,
    refused,
    unknown,
)
from kvp2p.core.serve import split_frame
from kvp2p.ids import Issuer, NodeId, Stamp
from kvp2p.limits import (
    FORWARDS_IN_FLIGHT_MAX,
    GROUP_BYTES_MAX,
    GROUP_OPS_MAX,
    OPS_PER_WRITE_MAX,
    WRITE_BYTES_MAX,
    WRITE_QUEUE_BYTES_MAX,
    WRITE_QUEUE_MAX,
)
from kvp2p.values import value

_MIB = 1024 * 1024


def _nothing() -> None:
    """Nobody waits for the end of the write."""


@value
class AskedWrite:
    """A write, of `write_bytes`, that this leader is asked for. `peer` and `link` None: by its own clients.

    `ended` is called once, when it was persisted, refused or dropped.
    """

    peer: NodeId | None
    link: Peer | None
    request: int
    operations: tuple[Operation, ...]
    deadline_ns: int
    bytes_used: int
    ended: Callable[[], None] = _nothing

    def answer(self, board: Board, outcome: Outcome) -> None:
        """Tell whoever asked, if that is still the link it came over: on a newer one the number may mean another write [I10]."""
        if self.peer is None:
            board.emit(Reply(self.request, outcome))
        elif board.peers.get(self.peer) is self.link:
            board.send(self.peer, ForwardOutcome(self.request, outcome))


class LeaderWriter:
    """Groups writes under one issuer; exists only while this node leads."""

    def __init__(self, board: Board, clock: HybridClock, designation: Designation, issuer: Issuer) -> None:
        self.board = board
        self.clock = clock
        self.designation = designation
        self.issuer = issuer
        self.issued = Stamp(0)  # the last stamp given out under this issuer, durable or not
        self._queue: deque[AskedWrite] = deque()
        self._queue_bytes = 0
        self._is_persisting = False
        self._is_closed = False
        self._own_groups = 0  # in flight
        self.on_closed: Callable[[str], None] = lambda _: None  # for writes that are not in the queue yet

    def submit(self, write: AskedWrite) -> None:
        """Take a write, or refuse it at once."""
        if self.is_closed:
            self._end(write, refused("no_leader", "this node has stopped leading; nothing was applied"))
        elif len(self._queue) >= WRITE_QUEUE_MAX or self._queue_bytes + write.bytes_used > WRITE_QUEUE_BYTES_MAX:
            self._end(write, refused("overloaded", "the leader's queue of writes is full; nothing was applied"))
        else:
            self._queue.append(write)
            self._queue_bytes += write.bytes_used
            self._flush()

    def begin_term(
        self, operations: tuple[Operation, ...], done: Callable[[], None], failed: Callable[[str], None]
    ) -> None:
        """Persist the designation together with the first log entries under this issuer, before any other write."""
        self._persist_own(operations, self.designation, done, failed)

    def add_rows(
        self, operations: tuple[Operation, ...], done: Callable[[], None], failed: Callable[[str], None]
    ) -> None:
        """Persist log entries that the leader writes of itself, in a group of their own."""
        self._persist_own(operations, None, done, failed)

    def add_purge(
        self, make: Callable[[Stamp], PurgeBatch], done: Callable[[BatchResult], None], failed: Callable[[str], None]
    ) -> None:
        """Persist a Purge at the next stamp [I8]."""
        self.issued = self.clock.tick(self.board.now.wall_ms)
        self._persist_batch(make(self.issued), done, failed)

    @property
    def is_closed(self) -> bool:
        """Tell whether no write is taken any more."""
        return self._is_closed or self.board.is_stopping

    @property
    def may_add(self) -> bool:
        """Tell whether a position may still be added under this issuer: it is open, or a group is on its way to the disk."""
        return not self._is_closed or self._is_persisting or self._own_groups > 0

    def _persist_own(
        self,
        operations: tuple[Operation, ...],
        designation: Designation | None,
        done: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        write = StampedWrite(self._stamps(operations), operations)
        group = WriteGroup(self.designation.term, self.issuer, (write,), self.board.clock_ms(), designation)
        self._persist_batch(group, lambda _: done(), failed)

    def _persist_batch(
        self, batch: WriteGroup | PurgeBatch, done: Callable[[BatchResult], None], failed: Callable[[str], None]
    ) -> None:
        self._own_groups += 1

        def on_done(result: BatchResult) -> None:
            self._own_groups -= 1
            done(result)
            self._send_frame(result)

        def on_failed(reason: str) -> None:
            self._own_groups -= 1
            failed(reason)

        self.board.persist(batch, on_done, on_failed)

    def on_peer_down(self, peer: NodeId) -> None:
        """Drop the writes that came over a link that has closed: their sender has told `unknown` [I10]."""
        dropped = [waiting for waiting in self._queue if waiting.peer == peer]
        if dropped:
            self._queue = deque(waiting for waiting in self._queue if waiting.peer != peer)
            self._queue_bytes = sum(waiting.bytes_used for waiting in self._queue)
        for waiting in dropped:
            waiting.ended()

    def close(self, message: str) -> None:
        """Refuse what waits; what is being persisted still ends."""
        self._is_closed = True
        while self._queue:
            self._end(self._queue.popleft(), refused("no_leader", message))
        self._queue_bytes = 0
        self.on_closed(message)

    def _flush(self) -> None:
        if self._is_persisting:
            return
        group: list[AskedWrite] = []
        operations = group_bytes = 0
        while self._queue:
            waiting = self._queue[0]
            is_full = operations + len(waiting.operations) > GROUP_OPS_MAX or group_bytes > GROUP_BYTES_MAX
            if group and is_full:
                break
            self._queue.popleft()
            self._queue_bytes -= waiting.bytes_used
            if waiting.deadline_ns <= self.board.now.mono_ns:
                self._end(
                    waiting, refused("deadline_passed", "the write waited past its deadline; nothing was applied")
                )
                continue
            group.append(waiting)
            operations += len(waiting.operations)
            group_bytes += waiting.bytes_used
        if group:
            self._persist(group)

    def _persist(self, group: list[AskedWrite]) -> None:
        writes = tuple(StampedWrite(self._stamps(waiting.operations), waiting.operations) for waiting in group)
        self._is_persisting = True

        def done(result: BatchResult) -> None:
            self._is_persisting = False
            for waiting, outcome in zip(group, result.outcomes, strict=True):  # durable: now it may be told [I5]
                self._end(waiting, outcome)
            self._send_frame(result)
            self._flush()

        def failed(reason: str) -> None:
            self._is_persisting = False
            for waiting in group:
                self._end(waiting, refused("disk_full", f"the leader could not store the write: {reason}"))
            self._flush()

        clock_ms = self.board.clock_ms()
        self.board.persist(WriteGroup(self.designation.term, self.issuer, writes, clock_ms), done, failed)

    def _send_frame(self, result: BatchResult) -> None:
        if result.frame is not None:
            for frame in split_frame(result.frame):
                for peer, digest in self.board.digests():
                    if digest.complete:
                        self.board.send(peer, frame)

    def _stamps(self, operations: tuple[Operation, ...]) -> Stamp:
        wall_ms = self.board.now.wall_ms
        first = self.clock.tick(wall_ms)
        for _ in operations[1:]:
            self.clock.tick(wall_ms)
        self.issued = self.clock.latest
        return first

    def _end(self, write: AskedWrite, outcome: Outcome) -> None:
        write.answer(self.board, outcome)
        write.ended()


@value
class _Forwarded:
    peer: NodeId
    held_bytes: int  # of the write, its chunks included: the hold is longer for more
    operations: int


class Forwarder:
    """Sends local clients' writes to the leader, each once [I10]."""

    def __init__(self, board: Board, holds: Holds) -> None:
        self.board = board
        self.holds = holds
        self._sent: dict[int, _Forwarded] = {}
        self._deadlines = Deadlines(board, "forward", self._sent.__contains__)

    def submit(self, write: Write, bytes_used: int) -> None:
        """Forward a write, or refuse it when there is nobody to send it to or no time left."""
        board = self.board
        leader = board.designation.node if board.designation is not None else None
        if board.is_stopping:
            self._refuse(write.request, "no_leader", "this node is stopping; nothing was applied")
        elif leader is None or leader not in board.peers:
            who = "no leader is known" if leader is None else f"the leader {leader.hex()} cannot be reached"
            self._refuse(write.request, "no_leader", f"{who}; nothing was applied, reads go on")
        elif len(self._sent) >= FORWARDS_IN_FLIGHT_MAX:
            self._refuse(
                write.request, "overloaded", "too many writes are on their way to the leader; nothing was applied"
            )
        elif write.deadline_ns <= board.now.mono_ns:
            self._refuse(
                write.request,
                "deadline_passed",
                "the write came past its deadline; it was not sent, nothing was applied",
            )
        else:
            held_bytes = bytes_used + chunked_value_bytes(write.operations)
            self._sent[write.request] = _Forwarded(leader, held_bytes, len(write.operations))
            self._deadlines.add(write.deadline_ns, write.request)
            board.send(leader, Forward(write.request, write.deadline_ns, write.operations))

    def on_send_failed(self, forward: Forward) -> None:
        """The link had no room: nothing was sent."""
        if self._sent.pop(forward.request, None) is not None:
            self._refuse(forward.request, "overloaded", "the link to the leader is full; nothing was applied")

    def on_outcome(self, peer: NodeId, answer: ForwardOutcome) -> None:
        """Take the leader's answer; hold an acknowledgement until this replica has the write."""
        sent = self._sent.get(answer.request)
        if sent is None or sent.peer != peer:
            return  # already told `unknown`
        del self._sent[answer.request]
        outcome = answer.outcome
        if outcome.ending is not Ending.ACKED or outcome.version is None:
            self.board.emit(Reply(answer.request, outcome))
            return
        settings = self.board.settings
        hold_ms = settings.hold_ms + settings.hold_ms_per_mib * sent.held_bytes // _MIB
        deadline_ns = self.board.now.mono_ns + hold_ms * MS
        self.holds.hold(answer.request, outcome.version, outcome, None, deadline_ns, sent.operations)

    def on_peer_down(self, peer: NodeId) -> None:
        """End what was sent on a link that has closed [I10]."""
        for request in [request for request, sent in self._sent.items() if sent.peer == peer]:
            del self._sent[request]
            self.board.emit(
                Reply(request, unknown("the link to the leader ended before its answer; the write may be applied"))
            )

    def on_timer(self) -> None:
        """End what has had no answer by its deadline [I10]."""
        for request in self._deadlines.take_due():
            del self._sent[request]
            self.board.emit(Reply(request, unknown("the leader did not answer in time; the write may be applied")))

    def _refuse(self, request: int, code: str, message: str) -> None:
        self.board.emit(Reply(request, refused(code, message)))


def write_bytes(operations: tuple[Operation, ...]) -> int:
    """Return about how many bytes a write takes."""
    return sum(map(operation_bytes, operations))


def refuse_malformed(operations: tuple[Operation, ...], bytes_used: int) -> Outcome | None:
    """Refuse a write that could not be one log frame, or is empty."""
    if not 1 <= len(operations) <= OPS_PER_WRITE_MAX:
        return refused("bad_request", f"a write has 1 to {OPS_PER_WRITE_MAX} operations, not {len(operations)}")
    if bytes_used > WRITE_BYTES_MAX:
        return refused("bad_request", f"a write has at most {WRITE_BYTES_MAX} bytes, not {bytes_used}")
    return None
