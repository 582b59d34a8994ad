"""Sockets without detours, and payloads handed over by the websocket's own reader."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from kvp2p.errors import LinkClosed, RemoteProtocolError
from kvp2p.net.stream import QuickStream
from kvp2p.net.transport import Transport, upgrade_client, upgrade_server


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Give both ends of a TCP connection."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    there = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
    back = await listeners[0].accept()
    async with listeners[0], there, back:
        yield there, back


@asynccontextmanager
async def transports() -> AsyncIterator[tuple[Transport, Transport]]:
    """Give both ends of a websocket."""
    async with sockets() as (there, back), trio.open_nursery() as nursery:
        ends: dict[str, Transport] = {}

        async def serve() -> None:
            ends["server"] = await upgrade_server(nursery, back)

        async with trio.open_nursery() as upgrades:
            upgrades.start_soon(serve)
            ends["client"] = await upgrade_client(nursery, there, "localhost")
        yield ends["client"], ends["server"]
        for end in ends.values():
            await end.close()
        nursery.cancel_scope.cancel()


async def test_more_than_the_kernel_holds_arrives_whole() -> None:
    sent = bytes(range(256)) * 40_000
    received = bytearray()
    async with sockets() as (there, back), trio.open_nursery() as nursery:
        nursery.start_soon(QuickStream(there).send_all, sent)
        reader = QuickStream(back)
        while len(received) < len(sent):
            received += await reader.receive_some(65_536)
    assert received == sent


async def test_a_reader_of_a_busy_socket_lets_others_run() -> None:
    async with sockets() as (there, back), trio.open_nursery() as nursery:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        await QuickStream(there).send_all(bytes(2_000))
        nursery.start_soon(count)
        reader = QuickStream(back)
        for _ in range(200):
            assert len(await reader.receive_some(10)) == 10
        assert turns >= 199
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_stream_is_empty_and_a_reset_is_an_error() -> None:
    async with sockets() as (there, back):
        await there.send_eof()
        assert await QuickStream(back).receive_some() == b""
        await QuickStream(there).wait_send_all_might_not_block()
    async with sockets() as (there, back):
        there.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        there.socket.close()
        with pytest.raises(trio.BrokenResourceError):
            await QuickStream(back).receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await QuickStream(back).send_all(b"x")


async def test_closing_wakes_a_reader_and_stops_a_writer() -> None:
    async with sockets() as (there, _), trio.open_nursery() as nursery:
        stream = QuickStream(there)

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_payloads_that_came_early_are_handed_over_first() -> None:
    async with transports() as (client, server):
        taken: list[bytes] = []
        early = [b"1", b"2", b"3"]
        for payload in early:
            await client.send(payload)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await server.receive() == b"1"
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(LinkClosed, match="the peer closed it: enough"):
                    await server.receive_into(taken.append)

            nursery.start_soon(receive)
            await client.send(b"4")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert taken == [b"2", b"3", b"4"]
            await client.close(reason="enough")


async def test_what_a_taker_raises_ends_the_receiving_and_nothing_more_is_taken() -> None:
    async with transports() as (client, server):
        taken: list[bytes] = []

        def take(payload: bytes) -> None:
            taken.append(payload)
            if payload == b"bad":
                raise ZeroDivisionError

        for payload in (b"good", b"bad", b"behind"):
            await client.send(payload)
        with pytest.raises(ZeroDivisionError):
            await server.receive_into(take)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert taken == [b"good", b"bad"]


async def test_text_is_refused_by_the_direct_way_too() -> None:
    async with transports() as (client, server):
        await client._websocket.send_message("text")
        with pytest.raises(RemoteProtocolError, match="binary is spoken here"):
            await server.receive_into(lambda _: None)
