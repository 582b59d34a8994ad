"""Large values on real nodes: whole at every node, of one version, and no matter how many at once."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from kvp2p.limits import CHUNK_BYTES, HTTP_BODY_BYTES_HELD_MAX, HTTP_STREAMS_MAX, VALUE_BYTES_MAX

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
# Each seen to grow by 6 MiB at most: chunks that the gateway has handed in, or that are pulled for writes and rows, at most 16 and a few.
NODE_GROWN_KIB_MAX = 12 * 1024
pytestmark = pytest.mark.slow


def cluster(directory: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "cluster.py"), *arguments, "--dir", str(directory)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=90).stdout


@dataclass
class Nodes:
    """Three nodes with a gateway each, and a namespace `large`."""

    urls: list[str]
    gateways: list[int]
    node_processes: list[int]
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def ask(self, method: str, node: int, key: str, **arguments: Any) -> httpx.Response:
        headers = {**self.headers, **arguments.pop("headers", {})}
        url = f"{self.urls[node - 1]}/v1/large/{key}"
        return httpx.request(method, url, headers=headers, timeout=60, trust_env=False, **arguments)

    def put(self, node: int, key: str, value: bytes) -> str:
        reply = self.ask("PUT", node, key, content=value)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["version"])

    def get(self, node: int, key: str, version: str) -> bytes:
        """Read a value that a node may not have whole yet."""
        for _ in range(20):
            reply = self.ask("GET", node, key, headers={"KV-Min-Version": version})
            if reply.status_code != 503:
                assert (reply.status_code, reply.headers["kv-version"]) == (200, version)
                return reply.content
        raise AssertionError(f"node {node} has not caught up")

    def address(self, node: int) -> tuple[str, int]:
        host, _, port = self.urls[node - 1].removeprefix("http://").partition(":")
        return host, int(port)

    def request(self, method: str, key: str, length: int | None = None) -> bytes:
        lines = [f"{method} /v1/large/{key} HTTP/1.1", "Host: kv", f"Authorization: Bearer {self.token}"]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    directory = tmp_path_factory.mktemp("large")
    try:
        started = json.loads(cluster(directory, "start", "--nodes", "3", "--gateways", "1", "--json"))
        told = json.loads(cluster(directory, "status", "--json"))["nodes"]
        made = Nodes(
            [one["data_url"] for one in told],
            [one["pids"]["gateways"][0] for one in told],
            [one["pids"]["node"] for one in told],
            started["admin_token"],
        )
        url = f"{made.urls[0]}/v1/large"
        assert httpx.put(url, headers=made.headers, trust_env=False).status_code == 201
        yield made
    finally:
        cluster(directory, "stop")


def anonymous_kib(process: int) -> int:
    """Return the memory of a process that is not a part of a file."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("the kernel does not tell RssAnon")


class Memory:
    """How many KiB the gateways and the node processes have grown by since they were looked at first: the most that was seen."""

    def __init__(self, nodes: Nodes) -> None:
        self._processes = nodes.gateways + nodes.node_processes
        self._before = [anonymous_kib(one) for one in self._processes]
        self._most = self._before

    def look(self) -> None:
        self._most = [max(most, anonymous_kib(one)) for most, one in zip(self._most, self._processes, strict=True)]

    async def watch(self) -> None:
        while True:
            self.look()
            await trio.sleep(0.02)

    @property
    def grown(self) -> tuple[list[int], list[int]]:
        """Of the gateways and of the node processes, in the nodes' order."""
        grown = [most - before for most, before in zip(self._most, self._before, strict=True)]
        return grown[: len(grown) // 2], grown[len(grown) // 2 :]


def test_largest_value_is_whole_at_every_node_and_one_byte_more_is_413(nodes: Nodes) -> None:
    value = os.urandom(VALUE_BYTES_MAX)
    version = nodes.put(2, "most", value)
    for node in (2, 3, 1):
        assert nodes.get(node, "most", version) == value
    more = value + b"!"
    for content in (more, iter([more[:MIB], more[MIB:]])):  # with a length, and without
        reply = nodes.ask("PUT", 2, "most", content=content)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "value_too_large")
        assert f"has {VALUE_BYTES_MAX + 1} bytes;" in reply.json()["error"]["message"]
    assert nodes.ask("HEAD", 3, "most").headers["kv-version"] == version
    assert nodes.ask("DELETE", 3, "most").status_code == 204


