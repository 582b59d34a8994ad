"""What a bare websocket carries between two processes of this machine: trio-websocket on loopback, nothing of ours around it.

Messages have the size of the mesh's largest. A client masks what it sends (RFC 6455, section 5.3) and a server does not, so both directions
are measured; the faster one is what others are compared with.

As a program it is the other process: it listens, says its port, and serves one connection after the other.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, open_websocket, serve_websocket

from kvp2p.limits import MESH_MESSAGE_BYTES_MAX
from scripts.benchmarks.results import ROOT, CannotMeasure

MESSAGE = bytes(range(256)) * (MESH_MESSAGE_BYTES_MAX // 256)


@contextmanager
def other_end() -> Iterator[int]:
    """Run the other process for the length of a block; gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.benchmarks.websocket"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise CannotMeasure("the websocket's other process did not start, see above")
        yield int(line)
    finally:
        process.kill()
        process.communicate()


def mb_per_s(port: int, megabytes: int) -> tuple[float, float]:
    """Return MB/s (10^6 bytes of payload) from server to client and from client to server, each for so much."""
    count = max(1, megabytes * 1_000_000 // len(MESSAGE))
    return trio.run(_transfer, port, count)


async def _transfer(port: int, count: int) -> tuple[float, float]:
    async with open_websocket("127.0.0.1", port, f"/{count}", use_ssl=False) as websocket:
        await websocket.send_message(b"go")
        began = time.perf_counter()
        for _ in range(count):
            await websocket.get_message()
        down_s = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(count):
            await websocket.send_message(MESSAGE)
        await websocket.get_message()  # all of it has arrived
        up_s = time.perf_counter() - began
    megabytes = count * len(MESSAGE) / 1e6
    return megabytes / down_s, megabytes / up_s


async def _serve_one(request: WebSocketRequest) -> None:
    count = int(request.path[1:])
    websocket: WebSocketConnection = await request.accept()
    try:
        await websocket.get_message()
        for _ in range(count):
            await websocket.send_message(MESSAGE)
        for _ in range(count):
            await websocket.get_message()
        await websocket.send_message(b"done")
        await websocket.get_message()  # until the client closes
    except ConnectionClosed:
        return


async def _serve() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_websocket, _serve_one, "127.0.0.1", 0, None)
        server = await nursery.start(serve)
        print(server.port, flush=True)


if __name__ == "__main__":
    trio.run(_serve)
