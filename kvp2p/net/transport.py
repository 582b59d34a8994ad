"""One websocket as a pipe of payloads: trio-websocket, with its traps closed.

Decides: how a connection is upgraded, limited and ended.
Keeps true: I9, a message over MESH_MESSAGE_BYTES_MAX ends the connection; whatever a peer's bytes make the library raise ends this connection
alone, never the listener or the node.
In and out: payloads; LinkClosed when the connection has ended, RemoteProtocolError when the peer sent what is no payload.

Traps of trio-websocket 0.12 that are dealt with here: an exception in its reader task would end the nursery it runs in; a client that hangs up (or a server that
rejects) during the upgrade leaves the one that waits for it waiting; `accept()` raises when the peer resets right after the upgrade; `aclose()` waits for the
peer's answer for as long as it takes, and leaves the socket open when the peer has closed first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

import structlog
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)
from wsproto.utilities import ProtocolError

from kvp2p.errors import LinkClosed, RemoteProtocolError
from kvp2p.limits import MESH_MESSAGE_BYTES_MAX, NOT_SENT_BYTES_MAX
from kvp2p.net.stream import QuickStream

# per read of the socket; the library's 4 KiB would mean 64 wake-ups for a large message
RECEIVE_BYTES: Final = 64 * 1024
CLOSE_GRACE_SECONDS: Final = 0.25  # for the peer's half of the closing handshake; guess
CODE_NORMAL, CODE_PROTOCOL_ERROR = 1000, 1002  # RFC 6455, section 7.4.1
_REASON_CHARS_MAX: Final = 100  # RFC 6455: at most 123 bytes
_CODE_TOO_BIG: Final = 1009

_log = structlog.get_logger("kvp2p.mesh")


class Transport:
    """An open websocket. One task may send while another receives, by `receive` during the handshake, by `receive_into` after it."""

    def __init__(self, websocket: WebSocketConnection, stream: trio.abc.Stream, reader: _GuardedReader) -> None:
        self._websocket = websocket
        self._stream = stream
        self._reader = reader
        self._is_sending = False
        self._failure: Exception | None = None

    @property
    def received_bytes(self) -> int:
        """All that has come since the upgrade, parts of payloads too; counted on sockets only."""
        return self._stream.received_bytes if isinstance(self._stream, QuickStream) else 0

    async def send(self, payload: bytes) -> None:
        """Send one payload; returns when the kernel has taken all but the last NOT_SENT_BYTES_MAX of it."""
        self._is_sending = True
        try:
            await self._websocket.send_message(payload)
        except (ConnectionClosed, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed(self._ending()) from error
        # Not in a `finally`: a payload that was cut off leaves the flag up, for `close` to see.
        self._is_sending = False

    async def receive(self) -> bytes:
        """Wait for the next payload."""
        try:
            payload = await self._websocket.get_message()
        except ConnectionClosed as error:
            if self._failure is not None:
                raise self._failure from None
            if self._websocket.closed is not None and self._websocket.closed.code == _CODE_TOO_BIG:
                raise RemoteProtocolError(f"a websocket message has over {MESH_MESSAGE_BYTES_MAX} bytes") from error
            raise LinkClosed(self._ending()) from error
        return _binary(payload)

    async def receive_into(self, take: Callable[[bytes], None]) -> None:
        """Hand each payload to `take` as soon as it is there, until the connection ends: raises what `receive` does, or what `take` raised.

        The library's reader task itself calls `take`: its memory channel in between costs two task switches a payload, and a payload is
        often one small message.
        """

        def take_or_fail(payload: bytes | str) -> None:
            if self._failure is None:
                try:
                    take(_binary(payload))
                except Exception as error:  # noqa: BLE001  not the reader's to judge: raised by `receive` below
                    self._failure = error
                    receiver.close()

        receiver = self._websocket._recv_channel  # noqa: SLF001  there is no public way past the channel
        self._websocket._send_channel = cast(  # noqa: SLF001
            "trio.MemorySendChannel[bytes | str]",
            _DirectChannel(self._websocket._send_channel, take_or_fail),  # noqa: SLF001
        )
        # What came before, also what the reader task waits with.
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                take_or_fail(receiver.receive_nowait())
        await self.receive()  # no payload comes this way any more: it waits for the end
        raise AssertionError("the library found a second way to hand over a payload")

    async def close(self, code: int = CODE_NORMAL, reason: str = "") -> None:
        """End the connection: by the closing handshake if the peer takes part in it soon, else by force. Has to be called once."""
        told = "".join(one for one in reason if one.isascii())[:_REASON_CHARS_MAX]
        try:
            # Behind half a payload a closing frame would be read as the rest of it.
            if not self._is_sending:
                with trio.move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                    await self._websocket.aclose(code, told)
        except (ConnectionClosed, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.debug("close_failed", error=repr(error))
        finally:
            self._reader.stop()
            await trio.aclose_forcefully(self._stream)

    def _ending(self) -> str:
        closed = self._websocket.closed
        if closed is None or closed.code == 1006:
            return "the connection was lost"
        # A peer's words go into our log: printable, and not many.
        told = "".join(one for one in closed.reason or "" if one.isprintable())[:_REASON_CHARS_MAX]
        return f"the peer closed it: {told}" if told else "the peer closed it"


class _DirectChannel:
    """Stands in for the sending end of the library's memory channel."""

    def __init__(self, replaced: trio.MemorySendChannel[bytes | str], take: Callable[[bytes | str], None]) -> None:
        self._replaced = replaced
        self._take = take

    async def send(self, payload: bytes | str) -> None:
        self._take(payload)

    async def aclose(self) -> None:
        await self._replaced.aclose()  # wakes who waits in `receive`


