"""Large values on their way to clients: whole, in order, of one version, and bounded in number, time and memory."""

import os
import socket
from pathlib import Path

import pytest
import trio

from kvp2p.config import HttpSettings
from kvp2p.core.entry import chunk_id
from kvp2p.core.operations import Ending, Outcome, refused
from kvp2p.core.port import Hidden, PendingRow
from kvp2p.gateway import streams as streams_module
from kvp2p.gateway.streams import ValueStream, streams_max
from kvp2p.limits import (
    CHUNK_BYTES,
    HTTP_STREAM_NOT_SENT_BYTES,
    HTTP_STREAMS_MAX,
    INLINE_VALUE_BYTES_MAX,
    STORE_STREAMS_MAX,
)
from tests.gateway.rig import NAMESPACE, READER, WRITER, Rig, Wire, hex_version, request, rig, until, version_of

MIB = 1 << 20
GET = request("GET", "/v1/words/k")


async def head_of(wire: Wire) -> dict[str, str]:
    """Read no more than the head of an answer."""
    while b"\r\n\r\n" not in wire._buffer:
        await wire._more(1_024)
    head = wire._buffer.partition(b"\r\n\r\n")[0].decode("ascii")
    return dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:])


def streaming(r: Rig) -> int:
    return r.gateway.reads._streams.open_count


@pytest.mark.parametrize(
    "value_bytes",
    [INLINE_VALUE_BYTES_MAX + 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 5 * MIB + 7],
)
async def test_large_value_is_read_whole_with_what_was_stored_with_it(short_tmp_path: Path, value_bytes: int) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(value_bytes)
        version = r.writer.put_large(b"k", value, b'{"a":1}', 99_999_999_999)
        reply = await wire.ask(GET)
        assert (reply.status, reply.body) == (200, value)
        head = await wire.ask(request("HEAD", "/v1/words/k"))
        assert (head.status, {**head.headers, "date": ""}) == (200, {**reply.headers, "date": ""})
        assert reply.headers["content-length"] == str(value_bytes)
        assert (reply.headers["kv-version"], reply.headers["etag"]) == (version, f'"{version}"')
        assert (reply.headers["kv-metadata"], reply.headers["kv-expires-at"]) == ('{"a":1}', "99999999999")
        same = await wire.ask(request("GET", "/v1/words/k", headers={"If-None-Match": f'"{version}"'}))
        assert (same.status, same.body) == (304, b"")
        other = await wire.ask(request("GET", "/v1/words/k", headers={"If-Match": f'"{"0" * 40}"'}))
        assert other.status == 412
        (listed,) = (await wire.ask(request("GET", "/v1/words"))).json["keys"]
        assert listed == {"name": "k", "expiration": 99_999_999_999, "metadata": {"a": 1}, "version": version}
        assert streaming(r) == 0


