"""A cluster of real machines on memory stores, moved by hand: who is linked, what arrives, what is on the disk, what time it is.

A test reads like a play: `cluster.link("a", "b")`, `a.write(put(b"k", b"v"))`, `cluster.settle()`. Peers that are not in the cluster
are played by the test itself: `a.hears("z", message)`, and `a.sent_to("z", Frame)` is what they were told.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TypeVar

from kvp2p.core.apply import apply_batch, is_namespace_deleted, issuers_of, state_hash_seed, summarize
from kvp2p.core.batches import Batch, BatchResult
from kvp2p.core.chunk_rows import shown_row
from kvp2p.core.entry import (
    STATE_HASH_MASK,
    ChunkId,
    ChunkList,
    Kind,
    chunk_id,
    decode_chunk_list,
    decode_row,
    encode_chunk_list,
    encode_row,
    row_chunks,
    row_state_hash,
)
from kvp2p.core.events import (
    Await,
    CloseIssuer,
    Connect,
    Disconnect,
    Effect,
    EndUpload,
    Event,
    Notice,
    PeerDown,
    PeerUp,
    Persist,
    Persisted,
    PersistFailed,
    Promote,
    Received,
    Reply,
    Send,
    Serve,
    SetTimer,
    StageChunk,
    Start,
    TimerFired,
    Write,
)
from kvp2p.core.messages import Designation, Digest, Frame, Member, Message, Pull, WalkRequest
from kvp2p.core.operations import CreateNamespace, Ending, Operation, Outcome, Put
from kvp2p.core.port import Identity
from kvp2p.core.replica import ReplicaMachine
from kvp2p.core.serve import serve
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.system_rows import IssuerRow
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    AccountId,
    ClusterId,
    Issuer,
    NamespaceId,
    NodeId,
    Now,
    Stamp,
    Version,
    make_version,
)
from kvp2p.store.memory import MemoryStore

MS = 1_000_000
EPOCH_MS = 1_790_000_000_000
START_NS = 10_000 * MS
STEPS_MAX = 20_000
CHUNK_BYTES = 100  # of large values in plays
PART_BYTES = 40  # a chunk takes three
CLUSTER = ClusterId(b"C" * 16)
ACCOUNT = AccountId(b"A" * 16)
SPACE = NamespaceId(b"S" * 16)
SETTINGS = ReplicaSettings()

AnyMessage = TypeVar("AnyMessage")


def node_id(name: str) -> NodeId:
    return NodeId(name.encode()[:1] * 16)


def issuer_of(name: str) -> Issuer:
    return Issuer(name.encode()[:1] * 8)


def member(name: str, incarnation: int = 1) -> Member:
    return Member(node_id(name), incarnation, name, f"ws://{name}", "", "")


def put(key: bytes, value: bytes = b"value", namespace: NamespaceId = SYSTEM_NAMESPACE) -> Put:
    """Make a put; the system namespace needs no creation, so plays about other things use it."""
    return Put(namespace, key, value)


def chunks_of_value(value: bytes, chunk_bytes: int = CHUNK_BYTES) -> list[bytes]:
    """Cut a value."""
    return [value[at : at + chunk_bytes] for at in range(0, len(value), chunk_bytes)]


def chunk_list(value: bytes, chunk_bytes: int = CHUNK_BYTES) -> bytes:
    """Lay out the body of the row of a chunked value."""
    ids = tuple(chunk_id(content) for content in chunks_of_value(value, chunk_bytes))
    return encode_chunk_list(ChunkList(len(value), chunk_bytes, ids))


def large_put(key: bytes, value: bytes, namespace: NamespaceId = SPACE) -> Put:
    """Make a put of a value in small chunks."""
    return Put(namespace, key, chunk_list(value), is_chunked=True)


def chunked_row(stamp: int, value: bytes, issuer: str = "x", term: int = 1) -> bytes:
    return encode_row(Kind.CHUNKED, chunk_list(value), None, 0, version(stamp, issuer, term))


def frame_with(after: int, *stamps: int, key: bytes, row: bytes, issuer: str = "x", term: int = 1) -> Frame:
    """Make a frame in which one row stands at all positions."""
    positions = tuple((Stamp(stamp), 0) for stamp in stamps)
    return Frame(term, issuer_of(issuer), Stamp(after), Stamp(stamps[-1]), positions, ((SPACE, key, row),))


def version(stamp: int, issuer: str = "x", term: int = 1) -> Version:
    return make_version(term, Stamp(stamp), issuer_of(issuer))


def value_row(stamp: int, value: bytes = b"value", issuer: str = "x", term: int = 1) -> bytes:
    return encode_row(Kind.VALUE, value, None, 0, version(stamp, issuer, term))


def tombstone_row(stamp: int, issuer: str = "x", term: int = 1) -> bytes:
    return encode_row(Kind.TOMBSTONE, b"", None, 0, version(stamp, issuer, term))


def vector(**stamps: int) -> VersionVector:
    return VersionVector(version(stamp, name) for name, stamp in stamps.items())


def frame_of(after: int, *stamps: int, issuer: str = "x", key: bytes = b"key%d") -> Frame:
    """Make a frame with a key of its own for every stamp."""
    rows = tuple((SYSTEM_NAMESPACE, key % stamp, value_row(stamp, issuer=issuer)) for stamp in stamps)
    positions = tuple((Stamp(stamp), index) for index, stamp in enumerate(stamps))
    return Frame(1, issuer_of(issuer), Stamp(after), Stamp(stamps[-1]), positions, rows)


def digest_of(
    has: VersionVector = EMPTY_VECTOR,
    *,
    state_hash: int = 0,
    comparable: bool = True,
    floor: VersionVector = EMPTY_VECTOR,
    designation: Designation | None = None,
    leads: Issuer | None = None,
    complete: bool = True,
    wall_ms: int = EPOCH_MS,
    clock_ms: int = 0,
    whole: VersionVector | None = None,
) -> Digest:
    hashed = state_hash.to_bytes(16, "big")
    return Digest(has, hashed, comparable, floor, designation, leads, complete, wall_ms, clock_ms, whole)


def designated(name: str, term: int = 1, tie: str = "d") -> Designation:
    return Designation(term, issuer_of(tie), node_id(name))


def new_store(name: str = "a", *, complete: bool = True, designation: Designation | None = None) -> MemoryStore:
    return MemoryStore(Identity(CLUSTER, ACCOUNT, node_id(name), name), complete=complete, designation=designation)


def answer(store: MemoryStore, request: Pull | WalkRequest) -> list[Message]:
    """Return what a peer is answered from a store."""
    with store.read() as txn:
        return list(serve(txn, request))


def apply(store: MemoryStore, batch: Batch) -> BatchResult:
    with store.write() as txn:
        return apply_batch(txn, batch)


def all_rows(store: MemoryStore) -> list[tuple[NamespaceId, bytes, bytes]]:
    """List every row that counts: those of deleted namespaces wait for the sweep."""
    with store.read() as txn:
        return [row for row in txn.all_rows() if not is_namespace_deleted(txn, row[0])]


def value_at(store: MemoryStore, key: bytes, namespace: NamespaceId = SYSTEM_NAMESPACE) -> bytes | None:
    with store.read() as txn:
        row = txn.row(namespace, key)
    if row is None:
        return None
    entry = decode_row(namespace, key, row)
    return entry.value if entry.kind == Kind.VALUE else None


def shown_value(store: MemoryStore, key: bytes, namespace: NamespaceId = SPACE) -> bytes | None:
    """Return what a reader sees at a key; a chunked value is put together, and all of its chunks must be here."""
    with store.read() as txn:
        row = shown_row(txn, namespace, key)
        if row is None:
            return None
        entry = decode_row(namespace, key, row)
        if entry.kind != Kind.CHUNKED:
            return entry.value if entry.kind == Kind.VALUE else None
        contents = [txn.chunk(chunk) for chunk in decode_chunk_list(entry.value).ids]
    return b"".join(content for content in contents if content is not None)


def staged_in(store: MemoryStore) -> list[ChunkId]:
    with store.read() as txn:
        return list(txn.staged())


def chunks_in(store: MemoryStore) -> list[ChunkId]:
    """List the chunks whose contents are in a store, having checked that counts, contents and names are right."""
    named: dict[ChunkId, int] = {}
    with store.read() as txn:
        pending = {one.version: one.shown for one in txn.pending_rows()}
        rows = [row for _, _, row in txn.all_rows()] + [shown for shown in pending.values() if shown]
        for row in rows:
            for chunk in row_chunks(row):
                named[chunk] = named.get(chunk, 0) + 1
        here = []
        for chunk, state, content in txn.chunk_states():
            assert state.references == named.pop(chunk, 0)
            assert state.references or txn.is_staged(chunk)
            assert state.is_here == (content is not None)
            assert content is None or chunk_id(content) == chunk
            if content is not None:
                here.append(chunk)
        assert named == {}
    return here


def issuer_rows(store: MemoryStore) -> dict[Issuer, IssuerRow]:
    with store.read() as txn:
        return {row.issuer: row for row in issuers_of(txn)}


def recounted_hash(store: MemoryStore) -> int:
    with store.read() as txn:
        seed = state_hash_seed(txn)
    return sum(row_state_hash(*row, seed) for row in all_rows(store)) & STATE_HASH_MASK


class Node:
    """One machine with its store and everything it did."""

    def __init__(self, cluster: Cluster, name: str, store: MemoryStore, settings: ReplicaSettings) -> None:
        self.cluster = cluster
        self.name = name
        self.id = node_id(name)
        self.store = store
        self.settings = settings
        self.is_disk_held = False
        self.next_request = 1
        self.wall_offset_ms = 0

    def make_space(self) -> None:
        """Create SPACE at this leader: large values do not go into the system namespace."""
        request = self.write(CreateNamespace(SPACE, ACCOUNT, "space"))
        assert self.replies[request].created

    def start(self, seeds: tuple[str, ...] = (), me: Member | None = None) -> None:
        self.machine = ReplicaMachine(self.settings, self.cluster.random, PART_BYTES)
        self.replies: dict[int, Outcome] = {}
        self.notices: list[str] = []
        self.connects: list[Connect] = []
        self.disconnects: list[tuple[NodeId, str]] = []
        self.sent: list[tuple[NodeId, Message]] = []
        self.served: list[Serve] = []
        self.timers: dict[int, int] = {}
        self.disk: deque[Persist] = deque()
        with self.store.read() as txn:
            summary = summarize(txn)
        self.handle(Start(summary, me or member(self.name), seeds))

    def now(self) -> Now:
        return Now(self.cluster.mono_ns, EPOCH_MS + (self.cluster.mono_ns - START_NS) // MS + self.wall_offset_ms)

    def handle(self, event: Event) -> None:
        effects = self.machine.handle(event, self.now())
        self.machine.check()
        for effect in effects:
            self._perform(effect)
        while self.disk and not self.is_disk_held:
            self.finish()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(peer=peer, message=message):
                self.sent.append((peer, message))
                self.cluster.post(self, peer, message)
            case Serve():
                self.served.append(effect)
                with self.store.read() as txn:
                    for message in serve(txn, effect.request):
                        self.cluster.post(self, effect.peer, message)
            case SetTimer(token=token, at_ns=at_ns):
                assert token not in self.timers
                self.timers[token] = at_ns
            case Persist():
                self.disk.append(effect)
            case Reply(request=request, outcome=outcome):
                assert request not in self.replies, "a request ends once"
                self.replies[request] = outcome
            case Connect():
                self.connects.append(effect)
            case Notice(kind=kind):
                self.notices.append(kind)
            case Disconnect(peer=peer, reason=reason):
                self.disconnects.append((peer, reason))

    # --- the disk

    def finish(self) -> None:
        """Let the first batch in flight become durable."""
        persist = self.disk.popleft()
        self.handle(Persisted(persist.ticket, apply(self.store, persist.batch)))

    def fail(self) -> None:
        """Let the first batch in flight find the disk full."""
        self.handle(PersistFailed(self.disk.popleft().ticket, "disk full"))

    def hold_disk(self) -> None:
        self.is_disk_held = True

    def release_disk(self) -> None:
        self.is_disk_held = False
        while self.disk:
            self.finish()

    # --- clients

    def write(self, *operations: Operation, deadline_ms: int = 5_000) -> int:
        """Write, and return the number of the request."""
        request, self.next_request = self.next_request, self.next_request + 1
        self.handle(Write(request, operations, self.cluster.mono_ns + deadline_ms * MS))
        return request

    def stage(self, upload: int, content: bytes, chunk: ChunkId | None = None) -> int:
        """Send a chunk of an upload, and return the number of the request."""
        request, self.next_request = self.next_request, self.next_request + 1
        self.handle(StageChunk(request, upload, chunk or chunk_id(content), content))
        return request

    def end_upload(self, upload: int) -> None:
        self.handle(EndUpload(upload))

    def write_large(self, key: bytes, value: bytes, namespace: NamespaceId = SPACE) -> int:
        """Send a large value as a gateway does, up to its write; the upload has the number of the write's request."""
        upload = self.next_request + len(chunks_of_value(value))
        staged = [self.stage(upload, content) for content in chunks_of_value(value)]
        assert all(self.replies[request].ending == Ending.ACKED for request in staged)
        return self.write(large_put(key, value, namespace))

    def wait_for(self, wanted: Version, deadline_ms: int = 5_000) -> int:
        request, self.next_request = self.next_request, self.next_request + 1
        self.handle(Await(request, wanted, self.cluster.mono_ns + deadline_ms * MS))
        return request

    def promote(self, *, override: bool = False) -> int:
        request, self.next_request = self.next_request, self.next_request + 1
        self.handle(Promote(request, override))
        return request

    def close_issuer(self, issuer: Issuer) -> int:
        request, self.next_request = self.next_request, self.next_request + 1
        self.handle(CloseIssuer(request, issuer))
        return request

    # --- peers that the test plays

    def meets(self, name: str, digest: Digest | None = None) -> None:
        self.handle(PeerUp(node_id(name)))
        if digest is not None:
            self.hears(name, digest)

    def loses(self, name: str) -> None:
        self.handle(PeerDown(node_id(name)))

    def hears(self, name: str, message: Message) -> None:
        self.handle(Received(node_id(name), message))

    def sent_to(self, name: str, kind: type[AnyMessage]) -> list[AnyMessage]:
        return [message for peer, message in self.sent if peer == node_id(name) and isinstance(message, kind)]

    @property
    def role(self) -> str:
        return self.machine.leadership.role


