"""A client process that moves values of 25 MiB over HTTP, streamed: it holds no value whole, and no two values share a piece.

Takes one JSON document as its argument. Prints a line when it has connected and another, JSON, with what came of each request.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import trio

# A part of a chunk. Chunks of equal content are stored once, so each piece begins with a number of its own.
PIECE_BYTES = 65_536
HEAD_BYTES_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request. `body` is the beginning of what was answered."""

    status: int
    seconds: float
    body_bytes: int
    body: str


class Mover:
    """One connection."""

    def __init__(self, task: Mapping[str, Any], noise: bytes) -> None:
        self._authority = urlsplit(task["data_url"]).netloc
        self._head = f"HTTP/1.1\r\nHost: {self._authority}\r\nAuthorization: Bearer {task['token']}\r\n"
        self._namespace = task["namespace"]
        self._value_bytes = int(task["value_bytes"])
        self._noise = noise
        self._stream: trio.SocketStream

    async def connect(self) -> None:
        host, _, port = self._authority.partition(":")
        self._stream = await trio.open_tcp_stream(host, int(port))

    async def put(self, key: str, number: int) -> Answer:
        """Write the value of a number."""
        began = time.perf_counter()
        head = f"PUT /v1/{self._namespace}/{key} {self._head}Content-Length: {self._value_bytes}\r\n\r\n"
        await self._stream.send_all(head.encode("ascii"))
        for piece in range(self._value_bytes // PIECE_BYTES):
            await self._stream.send_all(number.to_bytes(8, "big") + piece.to_bytes(8, "big") + self._noise)
        return await self._answer(began)

    async def get(self, key: str) -> Answer:
        """Read a value, and drop it piece by piece."""
        began = time.perf_counter()
        await self._stream.send_all(f"GET /v1/{self._namespace}/{key} {self._head}\r\n".encode("ascii"))
        return await self._answer(began)

    async def _answer(self, began: float) -> Answer:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await self._stream.receive_some(HEAD_BYTES_MAX)
            if not more or len(data) > HEAD_BYTES_MAX:
                raise SystemExit(f"large_client: no answer but {data[:200]!r}")
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        received, length = len(body), int(headers["content-length"])
        while received < length:
            more = await self._stream.receive_some(PIECE_BYTES)
            if not more:
                raise SystemExit(f"large_client: the answer ended after {received} of {length} bytes")
            received += len(more)
        return Answer(int(lines[0].split()[1]), time.perf_counter() - began, received, body[:300].decode("latin-1"))


async def move(task: Mapping[str, Any]) -> list[Answer]:
    """Do what the task says: `put` or `get`, `at_once` on as many connections, `count` each or for `seconds`."""
    noise = os.urandom(PIECE_BYTES - 16)
    movers = [Mover(task, noise) for _ in range(task["at_once"])]
    for mover in movers:
        await mover.connect()
    print("connected", flush=True)
    ends_at = time.monotonic() + task.get("seconds", 1e9)
    answers: list[Answer] = []

    async def work(index: int, mover: Mover) -> None:
        number = 0
        while number < task["count"] and time.monotonic() < ends_at:
            key = f"large/{index}/{number % task['keys']}"
            value = task["first"] + index * task["count"] + number
            answers.append(await (mover.put(key, value) if task["kind"] == "put" else mover.get(key)))
            number += 1

    async with trio.open_nursery() as nursery:
        for index, mover in enumerate(movers):
            nursery.start_soon(work, index, mover)
    return answers


if __name__ == "__main__":
    print(json.dumps([asdict(answer) for answer in trio.run(move, json.loads(sys.argv[1]))]))
