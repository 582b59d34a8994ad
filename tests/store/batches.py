"""Batches as a leader and a follower make them: a bit of everything that a store can be asked to keep, drawn from a seed."""

from collections.abc import Iterator
from random import Random

from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import Batch, FrameBatch, NamespaceSweep, Settle, StampedWrite, WriteGroup
from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.messages import Frame, Member
from kvp2p.core.operations import CreateNamespace, Delete, DeleteNamespace, Operation, Put
from kvp2p.core.port import Identity
from kvp2p.core.system_rows import IssuerRow, encode_issuer
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NamespaceId, NodeId, Stamp, make_version
from kvp2p.store.lmdb_store import LmdbStore

IDENTITY = Identity(ClusterId(b"c" * 16), AccountId(b"a" * 16), NodeId(b"n" * 16), "n1")
OWN = Issuer(b"issuer-1")
OTHER = Issuer(b"issuer-2")
WALL_MS = 1_790_000_000_000
EXPIRES_AT = WALL_MS // 1000 + 1_000_000
LONG = b"long/" + b"k" * 500
NAMESPACES = [NamespaceId(bytes([65 + number]) * 16) for number in range(26)]


def draw_batches(seed: int) -> Iterator[Batch]:
    """Draw batches without end. Each changes the store; a namespace is deleted now and then, and swept afterwards."""
    random = Random(seed)
    number, stamp, framed = 0, 1, 0
    standing = [NAMESPACES[0]]
    own = IssuerRow(OWN, IDENTITY.node, 2, None)
    yield _group(
        stamp, [CreateNamespace(standing[0], IDENTITY.account, "0"), Put(SYSTEM_NAMESPACE, *encode_issuer(own))]
    )
    while True:
        stamp += 100
        number += 1
        kind = random.random()
        if kind < 0.08 and number < len(NAMESPACES):
            standing.append(NAMESPACES[number])
            yield _group(stamp, [CreateNamespace(standing[-1], IDENTITY.account, str(number))])
        elif kind < 0.12 and len(standing) > 1:
            deleted = standing.pop(random.randrange(len(standing)))
            yield _group(stamp, [DeleteNamespace(deleted)])
            yield NamespaceSweep(deleted, 4)
        elif kind < 0.18:
            yield Settle(members=(Member(IDENTITY.node, number, "n1", "ws://a:1", "http://a:2", "http://a:3"),))
        elif kind < 0.3:
            yield _frame(framed, stamp, random, random.choice(standing))
            framed = stamp + 1
        else:
            count = random.choice((1, 1, 3, 10))
            yield _group(stamp, [_operation(random, random.choice(standing)) for _ in range(count)])


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


def _operation(random: Random, namespace: NamespaceId) -> Operation:
    key = random.choice((b"key-%d", b"key-%d", LONG + b"-%d")) % random.randrange(30)
    if random.random() < 0.25:
        return Delete(namespace, key)
    value = random.randbytes(random.choice((10, 500, 3_000, 20_000)))
    expires_at = EXPIRES_AT + random.randrange(1_000) if random.random() < 0.3 else 0
    return Put(namespace, key, value, b'{"m":1}' if random.random() < 0.3 else None, expires_at)


def _group(stamp: int, operations: list[Operation]) -> WriteGroup:
    return WriteGroup(2, OWN, (StampedWrite(Stamp(stamp), tuple(operations)),), WALL_MS)


def _frame(after: int, stamp: int, random: Random, namespace: NamespaceId) -> FrameBatch:
    """A frame of a deposed leader: of its two positions one loses against what stands here, if anything does."""
    rows = tuple(
        (
            namespace,
            b"key-%d" % key,
            encode_row(Kind.VALUE, random.randbytes(200), None, 0, make_version(1, Stamp(at), OTHER)),
        )
        for at, key in ((stamp, random.randrange(30)), (stamp + 1, 100 + random.randrange(10)))
    )
    return FrameBatch(Frame(1, OTHER, Stamp(after), Stamp(stamp + 1), ((Stamp(stamp), 0), (Stamp(stamp + 1), 1)), rows))


def apply(store: LmdbStore, batch: Batch) -> None:
    """Apply a batch, durably."""
    with store.write() as txn:
        apply_batch(txn, batch)
