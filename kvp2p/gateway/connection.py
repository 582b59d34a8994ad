"""One connection: receives, answers in order, sends.

Decides: when a request may start, when bytes leave, when the connection is read no further, and when it ends.
Keeps true: answers leave in the order of the requests. A read starts when every write before it on this connection has
    ended, so a pipeline reads its own writes; consecutive writes of keys are under way together, in order, but nothing starts behind a
    large value before that has ended: small writes would overtake it at the leader. I9: what is received and not answered, and what is
    answered and not sent, is bounded; beyond that the connection is not read, nor while the node takes no more of a large value.
    I10: a write under way when its client leaves goes on, and its outcome is dropped here alone; a large value that waits for others then is
    not under way, and ends.
In and out: a non-blocking socket. One task receives; a second one (`outgoing.py`) exists only while the peer does not take what we send,
    or a large value is streamed.
Source: RFC 9112 (2022) section 9.3.2 (pipelining), 9.6 (closing so that the last answer is not lost).

No cancel scope and no timer per request: `deadline` is a number that the server's sweep compares with the clock.
"""

from __future__ import annotations

import math
import socket
import struct
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

import structlog
import trio

from kvp2p.errors import RequestError, StoreError
from kvp2p.gateway.answers import CONTINUE, answer_status, refusal_answer, with_close, without_body
from kvp2p.gateway.exchange import METHODS_OF_WRITES, Exchange
from kvp2p.gateway.fields import Fields
from kvp2p.gateway.intake import Intake, Phase
from kvp2p.gateway.outgoing import Outgoing
from kvp2p.gateway.uploads import DRAINING, OVERLOADED, Upload
from kvp2p.limits import (
    HTTP_LINGER_SECONDS,
    HTTP_PENDING_BODY_BYTES_MAX,
    HTTP_PENDING_REQUESTS_MAX,
    HTTP_PIPELINED_WRITES_MAX,
    HTTP_RECEIVE_BYTES,
    HTTP_RESPONSE_BUFFER_BYTES_MAX,
)

if TYPE_CHECKING:
    from kvp2p.gateway.server import Gateway

_LOG = structlog.get_logger("kvp2p.gateway")
_RESET: Final = struct.pack("ii", 1, 0)  # on, and no time: what is not sent is dropped


