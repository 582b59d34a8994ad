"""The mesh's protocol by hand: a connection, a handshake that may lie, a member that may misbehave, and a trap at a URL that a node dials."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream, wrap_server_stream

from kvp2p.core.messages import Digest, Message
from kvp2p.errors import HandshakeRefused
from kvp2p.ids import NodeId, Version
from kvp2p.net.handshake import Handshake, Identity, Phase
from kvp2p.wire.cbor import CborValue, decode
from kvp2p.wire.link_messages import LinkMessage, Ping, Pong
from kvp2p.wire.mesh import encode_message, pack, unpack_link
from tests.bad_input.cluster import LINK_TIMEOUT_S, Cluster
from tests.gateway.rig import until

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ENDS_WITHIN_S = 3 * LINK_TIMEOUT_S
MESSAGE_BYTES_MAX = 1 << 24  # of what this end takes
PROOF, REFUSE = 2, 4  # kinds of messages of a handshake
# Ids greater than any that is drawn, so that the real node has the last word on the link, as it has against half of all nodes.
NODE_PREFIX = b"\xff" * 8
AnyMessage = TypeVar("AnyMessage")


def reset(stream: trio.SocketStream) -> None:
    """End a connection with RST instead of FIN."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def read_to_end(stream: trio.SocketStream) -> bytes:
    """Read until the other end hangs up; fails when it does not."""
    received = b""
    with trio.fail_after(ENDS_WITHIN_S), suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            received += data
    return received


def fields_of(message: bytes) -> list[CborValue]:
    """Return the fields of a message of a handshake."""
    fields = decode(message, MESSAGE_BYTES_MAX)
    assert isinstance(fields, list)
    return fields


@dataclass
class Socket:
    """A websocket and the connection below it."""

    connection: WebSocketConnection
    stream: trio.SocketStream

    async def send(self, payload: str | bytes) -> None:
        await self.connection.send_message(payload)

    async def receive(self) -> bytes:
        with trio.fail_after(ENDS_WITHIN_S):
            payload = await self.connection.get_message()
        assert isinstance(payload, bytes)
        return payload

    async def ending(self) -> str:
        """Read to the end and return the last word of it: that of a refusal, or how the connection was closed."""
        word = ""
        try:
            while True:
                message = fields_of(await self.receive())
                if message[0] == REFUSE:
                    word = str(message[-1])
        except ConnectionClosed as error:
            if word or error.reason is None:
                return word or "lost"
            return error.reason.reason or str(error.reason.code)


@asynccontextmanager
async def dialled(port: int) -> AsyncIterator[Socket]:
    """Open a websocket to a mesh port."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream, trio.open_nursery() as nursery:
        with trio.fail_after(ENDS_WITHIN_S):  # a node that hangs up now leaves the library waiting
            connection = await wrap_client_stream(nursery, stream, "localhost", "/", max_message_size=MESSAGE_BYTES_MAX)
        yield Socket(connection, stream)
        nursery.cancel_scope.cancel()


def identity(cluster: Cluster) -> Identity:
    """Return who a member is that is made by hand: somebody new each time."""
    return Identity(cluster.key.cluster, NodeId(NODE_PREFIX + os.urandom(8)), b"byhand.1", cluster.key.key)


async def shake_hands(link: Socket, who: Identity, sent: list[bytes] | None = None) -> str:
    """Go through a handshake as its dialler; return "" when the link is open, else the word that either end said.

    `sent` takes what was sent.
    """
    handshake = Handshake(who, True, b"1" * 32)
    message = handshake.start()
    try:
        while handshake.phase is not Phase.OPEN:
            if message is not None:
                if sent is not None:
                    sent.append(message)
                await link.send(message)
            if handshake.phase is Phase.PROVEN and handshake.decides:
                await link.send(handshake.accept())
                break
            message = handshake.receive(await link.receive())
    except HandshakeRefused as error:
        return error.reason
    except ConnectionClosed:
        return "lost"
    return ""


@dataclass
class Member:
    """An open link, the end that misbehaves. Pings are answered by themselves, unless `is_mute`."""

    link: Socket
    heard: list[Message | LinkMessage] = field(default_factory=list)
    is_mute: bool = False
    reason: str = ""
    ended: trio.Event = field(default_factory=trio.Event)

    async def listen(self) -> None:
        try:
            while True:
                payload = await self.link.connection.get_message()
                assert isinstance(payload, bytes)
                for message in unpack_link(payload):
                    if not isinstance(message, Ping):
                        self.heard.append(message)
                    elif not self.is_mute:
                        await self.say(Pong(message.number, time.monotonic_ns()))
        except ConnectionClosed as error:
            self.reason = "lost" if error.reason is None else error.reason.reason or str(error.reason.code)
        finally:
            self.ended.set()

    async def say(self, *messages: Message | LinkMessage) -> None:
        await self.link.send(pack([encode_message(message) for message in messages]))

    async def hears(self, kind: type[AnyMessage]) -> AnyMessage:
        """Wait for a message of a kind, and take it."""
        with trio.fail_after(ENDS_WITHIN_S):
            await until(lambda: any(isinstance(one, kind) for one in self.heard))
        message = next(one for one in self.heard if isinstance(one, kind))
        self.heard.remove(message)
        return message

    async def leader_position(self) -> Version:
        """Return how far the node at the other end, which leads, was when it said so."""
        digest = await self.hears(Digest)
        assert digest.leads is not None
        last = digest.vector.top_of(digest.leads)
        assert last is not None
        return last

    async def ending(self) -> str:
        """Wait for the end of the link and return the reason that the other end gave."""
        with trio.fail_after(ENDS_WITHIN_S):
            await self.ended.wait()
        return self.reason

    @property
    def is_open(self) -> bool:
        return not self.ended.is_set()


@asynccontextmanager
async def member(cluster: Cluster, who: Identity | None = None) -> AsyncIterator[Member]:
    """Open a link to the leader as a member that has the key."""
    async with dialled(cluster.node("n1").mesh_port) as link, trio.open_nursery() as nursery:
        assert await shake_hands(link, who or identity(cluster)) == ""
        made = Member(link)
        nursery.start_soon(made.listen)
        yield made
        nursery.cancel_scope.cancel()


def other_instance(who: Identity) -> Identity:
    """Return a second process with the same node id: a copy of a data directory."""
    return replace(who, instance=b"byhand.2")


@asynccontextmanager
async def trap(cluster: Cluster, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[None]:
    """Listen where `n2` dials."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, ConnectionClosed):
                await serve(stream)

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, answer, cluster.trap_port, host="127.0.0.1"))
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def accepted(stream: trio.SocketStream) -> AsyncIterator[Socket]:
    """Make a websocket of a connection that a node has opened."""
    async with trio.open_nursery() as nursery:
        request = await wrap_server_stream(nursery, stream, max_message_size=MESSAGE_BYTES_MAX)
        yield Socket(await request.accept(), stream)
        nursery.cancel_scope.cancel()
