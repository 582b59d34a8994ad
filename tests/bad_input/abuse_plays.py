"""What the rows about slow clients and crowds do: each play acts one out at the gateway that the witness uses too."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import trio

from tests.bad_input.by_hand import reset
from tests.bad_input.cluster import BODY_TIMEOUT_S, HEAD_TIMEOUT_S, IDLE_TIMEOUT_S, Cluster
from tests.bad_input.rows import VALUE_BYTES_MAX, Large, large, put, raw, request
from tests.gateway.rig import Reply, Wire

Play = Callable[[Cluster], Awaitable[str]]
INLINE_BYTES = 30_000  # of a value that is read in one piece whatever else is large
SLACK_S = 3.0  # guess: how much later than it may a busy machine does something


async def connect(cluster: Cluster) -> Wire:
    return Wire(await trio.open_tcp_stream("127.0.0.1", cluster.node("n2").data_port))


async def ask(cluster: Cluster, message: bytes) -> Reply:
    async with await connect(cluster) as wire:
        return await wire.ask(cluster.spell(message))


async def _ending(wire: Wire) -> str:
    """Return an answer and what becomes of the connection."""
    reply = await wire.reply()
    if reply.headers.get("connection") == "close":
        assert await wire.is_closed()
        return f"{reply.status} `{reply.code}`, closed"
    assert (await wire.ask(request("GET", "/healthz", token=None))).status == 200
    return f"{reply.status} `{reply.code}`, kept"


async def _in_crowd(count: int, act: Callable[[], Awaitable[str]]) -> str:
    """Do something at the same time so many times, and return how all of them ended."""
    endings: set[str] = set()

    async def act_once() -> None:
        endings.add(await act())

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(act_once)
    (ending,) = endings
    return ending


async def _drip(wire: Wire, message: bytes, pause_s: float) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for byte in message:
            await wire.send(bytes([byte]))
            await trio.sleep(pause_s)


async def drip_head(cluster: Cluster) -> str:
    async def act() -> str:
        async with await connect(cluster) as wire, trio.open_nursery() as nursery:
            began = trio.current_time()
            nursery.start_soon(_drip, wire, cluster.spell(put("slow")), 0.1)
            reply = await wire.reply()
            # Where it is said: the bytes that come afterwards turn the end of the connection into a reset.
            took_s = trio.current_time() - began
            nursery.cancel_scope.cancel()
        assert HEAD_TIMEOUT_S - 0.1 <= took_s <= HEAD_TIMEOUT_S + SLACK_S, took_s
        assert reply.headers["connection"] == "close"
        return f"{reply.status} `{reply.code}`, closed"

    return await _in_crowd(50, act)


async def drip_body(cluster: Cluster) -> str:
    body = b"0123456789"
    async with await connect(cluster) as wire:
        message = cluster.spell(put("dripped", body=body))
        await wire.send(message[: -len(body)])
        await _drip(wire, body, BODY_TIMEOUT_S / 6)
        assert (await wire.reply()).status == 200
    assert (await ask(cluster, request("GET", "/v1/words/dripped"))).body == body
    assert (await ask(cluster, request("DELETE", "/v1/words/dripped"))).status == 204
    return "200, stored"


HALVES = (
    put("victim", body=b"x" * 1_000)[:-500],
    raw(b"PUT /v1/words/victim HTTP/1.1", b"Host: kv", b"Authorization: Bearer $admin", b"Transfer-Encoding: chunked", body=b"5\r\nab"),
    raw(b"PUT /v1/words/victim HTTP/1.1", b"Host: kv", b"Authorization: Bearer $admin", b"Transfer-Encoding: chunked", body=b"2\r\nab\r\n"),
)  # fmt: skip


async def half_body(cluster: Cluster) -> str:
    before = await ask(cluster, request("GET", "/v1/words/victim"))
    endings: set[str] = set()

    async def act(half: bytes) -> None:
        async with await connect(cluster) as wire:
            await wire.send(cluster.spell(half))
            endings.add(await _ending(wire))

    async with trio.open_nursery() as nursery:
        for half in HALVES:
            nursery.start_soon(act, half)
    assert (await ask(cluster, request("GET", "/v1/words/victim"))).headers["etag"] == before.headers["etag"]
    (ending,) = endings
    return ending


async def leave_in_body(cluster: Cluster) -> str:
    before = await ask(cluster, request("GET", "/v1/words/victim"))
    for half in HALVES:
        for leaves in (
            reset,
            lambda stream: stream.socket.close(),
            lambda stream: stream.socket.shutdown(socket.SHUT_WR),
        ):
            async with await connect(cluster) as wire:
                await wire.send(cluster.spell(half))
                leaves(wire.stream)
    assert (await ask(cluster, request("GET", "/v1/words/victim"))).headers["etag"] == before.headers["etag"]
    return "nothing is stored"


async def thousand_idle(cluster: Cluster) -> str:
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(await connect(cluster)) for _ in range(1_000)]
        began = trio.current_time()
        for wire in wires:
            with trio.fail_after(IDLE_TIMEOUT_S + SLACK_S):
                assert await wire.is_closed(), "nothing was said"
        assert trio.current_time() - began >= IDLE_TIMEOUT_S / 2
    return "closed in silence"


async def garbage_in_crowds(cluster: Cluster) -> str:
    async def act() -> str:
        async with await connect(cluster) as wire:
            await wire.send(cluster.spell(request("GET", "/v1/words/good")) * 20 + b"\x00garbage" * 500)
            for _ in range(20):
                assert (await wire.reply()).body == b"good"
            return await _ending(wire)

    return await _in_crowd(300, act)


async def _send_large(cluster: Cluster, wire: Wire, message: Large) -> None:
    for part in cluster.parts(message):
        await wire.send(part)


async def _until_cut(wire: Wire) -> None:
    """Wait until the other end has cut the connection, without reading from it."""
    with trio.fail_after(BODY_TIMEOUT_S + SLACK_S):
        while wire.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            poll = wire.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            if poll[0] != 1:  # TCP_ESTABLISHED
                return
            await trio.sleep(0.05)


async def never_reads_large_value(cluster: Cluster) -> str:
    async with await connect(cluster) as wire:
        await _send_large(cluster, wire, large(VALUE_BYTES_MAX, key="unread"))
        assert (await wire.reply()).status == 200

    async def act() -> str:
        async with await connect(cluster) as wire:
            began = trio.current_time()
            await wire.send(cluster.spell(request("GET", "/v1/words/unread")))
            await _until_cut(wire)
            assert trio.current_time() - began >= BODY_TIMEOUT_S / 2
            return "cut"

    ending = await _in_crowd(10, act)
    assert (await ask(cluster, request("DELETE", "/v1/words/unread"))).status == 204
    return ending


async def never_reads_pipeline(cluster: Cluster) -> str:
    assert (await ask(cluster, put("unread", body=b"x" * INLINE_BYTES))).status == 200

    async def act() -> str:
        async with await connect(cluster) as wire:
            asked = cluster.spell(request("GET", "/v1/words/unread")) * 100
            began = trio.current_time()
            with trio.move_on_after(BODY_TIMEOUT_S + SLACK_S):
                try:
                    while True:
                        await wire.send(asked)
                except trio.BrokenResourceError:
                    assert trio.current_time() - began >= BODY_TIMEOUT_S - 0.1, "cut before its time"
                    return "cut"
            return "still there"

    ending = await _in_crowd(5, act)
    assert (await ask(cluster, request("DELETE", "/v1/words/unread"))).status == 204
    return ending


async def large_bodies_of_strangers(cluster: Cluster) -> str:
    async def act() -> str:
        head = large(VALUE_BYTES_MAX).head.replace(b"$admin", b"nobody")
        async with await connect(cluster) as wire:
            await _send_large(cluster, wire, Large(head, VALUE_BYTES_MAX))  # all of it is read before it is answered
            return await _ending(wire)

    return await _in_crowd(10, act)


PLAYS: dict[str, Play] = {
    play.__name__: play
    for play in (
        drip_head,
        drip_body,
        half_body,
        leave_in_body,
        thousand_idle,
        garbage_in_crowds,
        never_reads_large_value,
        never_reads_pipeline,
        large_bodies_of_strangers,
    )
}
# What takes a node's patience and little else is acted out at the same time, and watched as one.
TOGETHER = frozenset({"drip_head", "drip_body", "half_body", "leave_in_body", "thousand_idle"})