class Connection:
    """One client's connection. `deadline` is when the sweep calls `expire`."""

    def __init__(self, gateway: Gateway, sock: socket.socket) -> None:
        self._gateway = gateway
        self._reads = gateway.reads
        self._socket = sock
        self._intake = Intake(self, gateway.writes.is_known, monotonic)
        self._pending: deque[Exchange] = deque()
        self._pending_bytes = 0
        self._held_bytes = 0  # of bodies: of the pending that have not started, and of the one that is being received
        self._started = 0  # of the pending, from the left
        self._receiving: Exchange | None = None  # the last of the pending, while the body of its large value comes
        self._uploading: Exchange | None = None  # of the pending: the large value that has begun and is not answered
        self._out = Outgoing(gateway, sock, self._resume_sent, self.abort)
        self._plain_answers = 0  # GETs that the hot path answered in this read
        self._head_timed = -1
        self._owes_continue = False
        self._is_ending = False  # nothing more is answered
        self._is_shut = False
        self._progress: trio.Event | None = None
        self._deadline = monotonic() + gateway.settings.idle_timeout_seconds
        self.is_closed = False

    @property
    def deadline(self) -> float:
        """Monotonic seconds at which waiting for the peer ends, or that of a large value for others."""
        deadline = min(self._deadline, self._out.deadline)
        return deadline if self._uploading is None else min(deadline, _upload(self._uploading).wait_deadline)

    # --- the receiving task

    async def serve(self) -> None:
        """Serve the connection to its end; the socket is closed then."""
        sock = self._socket
        try:
            while not self.is_closed:
                await trio.lowlevel.wait_readable(sock)
                try:
                    data = sock.recv(HTTP_RECEIVE_BYTES)
                except BlockingIOError:
                    continue
                if not data:
                    break
                if self._is_ending or self._intake.is_over:
                    continue  # what comes after the last request is read and dropped
                self._receive(data)
                while self._is_full() and not self.is_closed:
                    await self._next_progress()
            # The peer has said all it has to say; it may still be listening.
            self._drop_unfinished()
            self._leave_lines()
            while (self._pending or self._out.waiting_bytes) and not self.is_closed:
                await self._next_progress()
        except (trio.ClosedResourceError, OSError):
            return  # the sweep closed it, or the peer is gone
        except Exception:  # noqa: BLE001  one connection met a bug of ours: it is told in the log, the others go on
            _LOG.exception("connection_failed")
        finally:
            self.abort()

    async def _next_progress(self) -> None:
        self._progress = trio.Event()
        await self._progress.wait()

    def _is_full(self) -> bool:
        return (
            self._out.waiting_bytes >= HTTP_RESPONSE_BUFFER_BYTES_MAX
            or len(self._pending) >= HTTP_PENDING_REQUESTS_MAX
            or self._pending_bytes >= HTTP_PENDING_BODY_BYTES_MAX
            or (self._receiving is not None and _upload(self._receiving).is_full)
        )

    def _receive(self, data: bytes) -> None:
        gateway, intake = self._gateway, self._intake
        began = monotonic()
        try:
            intake.feed(data)
            if intake.rejection is not None:
                self._take_rejection(intake.rejection)
            self._work()
        finally:
            gateway.views.release()
        now = monotonic()
        counters = gateway.counters
        counters.bytes_received += len(data)
        if self._plain_answers:
            counters.values_read += self._plain_answers
            counters.reads.observe(now - began, self._plain_answers)
            self._plain_answers = 0
        self._set_deadline(now)

    def _set_deadline(self, now: float) -> None:
        settings, intake = self._gateway.settings, self._intake
        if self._is_shut or self.is_closed:
            return
        if intake.phase is Phase.BETWEEN:
            # Waiting for the node is bounded by the node port, waiting for the peer to read by `Outgoing.deadline`.
            is_busy = self._pending or self._out.waiting_bytes
            self._deadline = math.inf if is_busy else now + settings.idle_timeout_seconds
        elif self._is_full():
            # It is not read on, so the peer is not late: it may be taking answers, or we do not take its value. How fast it takes answers is
            # timed in `Outgoing`, how fast the node takes values in the node port, how long a value waits for others in `deadline`.
            self._deadline = math.inf
            self._head_timed = -1
        elif intake.phase is Phase.BODY:
            self._deadline = now + settings.body_timeout_seconds
        elif self._head_timed != intake.heads_begun:  # more bytes of the same head give it no more time
            self._head_timed = intake.heads_begun
            self._deadline = now + settings.head_timeout_seconds

    # --- from the intake

    def take_plain_get(self, target: bytes, fields: Fields) -> bool:
        """Answer a GET at once when it is its turn and it needs nothing but its row."""
        out = self._out
        if self._pending or out.waiting_bytes >= HTTP_RESPONSE_BUFFER_BYTES_MAX or self._gateway.is_draining:
            return False
        try:
            answer = self._reads.plain_value(target, fields.authorization)
        except StoreError:
            return False  # the longer way tells it
        if answer is None:
            return False
        out.parts.append(answer)
        out.waiting_bytes += len(answer)
        self._plain_answers += 1
        return True

    def hold(self, count: int) -> bool:
        """Make room for a part of a body; False when the process has none left."""
        if not self._gateway.bodies.hold(count):
            return False
        self._held_bytes += count
        return True

    def release(self, count: int) -> None:
        """Give back room for parts of bodies."""
        self._held_bytes -= count
        self._gateway.bodies.release(count)

    def take(self, exchange: Exchange) -> None:
        """Queue a request."""
        self._owes_continue = False
        if self._gateway.is_draining:
            exchange.closes = True
        self._pending.append(exchange)
        self._pending_bytes += len(exchange.body or b"")

    def take_large(self, exchange: Exchange) -> None:
        """Queue a request whose body is to come."""
        gateway = self._gateway
        exchange.upload = Upload(gateway.node, gateway.bodies, gateway.turns, self._note_answered, self._resume_soon)
        exchange.is_received = False
        if gateway.is_draining:
            exchange.closes = True
            exchange.upload.wait_no_more(DRAINING)
        self._receiving = exchange
        self._pending.append(exchange)

    def _resume_soon(self) -> None:
        self._gateway.resume_soon(self)

    def end_large(self, exchange: Exchange) -> None:
        """Take note that the body of the large value is whole."""
        assert exchange is self._receiving, "its body was the last that came"
        self._receiving = None
        self._owes_continue = False
        exchange.is_received = True
        _upload(exchange).finish()

    def send_continue(self) -> None:
        """Ask for a body, once all answers before are on their way."""
        self._owes_continue = True
        if not self._pending:
            self._continue()

    def _continue(self) -> None:
        if self._owes_continue and not self._out.is_streaming:
            self._owes_continue = False
            self._out.add(CONTINUE)

    def _take_rejection(self, rejection: RequestError) -> None:
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            exchange = Exchange(b"", b"", None, monotonic())
            self._pending.append(exchange)
        exchange.drop_body()
        exchange.closes = exchange.is_received = True
        exchange.answer = refusal_answer(rejection)
        self._intake.rejection = rejection
        self._owes_continue = False

    def _drop_unfinished(self) -> None:
        """Forget the request whose body will not come any more."""
        exchange, self._receiving = self._receiving, None
        if exchange is not None:
            self._pending.pop().abandon()
            self._started = min(self._started, len(self._pending))
            if exchange is self._uploading:  # and not one before it
                self._uploading = None

    def _leave_lines(self) -> None:
        """Let no large value wait for others any more: whoever sent it may be gone."""
        uploads = [one.upload for one in self._pending if one.upload is not None]
        for upload in uploads:
            upload.leave()
        if uploads:
            try:
                self._work()
            finally:
                self._gateway.views.release()

    # --- the pipeline

    def resume(self) -> None:
        """Go on after an outcome has come. The caller releases the view afterwards."""
        if self.is_closed:
            return
        self._work_or_abort()
        self._set_deadline(monotonic())
        self._note_progress()

    def _note_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()

    def _work_or_abort(self) -> None:
        """Work for a task that is not this connection's own, and must outlive it."""
        try:
            self._work()
        except Exception:  # noqa: BLE001  as in `serve`
            _LOG.exception("connection_failed")
            self.abort()

    def _work(self) -> None:
        """Answer and send until something must be waited for: the node, or the peer."""
        self._advance()
        self._flush()
        while (
            self._pending
            and not (self._out.is_pushing or self._is_ending or self.is_closed)
            and (not self._started or (self._pending[0].answer is not None and self._pending[0].is_received))
        ):
            # The limit of unsent answers stopped it, and they have been sent.
            self._advance()
            self._flush()

    def _advance(self) -> None:
        """Answer from the left what can be answered, start what may start."""
        pending = self._pending
        if self._uploading is not None:
            self._gateway.routes.drive(self._uploading)
        while pending and self._out.waiting_bytes < HTTP_RESPONSE_BUFFER_BYTES_MAX and not self._is_ending:
            head = pending[0]
            if head.answer is None and not self._started:
                self._start(head)
            if self._owes_continue and not head.is_received:
                self._continue_or_end(head)
            if head.answer is None or not head.is_received:
                self._start_writes_ahead(head)
                return
            pending.popleft()
            self._started = max(0, self._started - 1)
            if head is self._uploading:
                self._uploading = None
            self._answer(head)
        if not pending:
            self._continue()

    def _continue_or_end(self, exchange: Exchange) -> None:
        """Ask for the body of a large value that has been checked; where it was refused the answer is the last, and no body is waited for."""
        if exchange.answer is None:
            self._continue()
        else:
            exchange.closes = exchange.is_received = True
            self._receiving = None
            self._owes_continue = False

    def _start_writes_ahead(self, head: Exchange) -> None:
        """Start the writes that follow a write under way: the node and the leader keep their order."""
        pending = self._pending
        if not head.is_key_write:
            return
        while self._started < min(len(pending), HTTP_PIPELINED_WRITES_MAX):
            following = pending[self._started]
            if (
                not following.is_key_write
                or following.answer is not None
                or pending[self._started - 1].upload is not None
            ):
                return
            self._start(following)

    def _start(self, exchange: Exchange) -> None:
        self._started += 1
        body_bytes = len(exchange.body or b"")
        self._gateway.routes.start(exchange)
        exchange.body = None
        self._pending_bytes -= body_bytes
        self.release(body_bytes)  # the write has it now, or nobody
        if exchange.answer is None:
            exchange.on_end = self._note_answered
            if exchange.upload is not None:
                self._uploading = exchange
                self._gateway.routes.drive(exchange)

    def _note_answered(self) -> None:
        self._gateway.note_answered(self)

    def _answer(self, exchange: Exchange) -> None:
        answer = exchange.answer
        assert answer is not None
        method = exchange.method
        if method == b"HEAD":
            answer = without_body(answer)
        if exchange.closes:
            answer = with_close(answer)
            self._is_ending = True
            self._drop_pending()
        self._out.add(answer)
        if exchange.stream is not None:
            self._out.add_stream(exchange.stream)
        counters = self._gateway.counters
        counters.count(method, answer_status(answer))
        latencies = counters.writes if method in METHODS_OF_WRITES else counters.reads
        latencies.observe(monotonic() - exchange.received_at)

    # --- sending

    def _flush(self) -> None:
        """Send all that is ready, and end when that was the last."""
        self._out.flush()
        if self._is_ending and not (self._is_shut or self._out.is_pushing or self.is_closed):
            self._shut()

    def _resume_sent(self) -> None:
        """Go on after a task has sent what was waiting."""
        try:
            self.resume()
        finally:
            self._gateway.views.release()

    # --- the end

    def _shut(self) -> None:
        """Say that nothing more comes, and give the peer a moment to read the last answer."""
        self._is_shut = True
        self._deadline = monotonic() + HTTP_LINGER_SECONDS
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()

    def expire(self) -> None:
        """End a connection whose deadline has passed, or a large value that has waited too long for others: its connection goes on.

        The caller releases the view afterwards.
        """
        if self.deadline > monotonic():
            return  # one that was late in the same sweep has left the line, and let this one's value in
        uploading = self._uploading
        if uploading is not None and _upload(uploading).wait_deadline <= monotonic():
            _upload(uploading).fail(OVERLOADED)
            self.resume()
            return
        self._gateway.counters.connections_timed_out += 1
        is_waiting_for_request = self._intake.phase is not Phase.BETWEEN and not [
            one for one in self._pending if one is not self._receiving
        ]
        if self._is_shut or self._out.is_pushing or not is_waiting_for_request:
            self.abort()
            return
        self._take_rejection(RequestError("request_timeout", "the request did not arrive in time"))
        self._work_or_abort()

    def drain(self) -> None:
        """End after the requests in hand; at once when there are none. No large value waits for others any more: there is no time for it.

        The caller releases the view afterwards.
        """
        if self._pending:
            if self._intake.phase is Phase.BETWEEN or self._receiving is not None:
                self._pending[-1].closes = True
        elif self._intake.phase is Phase.BETWEEN and not self._out.waiting_bytes:
            self.abort()
        elif self._intake.phase is Phase.BETWEEN:
            self._is_ending = True
        uploads = [one.upload for one in self._pending if one.upload is not None]
        for upload in uploads:
            upload.wait_no_more(DRAINING)
        if uploads:
            self.resume()

    def abort(self) -> None:
        """Close the socket. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        trio.lowlevel.notify_closing(self._socket)
        if self._out.waiting_bytes:
            # The peer does not take it. Without a reset the kernel would keep its part, some megabytes, for minutes.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()
        self.release(self._held_bytes)
        self._drop_pending()
        self._out.close()
        self._note_progress()

    def _drop_pending(self) -> None:
        for exchange in self._pending:
            exchange.abandon()
        self._pending.clear()
        self._receiving = self._uploading = None


def _upload(exchange: Exchange) -> Upload:
    assert exchange.upload is not None, "it is a large value"
    return exchange.upload