def test_large_value_expires_like_any_other(nodes: Nodes) -> None:
    value = os.urandom(2 * CHUNK_BYTES)
    began = int(time.time())
    reply = nodes.ask("PUT", 2, "ends", content=value, headers={"KV-Expires-In": "60"})
    version = reply.json()["version"]
    assert nodes.get(3, "ends", version) == value
    assert began + 60 <= int(nodes.ask("HEAD", 3, "ends").headers["kv-expires-at"]) <= int(time.time()) + 61
    assert nodes.ask("PUT", 2, "ends", content=value, headers={"KV-Expires-At": str(began + 1)}).status_code == 400
    assert nodes.ask("DELETE", 1, "ends").status_code == 204


def test_slow_reader_gets_the_old_value_whole_while_it_is_replaced(nodes: Nodes) -> None:
    old = os.urandom(20 * MIB)
    version = nodes.put(2, "k", old)
    assert nodes.get(3, "k", version) == old
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.connect(nodes.address(3))
        slow.sendall(nodes.request("GET", "k"))
        received = bytearray(slow.recv(1_000))
        for _ in range(3):
            new = os.urandom(MIB)
            version = nodes.put(1, "k", new)
            assert nodes.get(3, "k", version) == new
        while len(received) < received.find(b"\r\n\r\n") + 4 + len(old):
            data = slow.recv(MIB)
            assert data, "the value was cut"
            received += data
    assert received.partition(b"\r\n\r\n")[2] == old


def repeated_value(chunks: int) -> bytes:
    """Return a value of one chunk again and again, which is stored once: this is about memory, and not about the disk."""
    return os.urandom(CHUNK_BYTES) * chunks


@pytest.mark.deadline_s(60)
@pytest.mark.parametrize("node", [1, 2], ids=["leader", "follower"])
async def test_fifty_slow_readers_at_once_take_a_chunk_each(nodes: Nodes, node: int) -> None:
    assert HTTP_STREAMS_MAX >= 50
    value = repeated_value(40)
    assert nodes.get(node, "shared", nodes.put(1, "shared", value)) == value
    memory = Memory(nodes)
    streams = [await trio.open_tcp_stream(*nodes.address(node)) for _ in range(50)]
    for stream in streams:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await stream.send_all(nodes.request("GET", "shared"))
        assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
    await trio.sleep(1)
    memory.look()

    async def read(stream: trio.SocketStream) -> None:
        async with stream:
            received = bytearray()
            while len(received) < received.find(b"\r\n\r\n") + 4 + len(value):
                received += await stream.receive_some(MIB)
            assert received.partition(b"\r\n\r\n")[2] == value

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(read, stream)
    gateways, node_processes = memory.grown
    assert max(gateways) == gateways[node - 1] < 2 * 50 * CHUNK_BYTES // 1024
    assert max(node_processes) < 1024, "a node has no part in what is read"


@pytest.mark.deadline_s(60)
@pytest.mark.parametrize("node", [1, 2], ids=["leader", "follower"])
async def test_fifty_large_writes_at_once_take_bounded_memory(nodes: Nodes, node: int) -> None:
    values = [os.urandom(4 * CHUNK_BYTES) * 4 for _ in range(50)]
    memory = Memory(nodes)
    statuses: list[bytes] = []

    async def put(number: int) -> None:
        value = values[number]
        stream = await trio.open_tcp_stream(*nodes.address(node))
        async with stream:
            await stream.send_all(nodes.request("PUT", f"many/{number}", len(value)))
            for at in range(0, len(value), 100_000):
                await stream.send_all(value[at : at + 100_000])
            statuses.append((await stream.receive_some(4_096))[:12])

    async with trio.open_nursery() as watching:
        watching.start_soon(memory.watch)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(put, number)
        watching.cancel_scope.cancel()
    assert statuses == [b"HTTP/1.1 200"] * 50
    gateways, node_processes = memory.grown
    # What is counted, and a quarter more for the copies that are being made and what the allocator keeps.
    assert max(gateways) == gateways[node - 1] < HTTP_BODY_BYTES_HELD_MAX * 5 // 4 // 1024
    assert max(node_processes) < NODE_GROWN_KIB_MAX
    assert sum(map(len, values)) > 3 * HTTP_BODY_BYTES_HELD_MAX, "else this would show nothing"
