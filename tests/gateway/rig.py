"""A gateway on a loopback port over a real store, with a node made of the real rules and a unix socket.

`FakeNode` applies writes with `core.apply` to the same store, so that the gateway sees what a node would have persisted. It
can hold its answers, give others, fall silent, or be gone.
"""

import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trio

from kvp2p.config import HttpSettings
from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import ChunkBatch, StampedWrite, WriteGroup
from kvp2p.core.entry import ChunkId, ChunkList, chunk_id, encode_chunk_list
from kvp2p.core.operations import CreateNamespace, Delete, Ending, Operation, Outcome, Put
from kvp2p.core.port import Identity
from kvp2p.core.system_rows import Permission, Token, encode_token, hash_token, token_key
from kvp2p.gateway.server import Gateway
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NamespaceId, NodeId, Stamp, Version
from kvp2p.limits import CHUNK_BYTES
from kvp2p.runtime.listening import open_listener
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.reader import Replica
from kvp2p.store.tables import CHUNKS
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import (
    AwaitVersion,
    EndUpload,
    Hello,
    LocalMessage,
    LocalOutcome,
    Readiness,
    Report,
    StageChunk,
    SubmitWrite,
)

ACCOUNT = AccountId(b"a" * 16)
NAMESPACE = NamespaceId(b"n" * 16)
OTHER_NAMESPACE = NamespaceId(b"o" * 16)
TITLE = "words"
ADMIN, READER, WRITER, RESTRICTED = "admin-token", "reader-token", "writer-token", "restricted-token"
API_URL = "http://127.0.0.1:8788"
MAP_BYTES = 1 << 30
ISSUER = Issuer(b"issuer!!")


class Writer:
    """Applies operations to a store as a leader's group, one stamp after the other."""

    def __init__(self, store: LmdbStore) -> None:
        self.store = store
        self.stamp = 1 << 16
        self.wall_ms = 1

    def write(self, *operations: Operation) -> Outcome:
        write = StampedWrite(Stamp(self.stamp), operations)
        self.stamp += len(operations)
        with self.store.write() as txn:
            return apply_batch(txn, WriteGroup(1, ISSUER, (write,), self.wall_ms)).outcomes[0]

    def put(self, key: bytes, value: bytes, metadata: bytes | None = None, expires_at: int = 0) -> str:
        """Store a value behind the gateway's back; returns its version in hex."""
        version = self.write(Put(NAMESPACE, key, value, metadata, expires_at)).version
        assert version is not None
        return version.hex()

    def stage(self, *chunks: tuple[ChunkId, bytes]) -> None:
        with self.store.write() as txn:
            result = apply_batch(txn, ChunkBatch(tuple(name for name, _ in chunks), chunks))
        assert not result.chunks_refused

    def release(self, *chunks: ChunkId) -> None:
        with self.store.write() as txn:
            apply_batch(txn, ChunkBatch(release=chunks))

    def put_large(self, key: bytes, value: bytes, metadata: bytes | None = None, expires_at: int = 0) -> str:
        """Store a value in chunks behind the gateway's back; returns its version in hex."""
        contents = [value[at : at + CHUNK_BYTES] for at in range(0, len(value), CHUNK_BYTES)]
        names = tuple(map(chunk_id, contents))
        self.stage(*zip(names, contents, strict=True))
        body = encode_chunk_list(ChunkList(len(value), CHUNK_BYTES, names))
        version = self.write(Put(NAMESPACE, key, body, metadata, expires_at, is_chunked=True)).version
        self.release(*names)
        assert version is not None
        return version.hex()

    def chunks(self) -> set[ChunkId]:
        """Return all chunks that the store has the content of."""
        with self.store.read() as txn:
            return {ChunkId(place[:-1]) for place, _ in txn._tables.scan(CHUNKS) if place[-1:] == b"c"}

    def add_token(
        self,
        text: str,
        *permissions: Permission,
        namespaces: frozenset[NamespaceId] | None = None,
        expires_at: int = 0,
        account: AccountId = ACCOUNT,
    ) -> None:
        digest = hash_token(text)
        token = Token(digest, digest.hex()[:16], text, account, frozenset(permissions), namespaces, expires_at, 1)
        self.write(Put(SYSTEM_NAMESPACE, *encode_token(token)))

    def populate(self) -> None:
        """Make two namespaces and a token of each kind."""
        self.add_token(ADMIN, Permission.ADMIN)
        self.add_token(READER, Permission.READ)
        self.add_token(WRITER, Permission.WRITE)
        self.add_token(
            RESTRICTED, Permission.READ, Permission.WRITE, Permission.ADMIN, namespaces=frozenset({NAMESPACE})
        )
        self.write(CreateNamespace(NAMESPACE, ACCOUNT, TITLE))
        self.write(CreateNamespace(OTHER_NAMESPACE, ACCOUNT, "other"))

    def revoke(self, text: str) -> None:
        self.write(Delete(SYSTEM_NAMESPACE, token_key(hash_token(text))))


