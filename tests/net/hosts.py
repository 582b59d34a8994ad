"""Meshes for tests: a host that records, nodes that start and stop, and a wire that can go dead."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import trio

from kvp2p.core.messages import Message, Pull
from kvp2p.ids import ClusterId, Issuer, NodeId, Stamp
from kvp2p.net.link import Link
from kvp2p.net.mesh import Mesh
from kvp2p.net.settings import MeshSettings

KEY = b"k" * 32
CLUSTER = ClusterId(b"c" * 16)
QUICK = MeshSettings(
    ping_interval_ms=100,
    link_timeout_ms=2_000,
    handshake_timeout_ms=2_000,
    backoff_ms_min=10,
    backoff_ms_max=100,
    link_settled_ms=200,
)
WAIT_SECONDS = 10


def node_id(name: str) -> NodeId:
    return NodeId(name.encode().ljust(16, b"."))


def numbered(number: int) -> Pull:
    return Pull(1, Issuer(b"issuer00"), Stamp(number), 1)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that announces itself to nobody."""
    with trio.fail_after(WAIT_SECONDS):
        while not is_so():  # noqa: ASYNC110  see above
            await trio.sleep(0.01)


class RecordingHost:
    """Writes down what it is told, and checks as it goes that ups and downs alternate with messages in between."""

    def __init__(self) -> None:
        self.story: list[tuple[str, NodeId]] = []
        self.messages: list[Message] = []
        self.reasons: list[str] = []
        self.up: set[NodeId] = set()
        self.ups = 0
        self.gate: trio.Event | None = None  # while it is not set, messages are not taken
        self._changed = trio.Event()

    async def on_link_up(self, peer: NodeId, link: Link) -> None:
        await trio.lowlevel.checkpoint()
        assert peer not in self.up
        assert link.peer == peer
        self.up.add(peer)
        self.ups += 1
        self._note("up", peer)

    async def on_link_down(self, peer: NodeId, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        assert peer in self.up
        assert reason
        self.reasons.append(reason)
        self.up.remove(peer)
        self._note("down", peer)

    async def on_messages(self, peer: NodeId, messages: Sequence[Message]) -> None:
        assert peer in self.up
        if self.gate is not None:
            await self.gate.wait()
        for message in messages:
            self.messages.append(message)
            self._note("message", peer)

    def _note(self, word: str, peer: NodeId) -> None:
        self.story.append((word, peer))
        self._changed.set()
        self._changed = trio.Event()

    async def until_up(self, *peers: NodeId) -> None:
        with trio.fail_after(WAIT_SECONDS):
            while not self.up.issuperset(peers):
                await self._changed.wait()

    async def until_down(self, *peers: NodeId) -> None:
        with trio.fail_after(WAIT_SECONDS):
            while not self.up.isdisjoint(peers):
                await self._changed.wait()

    async def until_messages(self, count: int) -> None:
        with trio.fail_after(WAIT_SECONDS):
            while len(self.messages) < count:
                await self._changed.wait()


class Node:
    """A mesh with its host. `stop` ends it at once, as a killed process does."""

    def __init__(
        self,
        name: str,
        *,
        settings: MeshSettings = QUICK,
        key: bytes = KEY,
        cluster: ClusterId = CLUSTER,
        host: RecordingHost | None = None,
    ) -> None:
        self.id = node_id(name)
        self.host = host or RecordingHost()
        self.mesh = Mesh(cluster=cluster, node=self.id, key=key, host=self.host, settings=settings, random=Random(name))
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.mesh.port}"

    async def run(self, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self._scope:
                await self.mesh.run("127.0.0.1", port, task_status=task_status)
        finally:
            self._stopped.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()


async def start(nursery: trio.Nursery, node: Node, port: int = 0) -> Node:
    await nursery.start(node.run, port)
    return node


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await start(nursery, node)
        yield nursery
        nursery.cancel_scope.cancel()


class Wire:
    """A TCP forwarder. While `is_dead`, it swallows everything and tells nobody: what a pulled cable looks like. `rate_bytes` a second pass."""

    def __init__(self, port: int) -> None:
        self.is_dead = False
        self.rate_bytes = math.inf
        self.port = 0
        self._target = port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._forward, 0)
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started()

    async def _forward(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._target)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far)
            nursery.start_soon(self._pump, far, near)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(65_536):
                for at in range(0, len(data), 1_024):
                    await trio.sleep(1_024 / self.rate_bytes)
                    if not self.is_dead:
                        await sink.send_all(data[at : at + 1_024])
            if not self.is_dead:
                await sink.send_eof()
        except trio.BrokenResourceError:
            if not self.is_dead:
                await trio.aclose_forcefully(sink)
        if self.is_dead:
            await trio.sleep_forever()


@asynccontextmanager
async def linked_by_wire(dialler: Node, other: Node) -> AsyncIterator[Wire]:
    """Run two nodes that are linked, the first having dialled the second over a wire."""
    async with running(dialler, other) as nursery:
        wire = Wire(other.mesh.port)
        await nursery.start(wire.run)
        dialler.mesh.connect(other.id, wire.url)
        await dialler.host.until_up(other.id)
        await other.host.until_up(dialler.id)
        yield wire
