"""What the tests of driver, store writer and node share: stores that wait, fake links, and a mesh of drivers in one trio run."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
import trio.testing

from kvp2p.core.chunk_rows import shown_row
from kvp2p.core.entry import (
    ChunkId,
    ChunkList,
    chunk_id,
    decode_chunk_list,
    decode_row,
    encode_chunk_list,
    is_chunked,
)
from kvp2p.core.messages import Designation, Member, Message
from kvp2p.core.operations import CreateNamespace, Ending, Operation, Outcome, Put
from kvp2p.core.port import Identity
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.vector import VersionVector
from kvp2p.errors import LinkClosed
from kvp2p.ids import AccountId, ClusterId, Issuer, NamespaceId, NodeId
from kvp2p.limits import CHUNK_BYTES
from kvp2p.runtime.driver import ReplicaDriver
from kvp2p.store.layout_writer import LayoutWriter
from kvp2p.store.lmdb_store import LmdbStore

ACCOUNT = AccountId(b"a" * 16)
NAMESPACE = NamespaceId(b"s" * 16)
MAP_BYTES = 1 << 28
QUICK = ReplicaSettings(
    digest_busy_ms=20,
    digest_idle_ms=60,
    busy_ms=200,
    pull_grace_ms=20,
    pull_timeout_ms=300,
    walk_timeout_ms=1_000,
    first_contact_ms=100,
    hold_ms=300,
)


async def until(condition: Callable[[], bool]) -> None:
    """Poll, within the deadline of the test."""
    while not condition():  # noqa: ASYNC110  what is waited for is in another object's hands
        await trio.sleep(0.005)


class GatedStore(LmdbStore):
    """A store on a disk that can be told to wait, and to fail."""

    gate: threading.Event
    failure: Exception | None = None
    began = 0

    def close_gate(self) -> None:
        """Let write transactions wait until `open_gate`."""
        self.gate.clear()

    def open_gate(self) -> None:
        self.gate.set()

    @contextmanager
    def write(self, *, into_reserve: bool = False) -> Iterator[LayoutWriter]:
        self.began += 1
        assert self.gate.wait(10), "the test never opened the gate"
        if self.failure is not None:
            raise self.failure
        with super().write(into_reserve=into_reserve) as txn:
            yield txn


def identity_of(node: NodeId) -> Identity:
    return Identity(ClusterId(b"c" * 16), ACCOUNT, node, node[:1].decode())


def make_store(
    path: Path,
    node: NodeId,
    *,
    leader: NodeId | None = None,
    complete: bool = True,
    free: Callable[[], int] | None = None,
) -> GatedStore:
    """Make a store; `leader` is the node that leadership was given to, None when this store has not heard of any."""
    designation = None if leader is None else Designation(1, Issuer(b"\x01" * 8), leader)
    LmdbStore.create(path, identity_of(node), complete=complete, designation=designation, map_bytes=MAP_BYTES).close()
    store = GatedStore.open(path, map_bytes=MAP_BYTES, free=free)
    assert isinstance(store, GatedStore)
    store.gate = threading.Event()
    store.gate.set()
    return store


def member_of(node: NodeId) -> Member:
    url = f"ws://{node[:1].decode()}/mesh"
    return Member(node, 1, node[:1].decode(), url, "http://127.0.0.1:1", "http://127.0.0.1:2")


def a_put(key: bytes, value: bytes = b"value") -> tuple[Operation, ...]:
    return (Put(NAMESPACE, key, value),)


def in_ms(milliseconds: int) -> int:
    """Return the reading of CLOCK_MONOTONIC so much later."""
    return time.monotonic_ns() + milliseconds * 1_000_000


async def write(driver: ReplicaDriver, operations: tuple[Operation, ...], deadline_ms: int = 5_000) -> Outcome:
    """Write and wait for the outcome; a second one of the same write fails."""
    ended = trio.Event()
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        ended.set()

    await driver.write(operations, in_ms(deadline_ms), tell)
    await ended.wait()
    assert len(outcomes) == 1, "a write has one outcome"
    return outcomes[0]


async def make_namespace(driver: ReplicaDriver) -> Outcome:
    """Wait until the node leads, its issuer being durable, and write."""
    await until(lambda: driver.machine.leadership.writer is not None)
    return await write(driver, (CreateNamespace(NAMESPACE, ACCOUNT, "things"),))


def has_key(store: LmdbStore, key: bytes) -> bool:
    with store.read() as txn:
        return txn.row(NAMESPACE, key) is not None


def state_of(store: LmdbStore) -> tuple[VersionVector, list[tuple[NamespaceId, bytes, bytes]]]:
    """Return the vector and every row."""
    with store.read() as txn:
        return txn.vector, list(txn.all_rows())


class FakeDialler:
    """Notes what the driver asked of the mesh."""

    def __init__(self) -> None:
        self.dialled: list[tuple[NodeId | None, str]] = []
        self.disconnected: list[tuple[NodeId, str]] = []

    def connect(self, node: NodeId | None, url: str) -> None:
        self.dialled.append((node, url))

    def disconnect(self, peer: NodeId, reason: str) -> None:
        self.disconnected.append((peer, reason))


class FakeLink:
    """One end of a link, for a driver without a peer: keeps what was sent, refuses types that it is told to refuse."""

    def __init__(self, *refuses: type) -> None:
        self.refuses = refuses
        self.sent: list[Message] = []
        self.is_closed = False
        self.room = trio.Event()
        self.room.set()

    def try_send(self, message: Message) -> bool:
        if self.is_closed or isinstance(message, self.refuses):
            return False
        self.sent.append(message)
        return True

    async def send(self, message: Message) -> None:
        await self.room.wait()
        if self.is_closed:
            raise LinkClosed("the link has ended")
        self.sent.append(message)

    def sent_of(self, kind: type) -> list[Message]:
        return [message for message in self.sent if isinstance(message, kind)]


@asynccontextmanager
async def running(driver: ReplicaDriver) -> AsyncIterator[None]:
    """Run a driver."""
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        yield
        nursery.cancel_scope.cancel()


class Node:
    """A driver in the fake mesh."""

    def __init__(self, mesh: "FakeMesh", store: GatedStore, node: NodeId, seeds: tuple[str, ...]) -> None:
        self.node = node
        self.store = store
        self.driver = ReplicaDriver(store, QUICK, member_of(node), seeds)
        self.driver.dialler = _NodeDialler(mesh, self)
        self.scope = trio.CancelScope()
        self.is_up = False

    @property
    def leads(self) -> bool:
        return self.driver.machine.leadership.writer is not None


class _NodeDialler:
    def __init__(self, mesh: "FakeMesh", node: Node) -> None:
        self._mesh = mesh
        self._node = node

    def connect(self, node: NodeId | None, url: str) -> None:
        self._mesh.dial(self._node, url)

    def disconnect(self, peer: NodeId, reason: str) -> None:
        self._mesh.cut(self._node.node, peer)


class _End:
    """The sending half of one direction of a link between two drivers."""

    def __init__(self, mesh: "FakeMesh", source: Node, target: Node) -> None:
        self._mesh = mesh
        self.source = source
        self.target = target
        self.sender, self.receiver = trio.open_memory_channel[Message](10_000)
        self.is_closed = False

    def try_send(self, message: Message) -> bool:
        if self.is_closed:
            return False
        if not self._mesh.loses(self.source.node, self.target.node, message):
            self.sender.send_nowait(message)
        return True

    async def send(self, message: Message) -> None:
        if not self.try_send(message):
            raise LinkClosed("the link has ended")
        await trio.lowlevel.checkpoint()


class FakeMesh:
    """Drivers with their real stores, linked in memory. A message is delivered in order, or lost if `loses` says so."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nodes: dict[NodeId, Node] = {}
        self.loses: Callable[[NodeId, NodeId, Message], bool] = lambda source, target, message: False
        self.delivered: list[tuple[NodeId, NodeId, Message]] = []
        self._nursery = nursery
        self._links: dict[frozenset[NodeId], tuple[trio.CancelScope, _End, _End]] = {}

    async def start(self, store: GatedStore, node: NodeId, *seeds: NodeId) -> Node:
        """Start a driver that dials the given nodes."""
        made = Node(self, store, node, tuple(member_of(seed).mesh_url for seed in seeds))
        self.nodes[node] = made
        await self._nursery.start(self._run, made)
        return made

    async def stop(self, node: Node) -> None:
        """End a driver as if its process died; its peers are told, as a closed connection tells them."""
        node.is_up = False
        for pair in [pair for pair in self._links if node.node in pair]:
            self.cut(*pair)
        node.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    def dial(self, source: Node, url: str) -> None:
        for target in self.nodes.values():
            pair = frozenset((source.node, target.node))
            if target is not source and member_of(target.node).mesh_url == url and pair not in self._links:
                there, back = _End(self, source, target), _End(self, target, source)
                self._links[pair] = (trio.CancelScope(), there, back)
                self._nursery.start_soon(self._carry, pair)

    def cut(self, one: NodeId, other: NodeId) -> None:
        link = self._links.get(frozenset((one, other)))
        if link is not None:
            link[0].cancel()

    async def _run(self, node: Node, task_status: trio.TaskStatus[None]) -> None:
        with node.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.driver.run)
                node.is_up = True
                task_status.started()

    async def _carry(self, pair: frozenset[NodeId]) -> None:
        scope, there, back = self._links[pair]
        with scope:
            for end in (there, back):
                await end.source.driver.on_link_up(end.target.node, end)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver, there)
                nursery.start_soon(self._deliver, back)
        del self._links[pair]
        for end in (there, back):
            end.is_closed = True
        for end in (there, back):
            if end.source.is_up:
                await end.source.driver.on_link_down(end.target.node, "cut")

    async def _deliver(self, end: _End) -> None:
        async for message in end.receiver:
            await end.target.driver.on_messages(end.source.node, [message])
            self.delivered.append((end.source.node, end.target.node, message))


