"""Scrubbing: its rate, its short transactions, and what it tells."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from kvp2p.core.batches import StampedWrite, WriteGroup
from kvp2p.core.operations import CreateNamespace, Operation, Put
from kvp2p.errors import StoreError
from kvp2p.ids import NamespaceId, Stamp
from kvp2p.limits import SCRUB_DAMAGE_MAX
from kvp2p.store.layout import encode_totals
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.scrub import Found, Progress, Summary, scrub
from kvp2p.store.tables import HASHES, ROWS
from tests.store.batches import IDENTITY, NAMESPACES, OWN, apply, draw_batches

SPACE = NAMESPACES[0]
KEYS = 500


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    """Give a store with 500 rows of a kilobyte in the namespace "things"."""
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=True) as store:
        operations: list[Operation] = [CreateNamespace(SPACE, IDENTITY.account, "things")]
        operations += [Put(SPACE, b"%04d" % number, bytes(1_000)) for number in range(KEYS)]
        writes = tuple(StampedWrite(Stamp(stamp), (one,)) for stamp, one in enumerate(operations, 1))
        apply(store, WriteGroup(2, OWN, writes, 0))
        yield store


def walk(store: LmdbStore, **options: object) -> tuple[Summary, list[Found], list[Progress], list[float]]:
    found: list[Found] = []
    progress: list[Progress] = []
    rests: list[float] = []
    done = scrub(
        store.directory,
        on_found=found.append,
        on_progress=progress.append,
        sleep=rests.append,
        **options,  # type: ignore[arg-type]
    )
    return done, found, progress, rests


def damage(store: LmdbStore, *numbers: int) -> None:
    with store.write() as writer:
        for number in numbers:
            full_key = SPACE + b"%04d" % number
            row = writer.tables.get(ROWS, full_key)
            assert row is not None
            writer._tables.put(ROWS, full_key, row[:-1] + b"!")


def test_sound_store_is_read_to_its_end_without_a_rest(store: LmdbStore) -> None:
    done, found, progress, rests = walk(store)
    assert done == Summary(0, KEYS + 1, KEYS + 1, [])
    assert (found, rests) == ([], [])
    assert progress[-1].stage == ""
    assert progress[-1].bytes_seen > KEYS * 1_000


def test_rate_is_kept_by_a_rest_after_each_short_slice(store: LmdbStore) -> None:
    rate = 200_000
    done, _, progress, rests = walk(store, bytes_per_second=rate)
    assert done.rows == KEYS + 1
    seconds = progress[-1].bytes_seen / rate
    assert seconds * 0.7 < sum(rests) < seconds, "the rest of the time is what the slices took"
    assert max(rests) < 0.2
    assert len(progress) > 10
    seen = [one.bytes_seen for one in progress]
    assert seen == sorted(seen)
    assert all(one.bytes_total >= one.bytes_seen for one in progress)


@pytest.mark.parametrize("is_consistent", [False, True])
def test_transaction_ends_with_each_slice_unless_all_is_to_be_read_in_one(
    store: LmdbStore, *, is_consistent: bool
) -> None:
    """What is written during a rest is seen by the next slice, or by none."""
    writes = iter(range(KEYS))

    def write(_seconds: float) -> None:
        with store.write() as writer:
            writer.put_row(NamespaceId(b"Z" * 16), b"%d" % next(writes), b"no row at all")

    found: list[Found] = []
    scrub(store.directory, on_found=found.append, bytes_per_second=200_000, is_consistent=is_consistent, sleep=write)
    assert next(writes) > 10
    assert bool(found) is not is_consistent


def test_damage_is_told_with_the_title_of_its_namespace(store: LmdbStore) -> None:
    damage(store, 3, 77)
    with store.write() as writer:
        totals = writer.totals(SPACE)
        assert totals is not None
        writer._tables.put(HASHES, b"Q" * 16, encode_totals(totals))
    done, found, _, _ = walk(store)
    assert done.damaged == 3
    assert [(one.damage.what, one.title, one.damage.key) for one in found] == [
        ("row", "things", b"0003"),
        ("row", "things", b"0077"),
        ("totals", "", None),
    ]


def test_only_so_many_places_are_told_and_the_rest_counted(store: LmdbStore) -> None:
    with store.write() as writer:
        for number in range(SCRUB_DAMAGE_MAX + 7):
            writer._tables.put(HASHES, number.to_bytes(16, "big"), bytes(31) + b"\x01")
    done, found, _, _ = walk(store)
    assert (len(found), done.damaged >= SCRUB_DAMAGE_MAX + 6) == (SCRUB_DAMAGE_MAX, True)


def test_namespaces_that_were_written_to_are_named_and_compared_in_one_transaction(tmp_path: Path) -> None:
    with LmdbStore.create(tmp_path / "store", IDENTITY, complete=True) as store:
        batches = draw_batches(4)
        for batch in islice(batches, 60):
            apply(store, batch)

        def write(_seconds: float) -> None:
            apply(store, next(batches))

        for is_consistent in (False, True):
            found: list[Found] = []
            done = scrub(
                store.directory,
                on_found=found.append,
                bytes_per_second=100_000,
                is_consistent=is_consistent,
                sleep=write,
            )
            assert (done.damaged, found, bool(done.not_compared)) == (0, [], not is_consistent)


def test_store_that_is_replaced_meanwhile_ends_the_walk(store: LmdbStore, tmp_path: Path) -> None:
    def replace(_seconds: float) -> None:
        store.directory.rename(tmp_path / "away")

    with pytest.raises(StoreError, match="removed or replaced"):
        scrub(store.directory, on_found=print, bytes_per_second=100_000, sleep=replace)
