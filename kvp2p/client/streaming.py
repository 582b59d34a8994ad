"""One large value over a connection of its own: from a source to a data port, or from there to a sink, part by part.

Decides: when the body of a PUT leaves, and what a lost connection means for it.
Keeps true: [I9] one part of the value is in memory. [I10] a request is sent once. A value whose last part has not left is not stored, whatever
    happens: no node acts on half of a body, so that its loss is `Refused`, not `Unknown`.
In and out: parts of bytes in, an outcome out; or a key in, a `StreamedValue` out, whose parts come as they are asked for.
Source: RFC 9110 (2022) section 10.1.1: the body of a PUT is sent when the node has asked for it, or has said nothing for a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NamedTuple

import httptools
import trio

from .connection import RECEIVE_BYTES, ConnectionConfig, large_s
from .failures import ConnectionLost, NotSent, ResponseInvalid, Unanswered
from .outcomes import Found, Refused
from .request import Headers, checked_target, dial, encode_fields, head_start
from .response import Response

CONTINUE_WAIT_S: Final = 1.0  # guess: a server between that does not know of it stays silent


class _Answer:
    """Reads one answer as it comes. Its parts are taken away by whoever feeds it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.status = 0  # 0 until a head that is no interim one is whole
        self.was_continued = False
        self.is_whole = False

    def feed(self, data: bytes) -> None:
        """Read on. Raises ResponseInvalid."""
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ResponseInvalid(f"invalid response: {error}") from error

    # What follows is called by httptools, in the order of the bytes.

    def on_message_begin(self) -> None:
        self.raw_headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200:
            self.status = status
        elif status == 100:
            self.was_continued = True

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.is_whole = self.status != 0


class _Call:
    """One request on one connection."""

    def __init__(self, stream: trio.SocketStream, patience_s: float) -> None:
        self.stream = stream
        self.patience_s = patience_s
        self.answer = _Answer()

    async def send(self, data: bytes) -> None:
        """Send bytes. Raises Unanswered when the server takes nothing for too long; trio.BrokenResourceError when it is gone."""
        view = memoryview(data)
        for at in range(0, len(view), RECEIVE_BYTES):
            with trio.move_on_after(self.patience_s) as scope:
                await self.stream.send_all(view[at : at + RECEIVE_BYTES])
            if scope.cancelled_caught:
                raise Unanswered(f"nothing was taken in {int(self.patience_s * 1000)} ms")

    async def receive(self) -> None:
        """Take the next bytes of the answer. Raises ConnectionLost."""
        data = b""
        with trio.move_on_after(self.patience_s) as scope:
            try:
                data = await self.stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                raise Unanswered(f"connection failed: {error}") from error
        if scope.cancelled_caught:
            raise Unanswered(f"no answer in {int(self.patience_s * 1000)} ms")
        if not data:
            raise Unanswered("the server closed the connection")
        self.answer.feed(bytes(data))

    async def head(self) -> None:
        """Wait for the head of the answer."""
        while not self.answer.status:
            await self.receive()

    async def whole(self, bytes_max: int) -> Response:
        """Wait for a short answer. Raises ConnectionLost."""
        answer = self.answer
        while not answer.is_whole:
            await self.receive()
            if sum(map(len, answer.parts)) > bytes_max:
                raise ResponseInvalid(f"an answer of more than {bytes_max} bytes")
        return Response(answer.status, answer.raw_headers, b"".join(answer.parts), closes=True)


@asynccontextmanager
async def _calling(data_url: str, config: ConnectionConfig) -> AsyncIterator[_Call]:
    stream = await dial(data_url, config.connect_timeout_ms)
    try:
        yield _Call(stream, config.answer_timeout_ms / 1000)
    finally:
        await trio.aclose_forcefully(stream)


def _head(method: bytes, target: bytes, data_url: str, token: str | None, headers: Headers) -> bytes:
    fields = encode_fields((*headers, (b"Connection", b"close")))
    return method + b" " + checked_target(target) + head_start(data_url, token) + fields + b"\r\n"


