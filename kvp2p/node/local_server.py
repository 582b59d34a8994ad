"""The node's end of the unix socket: writes, waits and questions of the gateways and the api process.

Decides: how requests of local processes reach the machine and how answers go back, many to a send.
Keeps true: I10, every request has one answer or its connection ends; I9, a connection that does not take its answers is closed. Uploads end
with the connection that they came over. I7: gateways are told the leader's clock as soon as it is known here, and when it is another.
In and out: `wire/local.py` messages. A connection that ends is a process that may have died: the store's reader slots are checked.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import trio

from kvp2p.core.operations import Ending, Outcome, refused
from kvp2p.errors import RemoteProtocolError
from kvp2p.limits import CLOCK_TOLD_MS, LOCAL_ANSWERS_MAX, LOCAL_UPLOADS_MAX, WRITE_TIMEOUT_MS_MAX
from kvp2p.node.status import Counters
from kvp2p.runtime.driver import MS, ReplicaDriver
from kvp2p.runtime.local_stream import LocalStream
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import (
    AwaitVersion,
    EndUpload,
    Hello,
    LocalMessage,
    LocalOutcome,
    Query,
    QueryAnswer,
    Readiness,
    Report,
    SetClock,
    StageChunk,
    SubmitWrite,
)

log = structlog.get_logger("kvp2p.node")


class _Connection:
    """One local process."""

    def __init__(self, number: int, connected: socket.socket) -> None:
        self.number = number
        self.stream = LocalStream(connected, self._take)
        self.cancel_scope = trio.CancelScope()
        self.uploads: dict[int, int] = {}  # the process's numbers -> the driver's
        self._answers: list[LocalMessage] = []

    def queue(self, message: LocalMessage) -> None:
        """Queue a message; all that queued up leaves together with the next `send_answers`."""
        if len(self._answers) >= LOCAL_ANSWERS_MAX:
            self.cancel_scope.cancel()
            return
        self._answers.append(message)

    def send_answers(self) -> None:
        """Send what is queued."""
        if self._answers:
            self.stream.flush()

    def _take(self) -> bytes:
        if not self._answers:
            return b""
        answers, self._answers = self._answers, []
        return encode_local(answers)


class LocalServer:
    """Serves the unix socket of one node."""

    def __init__(
        self,
        driver: ReplicaDriver,
        counters: Counters,
        documents: dict[str, Callable[[], dict[str, Any]]],
        on_process_gone: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._counters = counters
        self._documents = documents
        self._on_process_gone = on_process_gone
        self._connections: dict[int, _Connection] = {}
        self._next = 1
        self._readiness = Readiness(ready=False, reason="the node is starting")

    def end_turn(self, is_ready: bool, reason: str) -> None:
        """Send the answers of a turn of the driver, and its readiness and clock if these changed. To be called after each turn."""
        told = self._readiness
        ahead_ms = self._driver.machine.board.clock_ahead_ms()
        # A rise may wait: until it is told a gateway hides a little late, and never early [I7].
        is_clock_told = told.clock_ahead_ms <= ahead_ms < told.clock_ahead_ms + CLOCK_TOLD_MS
        if (told.ready, told.reason) != (is_ready, reason) or not is_clock_told:
            self._readiness = Readiness(is_ready, reason, ahead_ms)
            for connection in self._connections.values():
                connection.queue(self._readiness)
        for connection in self._connections.values():
            connection.send_answers()

    async def run(self, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on a unix socket at `path` (relative: DESIGN §6 on long paths) until cancelled."""
        listener = _listen(path)
        with listener:
            task_status.started()
            await trio.serve_listeners(self._serve, [trio.SocketListener(listener)])

    async def _serve(self, accepted: trio.SocketStream) -> None:
        connection = _Connection(self._next, socket.socket(fileno=accepted.socket.detach()))
        self._next += 1
        self._connections[connection.number] = connection
        connection.queue(self._readiness)
        try:
            with connection.stream as stream, connection.cancel_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.push)
                    connection.send_answers()
                    await self._receive(connection)
                    nursery.cancel_scope.cancel()
        except* OSError:
            pass  # the process went away; its requests end, their answers find nobody
        except* RemoteProtocolError as errors:
            log.error("local_protocol_error", reason=str(errors.exceptions[0]))
        finally:
            del self._connections[connection.number]
            self._counters.end(connection.number)
            for upload in connection.uploads.values():
                self._driver.end_upload(upload)  # whatever is left of it, nobody will write it
            self._on_process_gone()

    async def _receive(self, connection: _Connection) -> None:
        decoder = LocalDecoder()
        while data := await connection.stream.receive():
            for message in decoder.feed(data):
                await self._take(message, connection)
            connection.send_answers()  # to questions; those to writes come in turns of the driver

    async def _take(self, message: LocalMessage, connection: _Connection) -> None:
        match message:
            case SubmitWrite(request=request, deadline_ns=deadline_ns, operations=operations):
                await self._driver.write(operations, _bounded(deadline_ns), _answer(connection, request))
            case AwaitVersion(request=request, version=version, deadline_ns=deadline_ns):
                await self._driver.await_version(version, _bounded(deadline_ns), _answer(connection, request))
            case StageChunk(request=request, upload=upload, chunk=chunk, content=content):
                number = self._upload(connection, upload)
                await self._driver.stage_chunk(number, chunk, content, _answer(connection, request))
            case EndUpload(upload=upload):
                if upload in connection.uploads:
                    self._driver.end_upload(connection.uploads.pop(upload))
            case Report(counters=counters):
                self._counters.report(connection.number, counters)
            case Query(request=request, what=what):
                make = self._documents.get(what)
                if make is None:
                    raise RemoteProtocolError(f"there is no document {what!r}")
                connection.queue(QueryAnswer(request, json.dumps(make()).encode()))
            case SetClock(request=request, offset_ms=offset_ms):
                connection.queue(LocalOutcome(request, self._shift_clock(offset_ms)))
            case Hello(role=role, process_id=process_id):
                log.debug("process_connected", role=role, pid=process_id)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for the node to receive")

    def _shift_clock(self, offset_ms: int) -> Outcome:
        clock = self._driver.clock
        if not clock.is_adjustable:
            return refused(
                "clock_fixed", "the clock of a node that was not started with --clock-offset-ms stays as it is"
            )
        clock.shift(offset_ms)
        log.warning("clock_shifted", offset_ms=offset_ms)
        self._driver.machine.board.now = self._driver.now()
        self.end_turn(
            self._readiness.ready, self._readiness.reason
        )  # not with the next turn, which may be 2 s from now
        return Outcome(Ending.ACKED)

    def _upload(self, connection: _Connection, upload: int) -> int:
        """Return the driver's number for an upload of a process; its first chunk begins it."""
        number = connection.uploads.get(upload)
        if number is None:
            if len(connection.uploads) >= LOCAL_UPLOADS_MAX:
                raise RemoteProtocolError(f"a process has more than {LOCAL_UPLOADS_MAX} uploads that have not ended")
            number = connection.uploads[upload] = self._driver.new_upload()
        return number


def _listen(path: str) -> trio.socket.SocketType:
    """Bind before anybody may connect, so that the socket's mode is right from the start."""
    Path(path).unlink(missing_ok=True)  # left by an earlier life; the supervisor's lock says that nobody uses it
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    Path(path).chmod(0o600)
    listener.listen(64)
    return trio.socket.from_stdlib_socket(listener)


def _bounded(deadline_ns: int) -> int:
    """Keep a deadline near: nothing of a write waits for longer, here or at the leader [I9]."""
    return min(deadline_ns, time.monotonic_ns() + WRITE_TIMEOUT_MS_MAX * MS)


def _answer(connection: _Connection, request: int) -> Callable[[Outcome], None]:
    def tell(outcome: Outcome) -> None:
        connection.queue(LocalOutcome(request, outcome))

    return tell
