"""The fault proxy over real sockets on loopback: what passes, when, and what both ends learn of each other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from scripts.local_cluster.fault_links import HELD_BYTES_MAX, PIPE_BYTES_MAX, FaultLink
from scripts.local_cluster.fault_proxy import CONNECTIONS_MAX, FaultProxy, Route
from scripts.local_cluster.faults import ask
from scripts.local_cluster.state import HOST, CannotError

QUIET_SECONDS = 0.15  # in which what should not come would have come long ago


class Node:
    """What a node is to the proxy: it listens, and dials from an address of its own."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"127.0.7.{number}"
        self.route = Route(name, self.address, 0, 0)
        self.streams: list[trio.SocketStream] = []
        self._send, self._accepted = trio.open_memory_channel[trio.SocketStream](100)

    async def run(self, proxy: FaultProxy, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._accept, 0)
            mesh_port = listeners[0].socket.getsockname()[1]
            self.route = proxy.add(self.route._replace(mesh_port=mesh_port))
            task_status.started()

    async def _accept(self, stream: trio.SocketStream) -> None:
        self.streams.append(stream)
        await self._send.send(stream)
        await trio.sleep_forever()

    async def dial(self, port: int, address: str | None = "") -> trio.SocketStream:
        stream = await trio.open_tcp_stream(HOST, port, local_address=self.address if address == "" else address)
        self.streams.append(stream)
        return stream

    async def accept(self) -> trio.SocketStream:
        return await self._accepted.receive()

    def has_accepted(self) -> bool:
        return bool(self._accepted.statistics().current_buffer_used)