class StreamedValue:
    """A value that is being read; `head` has all that came with it, and no value."""

    def __init__(self, call: _Call, response: Response) -> None:
        self._call = call
        self.head = Found(response)
        self.value_bytes = int(response.headers[b"content-length"])

    async def next_part(self) -> bytes:
        """Return the next part of the value, b"" at its end. Raises ConnectionLost when that comes before it is whole."""
        answer = self._call.answer
        while not answer.parts and not answer.is_whole:
            await self._call.receive()
        part = b"".join(answer.parts)
        answer.parts.clear()
        return part


@asynccontextmanager
async def streamed_get(
    data_url: str, token: str | None, target: bytes, headers: Headers, config: ConnectionConfig
) -> AsyncIterator[StreamedValue | Response]:
    """Ask for a value; give it with its head read, or the whole answer when that is not 200. Raises ConnectionLost."""
    async with _calling(data_url, config) as call:
        with _lost_when_broken():
            await call.send(_head(b"GET", target, data_url, token, headers))
        await call.head()
        if call.answer.status != 200:
            yield await call.whole(config.response_bytes_max)
            return
        response = Response(200, call.answer.raw_headers, b"", closes=True)
        if b"content-length" not in response.headers:
            raise ResponseInvalid("a value without a length")
        yield StreamedValue(call, response)


async def streamed_put(
    data_url: str,
    token: str | None,
    target: bytes,
    headers: Headers,
    source: Iterable[bytes],
    value_bytes: int,
    on_sent: Callable[[], None],
    config: ConnectionConfig,
) -> Response | ConnectionLost | Refused:
    """Send a value of exactly `value_bytes` bytes, once, and return the answer, or how it was lost.

    `on_sent` is called before the last part leaves: until then nothing can have been stored. `source` is read when its parts are to leave;
    what it raises ends the request, with nothing stored.
    """
    is_sent = False
    fields = (*headers, (b"Content-Length", b"%d" % value_bytes), (b"Expect", b"100-continue"))
    try:
        async with _calling(data_url, config) as call:
            try:
                await call.send(_head(b"PUT", target, data_url, token, fields))
                await _wait_to_go_on(call)
                if not call.answer.status:
                    for part in _exactly(source, value_bytes):
                        if part.is_last:
                            is_sent = True
                            on_sent()
                        await call.send(part.data)
            except trio.BrokenResourceError as error:
                # It may have said why before it closed the connection.
                with suppress(ConnectionLost):
                    return await call.whole(config.response_bytes_max)
                raise Unanswered(f"connection failed: {error}") from error
            call.patience_s += large_s(value_bytes)
            return await call.whole(config.response_bytes_max)
    except NotSent as lost:
        return lost
    except ConnectionLost as lost:
        if is_sent:
            return lost
        return Refused(0, "not_sent", f"{lost.reason} in the middle of the value, so that nothing was stored")


async def _wait_to_go_on(call: _Call) -> None:
    """Wait until the node asks for the body, answers without it, or has been silent for a while."""
    with trio.move_on_after(CONTINUE_WAIT_S):
        while not (call.answer.was_continued or call.answer.status):
            await call.receive()


class _Part(NamedTuple):
    """A part of a body."""

    data: bytes
    is_last: bool


def _exactly(source: Iterable[bytes], value_bytes: int) -> Iterator[_Part]:
    """Give the parts of a source that must have so many bytes. Raises ValueError when it has not, before the last of them is given."""
    left = value_bytes
    for part in source:
        if not part:
            continue
        left -= len(part)
        if left < 0:
            break
        yield _Part(part, is_last=not left)
        if not left:
            return  # what a file has grown by meanwhile is not asked for
    raise ValueError(f"the source does not have the {value_bytes} bytes that it had")


@contextmanager
def _lost_when_broken() -> Iterator[None]:
    try:
        yield
    except trio.BrokenResourceError as error:
        raise Unanswered(f"connection failed: {error}") from error
