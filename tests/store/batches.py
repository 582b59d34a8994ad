"""Batches as a leader and a follower make them: a bit of everything that a store can be asked to keep, drawn from a seed."""

from collections.abc import Iterator
from random import Random

from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import (
    Batch,
    ChunkBatch,
    FrameBatch,
    LogTrim,
    NamespaceSweep,
    PurgeBatch,
    Settle,
    StampedWrite,
    WriteGroup,
)
from kvp2p.core.entry import ChunkId, ChunkList, Kind, chunk_id, encode_chunk_list, encode_row
from kvp2p.core.messages import Frame, Member
from kvp2p.core.operations import CreateNamespace, Delete, DeleteNamespace, Operation, Put
from kvp2p.core.port import Identity
from kvp2p.core.system_rows import IssuerRow, encode_issuer
from kvp2p.core.vector import VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NamespaceId, NodeId, Stamp, make_version
from kvp2p.store.lmdb_store import LmdbStore

IDENTITY = Identity(ClusterId(b"c" * 16), AccountId(b"a" * 16), NodeId(b"n" * 16), "n1")
OWN = Issuer(b"issuer-1")
OTHER = Issuer(b"issuer-2")
WALL_MS = 1_790_000_000_000
EXPIRES_AT = WALL_MS // 1000 + 1_000_000
LONG = b"long/" + b"k" * 500
NAMESPACES = [NamespaceId(bytes([65 + number]) * 16) for number in range(26)]
CHUNK_BYTES = 9_000  # of a value that is split here
VALUES = [Random(number).randbytes(20_000) for number in range(6)]  # a few, so that rows share chunks
STEP = 100  # between the positions of two groups


class _Drawing:
    """What has been drawn: it takes part in what comes next."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.stamp = 1
        self.framed = 0  # the last position of the other issuer
        self.number = 0
        self.standing = [NAMESPACES[0]]
        self.waited_for: list[tuple[ChunkId, bytes]] = []  # contents that rows of frames wait for

    def draw(self) -> Iterator[Batch]:
        """Draw one or a few batches that belong together."""
        self.number += 1
        self.stamp += STEP
        kind = self.random.random()
        if kind < 0.08 and self.number < len(NAMESPACES):
            self.standing.append(NAMESPACES[self.number])
            yield self.group([CreateNamespace(self.standing[-1], IDENTITY.account, str(self.number))])
        elif kind < 0.12 and len(self.standing) > 1:
            deleted = self.standing.pop(self.random.randrange(len(self.standing)))
            yield self.group([DeleteNamespace(deleted)])
            yield NamespaceSweep(deleted, 4)
        elif kind < 0.16:
            yield Settle(members=(Member(IDENTITY.node, self.number, "n1", "ws://a:1", "http://a:2", "http://a:3"),))
        elif kind < 0.28:
            yield self.frame()
        elif kind < 0.36:
            yield from self.large_write()
        elif kind < 0.42 and self.waited_for:
            count = self.random.randint(1, len(self.waited_for))
            come, self.waited_for = self.waited_for[:count], self.waited_for[count:]
            yield ChunkBatch(contents=tuple(come))
        elif kind < 0.46:
            yield LogTrim(self.vector(), Stamp(max(0, self.stamp - 20 * STEP)), 1_000, 30)
        elif kind < 0.5:
            yield self.purge()
        else:
            count = self.random.choice((1, 1, 3, 10))
            yield self.group([self.operation() for _ in range(count)])

    def group(self, operations: list[Operation]) -> WriteGroup:
        return WriteGroup(2, OWN, (StampedWrite(Stamp(self.stamp), tuple(operations)),), WALL_MS)

    def operation(self) -> Operation:
        random, namespace = self.random, self.random.choice(self.standing)
        key = random.choice((b"key-%d", b"key-%d", LONG + b"-%d")) % random.randrange(30)
        if random.random() < 0.25:
            return Delete(namespace, key)
        value = random.randbytes(random.choice((10, 500, 3_000, 20_000)))
        expires_at = EXPIRES_AT + random.randrange(1_000) if random.random() < 0.3 else 0
        return Put(namespace, key, value, b'{"m":1}' if random.random() < 0.3 else None, expires_at)

    def large_write(self) -> Iterator[Batch]:
        """Write a value in chunks: they are staged, they come, the row is written, and nothing stages them any more."""
        listed, contents = split(self.random.choice(VALUES))
        ids = tuple(chunk for chunk, _ in contents)
        yield ChunkBatch(stage=ids, contents=contents[:1])
        yield ChunkBatch(contents=contents[1:])
        key = b"key-%d" % self.random.randrange(30)
        yield self.group([Put(self.random.choice(self.standing), key, listed, is_chunked=True)])
        yield ChunkBatch(release=ids)

    def frame(self) -> FrameBatch:
        """Give two positions of a deposed leader: of an entry that may lose against what stands, and of a key of its own."""
        random, namespace = self.random, self.random.choice(self.standing)
        first, second = Stamp(self.stamp), Stamp(self.stamp + 1)
        if random.random() < 0.4:
            listed, contents = split(random.choice(VALUES))
            self.waited_for += contents
            own = encode_row(Kind.CHUNKED, listed, None, 0, make_version(1, second, OTHER))
        elif random.random() < 0.4:
            own = encode_row(Kind.TOMBSTONE, b"", None, 0, make_version(1, second, OTHER))
        else:
            own = encode_row(Kind.VALUE, random.randbytes(200), None, EXPIRES_AT, make_version(1, second, OTHER))
        rows = (
            (
                namespace,
                b"key-%d" % random.randrange(30),
                encode_row(Kind.VALUE, b"of the deposed", None, 0, make_version(1, first, OTHER)),
            ),
            (namespace, b"key-%d" % (100 + random.randrange(10)), own),
        )
        after, self.framed = Stamp(self.framed), second
        return FrameBatch(Frame(1, OTHER, after, second, ((first, 0), (second, 1)), rows))

    def vector(self) -> VersionVector:
        """Return what the store covers, this leader's last group not counted."""
        tops = [make_version(2, Stamp(max(1, self.stamp - STEP)), OWN)]
        if self.framed:
            tops.append(make_version(1, Stamp(self.framed), OTHER))
        return VersionVector(tops)

    def purge(self) -> PurgeBatch:
        """Let what the deposed leader deleted, and what of it has expired, go: nobody adds to its log below its last position."""
        fence = make_version(1, Stamp(self.framed), OTHER)
        return PurgeBatch(2, OWN, Stamp(self.stamp), self.vector(), fence, EXPIRES_AT, 8)


