"""The simulated disk loses what was not synced and nothing else."""

import pytest

from kvp2p.core.batches import Batch, BatchResult, Settle, StampedWrite, WriteGroup
from kvp2p.core.operations import Put
from kvp2p.core.port import Identity
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NodeId, Stamp
from kvp2p.sim.disk import Disk
from kvp2p.sim.schedule import SECOND, Schedule
from kvp2p.sim.seeds import Seeds
from kvp2p.store.memory import MemoryStore

ISSUER = Issuer(b"issuer 1")


class Written:
    """A disk and what it has told."""

    def __init__(self) -> None:
        self.schedule = Schedule()
        identity = Identity(ClusterId(bytes(16)), AccountId(bytes(16)), NodeId(bytes(16)), "n1")
        self.disk = Disk(self.schedule, Seeds(1).random("disk"), MemoryStore(identity), 10.0)
        self.told: list[int] = []
        self.failed: list[int] = []

    def submit(self, *numbers: int) -> None:
        for number in numbers:
            write = StampedWrite(Stamp(number), (Put(SYSTEM_NAMESPACE, b"key", b"%d" % number),))
            self.disk.submit(number, WriteGroup(1, ISSUER, (write,), 1), self.on_persisted, self.failed.append)

    def on_persisted(self, ticket: int, batch: Batch, result: BatchResult) -> None:
        self.told.append(ticket)
        assert dict(result.vector.items()).get(ISSUER, 0) == ticket, "the result is of this very batch"

    def stored(self) -> int:
        with self.disk.store.read() as txn:
            return dict(txn.vector.items()).get(ISSUER, 0)

    def run(self) -> None:
        self.schedule.run_until(self.schedule.now_ns + SECOND)


def test_batches_become_durable_in_order_and_share_the_next_sync() -> None:
    written = Written()
    written.submit(1, 2, 3)
    assert (written.told, written.stored()) == ([], 0), "nothing is durable or visible before its sync"
    written.run()
    assert (written.told, written.stored()) == ([1, 2, 3], 3)
    assert written.disk.syncs == 2, "the first goes alone, the others arrived while it was syncing"


@pytest.mark.parametrize(("share_kept", "kept"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_crash_keeps_the_first_batches_in_flight_and_tells_nobody(share_kept: float, kept: int) -> None:
    written = Written()
    written.submit(1, 2, 3, 4)
    on_disk, lost = written.disk.crash(share_kept)
    assert (len(on_disk), len(lost)) == (kept, 4 - kept)
    written.run()
    assert (written.told, written.stored()) == ([], kept)


def test_a_crash_never_takes_what_was_synced() -> None:
    written = Written()
    written.submit(1)
    written.run()
    written.submit(2)
    written.disk.crash(0.0)
    written.submit(2)
    written.run()
    assert (written.told, written.stored()) == ([1, 2], 2)


def test_a_process_that_ends_while_it_is_told_hears_no_more() -> None:
    written = Written()
    told: list[int] = []

    def on_persisted(ticket: int, batch: Batch, result: BatchResult) -> None:
        told.append(ticket)
        written.disk.crash(0.0)

    written.disk.submit(1, Settle(), lambda *_: None, told.append)
    written.disk.submit(2, Settle(), on_persisted, told.append)
    written.disk.submit(3, Settle(), on_persisted, told.append)
    written.run()
    assert told == [2]


def test_a_full_disk_fails_batches_and_changes_nothing() -> None:
    written = Written()
    written.disk.is_full = True
    written.submit(1, 2)
    written.run()
    assert (written.failed, written.told, written.stored()) == ([1, 2], [], 0)
    written.disk.is_full = False
    written.submit(3)
    written.run()
    assert (written.failed, written.told, written.stored()) == ([1, 2], [3], 3)
    written.disk.is_full = True
    written.submit(4)
    assert len(written.disk.crash(1.0)[1]) == 1


def test_an_older_copy_takes_the_place_of_a_disk() -> None:
    written = Written()
    written.submit(1)
    written.run()
    copy = written.disk.store.snapshot()
    written.submit(2)
    written.run()
    written.disk.replace(copy)
    assert (written.stored(), written.disk.generation) == (1, 1)


def test_a_fault_may_wait_for_a_batch_in_flight() -> None:
    written = Written()
    struck: list[int] = []
    written.disk.on_next_submit = lambda: struck.append(len(written.disk.waiting))
    written.submit(1, 2)
    assert struck == [1], "once, and with the batch in flight"