class FakeNode:
    """Serves `path`. `answer` and `stage_answer` replace the outcomes of writes and chunks; `gate` holds all until it is set."""

    def __init__(self, path: str, writer: Writer) -> None:
        self.path = path
        self.writer = writer
        self.answer: Callable[[SubmitWrite], Outcome | None] | None = None
        self.stage_answer: Callable[[StageChunk], Outcome | None] | None = None
        self.await_answer: Callable[[AwaitVersion], Outcome] = lambda _: Outcome(Ending.ACKED)
        self.gate = trio.Event()
        self.gate.set()
        self.readiness = Readiness(ready=True, reason="")
        self.submitted: list[SubmitWrite] = []
        self.awaited: list[AwaitVersion] = []
        self.staged: list[StageChunk] = []
        self.uploads: dict[int, list[ChunkId]] = {}  # that have not ended
        self.ended_uploads: list[int] = []
        self.reports: list[Report] = []
        self.hello: Hello | None = None
        self._streams: list[trio.SocketStream] = []
        self._sending = trio.Lock()  # what a test pushes must not meet what the node says by itself
        self._scope = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        self._scope = trio.CancelScope()
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(self.path)
        listener.listen()
        with listener, self._scope:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    accepted, _ = await listener.accept()
                    nursery.start_soon(self._serve, trio.SocketStream(accepted))
        # Only a node that was stopped and may be started again comes here.
        await trio.Path(self.path).unlink()

    def stop(self) -> None:
        """End as a killed process does."""
        self._scope.cancel()

    async def push_readiness(self, readiness: Readiness) -> None:
        self.readiness = readiness
        for stream in self._streams:
            await self._send(stream, readiness)

    async def _send(self, stream: trio.SocketStream, *messages: LocalMessage) -> None:
        async with self._sending:
            await stream.send_all(encode_local(messages))

    async def _serve(self, stream: trio.SocketStream) -> None:
        decoder = LocalDecoder()
        self._streams.append(stream)
        try:
            async with stream:
                await self._send(stream, self.readiness)
                while data := await stream.receive_some(65536):
                    answers = [one for message in decoder.feed(data) if (one := self._accept(message)) is not None]
                    if answers:  # a Hello waits for nothing: the gate may be shut before it arrives
                        await self.gate.wait()
                        await self._send(stream, *answers)
        except trio.BrokenResourceError:
            return
        finally:
            self._streams.remove(stream)
            self.uploads.clear()  # those of a connection end with it; there is one at a time

    def _accept(self, message: LocalMessage) -> LocalMessage | None:
        match message:
            case Hello():
                self.hello = message
            case Report():
                self.reports.append(message)
            case SubmitWrite(request=request, operations=operations):
                self.submitted.append(message)
                if self.answer is None:
                    return LocalOutcome(request, self.writer.write(*operations))
                outcome = self.answer(message)
                return None if outcome is None else LocalOutcome(request, outcome)
            case StageChunk(request=request, upload=upload, chunk=chunk, content=content):
                self.staged.append(message)
                if self.stage_answer is not None:
                    outcome = self.stage_answer(message)
                    return None if outcome is None else LocalOutcome(request, outcome)
                self.uploads.setdefault(upload, []).append(chunk)
                self.writer.stage((chunk, content))
                return LocalOutcome(request, Outcome(Ending.ACKED))
            case EndUpload(upload=upload):
                self.ended_uploads.append(upload)
                ended = self.uploads.pop(upload, [])
                kept = {chunk for chunks in self.uploads.values() for chunk in chunks}
                self.writer.release(*[chunk for chunk in ended if chunk not in kept])
            case AwaitVersion(request=request):
                self.awaited.append(message)
                return LocalOutcome(request, self.await_answer(message))
        return None


