"""Whoever reaches the mesh port: nothing that is sent there ends the listener, and nothing is kept of it."""

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import structlog
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from kvp2p.limits import MESH_MESSAGE_BYTES_MAX, NOT_SENT_BYTES_MAX, UNPROVEN_LINKS_MAX
from kvp2p.net.handshake import Handshake, Identity, Phase
from kvp2p.net.notices import NOTICE_SECONDS, Notices
from kvp2p.net.settings import MeshSettings
from kvp2p.net.transport import upgrade_client, upgrade_server
from kvp2p.wire.link_messages import Pong
from kvp2p.wire.mesh import encode_message, pack
from tests.net.hosts import CLUSTER, KEY, Node, node_id, numbered, running, until

HASTY = MeshSettings(
    ping_interval_ms=100, link_timeout_ms=5_000, handshake_timeout_ms=300, backoff_ms_min=10, backoff_ms_max=20
)
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@asynccontextmanager
async def besieged() -> AsyncIterator[Node]:
    """Run a node, and check afterwards that it still takes a member in."""
    a, b = Node("a", settings=HASTY), Node("b", settings=HASTY)
    async with running(a, b):
        yield a
        await until(lambda: a.mesh._unproven == 0)
        b.mesh.connect(a.id, a.url)
        await a.host.until_up(b.id)
        assert a.host.ups == 1