def draw_batches(seed: int) -> Iterator[Batch]:
    """Draw batches without end."""
    drawing = _Drawing(seed)
    own = IssuerRow(OWN, IDENTITY.node, 2, None)
    yield drawing.group(
        [CreateNamespace(NAMESPACES[0], IDENTITY.account, "0"), Put(SYSTEM_NAMESPACE, *encode_issuer(own))]
    )
    while True:
        yield from drawing.draw()


def split(value: bytes) -> tuple[bytes, tuple[tuple[ChunkId, bytes], ...]]:
    """Return a chunk list, and the chunks."""
    contents = [value[at : at + CHUNK_BYTES] for at in range(0, len(value), CHUNK_BYTES)]
    ids = tuple(chunk_id(content) for content in contents)
    return encode_chunk_list(ChunkList(len(value), CHUNK_BYTES, ids)), tuple(zip(ids, contents, strict=True))


def batches_of_next_leader() -> Iterator[Batch]:
    """Give what a leader writes that begins after a crash: a log of its own, a large value, and keys that may be there."""
    issuer = Issuer(b"issuer-3")
    namespace = NAMESPACES[0]
    writes: list[Operation] = [
        Put(SYSTEM_NAMESPACE, *encode_issuer(IssuerRow(issuer, IDENTITY.node, 3, None))),
        CreateNamespace(namespace, IDENTITY.account, "0"),
        Put(namespace, b"key-1", bytes(50_000)),
        Delete(namespace, b"key-2"),
        Put(namespace, LONG + b"-1", b"value"),
    ]
    for stamp, operation in enumerate(writes, 1):
        yield WriteGroup(3, issuer, (StampedWrite(Stamp(stamp), (operation,)),), WALL_MS)


def apply(store: LmdbStore, batch: Batch) -> None:
    """Apply a batch, durably."""
    with store.write() as txn:
        apply_batch(txn, batch)