def _binary(payload: bytes | str) -> bytes:
    if not isinstance(payload, bytes):
        raise RemoteProtocolError("a websocket message holds text; binary is spoken here")
    return payload


async def upgrade_client(nursery: trio.Nursery, stream: trio.abc.Stream, host: str) -> Transport:
    """Make a websocket of a stream that this end has opened. Raises LinkClosed when the other end does not agree."""
    tuned = _tuned(stream)

    async def wrap(reader: trio.Nursery) -> WebSocketConnection:
        return await wrap_client_stream(
            reader,
            cast("trio.SocketStream", tuned),  # the library only reads and writes it, whatever its annotation says
            host,
            "/",
            max_message_size=MESH_MESSAGE_BYTES_MAX,
            receive_buffer_size=RECEIVE_BYTES,
        )

    return await _upgrade(nursery, tuned, wrap)


async def upgrade_server(nursery: trio.Nursery, stream: trio.abc.Stream) -> Transport:
    """Make a websocket of a stream that was accepted. Raises LinkClosed when the other end hangs up or speaks no websocket."""
    tuned = _tuned(stream)

    async def wrap(reader: trio.Nursery) -> WebSocketConnection:
        request = await wrap_server_stream(
            reader,
            tuned,
            max_message_size=MESH_MESSAGE_BYTES_MAX,
            receive_buffer_size=RECEIVE_BYTES,
        )
        return await request.accept()

    return await _upgrade(nursery, tuned, wrap)


def _tuned(stream: trio.abc.Stream) -> trio.abc.Stream:
    if not isinstance(stream, trio.SocketStream):
        return stream
    # trio sets both by itself; links rely on them, so they are said here too.
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES_MAX)
    return QuickStream(stream)


async def _upgrade(
    nursery: trio.Nursery, stream: trio.abc.Stream, wrap: Callable[[trio.Nursery], Awaitable[WebSocketConnection]]
) -> Transport:
    """Run an upgrade until it is done or the library's reader task, without which it never will be, has ended."""
    transport: Transport | None = None
    with trio.CancelScope() as scope:
        reader = _GuardedReader(nursery, scope)
        try:
            transport = Transport(await wrap(cast("trio.Nursery", reader)), stream, reader)
            return transport
        except (ConnectionClosed, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection was lost during the upgrade") from error
        finally:
            if transport is None:
                reader.stop()
                await trio.aclose_forcefully(stream)
    raise LinkClosed("the other end hung up, or refused the upgrade to a websocket")


class _GuardedReader:
    """The one method of a nursery that the library uses to start its reader task. Here the task's errors end with it, and it goes on
    when everything around it is cancelled, until it is stopped: without it there is no closing handshake.
    """

    def __init__(self, nursery: trio.Nursery, upgrade: trio.CancelScope) -> None:
        self._nursery = nursery
        self._upgrade = upgrade
        self._scope = trio.CancelScope(shield=True)

    def start_soon(self, reader: Callable[[], Awaitable[Any]]) -> None:
        self._nursery.start_soon(self._run, reader)

    def stop(self) -> None:
        """End the task."""
        self._scope.cancel()

    async def _run(self, reader: Callable[[], Awaitable[Any]]) -> None:
        try:
            with self._scope:
                await reader()
        except Exception as error:  # noqa: BLE001  whatever it is, it came from a peer's bytes and ends this connection alone
            _log.debug("websocket_reader_failed", error=repr(error))
        finally:
            self._upgrade.cancel()
