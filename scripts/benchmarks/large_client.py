"""A client process that moves large values over HTTP, streamed: it holds no value whole, and no two values share a piece.

Takes one JSON document as its argument. Prints a line when it has connected and another, JSON, with what came of each request. What is refused
with 429 or 503 is asked again after as long as the answer says, as any client would; how often is told.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import trio

# A part of a chunk. Chunks of equal content are stored once, so each piece begins with a number of its own.
PIECE_BYTES = 65_536
HEAD_BYTES_MAX = 16_384
ASKED_AGAIN_MAX = 20


class Answer(NamedTuple):
    """What came of one request. `beginning` is that of the body."""

    status: int
    headers: Mapping[str, str]
    body_bytes: int
    beginning: bytes


class Connection:
    """One connection."""

    def __init__(self, task: Mapping[str, Any], noise: bytes) -> None:
        self._authority = urlsplit(task["data_url"]).netloc
        self._head = f"HTTP/1.1\r\nHost: {self._authority}\r\nAuthorization: Bearer {task['token']}\r\n"
        self._namespace = task["namespace"]
        self._value_bytes = int(task["value_bytes"])
        self._noise = noise
        self._stream: trio.SocketStream

    async def open(self) -> None:
        host, _, port = self._authority.partition(":")
        self._stream = await trio.open_tcp_stream(host, int(port))

    async def put(self, key: str, number: int) -> Answer:
        """Write the value of a number."""
        head = f"PUT /v1/{self._namespace}/{key} {self._head}Content-Length: {self._value_bytes}\r\n\r\n"
        await self._stream.send_all(head.encode("ascii"))
        for at in range(0, self._value_bytes, PIECE_BYTES):
            piece = number.to_bytes(8, "big") + at.to_bytes(8, "big") + self._noise
            await self._stream.send_all(piece[: self._value_bytes - at])
        return await self._answer()

    async def get(self, key: str) -> Answer:
        """Read a value, and drop it piece by piece."""
        await self._stream.send_all(f"GET /v1/{self._namespace}/{key} {self._head}\r\n".encode("ascii"))
        return await self._answer()

    async def _answer(self) -> Answer:
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
            if received < HEAD_BYTES_MAX:
                body += more
            received += len(more)
        return Answer(int(lines[0].split()[1]), headers, received, body[:HEAD_BYTES_MAX])


async def move(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Do what the task says: `put` or `get`, `at_once` on as many connections, `count` each or for `seconds`."""
    noise = os.urandom(PIECE_BYTES - 16)
    connections = [Connection(task, noise) for _ in range(task["at_once"])]
    for connection in connections:
        await connection.open()
    print("connected", flush=True)
    ends_at = time.monotonic() + task.get("seconds", 1e9)
    moved: list[dict[str, Any]] = []

    async def work(index: int, connection: Connection) -> None:
        for number in range(task["count"]):
            if number and time.monotonic() >= ends_at:
                break
            value = task["first"] + index * task["count"] + number
            moved.append(await _move_one(task, connection, f"large/{index}/{number % task['keys']}", value))

    async with trio.open_nursery() as nursery:
        for index, connection in enumerate(connections):
            nursery.start_soon(work, index, connection)
    return moved


async def _move_one(task: Mapping[str, Any], connection: Connection, key: str, value: int) -> dict[str, Any]:
    """Move one value and return what `Moved` says of it."""
    began = time.perf_counter()
    refused = 0
    while True:
        answer = await (connection.put(key, value) if task["kind"] == "put" else connection.get(key))
        if answer.status not in {429, 503} or refused == ASKED_AGAIN_MAX:
            break
        refused += 1
        await trio.sleep(float(answer.headers.get("retry-after", "1")))
    if answer.status != 200:
        raise SystemExit(f"large_client: {task['kind']} of {key} was answered {answer.status} {answer.beginning!r}")
    is_put = task["kind"] == "put"
    return {
        "key": key,
        "version": json.loads(answer.beginning)["version"] if is_put else "",
        "value_bytes": int(task["value_bytes"]) if is_put else answer.body_bytes,
        "seconds": time.perf_counter() - began,
        "ended_ns": time.monotonic_ns(),
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(trio.run(move, json.loads(sys.argv[1]))))
