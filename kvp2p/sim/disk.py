"""A node's disk: batches become durable after a sync, and a crash loses what was not synced.

Decides: when a batch is applied and durable, and what is left of those in flight after a crash.
Keeps true: what `core/events.py` promises of `Persist`: in the order given, each atomically, one `Persisted` (or, on a full disk, one `PersistFailed`) each. All that arrived
while the last sync ran share the next one (group commit). Readers see a batch when it is durable, not before, as with LMDB.
In and out: batches and tickets in, `on_persisted` and `on_failed` calls out; the store itself is `kvp2p.store.memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import Batch, BatchResult
from kvp2p.sim.schedule import MS, Schedule
from kvp2p.store.memory import MemoryStore

OnPersisted = Callable[[int, Batch, BatchResult], None]
OnFailed = Callable[[int], None]


@dataclass(slots=True)
class Waiting:
    """A batch that is not durable yet, and who is told when it is."""

    ticket: int
    batch: Batch
    on_persisted: OnPersisted
    on_failed: OnFailed


class Disk:
    """One disk. It outlives the processes of its node; `generation` counts how often it was replaced by an older copy."""

    def __init__(self, schedule: Schedule, random: Random, store: MemoryStore, sync_ms: float) -> None:
        self.store = store
        self.generation = 0
        self.schedule = schedule
        self.random = random
        self.sync_ms = sync_ms
        self.waiting: list[Waiting] = []
        self.on_next_submit: Callable[[], None] | None = None  # called once: for faults that want a batch in flight
        self.syncs = 0
        self.is_full = False  # while so, a batch that may not use the reserve fails at its sync and changes nothing
        self.failed = 0
        self.apply_batch = apply_batch  # replaced by planted bugs only
        self._is_syncing = False
        self._power = 0  # counts crashes: a sync that was cut short never ends

    def submit(self, ticket: int, batch: Batch, on_persisted: OnPersisted, on_failed: OnFailed) -> None:
        """Queue a batch for the next sync."""
        self.waiting.append(Waiting(ticket, batch, on_persisted, on_failed))
        on_submit, self.on_next_submit = self.on_next_submit, None
        if on_submit is not None:
            on_submit()
        if not self._is_syncing:
            self._sync()

    def _sync(self) -> None:
        self._is_syncing = True
        group = len(self.waiting)
        power = self._power
        # Mostly about the usual time, now and then five times as long.
        slow = 5.0 if self.random.random() < 0.02 else 1.0
        latency_ms = self.sync_ms * slow * (0.5 + self.random.random())

        def done() -> None:
            if power != self._power:
                return
            durable, self.waiting = self.waiting[:group], self.waiting[group:]
            self.syncs += 1
            self._is_syncing = False
            results = [self._result_of(one.batch) for one in durable]
            if self.waiting:
                self._sync()
            for one, result in zip(durable, results, strict=True):
                if power != self._power:
                    return  # the process ended while it was being told
                if result is None:
                    self.failed += 1
                    one.on_failed(one.ticket)
                else:
                    one.on_persisted(one.ticket, one.batch, result)

        self.schedule.after(latency_ms * MS, done)

    def apply(self, batch: Batch) -> BatchResult:
        """Apply a batch in one transaction of the store."""
        with self.store.write() as txn:
            return self.apply_batch(txn, batch, is_full=self.is_full)

    def _result_of(self, batch: Batch) -> BatchResult | None:
        return self.apply(batch) if batch.may_use_reserve or not self.is_full else None

    def crash(self, share_kept: float) -> tuple[list[Batch], list[Batch]]:
        """End all syncs; of the batches in flight the first ones reach the disk all the same, up to a share (0 none, 1 all).

        Return the batches that were kept and those that were lost.
        """
        self._power += 1
        self._is_syncing = False
        waiting, self.waiting = self.waiting, []
        kept = 0 if self.is_full else round(share_kept * len(waiting))
        for one in waiting[:kept]:
            self.apply(one.batch)
        return [one.batch for one in waiting[:kept]], [one.batch for one in waiting[kept:]]

    def replace(self, store: MemoryStore) -> None:
        """Put an older copy in place of the disk's contents; only between two lives of the node."""
        assert not self.waiting, "the node has ended"
        self.store = store
        self.generation += 1