def reset(stream: trio.SocketStream) -> None:
    """End a connection with RST instead of FIN."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def ended(stream: trio.SocketStream) -> bytes:
    """Read until the other end hangs up."""
    received = b""
    with trio.fail_after(5):
        try:
            while data := await stream.receive_some():
                received += data
        except trio.BrokenResourceError:
            pass
    return received


FIRST_BYTES = {
    "nothing": b"",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "half a request": UPGRADE[:40],
    "endless headers": b"GET / HTTP/1.1\r\n" + b"X-Header: value\r\n" * 5_000,
    "upgrade and silence": UPGRADE,
    "upgrade and garbage": UPGRADE + b"\xff" * 100,
    "upgrade and an unmasked frame": UPGRADE + b"\x82\x01a",
    "upgrade and an endless frame": UPGRADE
    + b"\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"
    + bytes(100_000),
}


@pytest.mark.parametrize("first", FIRST_BYTES.values(), ids=FIRST_BYTES.keys())
@pytest.mark.parametrize("ending", ["wait", "hang up", "reset"])
async def test_whatever_a_connection_begins_with_the_listener_lives_on(first: bytes, ending: str) -> None:
    async with besieged() as a:
        stream = await trio.open_tcp_stream("127.0.0.1", a.mesh.port)
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(first)
                if ending == "wait":
                    await ended(stream)
            if ending == "reset":
                reset(stream)


async def test_a_reset_at_any_moment_of_the_upgrade_is_survived() -> None:
    async with besieged() as a:
        for number in range(40):
            stream = await trio.open_tcp_stream("127.0.0.1", a.mesh.port)
            await stream.send_all(UPGRADE)
            for _ in range(number % 10):
                await trio.lowlevel.checkpoint()
            reset(stream)


async def test_a_silent_connection_is_closed_after_the_time_of_a_handshake() -> None:
    async with besieged() as a:
        stream = await trio.open_tcp_stream("127.0.0.1", a.mesh.port)
        begin = trio.current_time()
        await stream.send_all(UPGRADE)
        await ended(stream)
        assert 0.2 < trio.current_time() - begin < 2
        await stream.aclose()


async def test_connections_without_proof_are_bounded() -> None:
    a, b = Node("a", settings=MeshSettings()), Node("b", settings=HASTY)
    async with running(a, b):
        waiting = [await trio.open_tcp_stream("127.0.0.1", a.mesh.port) for _ in range(UNPROVEN_LINKS_MAX)]
        await until(lambda: a.mesh._unproven == UNPROVEN_LINKS_MAX)
        one_more = await trio.open_tcp_stream("127.0.0.1", a.mesh.port)
        assert await ended(one_more) == b""
        assert a.mesh._unproven == UNPROVEN_LINKS_MAX
        for stream in (*waiting, one_more):
            await stream.aclose()
        b.mesh.connect(a.id, a.url)
        await a.host.until_up(b.id)


@asynccontextmanager
async def websocket(node: Node) -> AsyncIterator[WebSocketConnection]:
    stream = await trio.open_tcp_stream("127.0.0.1", node.mesh.port)
    async with stream, trio.open_nursery() as nursery:
        yield await wrap_client_stream(nursery, stream, "localhost", "/")
        nursery.cancel_scope.cancel()


async def shake_hands(connection: WebSocketConnection) -> None:
    """Become a member called `0`, whose id is the smaller, by hand."""
    handshake = Handshake(Identity(CLUSTER, node_id("0"), b"byhand.1", KEY), True, b"1" * 32)
    message = handshake.start()
    while handshake.phase is not Phase.PROVEN:
        if message is not None:
            await connection.send_message(message)
        answer = await connection.get_message()
        assert isinstance(answer, bytes)
        message = handshake.receive(answer)
    await connection.send_message(handshake.accept())


@pytest.mark.parametrize("message", ["text", b"", b"garbage", bytes(1_000), bytes(MESH_MESSAGE_BYTES_MAX + 1)])
async def test_a_handshake_that_is_none_is_refused(message: str | bytes) -> None:
    async with besieged() as a, websocket(a) as connection:
        await connection.send_message(message)
        with trio.fail_after(5), pytest.raises(ConnectionClosed):
            while True:
                await connection.get_message()


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (bytes(MESH_MESSAGE_BYTES_MAX + 1), "over 262144 bytes"),
        (b"\x81\x82\x01", "ends inside"),
        (b"", "ends inside"),
        ("text", "binary is spoken here"),
    ],
    ids=["oversize", "cut off", "empty", "text"],
)
async def test_a_member_that_breaks_the_protocol_loses_its_link_alone(message: str | bytes, told: str) -> None:
    a, b = Node("a", settings=HASTY), Node("b", settings=HASTY)
    async with running(a, b):
        b.mesh.connect(a.id, a.url)
        await a.host.until_up(b.id)
        async with websocket(a) as connection:
            await shake_hands(connection)
            await a.host.until_up(node_id("0"))
            await connection.send_message(pack([encode_message(Pong(1, 1)), encode_message(numbered(1))]))
            await a.host.until_messages(1)
            await connection.send_message(message)
            await a.host.until_down(node_id("0"))
        assert a.host.reasons[0].startswith("protocol error: ")
        assert told in a.host.reasons[0]
        assert a.host.up == {b.id}
        assert a.host.messages == [numbered(1)]


async def test_a_flood_of_websocket_pings_is_answered_or_survived() -> None:
    async with besieged() as a:
        stream = await trio.open_tcp_stream("127.0.0.1", a.mesh.port)
        await stream.send_all(UPGRADE)
        with trio.move_on_after(0.5):
            try:
                while True:
                    await stream.send_all(b"\x89\x80\x00\x00\x00\x00" * 1_000)
            except trio.BrokenResourceError:
                pass
        await stream.aclose()


Serve = Callable[[trio.SocketStream], Awaitable[None]]


async def refuse_upgrade(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    await stream.aclose()


async def refuse_upgrade_with_a_body(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await trio.sleep(1)


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.aclose()


async def reset_at_once(stream: trio.SocketStream) -> None:
    await trio.lowlevel.checkpoint()
    reset(stream)


async def answer_garbage(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"\x00" * 1_000)
    await trio.sleep(1)


async def stay_silent(stream: trio.SocketStream) -> None:
    await trio.sleep(1)


async def upgrade_and_reset(stream: trio.SocketStream) -> None:
    async with trio.open_nursery() as nursery:
        await upgrade_server(nursery, stream)
        reset(stream)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "serve",
    [
        refuse_upgrade,
        refuse_upgrade_with_a_body,
        hang_up,
        reset_at_once,
        answer_garbage,
        stay_silent,
        upgrade_and_reset,
    ],
)
async def test_whatever_answers_at_a_url_dialling_goes_on(serve: Serve) -> None:
    attempts = 0

    async def count(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    async with besieged() as a, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, count, 0)
        a.mesh.connect(None, f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        await until(lambda: attempts >= 3)
        nursery.cancel_scope.cancel()


async def test_the_kernel_keeps_little_that_cannot_be_overtaken() -> None:
    async with trio.open_nursery() as nursery:
        accepted: list[trio.SocketStream] = []

        async def serve(stream: trio.SocketStream) -> None:
            accepted.append(stream)
            await upgrade_server(nursery, stream)
            await trio.sleep_forever()

        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        stream = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        await upgrade_client(nursery, stream, "localhost")
        for one in (stream, accepted[0]):
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == NOT_SENT_BYTES_MAX
        await stream.aclose()
        nursery.cancel_scope.cancel()


def test_a_kind_of_notice_is_told_once_in_a_while_and_counts_the_rest() -> None:
    async def main() -> None:
        notices = Notices()
        for _ in range(5):
            notices.tell("handshake_refused", "wrong_key")
        notices.tell("handshake_refused", "malformed")
        await trio.sleep(NOTICE_SECONDS)
        notices.tell("handshake_refused", "wrong_key", remote="x")

    with structlog.testing.capture_logs() as logs:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [(log["reason"], log.get("left_out")) for log in logs] == [
        ("wrong_key", None),
        ("malformed", None),
        ("wrong_key", 4),
    ]