@dataclass(frozen=True, slots=True)
class Reply:
    """One response."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def code(self) -> str:
        return str(self.error["code"])


class Wire:
    """A client's connection, byte by byte."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = bytearray()
        self._heads: deque[bool] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def ask(self, data: bytes) -> Reply:
        await self.send(data)
        return await self.reply(is_head=data.startswith(b"HEAD "))

    async def reply(self, *, is_head: bool = False) -> Reply:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._more()
        head = self._take(end + 4)[:-4]
        start, *lines = head.decode("ascii").split("\r\n")
        version, status, reason = start.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert len(headers) == len(lines), "a header is repeated"
        if is_head or status in {"100", "204", "304"}:
            return Reply(int(status), reason, headers, b"")
        length = int(headers["content-length"])
        while len(self._buffer) < length:
            await self._more()
        return Reply(int(status), reason, headers, self._take(length))

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return taken

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; tells whether nothing more came before it."""
        rest = bytes(self._buffer)
        try:
            while data := await self.stream.receive_some(65536):
                rest += data
        except trio.BrokenResourceError:
            return False
        return not rest

    def reset_at_close(self) -> None:
        """Let its end be one that nobody can take for a client that only has nothing more to say."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _more(self, bytes_max: int = 65_536) -> None:
        data = await self.stream.receive_some(bytes_max)
        assert data, f"the connection ended, after {bytes(self._buffer[:1_000])!r}"
        self._buffer += data


def request(
    method: str,
    target: str | bytes,
    body: bytes | None = None,
    *,
    token: str | None = ADMIN,
    headers: Mapping[str, str | bytes] | None = None,
) -> bytes:
    """Return the bytes of a request."""
    raw_target = target.encode("ascii") if isinstance(target, str) else target
    lines = [method.encode() + b" " + raw_target + b" HTTP/1.1", b"Host: kv"]
    if token is not None:
        lines.append(b"Authorization: Bearer " + token.encode())
    for name, value in (headers or {}).items():
        lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode("ascii")))
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


@dataclass
class Rig:
    """Everything a test of the gateway needs."""

    port: int
    nursery: trio.Nursery
    gateway: Gateway
    node: FakeNode
    node_port: NodePort
    writer: Writer
    _wires: list[Wire] = field(default_factory=list)

    async def connect(self) -> Wire:
        return Wire(await trio.open_tcp_stream("127.0.0.1", self.port))

    async def ask(self, *args: Any, **kwargs: Any) -> Reply:
        """Ask one request on a connection of its own."""
        async with await self.connect() as wire:
            return await wire.ask(request(*args, **kwargs))

    async def restart_node(self) -> None:
        await until(lambda: not Path(self.node.path).exists())  # the last that a stopped one does
        await self.nursery.start(self.node.run)
        await self.node_port.wait_connected()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; the test's own deadline bounds it."""
    while not holds():  # noqa: ASYNC110  what it waits for has no event: it is seen from outside
        await trio.sleep(0.002)


def make_store(directory: Path, *, complete: bool = True) -> LmdbStore:
    identity = Identity(ClusterId(b"c" * 16), ACCOUNT, NodeId(b"1" * 16), "n1")
    return LmdbStore.create(directory / "store", identity, complete=complete, map_bytes=MAP_BYTES)


@asynccontextmanager
async def rig(
    directory: Path,
    settings: HttpSettings | None = None,
    *,
    populated: bool = True,
    complete: bool = True,
    node_runs: bool = True,
    ready_lag_ms_max: int | None = None,
) -> AsyncIterator[Rig]:
    """Run a gateway for the length of a block."""
    with make_store(directory, complete=complete) as store, Replica(directory) as replica:
        writer = Writer(store)
        if populated:
            writer.populate()
        async with trio.open_nursery() as nursery:
            node = FakeNode(str(directory / "node.sock"), writer)
            if node_runs:
                await nursery.start(node.run)
            port = NodePort(node.path, "gateway")
            listener = open_listener("127.0.0.1", 0, backlog=64, is_shared=True)
            gateway = Gateway(nursery, [listener], replica, port, settings or HttpSettings(), API_URL, ready_lag_ms_max)
            await nursery.start(port.run)
            gateway.start()
            if node_runs:
                await port.wait_connected()
                await until(lambda: port.readiness == node.readiness)
            yield Rig(listener.getsockname()[1], nursery, gateway, node, port, writer)
            nursery.cancel_scope.cancel()


def hex_version(stamp: int) -> str:
    """Return a version that nobody has issued yet, in hex."""
    return (b"\x00\x00\x00\x01" + stamp.to_bytes(8, "big") + ISSUER).hex()


def version_of(text: str) -> Version:
    return Version(bytes.fromhex(text))
