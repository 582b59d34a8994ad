"""One end of the unix socket between a node and a process of its machine: bytes, as soon and as cheaply as possible.

Decides: when the kernel is given bytes, and who waits while it does not take them.
Keeps true: [I9] what was taken over and has not left is at most what one call of `take` gave. Bytes leave in the order of `take`.
In and out: `flush` asks `take` for bytes and sends them in the same call; only what the kernel refuses waits, in the task `push`.

Not `trio.SocketStream`: its checkpoints are a turn of the scheduler for each message each way, most of what a write costs here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio

RECEIVE_BYTES = 65_536  # in one call; a larger buffer would be mapped and unmapped by the allocator each time


class LocalStream:
    """A connected socket. `take` gives the bytes that are to leave next, b"" when there are none."""

    __slots__ = ("_left_over", "_rest", "_socket", "_take")

    def __init__(self, connected: socket.socket, take: Callable[[], bytes]) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._take = take
        self._rest: bytes | memoryview = b""  # taken, but not by the kernel
        self._left_over = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def flush(self) -> None:
        """Send what there is. Never waits, and leaves a broken connection to `push`."""
        if self._rest:
            return  # `push` goes on when the kernel takes more
        try:
            self._send()
        except OSError:
            self._left_over.unpark()

    def flush_soon(self) -> None:
        """Send at the next turn of the scheduler, together with what is queued until then."""
        self._left_over.unpark()

    async def push(self) -> None:
        """Send what `flush` has left over, until cancelled. Raises OSError when the connection is broken."""
        while True:
            self._send()
            if self._rest:
                await trio.lowlevel.wait_writable(self._socket)
            else:
                await self._left_over.park()

    def _send(self) -> None:
        while data := self._rest or self._take():
            self._rest = data  # until it has been sent, an error included: `push` meets the error again
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            self._rest = memoryview(data)[sent:] if sent < len(data) else b""
            if self._rest:
                self._left_over.unpark()
                return

    async def receive(self) -> bytes:
        """Return what has come, b"" at the end. Raises OSError when the connection is broken."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
