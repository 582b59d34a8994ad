"""What readers see of values in chunks: the old value until the new one is whole, and never a damaged one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvp2p import Replica
from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import ChunkBatch, FrameBatch, StampedWrite, WriteGroup
from kvp2p.core.entry import ChunkId, ChunkList, Kind, chunk_id, encode_chunk_list, encode_row, is_tombstone
from kvp2p.core.messages import Frame
from kvp2p.core.operations import CreateNamespace, Delete, Ending, Operation, Put
from kvp2p.core.port import Identity
from kvp2p.errors import StoreCorrupt
from kvp2p.ids import AccountId, Issuer, NamespaceId, Stamp, Version, make_version
from kvp2p.limits import CHUNK_BYTES
from kvp2p.store.chunked import chunk_list_of
from kvp2p.store.lmdb_store import LmdbStore

ISSUER = Issuer(b"issuer-1")
SPACE = NamespaceId(b"s" * 16)
KEYS = (b"key", b"k" * 512)


def cut(value: bytes) -> tuple[list[bytes], ChunkList]:
    contents = [value[at : at + CHUNK_BYTES] for at in range(0, len(value), CHUNK_BYTES)]
    return contents, ChunkList(len(value), CHUNK_BYTES, tuple(map(chunk_id, contents)))


class Follower:
    """A replica's store that is given frames, and chunks when the test says so."""

    def __init__(self, store: LmdbStore, directory: Path) -> None:
        self.store = store
        self.replica = Replica(directory, now=lambda: 1_000.0)
        self.stamp = 0
        self.apply(CreateNamespace(SPACE, AccountId(b"a" * 16), "things"))

    def apply(self, operation: Operation) -> None:
        self.stamp += 1
        with self.store.write() as writer:
            write = StampedWrite(Stamp(self.stamp), (operation,))
            (outcome,) = apply_batch(writer, WriteGroup(1, ISSUER, (write,), 5_000)).outcomes
        assert outcome.ending == Ending.ACKED

    def receive(self, key: bytes, value: bytes, metadata: bytes | None = None, expires_at: int = 0) -> Version:
        """Take a frame with a row that names chunks."""
        version = make_version(1, Stamp(self.stamp + 1), ISSUER)
        row = encode_row(Kind.CHUNKED, encode_chunk_list(cut(value)[1]), metadata, expires_at, version)
        after, stamp = Stamp(self.stamp), Stamp(self.stamp + 1)
        with self.store.write() as writer:
            apply_batch(writer, FrameBatch(Frame(1, ISSUER, after, stamp, ((stamp, 0),), ((SPACE, key, row),))))
        self.stamp = stamp
        return version

    def pull(self, value: bytes, *indexes: int) -> None:
        """Take chunks of a value."""
        contents, chunks = cut(value)
        with self.store.write() as writer:
            result = apply_batch(writer, ChunkBatch(contents=tuple((chunks.ids[at], contents[at]) for at in indexes)))
        assert not result.chunks_refused

    def damage(self, chunk: ChunkId, content: bytes) -> None:
        with self.store.write() as writer:
            writer.put_chunk(chunk, content)


@pytest.fixture
def node(tmp_path: Path, identity: Identity) -> Iterator[Follower]:
    """Give a replica with the namespace `things`."""
    with LmdbStore.create(tmp_path / "store", identity, complete=True) as store:
        made = Follower(store, tmp_path)
        yield made
        made.replica.close()


LARGE = os.urandom(2 * CHUNK_BYTES + 5)
OTHER = os.urandom(CHUNK_BYTES + 1)


@pytest.mark.parametrize("key", KEYS)
def test_value_in_chunks_is_read_whole_with_what_was_stored_with_it(node: Follower, key: bytes) -> None:
    version = node.receive(key, LARGE, b'{"a":1}', 2_000)
    node.pull(LARGE, 0, 1, 2)
    for _ in range(2):
        assert node.replica.get("things", key) == LARGE
    assert node.replica.get_with_metadata("things", key) == (LARGE, b'{"a":1}')
    found = node.replica.find("things", key, verify=True)
    assert found is not None
    assert (found.expires_at, found.version) == (2_000, version)


@pytest.mark.parametrize("key", KEYS)
def test_old_value_is_shown_until_the_new_one_is_whole(node: Follower, key: bytes) -> None:
    node.apply(Put(SPACE, key, b"old", b'"old"'))
    old = node.replica.find("things", key)
    assert old is not None
    version = node.receive(key, LARGE, b'"new"')
    for index in range(3):
        assert node.replica.find("things", key) == old
        assert node.replica.get("things", key) == b"old"
        (listed,) = node.replica.list("things").keys
        assert (listed.key, listed.metadata, listed.version) == (key, b'"old"', old.version)
        with node.replica.view() as view:
            row = view.shown_row(SPACE, key)
            assert row is not None
            assert row[12:32] == old.version
            assert not view.shows(version)
            assert view.shows(old.version)
        node.pull(LARGE, index)
    assert node.replica.get("things", key) == LARGE
    (listed,) = node.replica.list("things").keys
    assert (listed.metadata, listed.version) == (b'"new"', version)
    with node.replica.view() as view:
        assert view.shows(version)
        assert not view.shows(make_version(1, Stamp(node.stamp + 1), ISSUER))


