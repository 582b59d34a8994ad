"""What leaves one connection: answers that are ready, and a large value, chunk by chunk.

Decides: when the kernel is given bytes, and who waits while it does not take them.
Keeps true: bytes leave in the order in which they were added, and nothing is added while a value is streamed. [I9] `waiting_bytes` is what the
    connection compares with HTTP_RESPONSE_BUFFER_BYTES_MAX; a stream counts as all of that, so that nothing is answered behind it.
In and out: a non-blocking socket. `flush` sends all that is ready in one call; only what the kernel does not take, and streams, have a task of
    their own, until they have left. A stream gives way to others after each chunk.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

import structlog
import trio

from kvp2p.errors import StoreError
from kvp2p.gateway.streams import ValueStream
from kvp2p.limits import HTTP_RESPONSE_BUFFER_BYTES_MAX, HTTP_STREAM_NOT_SENT_BYTES

if TYPE_CHECKING:
    from kvp2p.gateway.server import Gateway

_LOG = structlog.get_logger("kvp2p.gateway")


class Outgoing:
    """The sending half of a connection. `on_sent` is called when a task has sent all there was, `abort` when that cannot be."""

    __slots__ = (
        "_abort",
        "_gateway",
        "_is_closed",
        "_on_sent",
        "_send_deadline",
        "_socket",
        "_stream",
        "is_pushing",
        "parts",
        "waiting_bytes",
    )

    def __init__(
        self, gateway: Gateway, sock: socket.socket, on_sent: Callable[[], None], abort: Callable[[], None]
    ) -> None:
        self._gateway = gateway
        self._socket = sock
        self._on_sent = on_sent
        self._abort = abort
        self._stream: ValueStream | None = None
        self._send_deadline = math.inf
        self._is_closed = False
        self.is_pushing = False
        self.parts: list[bytes] = []
        self.waiting_bytes = 0  # in `parts`, and given to `_push`

    @property
    def deadline(self) -> float:
        """Monotonic seconds at which waiting for the peer ends."""
        return self._send_deadline if self._stream is None else min(self._send_deadline, self._stream.deadline)

    @property
    def is_streaming(self) -> bool:
        """Whether a value is on its way, so that nothing may be added."""
        return self._stream is not None

    def add(self, data: bytes) -> None:
        """Send these bytes with the next `flush`."""
        assert self._stream is None, "nothing is answered behind a stream that has not ended"
        self.parts.append(data)
        self.waiting_bytes += len(data)

    def add_stream(self, stream: ValueStream) -> None:
        """Send a value behind what was added. It is closed at its end, whatever that is."""
        assert self._stream is None, "one stream at a time"
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, HTTP_STREAM_NOT_SENT_BYTES)
        self._stream = stream
        self.waiting_bytes += HTTP_RESPONSE_BUFFER_BYTES_MAX

    def flush(self) -> None:
        """Send all that is ready in one call; what the peer does not take now is left to a task."""
        if self.is_pushing or self._is_closed:
            return
        if self.parts:
            data = self._take_parts()
            sent = self._send(data)
            if sent < len(data):
                self._start_pushing(memoryview(data)[sent:])
                return
        if self._stream is not None:
            self._start_pushing(memoryview(b""))

    def _start_pushing(self, rest: memoryview) -> None:
        if not self._is_closed:
            self.is_pushing = True
            self._gateway.nursery.start_soon(self._push, rest)

    def _take_parts(self) -> bytes:
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return data

    def _send(self, data: bytes | memoryview) -> int:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._abort()
            return 0
        self.waiting_bytes -= sent
        self._gateway.counters.bytes_sent += sent
        return sent

    async def _push(self, rest: memoryview) -> None:
        """Send the rest, and all that became ready meanwhile, as the peer takes it."""
        patience = self._gateway.settings.body_timeout_seconds
        try:
            while not self._is_closed:
                if not rest:
                    rest = memoryview(self._next())
                    if not rest:
                        break
                self._send_deadline = monotonic() + patience
                await trio.lowlevel.wait_writable(self._socket)
                rest = rest[self._send(rest) :]
        except trio.ClosedResourceError:
            return
        self._send_deadline = math.inf
        self.is_pushing = False
        self._on_sent()

    def _next(self) -> bytes:
        if self.parts:
            return self._take_parts()
        chunk = b""
        if self._stream is not None:
            try:
                chunk = self._stream.next_chunk()
            except StoreError as error:
                namespace, key = self._stream.at
                advice = (
                    "the connection was cut in the middle of the value; look with `kvp2p scrub` what else is damaged"
                )
                _LOG.error("value_damaged", namespace=namespace.hex(), key=key, error=str(error), advice=advice)
                self._abort()
            except Exception:  # noqa: BLE001  one connection met a bug of ours: its task shares a nursery with all others
                _LOG.exception("connection_failed")
                self._abort()
            self.waiting_bytes += len(chunk)
            if not chunk:
                self._end_stream()
        return chunk

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self.waiting_bytes -= HTTP_RESPONSE_BUFFER_BYTES_MAX
            stream.close()

    def close(self) -> None:
        """Drop what has not left: the socket is closed."""
        self._is_closed = True
        self.parts.clear()
        if self._stream is not None:
            self._gateway.counters.streams_cut += 1
        self._end_stream()
