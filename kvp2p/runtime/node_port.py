"""A process's side of the unix socket to its node: writes, waits, questions and counters go out, answers come back.

Decides: when bytes leave (all that is queued goes in one send), and what a lost connection means for each request.
Keeps true: [I10] a write is sent once, on one connection; none is ever sent again. It ends `refused` when it had not left,
    `unknown` when it had and the connection ended or no answer came in time. [I9] bytes queued, requests in flight.
In and out: `submit` and its hot-path twin `submit_nowait`, `await_version`, `query`, `report`; one task, `run`, in the
    caller's nursery. One trio thread.

A gateway serves reads without its node, so `run` is started at once and connects when it can.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog
import trio

from kvp2p.core.operations import Operation, Outcome, operation_bytes, refused, unknown
from kvp2p.errors import NodeUnavailable, RemoteProtocolError
from kvp2p.ids import Version
from kvp2p.limits import FORWARDS_IN_FLIGHT_MAX, HOLD_MS, LOCAL_QUEUE_BYTES_MAX
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
    SubmitWrite,
)

BACK_OFF_MIN_S = 0.02
BACK_OFF_MAX_S = 1.0
RECEIVE_BYTES = 65_536
SEND_BYTES_MAX = 1024 * 1024  # given to the kernel at once; the rest stays cancellable; guess
QUERY_TIMEOUT_MS = 5_000
# Beyond a write's deadline its answer may be held for read-your-writes; then the node's own answer wins over ours.
ANSWER_GRACE_MS = HOLD_MS + 500
SWEEP_INTERVAL_S = 0.1  # how late an overdue request may be noticed; guess
TOO_LATE = "the node did not take the request in time, nothing was sent"

WriteCallback = Callable[[Outcome], None]

_LOG = structlog.get_logger("kvp2p.node_port")


class _Request(ABC):
    """One request on its way to its answer."""

    __slots__ = ("answer_by", "deadline", "deadline_ns", "estimated_bytes", "is_sent", "number")

    def __init__(self, number: int, deadline: float, grace_s: float, estimated_bytes: int) -> None:
        self.number = number
        # The node reads the same clock. Read before trio's, so that a stop in between makes it early, not late.
        self.deadline_ns = time.monotonic_ns() + int((deadline - trio.current_time()) * 1e9)
        self.deadline = deadline
        self.answer_by = deadline + grace_s
        self.estimated_bytes = estimated_bytes
        self.is_sent = False

    @abstractmethod
    def message(self) -> LocalMessage:
        """Return what is sent."""

    @abstractmethod
    def end_unsent(self, code: str, message: str) -> None:
        """The node will never see this request."""

    @abstractmethod
    def end_unanswered(self, message: str) -> None:
        """The node may have seen this request."""


class _Write(_Request):
    __slots__ = ("callback", "operations")

    def __init__(
        self,
        number: int,
        deadline: float,
        operations: Sequence[Operation],
        estimated_bytes: int,
        callback: WriteCallback,
    ) -> None:
        super().__init__(number, deadline, ANSWER_GRACE_MS / 1000, estimated_bytes)
        self.operations = operations
        self.callback = callback

    def message(self) -> LocalMessage:
        return SubmitWrite(self.number, self.deadline_ns, tuple(self.operations))

    def end_unsent(self, code: str, message: str) -> None:
        self.callback(refused(code, message))

    def end_unanswered(self, message: str) -> None:
        self.callback(unknown(message))


class _Await(_Request):
    __slots__ = ("callback", "version")

    def __init__(self, number: int, deadline: float, version: Version, callback: WriteCallback) -> None:
        super().__init__(number, deadline, 1.0, 64)
        self.version = version
        self.callback = callback

    def message(self) -> LocalMessage:
        return AwaitVersion(self.number, self.version, self.deadline_ns)

    def end_unsent(self, code: str, message: str) -> None:
        self.callback(refused(code, message))

    def end_unanswered(self, message: str) -> None:
        # Waiting changes nothing, so there is nothing unknown about it.
        self.callback(refused("node_unavailable", message))


class _Question(_Request):
    __slots__ = ("answered", "body", "failure", "what")

    def __init__(self, number: int, deadline: float, what: str) -> None:
        super().__init__(number, deadline, 0.0, 64)
        self.what = what
        self.answered = trio.Event()
        self.body: bytes | None = None
        self.failure = ""

    def message(self) -> LocalMessage:
        return Query(self.number, self.what)

    def end_unsent(self, code: str, message: str) -> None:
        self.failure = f"{message} ({code})"
        self.answered.set()

    def end_unanswered(self, message: str) -> None:
        self.end_unsent("node_unavailable", message)


class NodePort:
    """The connection to this machine's node. `role` is `gateway` or `api`; `path` is best relative (107 bytes at most)."""

    def __init__(self, path: str, role: str) -> None:
        self._path = path
        self._role = role
        self._queue: deque[_Request] = deque()
        self._queue_bytes = 0
        self._requests: dict[int, _Request] = {}  # queued or sent, not ended
        self._next_number = 0
        self._report: Report | None = None
        self._wake = trio.Event()
        self._connection_changed = trio.Event()
        self.connected = False
        # Kept when the connection ends: what the store was complete about, it stays complete about.
        self.readiness = Readiness(ready=False, reason="the node process has not been reached yet")

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, serve the connection, and connect again with back-off, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                task_status.started()
                back_off_s = BACK_OFF_MIN_S
                while True:
                    was_served = await self._connect_and_serve()
                    back_off_s = BACK_OFF_MIN_S if was_served else min(2 * back_off_s, BACK_OFF_MAX_S)
                    await trio.sleep(back_off_s)
        finally:
            self._end_all("this process is stopping")

    async def wait_connected(self) -> None:
        """Return when the node is connected."""
        while not self.connected:
            await self._connection_changed.wait()

    def submit_nowait(self, operations: Sequence[Operation], deadline_ms: int, callback: WriteCallback) -> None:
        """Send a write; `callback(outcome)` is called exactly once, and must not raise.

        It is called by the reader's task, or before this returns when the write is refused here: with code
        `node_unavailable` (not connected) or `overloaded` (a limit is reached).
        """
        self._submit(operations, deadline_ms, callback)

    async def submit(self, operations: Sequence[Operation], deadline_ms: int) -> Outcome:
        """Send a write and return how it ended. When cancelled before it has left, it never leaves."""
        ended = trio.Event()
        outcomes: list[Outcome] = []

        def end(outcome: Outcome) -> None:
            outcomes.append(outcome)
            ended.set()

        request = self._submit(operations, deadline_ms, end)
        return await self._outcome_of(request, ended, outcomes)

    async def await_version(self, version: Version, timeout_ms: int) -> Outcome:
        """Wait until the node covers `version`; acked, or refused: `not_caught_up`, `node_unavailable`, `overloaded`."""
        ended = trio.Event()
        outcomes: list[Outcome] = []

        def end(outcome: Outcome) -> None:
            outcomes.append(outcome)
            ended.set()

        request = _Await(self._number(), trio.current_time() + timeout_ms / 1000, version, end)
        self._enqueue(request)
        return await self._outcome_of(request, ended, outcomes)

    async def query(self, what: str) -> bytes:
        """Ask the node for a JSON document (`status`, `metrics`). Raises NodeUnavailable."""
        question = _Question(self._number(), trio.current_time() + QUERY_TIMEOUT_MS / 1000, what)
        self._enqueue(question)
        try:
            await question.answered.wait()
        finally:
            self._abandon(question)
        if question.body is None:
            raise NodeUnavailable(question.failure)
        return question.body

    def report(self, counters: Mapping[str, int]) -> None:
        """Tell the node this process's counters, all since its start; the newest unsent report replaces an older one."""
        if self.connected:
            self._report = Report(tuple(counters.items()))
            self._wake.set()

    # --- requests

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number

    def _submit(self, operations: Sequence[Operation], deadline_ms: int, callback: WriteCallback) -> _Write:
        estimated_bytes = sum(operation_bytes(one) for one in operations)
        deadline = trio.current_time() + deadline_ms / 1000
        request = _Write(self._number(), deadline, operations, estimated_bytes, callback)
        self._enqueue(request)
        return request

    def _enqueue(self, request: _Request) -> None:
        if not self.connected:
            request.end_unsent(
                "node_unavailable", "the node process of this machine is not running, nothing was sent; retry"
            )
        elif (
            len(self._requests) >= FORWARDS_IN_FLIGHT_MAX
            or self._queue_bytes + request.estimated_bytes > LOCAL_QUEUE_BYTES_MAX
        ):
            request.end_unsent("overloaded", "this node has too many requests under way, nothing was sent; retry later")
        else:
            self._requests[request.number] = request
            self._queue.append(request)
            self._queue_bytes += request.estimated_bytes
            self._wake.set()

    async def _outcome_of(self, request: _Request, ended: trio.Event, outcomes: list[Outcome]) -> Outcome:
        try:
            await ended.wait()
        finally:
            self._abandon(request)
        return outcomes[0]

    def _abandon(self, request: _Request) -> None:
        # The writer passes over what is not in the table, so an abandoned write that has not left never leaves.
        self._requests.pop(request.number, None)

    async def _sweep(self) -> None:
        """End what has waited too long: unsent after its deadline as refused, sent after the grace as unknown [I10]."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            now = trio.current_time()
            overdue = [one for one in self._requests.values() if now > (one.answer_by if one.is_sent else one.deadline)]
            for request in overdue:
                self._abandon(request)
                if request.is_sent:
                    request.end_unanswered("the node did not answer in time")
                else:
                    request.end_unsent("deadline_passed", TOO_LATE)

    def _end_all(self, reason: str) -> None:
        requests = list(self._requests.values())
        self._requests.clear()
        self._queue.clear()
        self._queue_bytes = 0
        self._report = None
        for request in requests:
            if request.is_sent:
                request.end_unanswered(f"{reason} after the request was sent")
            else:
                request.end_unsent("node_unavailable", f"{reason}, nothing was sent; retry")

    # --- the connection

    async def _connect_and_serve(self) -> bool:
        """Serve one connection to its end; tell whether the node said anything on it."""
        try:
            stream = await trio.open_unix_socket(self._path)
        except OSError:
            return False
        spoke = [False]
        reason = "the node closed its socket"
        self._set_connected(connected=True)
        self._wake.set()
        try:
            async with stream, trio.open_nursery() as nursery:
                await stream.send_all(encode_local([Hello(self._role, os.getpid())]))
                nursery.start_soon(self._write, stream, nursery.cancel_scope)
                await self._read(stream, spoke)
                nursery.cancel_scope.cancel()
        except* RemoteProtocolError as group:
            reason = f"the node broke the protocol of its socket: {group.exceptions[0]}"
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            reason = "the connection to the node process broke"
        finally:
            self._set_connected(connected=False)
            self._end_all("the connection to the node process ended")
        _LOG.warning("node_lost", reason=reason)
        return spoke[0]

    def _set_connected(self, *, connected: bool) -> None:
        self.connected = connected
        changed, self._connection_changed = self._connection_changed, trio.Event()
        changed.set()

    async def _read(self, stream: trio.SocketStream, spoke: list[bool]) -> None:
        decoder = LocalDecoder()
        while data := await stream.receive_some(RECEIVE_BYTES):
            for message in decoder.feed(data):
                spoke[0] = True
                self._accept(message)

    def _accept(self, message: LocalMessage) -> None:
        match message:
            case LocalOutcome(number, outcome):
                request = self._requests.pop(number, None)
                if isinstance(request, _Write | _Await):
                    request.callback(outcome)
                elif request is not None:
                    raise RemoteProtocolError("an outcome answers a query")
                # None: it was abandoned, or answered by the sweep.
            case QueryAnswer(number, body):
                request = self._requests.pop(number, None)
                if isinstance(request, _Question):
                    request.body = body
                    request.answered.set()
                elif request is not None:
                    raise RemoteProtocolError("a document answers a write")
            case Readiness():
                if message != self.readiness:
                    _LOG.info("readiness_changed", ready=message.ready, reason=message.reason)
                self.readiness = message
            case _:
                raise RemoteProtocolError(f"the node sent a {type(message).__name__}")

    async def _write(self, stream: trio.SocketStream, connection: trio.CancelScope) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while data := self._take():
                    await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            connection.cancel()  # the reader may wait for bytes that will not come

    def _take(self) -> bytes:
        """Encode what is queued. From here on it counts as sent, whatever becomes of the bytes."""
        now = trio.current_time()
        messages: list[LocalMessage] = []
        if self._report is not None:
            messages.append(self._report)
            self._report = None
        taken_bytes = 0
        while self._queue and taken_bytes < SEND_BYTES_MAX:
            request = self._queue.popleft()
            self._queue_bytes -= request.estimated_bytes
            if request.number not in self._requests:
                continue
            if now > request.deadline:
                self._abandon(request)
                request.end_unsent("deadline_passed", TOO_LATE)
                continue
            request.is_sent = True
            messages.append(request.message())
            taken_bytes += request.estimated_bytes
        return encode_local(messages)