class Cluster:
    """Nodes, the links between them, and the mail on its way."""

    def __init__(self, seed: int = 1) -> None:
        self.random = Random(seed)
        self.mono_ns = START_NS
        self.nodes: dict[NodeId, Node] = {}
        self.links: dict[tuple[NodeId, NodeId], bool] = {}
        self.mail: deque[tuple[NodeId, NodeId, Message]] = deque()
        self.lost: tuple[type, ...] = ()

    def add(
        self,
        name: str,
        *,
        leads: bool = False,
        complete: bool = True,
        knows: str = "",
        store: MemoryStore | None = None,
        settings: ReplicaSettings = SETTINGS,
    ) -> Node:
        """Start a node; `knows` names the members that its roster holds."""
        store = store or new_store(name, complete=complete, designation=designated(name) if leads else None)
        with store.write() as txn:
            txn.set_members((*txn.members, *(member(other) for other in knows)))
        node = self.nodes[node_id(name)] = Node(self, name, store, settings)
        node.start()
        return node

    def link(self, one: str, other: str) -> None:
        for here, there in ((node_id(one), node_id(other)), (node_id(other), node_id(one))):
            self.links[here, there] = True
        self.nodes[node_id(one)].meets(other)
        self.nodes[node_id(other)].meets(one)
        self.settle()

    def cut(self, one: str, other: str) -> None:
        pair = (node_id(one), node_id(other))
        for here, there in (pair, pair[::-1]):
            del self.links[here, there]
        self.mail = deque(letter for letter in self.mail if set(letter[:2]) != set(pair))
        self.nodes[pair[0]].loses(other)
        self.nodes[pair[1]].loses(one)
        self.settle()

    def post(self, sender: Node, peer: NodeId, message: Message) -> None:
        if (sender.id, peer) in self.links and not isinstance(message, self.lost):
            self.mail.append((sender.id, peer, message))

    def settle(self) -> None:
        """Deliver all mail, and what follows from it."""
        for _ in range(STEPS_MAX):
            if not self.mail:
                return
            sender, receiver, message = self.mail.popleft()
            if (sender, receiver) in self.links:
                self.nodes[receiver].handle(Received(sender, message))
        raise AssertionError("the cluster does not come to rest")

    def pass_ms(self, duration_ms: int) -> None:
        """Let time pass, firing each timer at its time."""
        end_ns = self.mono_ns + duration_ms * MS
        for _ in range(STEPS_MAX):
            due = [(at_ns, node.name, token) for node in self.nodes.values() for token, at_ns in node.timers.items()]
            at_ns, name, token = min(due)
            if at_ns > end_ns:
                self.mono_ns = end_ns
                return
            self.mono_ns = max(self.mono_ns, at_ns)
            node = self.nodes[node_id(name)]
            del node.timers[token]
            node.handle(TimerFired(token))
            self.settle()
        raise AssertionError("too many timers fired")

    def assert_equal(self) -> None:
        """Assert that all nodes hold the same rows, vector and state hash."""
        boards = [node.machine.board for node in self.nodes.values()]
        assert len({board.vector for board in boards}) == 1
        assert len({board.state_hash for board in boards}) == 1
        for node in self.nodes.values():
            assert all_rows(node.store) == all_rows(next(iter(self.nodes.values())).store)
            assert node.machine.board.state_hash == recounted_hash(node.store)
