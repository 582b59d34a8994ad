"""The check of chunks: each kind of damage is found where it is."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from kvp2p.core.batches import ChunkBatch, FrameBatch, StampedWrite, WriteGroup
from kvp2p.core.entry import ChunkId, Kind, chunk_id, encode_row
from kvp2p.core.messages import Frame
from kvp2p.core.operations import CreateNamespace, Delete, Operation, Put
from kvp2p.core.port import ChunkState
from kvp2p.ids import Issuer, NamespaceId, Stamp, make_version
from kvp2p.store.check import StoreCheck
from kvp2p.store.layout import CONTENT_MARK, STATE_MARK, encode_chunk_state
from kvp2p.store.layout_writer import LayoutWriter
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.scrub import check_store
from kvp2p.store.tables import CHUNKS, GRAVES, PENDING
from tests.store.batches import IDENTITY, NAMESPACES, OTHER, OWN, VALUES, apply, draw_batches, split

SPACE = NAMESPACES[0]
LISTED, CONTENTS = split(VALUES[0])
AWAITED, _ = split(VALUES[1])
FIRST, SECOND = CONTENTS[0][0], CONTENTS[1][0]
PENDING_AT = make_version(1, Stamp(1), OTHER)
Found = list[tuple[str, NamespaceId | None, bytes | None]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    """Give a store with a value in chunks, a row that waits for its chunks, and a tombstone."""
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=True) as store:
        operations: tuple[Operation, ...] = (
            CreateNamespace(SPACE, IDENTITY.account, "one"),
            Put(SPACE, b"large", LISTED, is_chunked=True),
            Put(SPACE, b"waits", b"what readers see meanwhile"),
            Delete(SPACE, b"deleted"),
        )
        apply(store, ChunkBatch(stage=tuple(chunk for chunk, _ in CONTENTS), contents=CONTENTS))
        writes = tuple(StampedWrite(Stamp(stamp), (one,)) for stamp, one in enumerate(operations, 1))
        apply(store, WriteGroup(2, OWN, writes, 0))
        apply(store, ChunkBatch(release=tuple(chunk for chunk, _ in CONTENTS)))
        waits = (SPACE, b"waits too", encode_row(Kind.CHUNKED, AWAITED, None, 0, PENDING_AT))
        apply(store, FrameBatch(Frame(1, OTHER, Stamp(0), Stamp(1), ((Stamp(1), 0),), (waits,))))
        yield store


def put_state(writer: LayoutWriter, chunk: ChunkId, references: int, *, is_here: bool) -> None:
    writer._tables.put(CHUNKS, chunk + STATE_MARK, encode_chunk_state(ChunkState(references, is_here)))


def put_unused(writer: LayoutWriter, content: bytes) -> None:
    writer._tables.put(CHUNKS, chunk_id(content) + CONTENT_MARK, content)
    put_state(writer, chunk_id(content), 0, is_here=True)


PLANTED: dict[str, tuple[Callable[[LayoutWriter], object], Found]] = {
    "a bit of a chunk": (
        lambda writer: writer._tables.put(CHUNKS, FIRST + CONTENT_MARK, b"?" + CONTENTS[0][1][1:]),
        [("chunk", SPACE, b"large")],
    ),
    "a chunk that is lost": (
        lambda writer: writer._tables.delete(CHUNKS, FIRST + CONTENT_MARK),
        [("chunk_state", SPACE, b"large")],
    ),
    "a chunk whose state is lost": (
        lambda writer: writer._tables.delete(CHUNKS, FIRST + STATE_MARK),
        [
            ("chunk_unknown", SPACE, b"large"),
            ("chunk_missing", SPACE, b"large"),
            ("chunk_state", SPACE, b"large"),
        ],
    ),
    "a chunk that is said to be missing": (
        lambda writer: put_state(writer, SECOND, 1, is_here=False),
        [("chunk_missing", SPACE, b"large"), ("chunk_state", SPACE, b"large")],
    ),
    "a reference too many": (
        lambda writer: put_state(writer, FIRST, 2, is_here=True),
        [("chunk_references", SPACE, b"large")],
    ),
    "a chunk that nothing names": (
        lambda writer: put_unused(writer, b"of another value"),
        [("chunk_unused", None, None)],
    ),
    "a row that does not wait any more": (
        lambda writer: writer._tables.delete(PENDING, PENDING_AT),
        [("chunk_missing", SPACE, b"waits too")],
    ),
    "a row that waits and is not stored": (
        lambda writer: writer.delete_row(SPACE, b"waits too"),
        [
            ("totals", SPACE, None),
            ("position_without_row", SPACE, b"waits too"),
            ("pending_stale", SPACE, b"waits too"),
            *[("chunk_references", None, None)] * 3,
        ],
    ),
    "a tombstone without a grave": (
        lambda writer: writer._tables.delete(GRAVES, make_version(2, Stamp(4), OWN)),
        [("grave_missing", SPACE, b"deleted")],
    ),
    "a grave of a value": (
        lambda writer: writer._tables.put(GRAVES, make_version(2, Stamp(3), OWN), SPACE + b"waits"),
        [("grave_stale", SPACE, b"waits")],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_damage_of_chunks_is_found_where_it_is(store: LmdbStore, name: str) -> None:
    assert check_store(store.directory) == []
    plant, found = PLANTED[name]
    with store.write() as writer:
        plant(writer)
    assert [(one.what, one.namespace, one.key) for one in check_store(store.directory)] == found


def test_row_that_readers_see_until_its_chunks_are_here_is_checked_and_keeps_its_own(store: LmdbStore) -> None:
    at = make_version(3, Stamp(2), Issuer(b"issuer-4"))
    newer = (SPACE, b"large", encode_row(Kind.CHUNKED, AWAITED, None, 0, at))
    apply(store, FrameBatch(Frame(3, Issuer(b"issuer-4"), Stamp(0), Stamp(2), ((Stamp(2), 0),), (newer,))))
    assert check_store(store.directory) == [], "the chunks of the shown row are counted"
    with store.write() as writer:
        raw = writer.tables.get(PENDING, at)
        assert raw is not None
        writer._tables.put(PENDING, at, raw[:-1] + b"?")
    found = check_store(store.directory)
    assert (found[0].what, found[0].namespace, found[0].key) == ("row", SPACE, b"large")
    assert "that readers see" in found[0].message


def test_references_are_not_compared_when_rows_and_chunks_were_read_at_different_times(store: LmdbStore) -> None:
    with store.write() as writer:
        put_state(writer, FIRST, 2, is_here=True)
    check, found = StoreCheck(), []
    while check.stage:
        with store.read() as reader:
            found += check.go_on(reader, 1).damage
    assert found == []


def test_index_that_grows_as_fast_as_it_is_read_comes_to_an_end(tmp_path: Path) -> None:
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=True) as store:
        for batch in islice(draw_batches(2), 40):
            apply(store, batch)
        check, stamp = StoreCheck(), 1_000_000
        with store.read() as reader:
            while check.stage != "graves":
                check.go_on(reader, 1)
        slices = 0
        while check.stage == "graves":
            with store.write() as writer:  # each tombstone is newer than all before
                for _ in range(3):
                    stamp += 1
                    writer.put_row(
                        SPACE,
                        b"%d" % stamp,
                        encode_row(Kind.TOMBSTONE, b"", None, 0, make_version(9, Stamp(stamp), OWN)),
                    )
            with store.read() as reader:
                check.go_on(reader, 1)
            slices += 1
            assert slices < 1_000, "it goes on for ever"
