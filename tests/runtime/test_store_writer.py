"""The thread that writes: what shares a sync, and how each batch ends when the disk is slow, full or broken."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from kvp2p.core.batches import Batch, BatchResult, Settle, StampedWrite, WriteGroup
from kvp2p.core.operations import Delete, Put
from kvp2p.errors import StoreError, StoreFull
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer, NodeId, Stamp
from kvp2p.runtime.store_writer import Ending, StoreWriter
from tests.node.rig import GatedStore, make_store, until

NODE = NodeId(b"n" * 16)
ROOM = 1 << 40


class Disk:
    """How much is free, at each time that the store asks."""

    def __init__(self) -> None:
        self.answers: Iterator[int] = iter(())

    def free(self) -> int:
        return next(self.answers, ROOM)


class Told:
    """What a writer told, in order."""

    def __init__(self) -> None:
        self.endings: list[tuple[int, Ending]] = []

    def __call__(self, ticket: int, ending: Ending) -> None:
        self.endings.append((ticket, ending))

    @property
    def tickets(self) -> list[int]:
        return [ticket for ticket, _ in self.endings]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def store(tmp_path: Path, disk: Disk) -> Iterator[GatedStore]:
    made = make_store(tmp_path / "store", NODE, leader=NODE, free=disk.free)
    yield made
    made.close()


def a_group(number: int) -> Batch:
    write = StampedWrite(Stamp(number), (Put(SYSTEM_NAMESPACE, b"key-%d" % number, b"value"),))
    return WriteGroup(1, Issuer(b"issuer-1"), (write,), 1)


def keys_in(store: GatedStore) -> list[bytes]:
    with store.read() as txn:
        return sorted(key for key, _ in txn.rows(SYSTEM_NAMESPACE))


@asynccontextmanager
async def running(writer: StoreWriter) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        yield
        nursery.cancel_scope.cancel()


async def submit_while_the_disk_is_busy(writer: StoreWriter, store: GatedStore, count: int) -> None:
    """Submit batch 0 alone, and batches 1 to `count` while the disk is busy with it."""
    store.close_gate()
    began = store.began
    writer.submit(0, a_group(1_000))
    await until(lambda: store.began > began)
    for number in range(1, count + 1):
        writer.submit(number, a_group(1_000 + number))


async def test_batches_that_queue_up_behind_a_sync_share_the_next_one(store: GatedStore) -> None:
    told = Told()
    writer = StoreWriter(store, told)
    async with running(writer):
        await submit_while_the_disk_is_busy(writer, store, 40)
        assert told.endings == [], "nothing is told before it is durable [I5]"
        store.open_gate()
        await until(lambda: len(told.endings) == 41)
    assert told.tickets == list(range(41))
    assert all(isinstance(ending, BatchResult) for _, ending in told.endings)
    assert (writer.syncs, store.began) == (2, 2)
    assert len(keys_in(store)) == 41


async def test_a_result_is_told_only_when_a_reader_can_see_the_rows(store: GatedStore) -> None:
    seen: list[bool] = []
    writer = StoreWriter(store, lambda ticket, _: seen.append(b"key-7" in keys_in(store)))
    async with running(writer):
        writer.submit(1, a_group(7))
        await until(lambda: bool(seen))
    assert seen == [True]


async def test_a_group_is_bounded_and_the_order_holds_across_groups(store: GatedStore) -> None:
    told = Told()
    writer = StoreWriter(store, told)
    async with running(writer):
        await submit_while_the_disk_is_busy(writer, store, 300)
        store.open_gate()
        await until(lambda: len(told.endings) == 301)
    assert told.tickets == list(range(301))
    assert writer.syncs == 3


async def test_when_the_disk_is_full_only_the_batch_without_room_fails(store: GatedStore, disk: Disk) -> None:
    told = Told()
    writer = StoreWriter(store, told)
    async with running(writer):
        await submit_while_the_disk_is_busy(writer, store, 3)
        # Room for the first, none for the three together; then alone: room, none, room.
        disk.answers = iter((ROOM, 0, ROOM, 0, ROOM))
        store.open_gate()
        await until(lambda: len(told.endings) == 4)
        writer.submit(4, a_group(2_000))
        await until(lambda: len(told.endings) == 5)
    assert told.tickets == [0, 1, 2, 3, 4]
    assert [isinstance(ending, StoreFull) for _, ending in told.endings] == [False, False, True, False, False]
    assert keys_in(store) == [b"key-1000", b"key-1001", b"key-1003", b"key-2000"]


async def test_on_a_full_disk_deletes_are_stored_and_puts_of_the_same_group_are_refused(
    store: GatedStore, disk: Disk
) -> None:
    told = Told()
    writer = StoreWriter(store, told)
    delete = StampedWrite(Stamp(2_000), (Delete(SYSTEM_NAMESPACE, b"key-1"),))
    put = StampedWrite(Stamp(2_001), (Put(SYSTEM_NAMESPACE, b"key-2", b"value"),))
    async with running(writer):
        writer.submit(0, a_group(1))
        await until(lambda: len(told.endings) == 1)
        disk.answers = iter([0] * 3)
        writer.submit(1, WriteGroup(1, Issuer(b"issuer-1"), (delete, put), 1))
        await until(lambda: len(told.endings) == 2)
        writer.submit(2, a_group(3_000))
        await until(lambda: len(told.endings) == 3)
        writer.submit(3, Settle(restored=False))
        await until(lambda: len(told.endings) == 4)
    result = told.endings[1][1]
    assert isinstance(result, BatchResult)
    assert [outcome.code for outcome in result.outcomes] == ["", "disk_full"]
    assert isinstance(told.endings[2][1], StoreFull)
    assert isinstance(told.endings[3][1], BatchResult)
    assert keys_in(store) == [b"key-1"], "its tombstone"


async def test_a_disk_without_even_a_reserve_refuses_deletes_too(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    writer = StoreWriter(store, told)
    monkeypatch.setattr(store, "write", _always_full)
    async with running(writer):
        writer.submit(0, Settle(restored=False))
        await until(lambda: len(told.endings) == 1)
    assert isinstance(told.endings[0][1], StoreFull)


def _always_full(*, into_reserve: bool = False) -> NoReturn:
    raise StoreFull("not a byte is left")


async def test_any_other_failure_ends_the_run_and_tells_nothing_of_what_waited(store: GatedStore) -> None:
    told = Told()
    writer = StoreWriter(store, told)
    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="the disk is gone")):
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            await submit_while_the_disk_is_busy(writer, store, 2)
            store.failure = StoreError("the disk is gone")
            store.open_gate()
    assert told.endings == []
    assert keys_in(store) == []


async def test_what_is_queued_when_the_node_ends_is_still_applied(store: GatedStore) -> None:
    told = Told()
    writer = StoreWriter(store, told)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        await submit_while_the_disk_is_busy(writer, store, 5)
        nursery.cancel_scope.cancel()
        opener = threading.Timer(0.05, store.open_gate)
        opener.start()
    opener.join()
    assert told.tickets == [0, 1, 2, 3, 4, 5]
    assert len(keys_in(store)) == 6
