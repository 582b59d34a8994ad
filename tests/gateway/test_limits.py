"""Time, number and pressure: what ends a connection, and what does not."""

import json
import socket
import tracemalloc
from pathlib import Path
from time import monotonic

import pytest
import trio

from kvp2p.config import HttpSettings
from kvp2p.core.operations import Outcome, Put
from kvp2p.gateway import routes, server
from kvp2p.gateway.answers import CODES, error_answer
from kvp2p.gateway.connection import Connection
from kvp2p.gateway.exchange import Exchange
from kvp2p.gateway.intake import Intake, Phase
from kvp2p.limits import HTTP_RESPONSE_BUFFER_BYTES_MAX
from kvp2p.runtime import node_port
from tests.gateway.rig import NAMESPACE, Rig, Wire, hex_version, request, rig, until

IMPATIENT = HttpSettings(head_timeout_seconds=0.2, body_timeout_seconds=0.3, idle_timeout_seconds=0.4)


async def test_head_that_drips_in_is_408_however_steadily(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as wire:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                for byte in request("GET", "/v1/words/k") * 10:
                    await wire.send(bytes([byte]))
                    await trio.sleep(0.02)

            nursery.start_soon(drip)
            reply = await wire.reply()
            nursery.cancel_scope.cancel()
        assert (reply.status, reply.code, reply.headers["connection"]) == (408, "request_timeout", "close")
        assert 0.2 <= trio.current_time() - began < 2


async def test_body_that_stops_is_408_and_one_that_goes_on_is_not(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as slow, await r.connect() as stuck:
        message = request("PUT", "/v1/words/k", b"0123456789")
        await stuck.send(message[:-5])
        await slow.send(message[:-10])
        for byte in b"0123456789":
            await trio.sleep(0.1)
            await slow.send(bytes([byte]))
        assert (await slow.reply()).status == 200
        assert (await stuck.reply()).code == "request_timeout"
        assert await stuck.is_closed()


async def test_idle_connection_is_closed_in_silence(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as unused, await r.connect() as used:
        assert (await used.ask(request("GET", "/healthz"))).status == 200
        assert await unused.is_closed()
        assert await used.is_closed()
        assert r.gateway.counters.connections_timed_out == 2


async def test_write_that_takes_its_time_is_not_idle(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as wire:
        r.node.gate = trio.Event()
        await wire.send(request("PUT", "/v1/words/k", b"v"))
        await trio.sleep(0.8)
        r.node.gate.set()
        assert (await wire.reply()).status == 200


async def test_reader_that_never_reads_is_not_read_and_ends(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as wire:
        value = bytes(190_000)
        r.writer.write(Put(NAMESPACE, b"k", value))
        asked = 0
        # Our sends stop being taken, and in the end the connection is cut under them.
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await wire.send(request("GET", "/v1/words/k") * 100)
                asked += 100
                # What is kept for it is the limit and one answer, whatever it asks for.
                assert all(
                    one._out.waiting_bytes < HTTP_RESPONSE_BUFFER_BYTES_MAX + 200_000 for one in r.gateway._connections
                )
        await until(lambda: not r.gateway._connections)
        assert r.gateway.counters.connections_timed_out == 1
        assert r.gateway.counters.bytes_sent < asked * len(value)


async def test_slow_reader_gets_everything_in_order(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        for n in range(30):
            r.writer.write(Put(NAMESPACE, b"k%d" % n, bytes([n]) * 190_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, b"".join(request("GET", f"/v1/words/k{n % 30}") for n in range(120)))
            for n in range(120):
                if n % 10 == 0:
                    await trio.sleep(0.01)
                assert (await wire.reply()).body[:1] == bytes([n % 30])


async def test_reader_that_never_reads_is_reset_so_that_the_kernel_keeps_nothing_for_it(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as wire:
        r.writer.write(Put(NAMESPACE, b"k", bytes(190_000)))
        # All of it is read by the gateway; the answers are more than the kernels of both ends take.
        await wire.send(request("GET", "/v1/words/k") * 200)
        await until(lambda: not r.gateway._connections)
        closed = 7  # TCP_CLOSE; a FIN would wait behind what is never read, and the connection would look open
        await until(lambda: wire.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == closed)


async def test_slow_reader_is_not_timed_for_requests_that_are_not_read(short_tmp_path: Path) -> None:
    impatient = HttpSettings(head_timeout_seconds=0.2, body_timeout_seconds=2)
    async with rig(short_tmp_path, impatient) as r, await r.connect() as wire:
        r.writer.write(Put(NAMESPACE, b"k", bytes(190_000)))
        count = 120
        async with trio.open_nursery() as nursery:
            # More than the kernel keeps: the gateway stops reading somewhere in a head, and goes on when answers have left.
            nursery.start_soon(wire.send, request("GET", "/v1/words/k", headers={"X": "x" * 15_000}) * count)
            for _ in range(count):
                await trio.sleep(0.02)
                assert len((await wire.reply()).body) == 190_000
        assert r.gateway.counters.connections_timed_out == 0


@pytest.mark.deadline_s(60)
async def test_thousand_idle_connections_do_not_hinder_another(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put(b"k", b"v")
        async with trio.open_nursery() as nursery:
            wires: list[Wire] = []

            async def open_some() -> None:
                for _ in range(100):
                    wires.append(await r.connect())  # noqa: PERF401  each is to be closed, come what may

            for _ in range(10):
                nursery.start_soon(open_some)
            # Accepted by the gateway, and known to this end too: else the last ones would not be closed below.
            await until(lambda: r.gateway.counters.connections_open == len(wires) == 1_000)
            assert (await r.ask("GET", "/v1/words/k")).body == b"v"
            for wire in wires[::100]:
                assert (await wire.ask(request("GET", "/v1/words/k"))).body == b"v"
            for wire in wires:
                await trio.aclose_forcefully(wire.stream)
        await until(lambda: r.gateway.counters.connections_open == 0)


async def test_connection_over_the_limit_is_told_503(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, HttpSettings(connections_max=2)) as r:
        async with await r.connect() as first, await r.connect() as second:
            assert (await first.ask(request("GET", "/healthz"))).status == 200
            assert (await second.ask(request("GET", "/healthz"))).status == 200
            async with await r.connect() as third:
                reply = await third.reply()
                assert (reply.status, reply.code, reply.error["limit"]) == (503, "too_many_connections", 2)
                assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
                assert await third.is_closed()
        await until(lambda: r.gateway.counters.connections_open == 0)
        assert (await r.ask("GET", "/healthz")).status == 200


async def test_drain_finishes_what_is_in_hand_and_closes_the_rest(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        async with await r.connect() as idle, await r.connect() as writing, await r.connect() as sending:
            assert (await idle.ask(request("GET", "/healthz"))).status == 200
            r.node.gate = trio.Event()
            await writing.send(request("PUT", "/v1/words/a", b"1"))
            message = request("PUT", "/v1/words/b", b"2")
            await sending.send(message[:-1])
            await until(lambda: len(r.node.submitted) == 1)
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                nursery.start_soon(r.gateway.drain)
                assert await idle.is_closed()
                r.node.gate.set()
                reply = await writing.reply()
                assert (reply.status, reply.headers["connection"]) == (200, "close")
                assert await writing.is_closed()
                await sending.send(message[-1:])
                reply = await sending.reply()
                assert (reply.status, reply.headers["connection"]) == (200, "close")
                for wire in (idle, writing, sending):
                    await trio.aclose_forcefully(wire.stream)
            assert trio.current_time() - began < server.DRAIN_SECONDS
        with pytest.raises(OSError, match="all attempts to connect"):
            await r.connect()


@pytest.mark.slow
async def test_drain_does_not_wait_for_ever(short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_SECONDS", 0.5)
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.gate = trio.Event()
        await wire.send(request("PUT", "/v1/words/a", b"1"))
        await until(lambda: len(r.node.submitted) == 1)
        began = trio.current_time()
        await r.gateway.drain()
        assert 0.5 <= trio.current_time() - began < 0.9


async def counted(r: Rig) -> dict[str, int]:
    await until(lambda: bool(r.node.reports) and dict(r.node.reports[-1].counters) == r.gateway.counters.samples())
    return dict(r.node.reports[-1].counters)


async def test_bodies_of_all_connections_together_are_bounded(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as slow, await r.connect() as other:
        r.gateway.bodies.bytes_max = 40_000
        most = request("PUT", "/v1/words/most", b"x" * 30_000)
        await slow.send(most[:-1])
        await until(lambda: r.gateway.bodies.held_bytes >= 29_000)
        reply = await other.ask(request("PUT", "/v1/words/k", b"x" * 30_000))
        assert (reply.status, reply.code, reply.error["applied"]) == (429, "overloaded", "no")
        assert (await other.ask(request("PUT", "/v1/words/k", b"x" * 100))).status == 200
        assert (await other.ask(request("GET", "/v1/words/k"))).status == 200
        await slow.send(most[-1:])
        assert (await slow.reply()).status == 200
        assert (await other.ask(request("PUT", "/v1/words/k", b"x" * 30_000))).status == 200
        assert r.gateway.bodies.held_bytes == 0


async def test_bodies_that_are_dropped_or_left_unfinished_give_their_room_back(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.gateway.bodies.bytes_max = 20_000
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        head = request("PUT", "/v1/words/k", headers={"Transfer-Encoding": "chunked"})
        await wire.send(head + chunk)
        await until(lambda: r.gateway.bodies.held_bytes == 10_000)
        await wire.send(2 * chunk + b"0\r\n\r\n")
        assert (await wire.reply()).status == 429
        assert r.gateway.bodies.held_bytes == 0
        async with await r.connect() as leaving:
            await leaving.send(request("PUT", "/v1/words/k", b"x" * 1_000)[:-1])
            await until(lambda: r.gateway.bodies.held_bytes > 0)
        await until(lambda: r.gateway.bodies.held_bytes == 0)
        # Behind a write that is not answered yet, and that ends its connection with them.
        r.node.answer = lambda _: None
        monkeypatch.setattr(routes, "WRITE_DEADLINE_MS", 200)
        monkeypatch.setattr(node_port, "ANSWER_GRACE_MS", 200)
        async with await r.connect() as pipelined:
            reading = request("GET", "/v1/words/k")
            await pipelined.send(request("PUT", "/v1/words/k", b"1") + reading + request("PUT", "/v1/words/k", b"22"))
            await until(lambda: r.gateway.bodies.held_bytes == 2)
        await until(lambda: r.gateway.bodies.held_bytes == 0)


class Room:
    """Has room for everything, and keeps what the intake hands over."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self.taken: list[Exchange] = []

    def take_plain_get(self, *_: object) -> bool:
        return False

    def take(self, exchange: Exchange) -> None:
        self.taken.append(exchange)

    def take_large(self, exchange: Exchange) -> None:
        raise AssertionError("the body is small")

    end_large = take_large

    def hold(self, count: int) -> bool:
        self.held_bytes += count
        return True

    def release(self, count: int) -> None:
        self.held_bytes -= count

    def send_continue(self) -> None:
        return


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7])
def test_body_in_tiny_chunks_keeps_little_more_than_the_bytes_that_are_counted(chunk_bytes: int) -> None:
    room = Room()
    intake = Intake(room, lambda _: True, monotonic)
    some_chunks = (b"%x\r\n" % chunk_bytes + b"x" * chunk_bytes + b"\r\n") * 100
    tracemalloc.start()
    try:
        intake.feed(request("PUT", "/v1/words/k", headers={"Transfer-Encoding": "chunked"}))
        before_bytes = tracemalloc.get_traced_memory()[0]
        for _ in range(40):
            intake.feed(some_chunks)
        kept_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    finally:
        tracemalloc.stop()
    assert room.held_bytes == 4_000 * chunk_bytes
    assert kept_bytes < 1.25 * room.held_bytes + 4_096
    intake.feed(b"0\r\n\r\n")
    assert room.taken[0].body == b"x" * room.held_bytes


@pytest.mark.slow
async def test_counters_are_reported_each_second(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.ask(request("PUT", "/v1/words/k", b"v"))
        for _ in range(5):
            await wire.ask(request("GET", "/v1/words/k"))
        await wire.ask(request("GET", "/v1/words/none"))
        await wire.ask(request("HEAD", "/v1/words/k"))
        await wire.ask(request("PURGE", "/v1/words/k"))
        seen = await counted(r)
        assert r.node.hello is not None
        assert r.node.hello.role == "gateway"
        requests = {name: count for name, count in seen.items() if name.startswith("kvp2p_gateway_requests_total")}
        assert requests == {
            'kvp2p_gateway_requests_total{method="PUT",status="200"}': 1,
            'kvp2p_gateway_requests_total{method="GET",status="200"}': 5,
            'kvp2p_gateway_requests_total{method="GET",status="404"}': 1,
            'kvp2p_gateway_requests_total{method="HEAD",status="200"}': 1,
            'kvp2p_gateway_requests_total{method="other",status="405"}': 1,
        }
        assert seen["kvp2p_gateway_connections_open"] == 1
        assert seen["kvp2p_gateway_connections_accepted_total"] == 1
        assert seen["kvp2p_gateway_read_microseconds_count"] == 8
        assert seen["kvp2p_gateway_write_microseconds_count"] == 1
        assert seen['kvp2p_gateway_write_microseconds_bucket{le="+Inf"}'] == 1
        assert seen["kvp2p_gateway_received_bytes_total"] > 500
        assert seen["kvp2p_gateway_sent_bytes_total"] > 500


async def test_bug_in_one_connection_ends_that_one_alone(
    short_tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:

        def fail(*_: object) -> bytes:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(r.gateway.reads, "keys", fail)
        await wire.send(request("GET", "/v1/words"))
        assert await wire.is_closed()
        assert (await r.ask("GET", "/healthz")).status == 200
    assert "a bug" in capsys.readouterr().out


async def test_bug_at_a_timeout_ends_that_connection_alone(
    short_tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as wire:

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        await wire.send(b"GET /v1")
        await until(lambda: any(one._intake.phase is Phase.HEAD for one in r.gateway._connections))
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_advance", fail)
            assert await wire.is_closed()
        assert (await r.ask("GET", "/healthz")).status == 200
    assert "a bug" in capsys.readouterr().out


async def test_bug_in_a_read_that_waited_is_told_and_ends_nothing_else(
    short_tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:

        async def fail(*_: object) -> Outcome:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(r.node_port, "await_version", fail)
        headers = {"KV-Min-Version": hex_version(1 << 60)}
        reply = await wire.ask(request("GET", "/v1/words/k", headers=headers))
        assert (reply.status, reply.code) == (500, "internal_error")
        assert (await wire.ask(request("GET", "/healthz"))).status == 200
    assert "a bug" in capsys.readouterr().out


def test_every_error_says_code_message_retryable_and_applied() -> None:
    statuses = {"overloaded": 429, "outcome_unknown": 504, "disk_full": 507, "key_not_found": 404}
    for code, meaning in CODES.items():
        head, _, body = error_answer(code, "why", 7).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % statuses.get(code, meaning.status))
        assert b"Content-Length: %d" % len(body) in head
        assert (b"Retry-After: 1" in head) == (meaning.status in {429, 503})
        error = json.loads(body)["error"]
        assert error == {
            "code": code,
            "message": "why",
            "limit": 7,
            "retryable": meaning.retryable,
            "applied": "unknown" if code == "outcome_unknown" else "no",
        }