class Pair:
    """Two nodes and the links between them."""

    def __init__(self) -> None:
        self.proxy = FaultProxy()
        self.a, self.b = Node("a", 1), Node("b", 2)

    @property
    def there(self) -> FaultLink:
        return self.proxy.links["a", "b"]

    @property
    def back(self) -> FaultLink:
        return self.proxy.links["b", "a"]

    async def connect(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Return both ends of a connection that a has dialled."""
        near = await self.dial()
        return near, await self.b.accept()

    async def dial(self) -> trio.SocketStream:
        return await self.a.dial(self.b.route.port)


def change(link: FaultLink, **faults: Any) -> None:
    link.set(link.faults._replace(**faults))


@asynccontextmanager
async def running() -> AsyncIterator[Pair]:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        await nursery.start(pair.proxy.run)
        for node in (pair.a, pair.b):
            await nursery.start(node.run, pair.proxy)
        try:
            yield pair
        finally:
            nursery.cancel_scope.cancel()
            for stream in pair.a.streams + pair.b.streams:
                stream.socket.close()


async def receive(stream: trio.SocketStream, byte_count: int) -> bytes:
    data = b""
    while len(data) < byte_count:
        more = await stream.receive_some(byte_count - len(data))
        assert more, f"the stream ended after {data[-50:]!r}"
        data += more
    return data


async def hears_nothing(stream: trio.SocketStream) -> bool:
    """Tell whether neither bytes nor an end nor a reset comes."""
    with trio.move_on_after(QUIET_SECONDS) as scope:
        await trio.lowlevel.wait_readable(stream.socket)
    return scope.cancelled_caught


async def is_reset(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b"never"
    except trio.BrokenResourceError:
        return True


async def test_bytes_and_ends_pass_both_ways_and_nothing_is_left() -> None:
    async with running() as pair:
        near, far = await pair.connect()
        assert far.socket.getpeername()[0] == pair.a.address
        large = bytes(range(256)) * 8_000
        async with trio.open_nursery() as nursery:
            for sender in (near, far):
                nursery.start_soon(sender.send_all, large)
            for receiver in (near, far):
                assert await receive(receiver, len(large)) == large
        await near.send_eof()
        assert await far.receive_some() == b""
        await far.send_all(b"still open this way")
        assert await receive(near, 19) == b"still open this way"
        await far.aclose()
        assert await near.receive_some() == b""
        await wait_until(lambda: not pair.there.connections)
        assert pair.proxy._kept["a", "b"] == []


async def wait_until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not is_so():  # noqa: ASYNC110  nobody is told
            await trio.sleep(0.005)


async def test_delay_is_of_one_direction_and_keeps_the_order() -> None:
    async with running() as pair:
        near, far = await pair.connect()
        change(pair.there, delay_ms=300)
        began = trio.current_time()
        await near.send_all(b"slow")
        await far.send_all(b"quick")
        assert await receive(near, 5) == b"quick"
        assert trio.current_time() - began < 0.25
        change(pair.there, delay_ms=0)  # for what comes later: what is under way does not fall back
        await near.send_all(b"later")
        assert await receive(far, 9) == b"slowlater"
        assert 0.295 < trio.current_time() - began < 1.5


async def test_rate_is_bounded_for_all_connections_together() -> None:
    async with running() as pair:
        ends = [await pair.connect() for _ in range(2)]
        change(pair.there, rate_kbps=1_600)  # 200 000 bytes a second
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for near, far in ends:
                nursery.start_soon(near.send_all, bytes(50_000))
                nursery.start_soon(receive, far, 50_000)
        assert 0.45 < trio.current_time() - began < 2.0
        began = trio.current_time()
        await ends[0][1].send_all(bytes(50_000))
        await receive(ends[0][0], 50_000)
        assert trio.current_time() - began < 0.25


async def test_cut_holds_what_is_sent_and_lets_it_go_on_in_order() -> None:
    async with running() as pair:
        near, far = await pair.connect()
        await near.send_all(b"before ")
        assert await receive(far, 7) == b"before "
        change(pair.there, cut=True)
        await near.send_all(b"during ")
        await far.send_all(b"the other way")
        assert await receive(near, 13) == b"the other way"
        assert await hears_nothing(far)
        await near.send_all(b"more ")
        assert await hears_nothing(far)
        change(pair.there, cut=False)
        await near.send_all(b"after")
        assert await receive(far, 17) == b"during more after"


async def test_cut_holds_what_was_delayed_when_it_came() -> None:
    async with running() as pair:
        near, far = await pair.connect()
        change(pair.there, delay_ms=50)
        await near.send_all(b"under way")
        await trio.sleep(0.02)
        change(pair.there, cut=True)
        assert await hears_nothing(far)
        change(pair.there, cut=False)
        assert await receive(far, 9) == b"under way"


@pytest.mark.parametrize(("delay_ms", "bytes_max"), [(0, HELD_BYTES_MAX), (50, PIPE_BYTES_MAX)])
async def test_what_is_held_is_bounded_when_a_link_is_cut_under_load(delay_ms: int, bytes_max: int) -> None:
    sent = received = 0
    piece = bytes(100_000)

    async def send(stream: trio.SocketStream) -> None:
        nonlocal sent
        while True:
            await stream.send_all(piece)
            sent += len(piece)

    async def take(stream: trio.SocketStream) -> None:
        nonlocal received
        while True:
            received += len(await stream.receive_some(65_536))

    async with running() as pair, trio.open_nursery() as nursery:
        near, far = await pair.connect()
        change(pair.there, delay_ms=delay_ms)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        (connection,) = pair.there.connections
        nursery.start_soon(send, near)
        nursery.start_soon(take, far)
        await wait_until(lambda: received > 4_000_000)
        change(pair.there, cut=True)
        await trio.sleep(QUIET_SECONDS)
        assert connection.held_bytes <= bytes_max
        before = sent, received
        await trio.sleep(QUIET_SECONDS)
        assert before == (sent, received), "the sender waits, the receiver starves"
        assert sent - received < bytes_max + 1_000_000  # the rest is in the kernel, whose buffers are set
        change(pair.there, cut=False)
        await wait_until(lambda: received > before[0] + 1_000_000)
        nursery.cancel_scope.cancel()


async def test_end_of_a_connection_does_not_pass_a_cut() -> None:
    async with running() as pair:
        near, far = await pair.connect()
        change(pair.there, cut=True)
        await near.send_all(b"last words")
        await near.aclose()
        assert await hears_nothing(far)
        change(pair.there, cut=False)
        assert await receive(far, 10) == b"last words"
        assert await far.receive_some() == b""


async def test_one_who_sends_to_the_dead_is_told_when_the_way_back_is_whole() -> None:
    async with running() as pair:
        near, far = await pair.connect()
        change(pair.back, cut=True)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await far.aclose()  # by reset
        await near.send_all(b"to nobody")
        await trio.sleep(0.02)
        await near.send_all(b"to nobody")
        assert await hears_nothing(near)
        change(pair.back, cut=False)
        assert await is_reset(near)


@pytest.mark.parametrize("is_there", [True, False])
async def test_connection_is_not_made_on_through_a_cut_of_either_way(is_there: bool) -> None:
    async with running() as pair:
        link = pair.there if is_there else pair.back
        change(link, cut=True)
        near = await pair.dial()
        await near.send_all(b"hello")
        await trio.sleep(QUIET_SECONDS)
        assert not pair.b.has_accepted()
        change(link, cut=False)
        assert await receive(await pair.b.accept(), 5) == b"hello"


async def test_dial_that_was_given_up_behind_a_cut_never_arrives() -> None:
    async with running() as pair:
        change(pair.there, cut=True)
        near = await pair.dial()
        await near.send_all(b"hello")
        await near.aclose()
        await trio.sleep(0.02)
        change(pair.there, cut=False)
        await trio.sleep(QUIET_SECONDS)
        assert not pair.b.has_accepted()
        assert pair.proxy._kept["a", "b"] == []


async def test_dials_behind_a_cut_are_bounded_and_the_oldest_goes_first() -> None:
    async with running() as pair:
        change(pair.there, cut=True)
        dialled = []
        for _ in range(CONNECTIONS_MAX + 2):
            dialled.append(await pair.dial())
            await trio.sleep(0.005)  # so that they are noticed one after the other
        assert [await is_reset(stream) for stream in dialled[:2]] == [True, True]
        assert len(pair.proxy._kept["a", "b"]) == CONNECTIONS_MAX
        assert await hears_nothing(dialled[2])
        change(pair.there, cut=False)
        for _ in range(CONNECTIONS_MAX):
            await pair.b.accept()


async def test_stalled_link_makes_connections_and_resets_but_moves_no_bytes() -> None:
    async with running() as pair:
        change(pair.there, stall=True)
        near, far = await pair.connect()
        await near.send_all(b"stands still")
        assert await hears_nothing(far)
        change(pair.there, stall=False)
        assert await receive(far, 12) == b"stands still"
        change(pair.there, stall=True)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await near.aclose()
        assert await is_reset(far)


async def test_reset_is_felt_at_its_end_and_at_the_other_with_the_next_bytes() -> None:
    async with running() as pair:
        near, far = await pair.connect()
        pair.there.reset()
        assert await is_reset(far)
        assert await hears_nothing(near)
        change(pair.back, cut=True)
        await near.send_all(b"are you there?")
        assert await hears_nothing(near)
        change(pair.back, cut=False)
        assert await is_reset(near)
        near, far = await pair.connect()
        await near.send_all(b"a new one")
        assert await receive(far, 9) == b"a new one"


async def test_reset_of_both_directions_is_felt_at_both_ends_at_once() -> None:
    for pause in (0, 0.02):
        async with running() as pair:
            near, far = await pair.connect()
            pair.back.reset()
            await trio.sleep(pause)
            pair.there.reset()
            assert await is_reset(far)
            assert await is_reset(near)
            await wait_until(lambda pair=pair: not pair.there.connections)  # type: ignore[misc]


async def test_dial_to_a_node_that_is_down_is_reset() -> None:
    async with running() as pair:
        with socket.socket() as closed:
            closed.bind((HOST, 0))
            down = pair.proxy.add(Route("c", "127.0.7.3", 0, closed.getsockname()[1]))
            stream = await pair.a.dial(down.port)
            assert await is_reset(stream)


@pytest.mark.parametrize("address", [None, "127.0.7.1"])
async def test_caller_that_cannot_be_another_node_is_turned_away(address: str | None) -> None:
    async with running() as pair:
        stream = await pair.b.dial(pair.a.route.port, address)
        assert await is_reset(stream)


async def test_control_changes_all_links_of_a_request_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("long" * 40)  # a path that no unix socket may have
    directory.mkdir()
    monkeypatch.chdir(directory)

    async def request(**fields: Any) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(partial(ask, directory, fields))

    async with running() as pair, trio.open_nursery() as nursery:
        await nursery.start(pair.proxy.serve_control, "faults.sock")
        assert (directory / "faults.sock").stat().st_mode & 0o777 == 0o600
        assert await request(do="show") == []
        near, far = await pair.connect()
        set_cut = ["b", "a", {"cut": True}]
        found = await request(do="set", links=[["a", "b", {"delay_ms": 1, "rate_kbps": 9}], set_cut])
        assert found == await request(do="show")
        assert found == [
            {"from": "b", "to": "a", "cut": True, "stall": False, "delay_ms": 0, "rate_kbps": 0},
            {"from": "a", "to": "b", "cut": False, "stall": False, "delay_ms": 1, "rate_kbps": 9},
        ]
        for wrong in ([set_cut, ["a", "c", {}]], [["b", "a", {"cut": False}], ["a", "b", {"loss": 1}]], [1], None):
            with pytest.raises(CannotError, match="the fault proxy refuses"):
                await request(do="set", links=wrong)
        with pytest.raises(CannotError, match="'dance' is nothing to do"):
            await request(do="dance")
        assert await request(do="show") == found
        await request(do="reset", links=[["a", "b"], ["b", "a"]])
        assert await is_reset(far)
        assert await is_reset(near)
        more = {"name": "c", "address": "127.0.7.3", "port": 0, "mesh_port": 1}
        await request(do="add", nodes=[more])
        assert set(pair.proxy.links) >= {("a", "c"), ("c", "b")}
        with pytest.raises(CannotError, match="c with the address"):
            await request(do="add", nodes=[{**more, "mesh_port": 2}])
        nursery.cancel_scope.cancel()
    with pytest.raises(CannotError, match=r"does not answer .*; `start --dir"):
        await request(do="show")
