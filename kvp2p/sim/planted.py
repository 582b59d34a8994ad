"""Planted bugs: deliberate faults that grade the simulator. Only tests and `scripts/simulate --grade` switch one on.

Decides: what each named bug does. Every one is a host that mistreats the real machine or its disk from outside; the product has no switch.
Keeps true: with no bug planted nothing here is used. A bug that no seed finds is a hole in the simulator, not a success.
In and out: a name in, the type of host to simulate with out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import Batch, BatchResult, ChunkBatch, FrameBatch, Settle
from kvp2p.core.entry import STATE_HASH_MASK, Kind, row_kind, row_state_hash
from kvp2p.core.events import Event, Received
from kvp2p.core.messages import Forward, Frame
from kvp2p.core.port import NamespaceTotals
from kvp2p.core.replica import ReplicaMachine
from kvp2p.ids import ISSUER_BYTES, SYSTEM_NAMESPACE, Stamp, make_version
from kvp2p.limits import WRITE_DEADLINE_MS
from kvp2p.sim.host import Host, Machine
from kvp2p.sim.schedule import MS
from kvp2p.store.memory import MemoryStore


class _Random(Protocol):
    def randbytes(self, n: int, /) -> bytes: ...

    def random(self) -> float: ...


class AcknowledgeBeforePersist(Host):
    """The node says that a batch is durable when the system has only taken it into memory; a crash loses what was not synced [I5]."""

    _synced: MemoryStore
    _unsynced: list[Batch]

    def start(self) -> None:
        self._synced = self.disk.store.snapshot()
        self._unsynced = []
        super().start()

    def persist(self, ticket: int, batch: Batch) -> None:
        result = self.disk.apply(batch)  # in the page cache: every reader on this machine sees it
        self._unsynced.append(batch)
        self.disk.submit(ticket, Settle(), self._on_synced, self._on_sync_failed)  # stands for the batch
        life = self.life

        def tell() -> None:
            if self.is_alive and self.life == life:
                self.on_persisted(ticket, batch, result)

        self.world.schedule.after(0, tell)

    def _on_synced(self, ticket: int, batch: Batch, result: BatchResult) -> None:
        self._sync(1)

    def _on_sync_failed(self, ticket: int) -> None:
        del self._unsynced[0]

    def _sync(self, count: int) -> None:
        for batch in self._unsynced[:count]:
            with self._synced.write() as txn:
                apply_batch(txn, batch)
        del self._unsynced[:count]

    def on_crashed(self, kept: list[Batch], lost: list[Batch]) -> None:
        self._sync(len(kept))
        self.disk.store = self._synced


class GapIgnored(Host):
    """A frame is taken as if it followed on what is there, whatever is missing before it [I3]."""

    def deliver(self, event: Event) -> None:
        if isinstance(event, Received) and isinstance(event.message, Frame):
            event = replace(event, message=replace(event.message, after=Stamp(0)))
        super().deliver(event)


class VectorBeforeRows(Host):
    """A frame's vector is written before its rows, in a transaction of its own: a crash in between keeps the vector alone [I4]."""

    def on_crashed(self, kept: list[Batch], lost: list[Batch]) -> None:
        frames = [batch.frame for batch in lost if isinstance(batch, FrameBatch)]
        if frames:
            with self.disk.store.write() as txn:
                first = frames[0]
                if txn.vector.reach(first.term, first.issuer) >= first.after:
                    txn.set_vector(txn.vector.raised(make_version(first.term, first.upto, first.issuer)))


class TombstoneLostAtRestart(Host):
    """A restarted node has forgotten its tombstones [I7]."""

    def start(self) -> None:
        with self.disk.store.write() as txn:
            seed = int.from_bytes(txn.identity.cluster[:8], "big")
            for namespace, key, row in list(txn.all_rows()):
                totals = txn.totals(namespace)
                if row_kind(row) != Kind.TOMBSTONE or namespace == SYSTEM_NAMESPACE or totals is None:
                    continue
                state_hash = (totals.state_hash - row_state_hash(namespace, key, row, seed)) & STATE_HASH_MASK
                txn.delete_row(namespace, key)
                txn.set_totals(namespace, NamespaceTotals(state_hash, totals.rows - 1, totals.live))
        super().start()


class DeadlineFromArrival(Host):
    """The leader gives a forwarded write its full time from when it arrives, however long it was on its way [I10]."""

    def deliver(self, event: Event) -> None:
        if isinstance(event, Received) and isinstance(event.message, Forward):
            deadline_ns = self.now().mono_ns + WRITE_DEADLINE_MS * MS
            event = replace(event, message=replace(event.message, deadline_ns=deadline_ns))
        super().deliver(event)


class IssuerReused(Host):
    """A node leads under the same issuer after every start [I2]."""

    def make_machine(self) -> Machine:
        random = _OneIssuer(self.random, self.node[:ISSUER_BYTES])
        return ReplicaMachine(self.settings, random, self.chunk_part_bytes)


class _OneIssuer:
    """Randomness in which one draw is always the same."""

    def __init__(self, random: _Random, issuer: bytes) -> None:
        self._random = random
        self._issuer = issuer

    def randbytes(self, n: int, /) -> bytes:
        return self._issuer if n == ISSUER_BYTES else self._random.randbytes(n)

    def random(self) -> float:
        return self._random.random()


class ChunkFreedWhileNamed(Host):
    """What a write under way keeps no longer goes, whether or not a row names it [I4]."""

    def on_persisted(self, ticket: int, batch: Batch, result: BatchResult) -> None:
        if isinstance(batch, ChunkBatch):
            with self.disk.store.write() as txn:
                for chunk in batch.release:
                    state = txn.chunk_state(chunk)
                    txn.set_chunk_state(chunk, None)
                    txn.set_chunk_state(chunk, state)  # the count stays, and says that the content is here
        super().on_persisted(ticket, batch, result)


class ShownBeforeWhole(Host):
    """A new value is shown as soon as its row is here, its chunks following [I3]."""

    def on_persisted(self, ticket: int, batch: Batch, result: BatchResult) -> None:
        if isinstance(batch, FrameBatch):
            with self.disk.store.write() as txn:
                for pending in list(txn.pending_rows()):
                    txn.delete_pending(pending.version)
        super().on_persisted(ticket, batch, result)


class UploadLeaks(Host):
    """Chunks of an upload that has ended, its value being refused, superseded or never written, are not let go [I4]."""

    def persist(self, ticket: int, batch: Batch) -> None:
        super().persist(ticket, replace(batch, release=()) if isinstance(batch, ChunkBatch) else batch)


class CoveredTakenForWhole(Host):
    """Whoever waits for a version is told that it is here when the vector covers it, whatever readers are shown [I3]."""

    def on_persisted(self, ticket: int, batch: Batch, result: BatchResult) -> None:
        if result.pending is not None:
            result = result._replace(pending=result.pending._replace(hidden=()))
        super().on_persisted(ticket, batch, result)


PLANTED: dict[str, type[Host]] = {
    "acknowledge before persist": AcknowledgeBeforePersist,
    "chunk freed while named": ChunkFreedWhileNamed,
    "covered taken for whole": CoveredTakenForWhole,
    "gap ignored": GapIgnored,
    "vector before rows": VectorBeforeRows,
    "shown before whole": ShownBeforeWhole,
    "tombstone lost at restart": TombstoneLostAtRestart,
    "upload leaks": UploadLeaks,
    "issuer reused": IssuerReused,
}
