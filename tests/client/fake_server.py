"""A data port that says what a test tells it to: real TCP, canned bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(frozen=True)
class Seen:
    """A request as the server read it; header names in lower case."""

    line: bytes
    headers: dict[bytes, bytes]
    body: bytes


@dataclass
class Caller:
    """One accepted connection, from the server's side."""

    stream: trio.SocketStream
    unread: bytearray = field(default_factory=bytearray)

    async def read(self, count: int = 1) -> list[Seen]:
        """Read so many requests; fewer when the client leaves."""
        seen: list[Seen] = []
        while len(seen) < count:
            request = self._take()
            if request is not None:
                seen.append(request)
                continue
            data = await self.stream.receive_some(65_536)
            if not data:
                break
            self.unread += data
        return seen

    def _take(self) -> Seen | None:
        head, end, rest = bytes(self.unread).partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(b": ") for field in fields)}
        length = int(headers.get(b"content-length", b"0"))
        if not end or len(rest) < length:
            return None
        self.unread = bytearray(rest[length:])
        return Seen(line, headers, rest[:length])

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()


Handler = Callable[[Caller], Awaitable[None]]


@asynccontextmanager
async def fake_server(handler: Handler) -> AsyncIterator[str]:
    """Serve each connection with `handler` and close it at its end. Gives the data address."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await handler(Caller(stream))

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def answer(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    """Return the bytes of an answer with Content-Length."""
    lines = (b"HTTP/1.1 %d Said" % status, b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def saying(*answers: bytes, seen: list[Seen] | None = None) -> Handler:
    """Return a handler that answers each request with the next of `answers`, and after the last waits for the client to leave."""

    async def handler(caller: Caller) -> None:
        for said in answers:
            requests = await caller.read()
            if not requests:
                return
            if seen is not None:
                seen.extend(requests)
            await caller.say(said)
        await caller.read()

    return handler