def test_where_nothing_stood_nothing_is_shown_until_the_value_is_whole(node: Follower) -> None:
    node.apply(Put(SPACE, b"gone", b"old"))
    node.apply(Delete(SPACE, b"gone"))
    node.apply(Put(SPACE, b"z", b"last"))
    node.receive(b"fresh", LARGE)
    node.receive(b"gone", OTHER)
    for key in ("fresh", "gone"):
        assert node.replica.get("things", key) is None
        assert node.replica.find("things", key) is None
        with node.replica.view() as view:
            row = view.shown_row(SPACE, key.encode())
            assert row is None if key == "fresh" else row is not None and is_tombstone(row)
    assert [one.key for one in node.replica.list("things").keys] == [b"z"]
    node.pull(LARGE, 0, 1, 2)
    node.pull(OTHER, 0, 1)
    assert [one.key for one in node.replica.list("things", limit=2).keys] == [b"fresh", b"gone"]


def test_old_value_in_chunks_is_shown_while_a_newer_one_in_chunks_comes(node: Follower) -> None:
    node.receive(b"key", LARGE)
    node.pull(LARGE, 0, 1, 2)
    node.receive(b"key", OTHER)
    node.pull(OTHER, 1)
    assert node.replica.get("things", "key") == LARGE
    node.pull(OTHER, 0)
    assert node.replica.get("things", "key") == OTHER


def test_old_value_that_expires_meanwhile_is_hidden(node: Follower) -> None:
    node.apply(Put(SPACE, b"key", b"old", expires_at=1_000))
    node.receive(b"key", LARGE)
    assert node.replica.get("things", "key") is None
    assert node.replica.list("things").keys == ()
    node.pull(LARGE, 0, 1, 2)
    assert node.replica.get("things", "key") == LARGE


def test_value_in_chunks_is_hidden_from_the_second_at_which_it_expires(node: Follower) -> None:
    node.receive(b"key", LARGE, expires_at=1_000)
    node.pull(LARGE, 0, 1, 2)
    assert node.replica.get("things", "key") is None
    node.replica.hide_by(lambda: 999.9)
    assert node.replica.get("things", "key") == LARGE


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damaged_chunk_is_not_given_out(node: Follower, damage: str) -> None:
    node.receive(b"key", LARGE)
    node.pull(LARGE, 0, 1, 2)
    _, chunks = cut(LARGE)
    if damage == "gone":
        with node.store.write() as writer:
            writer.set_chunk_state(chunks.ids[1], None)
    else:
        content = LARGE[CHUNK_BYTES : 2 * CHUNK_BYTES]
        node.damage(chunks.ids[1], b"!" + content[1:] if damage == "changed" else content[:-1])
    with pytest.raises(StoreCorrupt, match=chunks.ids[1].hex()):
        node.replica.get("things", "key")
    with node.replica.view() as view:
        row = view.shown_row(SPACE, b"key")
        assert row is not None
    view = node.replica.view().__enter__()
    value = view.open_value(chunk_list_of(row))
    assert value.next_chunk() == LARGE[:CHUNK_BYTES]
    with pytest.raises(StoreCorrupt, match=chunks.ids[1].hex()):
        value.next_chunk()
    value.close()


def test_chunk_that_is_right_but_not_as_long_as_its_place_is_not_given_out(node: Follower) -> None:
    contents = [b"a" * 10, b"b" * 20]
    chunks = ChunkList(40, 20, tuple(map(chunk_id, contents)))
    with node.store.write() as writer:
        apply_batch(writer, ChunkBatch(chunks.ids, tuple(zip(chunks.ids, contents, strict=True))))
    node.apply(Put(SPACE, b"key", encode_chunk_list(chunks), is_chunked=True))
    with pytest.raises(StoreCorrupt, match="place"):
        node.replica.get("things", "key")


def test_value_that_is_being_read_stays_whole_when_it_is_replaced(node: Follower) -> None:
    node.receive(b"key", LARGE)
    node.pull(LARGE, 0, 1, 2)
    view = node.replica.view().__enter__()
    row = view.shown_row(SPACE, b"key")
    assert row is not None
    value = view.open_value(chunk_list_of(row))
    parts = [value.next_chunk()]
    node.apply(Put(SPACE, b"key", b"small"))
    for number in range(10):  # LMDB uses freed pages again from the second commit on
        node.receive(b"key", os.urandom(2 * CHUNK_BYTES + number))
    assert node.replica.get("things", "key") == b"small"
    with node.store.read() as transaction:
        assert transaction.chunk(cut(LARGE)[1].ids[2]) is None
    while part := value.next_chunk():
        parts.append(part)
    assert b"".join(parts) == LARGE
    assert value.next_chunk() == b""
    value.close()
    value.close()


def test_a_version_that_a_newer_value_on_its_way_stands_in_front_of_is_not_shown(node: Follower) -> None:
    """A frame names the newest row of a key only: this replica never had the value of the first of its positions."""
    body = encode_chunk_list(cut(LARGE)[1])
    first, second = (Stamp(node.stamp + number) for number in (1, 2))
    row = encode_row(Kind.CHUNKED, body, None, 0, make_version(1, second, ISSUER))
    frame = Frame(1, ISSUER, Stamp(node.stamp), second, ((first, 0), (second, 0)), ((SPACE, b"key", row),))
    with node.store.write() as writer:
        apply_batch(writer, FrameBatch(frame))
    with node.replica.view() as view:
        assert not view.shows(make_version(1, first, ISSUER))
        assert view.shows(make_version(1, Stamp(node.stamp), ISSUER))
    node.pull(LARGE, 0, 1, 2)
    with node.replica.view() as view:
        assert view.shows(make_version(1, first, ISSUER))


def test_with_many_values_on_their_way_a_view_leaves_it_to_the_node(node: Follower) -> None:
    before = make_version(1, Stamp(node.stamp), ISSUER)
    for number in range(17):
        with node.replica.view() as view:
            assert view.shows(before)
        node.receive(b"%d" % number, LARGE)
    with node.replica.view() as view:
        assert not view.shows(before)
