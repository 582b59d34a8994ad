"""A process's side of the unix socket to its node: writes, chunks, waits, questions and counters go out, answers come back.

Decides: when bytes leave, and what a lost connection means for each request.
Keeps true: [I10] a write is sent once, on one connection; none is ever sent again. It ends `refused` when it had not left,
    `unknown` when it had and the connection ended or no answer came in time. [I9] bytes queued, requests in flight. Chunks of large
    values leave one at a time, when nothing else is waiting, so that a small write waits for one of them at most.
In and out: `submit` and its hot-path twin `submit_nowait`, `await_version`, `query`, `report`; `open_upload`, `stage_nowait` and
    `end_upload` for the chunks that a write will name; one task, `run`, in the caller's nursery. One trio thread.

A gateway serves reads without its node, so `run` is started at once and connects when it can.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import structlog
import trio

from kvp2p.core.entry import ChunkId
from kvp2p.core.operations import Ending, Operation, Outcome, operation_bytes
from kvp2p.errors import NodeUnavailable, RemoteProtocolError
from kvp2p.ids import Version
from kvp2p.limits import (
    FORWARDS_IN_FLIGHT_MAX,
    HOLD_MS,
    LOCAL_QUEUE_BYTES_MAX,
    LOCAL_SEND_BYTES_MAX,
    LOCAL_WAITS_MAX,
    STAGE_TIMEOUT_MS,
    WRITE_BYTES_MAX,
)
from kvp2p.runtime.chunk_lane import UPLOAD_LOST, ChunkLane
from kvp2p.runtime.local_stream import LocalStream
from kvp2p.runtime.requests import MS, Ended, Request, WriteCallback
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import (
    AwaitVersion,
    Hello,
    LocalMessage,
    LocalOutcome,
    Query,
    QueryAnswer,
    Readiness,
    Report,
    StageChunk,
    SubmitWrite,
)

BACK_OFF_MIN_S = 0.02
BACK_OFF_MAX_S = 1.0
QUERY_TIMEOUT_MS = 5_000
# Beyond a write's deadline its answer may be held for read-your-writes; then the node's own answer wins over ours.
ANSWER_GRACE_MS = HOLD_MS + 500
WAIT_GRACE_MS = 1_000
SWEEP_INTERVAL_MS = 100  # how late an overdue request may be noticed; guess
# A request that comes so soon after another is one of many in this turn of the scheduler, and they share a send; any other is sent at
# once. Guess: a few times what a gateway takes for a write.
SHARING_NS = MS // 2
TOO_LATE = "the node did not take the request in time, nothing was sent"
NOT_RUNNING = "the node process of this machine is not running, nothing was sent; retry"

_LOG = structlog.get_logger("kvp2p.node_port")


class NodePort:
    """The connection to this machine's node. `role` is `gateway` or `api`; `path` is best relative (107 bytes at most)."""

    def __init__(self, path: str, role: str) -> None:
        self._path = path
        self._role = role
        self._queue: deque[Request] = deque()
        self._queue_bytes = 0
        self._requests: dict[int, Request] = {}  # writes and questions, queued or sent, not ended
        self._waits: dict[int, Request] = {}  # the same for versions: many waiting readers take no room from writes
        self._lane = ChunkLane()
        self._next_number = 0
        self._notes: dict[type[LocalMessage], LocalMessage] = {}  # to be sent before the queue; the newest of each kind
        self._reported: tuple[tuple[str, int], ...] | None = None  # what the node knows, or is about to
        self._stream: LocalStream | None = None
        self._enqueued_ns = 0  # when the newest request came
        self._sweep_at_ns: float = math.inf
        self._sweep_moved = trio.lowlevel.ParkingLot()
        self._connection_changed = trio.Event()
        self._has_spoken = False
        # Called after callbacks have been: many requests end together, and who asked may act on all of them at once.
        self.on_ended: Callable[[], None] = lambda: None
        self._lost_at = time.monotonic()
        # Kept when the connection ends: what the store was complete about, it stays complete about.
        self.readiness = Readiness(ready=False, reason="the node process has not been reached yet")

    @property
    def connected(self) -> bool:
        """Whether there is a node to send to."""
        return self._stream is not None

    def lost_ms(self) -> int:
        """Return for how long there has been no node to send to, 0 while there is one."""
        return 0 if self._stream is not None else int((time.monotonic() - self._lost_at) * 1000)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, serve the connection, and connect again with back-off, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                task_status.started()
                back_off_s = BACK_OFF_MIN_S
                while True:
                    await self._connect_and_serve()
                    back_off_s = BACK_OFF_MIN_S if self._has_spoken else min(2 * back_off_s, BACK_OFF_MAX_S)
                    await trio.sleep(back_off_s)
        finally:
            self._end_all("this process is stopping")

    async def wait_connected(self) -> None:
        """Return when the node is connected."""
        while not self.connected:
            await self._connection_changed.wait()

    def submit_nowait(
        self,
        operations: Sequence[Operation],
        deadline_ms: int,
        callback: WriteCallback,
        *,
        upload: int | None = None,
        large_ms: int = 0,
    ) -> None:
        """Send a write; `callback(outcome)` is called exactly once, and must not raise.

        It is called by a task of this port, followed by `on_ended`, or before this returns when the write is refused here:
        with code `node_unavailable` (not connected, or not any more to the node that has the chunks of `upload`), `overloaded` (a
        limit is reached) or `bad_request` (too large). `large_ms` is how much longer deadline and hold are for the sake of its size.
        """
        request = self._write(operations, deadline_ms, callback, large_ms)
        if upload is not None and not self._lane.is_open(upload):
            request.end_unsent("node_unavailable", UPLOAD_LOST)
        else:
            self._enqueue(request)

    def open_upload(self) -> int:
        """Begin with the chunks of a write. The node keeps them until `end_upload`, or until this connection ends."""
        number = self._number()
        if self._stream is not None:
            self._lane.open(number)
        return number

    def stage_nowait(self, upload: int, chunk: ChunkId, content: bytes, callback: WriteCallback) -> None:
        """Store a chunk at the node; `callback(outcome)` as for a write: acked when it is durable there, else refused, never unknown."""
        message = StageChunk(self._number(), upload, chunk, content)
        deadline_ns = time.monotonic_ns() + STAGE_TIMEOUT_MS * MS
        request = Request(message, deadline_ns, WAIT_GRACE_MS, len(content), callback)
        if self._lane.push(request, upload) and self._stream is not None:
            self._note_due(request)
            self._stream.flush()

    def end_upload(self, upload: int) -> None:
        """Tell the node to keep the chunks no longer. No callback of them is called from here on; what has not left never leaves."""
        if self._lane.end(upload) and self._stream is not None:
            self._stream.flush_soon()

    async def submit(self, operations: Sequence[Operation], deadline_ms: int) -> Outcome:
        """Send a write and return how it ended. When cancelled before it has left, it never leaves."""
        ended = Ended()
        await self._end_of(self._write(operations, deadline_ms, ended), ended)
        return ended.outcome

    async def await_version(self, version: Version, timeout_ms: int) -> Outcome:
        """Wait until the node covers `version`; acked, or refused: `not_caught_up`, `node_unavailable`, `overloaded`."""
        deadline_ns = time.monotonic_ns() + timeout_ms * MS
        ended = Ended()
        message = AwaitVersion(self._number(), version, deadline_ns)
        await self._end_of(Request(message, deadline_ns, WAIT_GRACE_MS, 64, ended), ended)
        return ended.outcome

    async def query(self, what: str) -> bytes:
        """Ask the node for a JSON document (`status`, `metrics`). Raises NodeUnavailable."""
        deadline_ns = time.monotonic_ns() + QUERY_TIMEOUT_MS * MS
        ended = Ended()
        question = Request(Query(self._number(), what), deadline_ns, 0, 64, ended)
        await self._end_of(question, ended)
        if question.body is None:
            raise NodeUnavailable(f"{ended.outcome.message} ({ended.outcome.code})")
        return question.body

    def report(self, counters: Mapping[str, int]) -> None:
        """Tell the node this process's counters, all since its start, if they have changed since it was told."""
        samples = tuple(counters.items())
        if self._stream is not None and samples != self._reported:
            self._reported = samples
            self._notes[Report] = Report(samples)  # in place of an older one that has not left
            self._stream.flush()

    # --- requests

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number

    def _write(
        self, operations: Sequence[Operation], deadline_ms: int, callback: WriteCallback, large_ms: int = 0
    ) -> Request:
        deadline_ns = time.monotonic_ns() + (deadline_ms + large_ms) * MS
        message = SubmitWrite(self._number(), deadline_ns, tuple(operations))
        grace_ms = ANSWER_GRACE_MS + large_ms
        return Request(message, deadline_ns, grace_ms, sum(map(operation_bytes, operations)), callback)

    def _enqueue(self, request: Request) -> None:
        stream = self._stream
        if stream is None:
            request.end_unsent("node_unavailable", NOT_RUNNING)
            return
        is_wait = request.kind is AwaitVersion
        table, table_max = (self._waits, LOCAL_WAITS_MAX) if is_wait else (self._requests, FORWARDS_IN_FLIGHT_MAX)
        if request.estimated_bytes > WRITE_BYTES_MAX:
            request.end_unsent(
                "bad_request",
                f"the write has {request.estimated_bytes} bytes; {WRITE_BYTES_MAX} are the limit, nothing was sent",
            )
        elif len(table) >= table_max or self._queue_bytes + request.estimated_bytes > LOCAL_QUEUE_BYTES_MAX:
            request.end_unsent("overloaded", "this node has too many requests under way, nothing was sent; retry later")
        else:
            table[request.number] = request
            self._queue.append(request)
            self._queue_bytes += request.estimated_bytes
            self._note_due(request)
            now_ns = time.monotonic_ns()
            if now_ns - self._enqueued_ns > SHARING_NS:
                stream.flush()
            else:
                stream.flush_soon()
            self._enqueued_ns = now_ns

    def _note_due(self, request: Request) -> None:
        if request.deadline_ns < self._sweep_at_ns:
            self._sweep_at_ns = request.deadline_ns
            self._sweep_moved.unpark()

    async def _end_of(self, request: Request, ended: Ended) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # before anything has left
        self._enqueue(request)
        try:
            await ended.wait()
        finally:
            self._abandon(request)

    def _abandon(self, request: Request) -> None:
        # `_take` passes over what is not in the table, so an abandoned write that has not left never leaves.
        if request.kind is StageChunk:
            self._lane.pop(request.number)
        else:
            (self._waits if request.kind is AwaitVersion else self._requests).pop(request.number, None)

    async def _sweep(self) -> None:
        """End what has waited too long. Sleeps until something may have."""
        while True:
            with trio.move_on_after(max(0.0, (self._sweep_at_ns - time.monotonic_ns()) / 1e9)):
                await self._sweep_moved.park()
            now_ns = time.monotonic_ns()
            if self._sweep_at_ns <= now_ns:
                self._end_overdue(now_ns)

    def _end_overdue(self, now_ns: int) -> None:
        """End what is unsent after its deadline as refused, what was sent as unknown after the grace [I10]."""
        overdue: list[Request] = []
        next_ns: float = math.inf
        for request in chain(self._requests.values(), self._waits.values(), self._lane.waiting):
            due_ns = request.answer_by_ns if request.is_sent else request.deadline_ns
            if due_ns < now_ns:
                overdue.append(request)
            else:
                next_ns = min(next_ns, due_ns)
        # Before anybody is told: who is told may send more, and that moves the sweep. Not for each of many that are due one after the other.
        self._sweep_at_ns = max(next_ns, now_ns + SWEEP_INTERVAL_MS * MS)
        for request in overdue:
            self._abandon(request)
            if request.is_sent:
                request.end_unanswered("the node did not answer in time")
            else:
                request.end_unsent("deadline_passed", TOO_LATE)
        self.on_ended()

    def _end_all(self, reason: str) -> None:
        requests = [*self._requests.values(), *self._waits.values(), *self._lane.clear()]
        self._requests.clear()
        self._waits.clear()
        self._queue.clear()
        self._queue_bytes = 0
        self._notes.clear()
        for request in requests:
            if request.is_sent:
                request.end_unanswered(f"{reason} after the request was sent")
            else:
                request.end_unsent("node_unavailable", f"{reason}, nothing was sent; retry")
        self.on_ended()

    # --- the connection

    async def _connect_and_serve(self) -> None:
        """Serve one connection to its end. `_has_spoken` tells whether the node said anything on it."""
        self._has_spoken = False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._path)  # to a unix socket: at once, or not now
        except OSError:
            connection.close()
            return
        reason = "the node closed its socket"
        try:
            with LocalStream(connection, self._take) as stream:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.push)
                    self._notes[Hello] = Hello(self._role, os.getpid())
                    self._reported = None
                    self._set_stream(stream)
                    stream.flush()
                    await self._read(stream)
                    nursery.cancel_scope.cancel()
        except* RemoteProtocolError as group:
            reason = f"the node broke the protocol of its socket: {group.exceptions[0]}"
        except* OSError:
            reason = "the connection to the node process broke"
        finally:
            self._lost_at = time.monotonic()
            self._set_stream(None)
            self._end_all("the connection to the node process ended")
        _LOG.warning("node_lost", reason=reason)

    def _set_stream(self, stream: LocalStream | None) -> None:
        self._stream = stream
        changed, self._connection_changed = self._connection_changed, trio.Event()
        changed.set()

    async def _read(self, stream: LocalStream) -> None:
        decoder = LocalDecoder()
        while data := await stream.receive():
            self._has_spoken = True
            for message in decoder.feed(data):
                self._accept(message)
            self.on_ended()
            if self._lane.has_next:
                stream.flush()  # the answers have made room for more chunks

    def _accept(self, message: LocalMessage) -> None:
        match message:
            case LocalOutcome(number, outcome):
                request = self._requests.pop(number, None) or self._waits.pop(number, None) or self._lane.pop(number)
                if request is not None:  # else it was abandoned, or ended by the sweep
                    if request.kind is Query:
                        raise RemoteProtocolError("an outcome answers a query")
                    request.callback(outcome)
            case QueryAnswer(number, body):
                request = self._requests.pop(number, None)
                if request is not None:
                    if request.kind is not Query:
                        raise RemoteProtocolError("a document answers a write")
                    request.body = body
                    request.callback(Outcome(Ending.ACKED))
            case Readiness():
                if (message.ready, message.reason) != (self.readiness.ready, self.readiness.reason):
                    _LOG.info("readiness_changed", ready=message.ready, reason=message.reason)
                self.readiness = message
            case _:
                raise RemoteProtocolError(f"the node sent a {type(message).__name__}")

    def _take(self) -> bytes:
        """Encode what is to leave next. From here on it counts as sent, whatever becomes of the bytes."""
        if not (self._queue or self._notes or self._lane.has_next):
            return b""
        messages = list(self._notes.values())
        self._notes.clear()
        messages += self._lane.take_ended()
        queue = self._queue
        now_ns = time.monotonic_ns()
        taken_bytes = 0
        while queue and taken_bytes < LOCAL_SEND_BYTES_MAX:
            request = queue.popleft()
            self._queue_bytes -= request.estimated_bytes
            # What is past its deadline never leaves, and is ended by the sweep.
            is_wanted = request.number in self._requests or request.number in self._waits
            if is_wanted and request.message is not None and now_ns <= request.deadline_ns:
                messages.append(request.message)
                request.message = None
                taken_bytes += request.estimated_bytes
        if not messages:
            # One at a time, and with nothing behind it: what comes meanwhile waits for no more than that.
            messages += self._lane.take_chunk(now_ns)
        return encode_local(messages)