@asynccontextmanager
async def fake_mesh() -> AsyncIterator[FakeMesh]:
    """Give a mesh; every driver ends with it."""
    async with trio.open_nursery() as nursery:
        yield FakeMesh(nursery)
        nursery.cancel_scope.cancel()


def chunked_put(
    key: bytes, value: bytes, chunk_bytes: int
) -> tuple[tuple[Operation, ...], list[tuple[ChunkId, bytes]]]:
    """Return the write of a large value, and its chunks with their ids."""
    contents = [value[at : at + chunk_bytes] for at in range(0, len(value), chunk_bytes)]
    chunks = [(chunk_id(content), content) for content in contents]
    body = encode_chunk_list(ChunkList(len(value), chunk_bytes, tuple(chunk for chunk, _ in chunks)))
    return (Put(NAMESPACE, key, body, is_chunked=True),), chunks


async def upload(driver: ReplicaDriver, chunks: list[tuple[ChunkId, bytes]]) -> int:
    """Send the chunks of a value as a gateway does, one at a time, and return the number of the upload."""
    number = driver.new_upload()
    for chunk, content in chunks:
        told = trio.Event()
        outcomes: list[Outcome] = []

        def tell(outcome: Outcome, told: trio.Event = told, outcomes: list[Outcome] = outcomes) -> None:
            outcomes.append(outcome)
            told.set()

        await driver.stage_chunk(number, chunk, content, tell)
        await told.wait()
        assert outcomes == [Outcome(Ending.ACKED)]
    return number


async def write_large(driver: ReplicaDriver, key: bytes, value: bytes, deadline_ms: int = 30_000) -> Outcome:
    """Send a large value and wait for its outcome."""
    operations, chunks = chunked_put(key, value, CHUNK_BYTES)
    number = await upload(driver, chunks)
    outcome = await write(driver, operations, deadline_ms)
    driver.end_upload(number)
    return outcome


def large_value(store: LmdbStore, key: bytes) -> bytes | None:
    """Return the chunked value that readers see at a key, put together; None when they see none."""
    with store.read() as txn:
        row = shown_row(txn, NAMESPACE, key)
        if row is None or not is_chunked(row):
            return None
        contents = [txn.chunk(chunk) for chunk in decode_chunk_list(decode_row(NAMESPACE, key, row).value).ids]
    return b"".join(content for content in contents if content is not None)


def chunks_kept(store: LmdbStore) -> int:
    """Return how many chunks a store has or wants."""
    with store.read() as txn:
        return sum(1 for _ in txn.chunk_states())