async def test_pipeline_with_large_values_is_answered_in_order(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        large, other = os.urandom(MIB), os.urandom(3 * MIB + 1)
        r.writer.put_large(b"k", large)
        r.writer.put_large(b"o", other)
        r.writer.put(b"s", b"small")
        small, o = request("GET", "/v1/words/s"), request("GET", "/v1/words/o")
        assert (await wire.ask(small)).body == b"small"  # the hot path is warm
        await wire.send((GET + small + o + request("PUT", "/v1/words/s", b"new") + small) * 5)
        for number in range(5):
            assert (await wire.reply()).body == large
            assert (await wire.reply()).body == (b"new" if number else b"small")
            assert (await wire.reply()).body == other
            assert (await wire.reply()).status == 200
            assert (await wire.reply()).body == b"new"
        # What asks to go on comes behind the value, not into it.
        expecting = request("PUT", "/v1/words/s", headers={"Expect": "100-continue", "Content-Length": "1"})
        await wire.send(GET + expecting)
        assert (await wire.reply()).body == large
        assert (await wire.reply()).status == 100
        await wire.send(b"v")
        assert (await wire.reply()).status == 200


async def test_last_answer_of_a_connection_may_be_a_large_value(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(2 * MIB)
        r.writer.put_large(b"k", value)
        await wire.send(request("GET", "/v1/words/k", headers={"Connection": "close"}) + GET)
        reply = await wire.reply()
        assert (reply.body, reply.headers["connection"]) == (value, "close")
        assert await wire.is_closed()


async def test_slow_reader_gets_the_value_that_it_asked_for_whole_while_it_is_replaced(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        old, new = os.urandom(20 * MIB), os.urandom(20 * MIB)
        r.writer.put_large(b"k", old)
        await wire.send(GET)
        await head_of(wire)
        assert streaming(r) == 1
        for number in range(4):
            r.writer.put_large(b"k", new if number == 3 else os.urandom(MIB))
        async with await r.connect() as other:
            assert (await other.ask(GET)).body == new
        assert chunk_id(old[-CHUNK_BYTES:]) not in r.writer.chunks()
        assert (await wire.reply()).body == old
        assert (await wire.ask(GET)).body == new
        assert streaming(r) == 0


async def test_stream_keeps_one_chunk_in_memory_however_slow_its_reader_is(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        value = os.urandom(20 * MIB)
        r.writer.put_large(b"k", value)
        wires = [await r.connect() for _ in range(10)]
        for wire in wires:
            await wire.send(GET)
            await head_of(wire)
        await until(lambda: all(one._out.is_pushing for one in r.gateway._connections))
        kept = [one._out.waiting_bytes for one in r.gateway._connections]
        assert all(count <= MIB + CHUNK_BYTES for count in kept), "a stream counts as MIB, to which its chunk is added"
        assert not any(one._out.parts for one in r.gateway._connections)
        for one in r.gateway._connections:  # what the kernel has for each of them beside what is on its way
            assert one._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == HTTP_STREAM_NOT_SENT_BYTES
        for wire in wires:
            assert (await wire.reply()).body == value
            await trio.aclose_forcefully(wire.stream)


async def test_reader_that_never_reads_is_cut_and_gives_its_place_back(short_tmp_path: Path) -> None:
    impatient = HttpSettings(body_timeout_seconds=0.5, idle_timeout_seconds=0.2)
    async with rig(short_tmp_path, impatient) as r:
        r.writer.put_large(b"k", os.urandom(20 * MIB))  # before anybody could be idle meanwhile
        async with await r.connect() as wire:
            await wire.send(GET)
            await until(lambda: r.gateway.counters.streams_cut == 1)
            await until(lambda: streaming(r) == 0 and not r.gateway._connections)
        assert r.gateway.counters.connections_timed_out == 1
        assert r.gateway.counters.streams_cut == 1


async def test_value_that_takes_too_long_is_cut_however_steadily_it_is_read(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "HTTP_STREAM_SECONDS_MAX", 1.0)
    settings = HttpSettings(body_timeout_seconds=10, idle_timeout_seconds=0.2)
    async with rig(short_tmp_path, settings) as r:
        value = os.urandom(20 * MIB)
        r.writer.put_large(b"k", value)  # before anybody could be idle meanwhile
        received = 0
        async with await r.connect() as wire:
            began = trio.current_time()
            await wire.send(GET)
            try:
                while data := await wire.stream.receive_some(MIB):
                    received += len(data)
                    await trio.sleep(0.1)
            except trio.BrokenResourceError:
                pass
        assert received < len(value)
        assert trio.current_time() - began >= 1.0
        assert r.gateway.counters.streams_cut == 1


async def test_reader_that_is_slow_and_steady_is_not_idle(short_tmp_path: Path) -> None:
    settings = HttpSettings(body_timeout_seconds=5, idle_timeout_seconds=0.2)
    async with rig(short_tmp_path, settings) as r:
        value = os.urandom(12 * MIB)
        r.writer.put_large(b"k", value)  # before anybody could be idle meanwhile
        received = b""
        async with await r.connect() as wire:
            await wire.send(GET)
            while len(received) < len(value):
                received += await wire.stream.receive_some(MIB)
                await trio.sleep(0.1 if len(received) < 5 * MIB else 0)
        assert received.endswith(value[: len(received) - received.index(b"\r\n\r\n") - 4])


async def test_more_streams_than_there_is_room_for_are_429_and_all_else_is_served(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(20 * MIB)
        r.writer.put_large(b"k", value)
        r.writer.put_large(b"m", value[:CHUNK_BYTES])
        r.gateway.reads._streams.streams_max = 2
        slow = [await r.connect() for _ in range(2)]
        for one in slow:
            await one.send(GET)
            await head_of(one)
        reply = await wire.ask(GET)
        assert (reply.status, reply.code, reply.error["limit"]) == (429, "overloaded", 2)
        assert reply.headers["retry-after"] == "1"
        assert (await wire.ask(request("GET", "/v1/words/m"))).body == value[:CHUNK_BYTES]
        assert (await wire.ask(request("HEAD", "/v1/words/k"))).headers["content-length"] == str(len(value))
        assert (await slow[0].reply()).body == value
        assert (await wire.ask(GET)).body == value
        for one in slow:
            await trio.aclose_forcefully(one.stream)
        await until(lambda: streaming(r) == 0)


def test_streams_of_all_gateways_leave_slots_of_the_store_to_other_reads() -> None:
    assert streams_max(1) == streams_max(2) == HTTP_STREAMS_MAX
    for gateways in range(1, 65):
        assert streams_max(gateways) >= 1
        assert streams_max(gateways) * gateways <= STORE_STREAMS_MAX


@pytest.mark.parametrize("chunk", [0, 1])
async def test_damaged_chunk_is_never_sent(
    short_tmp_path: Path, capsys: pytest.CaptureFixture[str], chunk: int
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(3 * CHUNK_BYTES)
        r.writer.put_large(b"k", value)
        content = value[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        with r.writer.store.write() as txn:
            txn.put_chunk(chunk_id(content), content[:-1] + bytes([content[-1] ^ 1]))
        await wire.send(GET)
        received = b""
        if not chunk:
            assert (await wire.reply()).code == "unavailable", "before anything was promised"
            await wire.stream.send_eof()
        try:
            while data := await wire.stream.receive_some(65_536):
                received += data
        except trio.BrokenResourceError:
            pass
        # A prefix: what was on its way when the connection was reset may be missing, too.
        assert value[: chunk * CHUNK_BYTES].startswith(received.partition(b"\r\n\r\n")[2])
        assert streaming(r) == 0
        assert (await r.ask("GET", "/healthz")).status == 200
    said = capsys.readouterr().out
    assert chunk_id(content).hex() in said
    assert "value_damaged" in said
    assert "key=b'k'" in said


async def test_damaged_value_of_one_chunk_is_503(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(100_000)
        r.writer.put_large(b"k", value)
        with r.writer.store.write() as txn:
            txn.put_chunk(chunk_id(value), value[::-1])
        reply = await wire.ask(GET)
        assert (reply.status, reply.code) == (503, "unavailable")
        assert (await wire.ask(request("GET", "/healthz"))).status == 200


@pytest.mark.parametrize("is_at_first", [True, False])
async def test_bug_in_a_stream_ends_that_connection_alone(
    short_tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_at_first: bool
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put_large(b"k", os.urandom(MIB))

        def fail(stream: ValueStream) -> bytes:
            if is_at_first or stream.head:  # which comes after the first chunk
                raise ZeroDivisionError("a bug")
            return b"first"

        monkeypatch.setattr("kvp2p.gateway.streams.ValueStream.next_chunk", fail)
        await wire.send(GET)
        assert await wire.is_closed() is is_at_first, "nothing came, or a part and a reset"
        assert streaming(r) == 0
        assert (await r.ask("GET", "/healthz")).status == 200
    assert "a bug" in capsys.readouterr().out


async def test_client_that_leaves_in_the_middle_gives_its_place_back(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put_large(b"k", os.urandom(20 * MIB))
        async with await r.connect() as wire:
            await wire.send(GET * 3)
            await head_of(wire)
            assert streaming(r) == 1
        await until(lambda: streaming(r) == 0 and not r.gateway._connections)


async def test_client_that_only_stops_sending_gets_the_whole_value(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(5 * MIB)
        r.writer.put_large(b"k", value)
        await wire.send(GET)
        await wire.stream.send_eof()
        assert (await wire.reply()).body == value
        assert await wire.is_closed()


async def test_draining_lets_a_value_end(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire, await r.connect() as idle:
        value = os.urandom(20 * MIB)
        r.writer.put_large(b"k", value)
        assert (await idle.ask(request("GET", "/healthz"))).status == 200
        await wire.send(GET)
        await head_of(wire)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r.gateway.drain)
            assert await idle.is_closed()
            assert (await wire.reply()).body == value
            assert await wire.is_closed()
            await trio.aclose_forcefully(idle.stream)
            await trio.aclose_forcefully(wire.stream)


async def test_version_to_come_may_be_of_a_large_value(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        old, new = os.urandom(2 * MIB), os.urandom(3 * MIB)
        r.writer.put_large(b"k", old)

        def catch_up(_: object) -> Outcome:
            r.writer.put_large(b"k", new)
            return Outcome(Ending.ACKED)

        r.node.await_answer = catch_up
        waiting = request("GET", "/v1/words/k", headers={"KV-Min-Version": hex_version(r.writer.stamp)})
        assert (await wire.ask(waiting)).body == new
        assert streaming(r) == 0
        # One that has left when the version comes.
        gate = trio.Event()
        r.node.gate = gate
        async with await r.connect() as leaving:
            await leaving.send(request("GET", "/v1/words/k", headers={"KV-Min-Version": hex_version(r.writer.stamp)}))
            await until(lambda: len(r.node.awaited) == 2)
        gate.set()
        assert (await wire.ask(GET)).body == new
        await until(lambda: streaming(r) == 0)
        r.node.await_answer = lambda _: refused("not_caught_up", "behind")
        reply = await wire.ask(request("GET", "/v1/words/k", headers={"KV-Min-Version": hex_version(1 << 60)}))
        assert (reply.status, reply.code) == (503, "not_caught_up")


async def test_old_value_is_not_read_while_a_version_is_waited_for(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put_large(b"k", os.urandom(2 * MIB))
        streams = r.gateway.reads._streams
        streams.streams_max = 0  # a read of it would be 429

        def catch_up(_: object) -> Outcome:
            streams.streams_max = HTTP_STREAMS_MAX
            r.writer.put_large(b"k", new)
            return Outcome(Ending.ACKED)

        new = os.urandom(2 * MIB)
        r.node.await_answer = catch_up
        waiting = request("GET", "/v1/words/k", headers={"KV-Min-Version": hex_version(r.writer.stamp)})
        assert (await wire.ask(waiting)).body == new


async def test_stream_for_a_client_that_has_left_meanwhile_is_closed(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put_large(b"k", os.urandom(2 * MIB))
        r.node.gate = trio.Event()
        async with await r.connect() as leaving:
            await leaving.send(request("GET", "/v1/words/k", headers={"KV-Min-Version": hex_version(1 << 60)}))
            await until(lambda: len(r.node.awaited) == 1)
            (connection,) = r.gateway._connections
            (exchange,) = connection._pending
            leaving.reset_at_close()
        await until(lambda: not r.gateway._connections)
        r.node.gate.set()
        await until(lambda: exchange.answer is not None)
        assert exchange.stream is not None
        assert streaming(r) == 0


async def test_version_is_not_here_before_its_value_is_whole(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        small = r.writer.put(b"s", b"v")
        version = r.writer.put_large(b"k", os.urandom(MIB))
        later = r.writer.put(b"s", b"w")
        with r.writer.store.write() as txn:
            hidden = Hidden(version_of(version), version_of(version))
            txn.put_pending(PendingRow(version_of(version), NAMESPACE, b"k", b"", (hidden,)))
        for wanted, is_here in ((small, True), (version, False), (later, False)):
            await wire.ask(request("GET", "/v1/words/s", headers={"KV-Min-Version": wanted}))
            assert bool(r.node.awaited) is not is_here
        assert (await wire.ask(GET)).code == "key_not_found"
        with r.writer.store.write() as txn:
            txn.delete_pending(version_of(version))
        r.node.awaited.clear()
        assert (await wire.ask(request("GET", "/v1/words/k", headers={"KV-Min-Version": later}))).status == 200
        assert not r.node.awaited


async def test_who_may_not_read_gets_nothing_of_a_large_value(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put_large(b"k", os.urandom(MIB))
        assert (await wire.ask(request("GET", "/v1/words/k", token=READER))).status == 200
        assert (await wire.ask(request("GET", "/v1/words/k", token=WRITER))).status == 403
        assert (await wire.ask(request("GET", "/v1/words/k", token="nobody"))).status == 401
