"""The one thread that owns LMDB write transactions: it applies queued batches, many to a sync.

Decides: which batches share a transaction: all that queued up while the last one was syncing (group commit).
Keeps true: I4 and I5: a result is told after its transaction was synced, results in the order of the batches. A batch that finds no
room is tried once more in the store's reserve if it may use that, and ends alone in `StoreFull` if not. Any other failure ends the
node, which starts again from the store (crash-only).
In and out: `submit` from the trio thread; `tell(ticket, result | StoreFull)` is called back on the trio thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import trio

from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import Batch, BatchResult
from kvp2p.errors import StoreFull
from kvp2p.limits import BATCHES_PER_SYNC_MAX
from kvp2p.store.lmdb_store import LmdbStore

Ending = BatchResult | StoreFull
_Item = tuple[int, Batch]


class StoreWriter:
    """Runs batches on a thread of its own. Lives inside `run`."""

    def __init__(self, store: LmdbStore, tell: Callable[[int, Ending], None]) -> None:
        self._store = store
        self._tell = tell
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._ended = trio.Event()
        self.syncs = 0

    def submit(self, ticket: int, batch: Batch) -> None:
        """Queue a batch. The machine bounds what is in flight [I9]."""
        self._queue.put((ticket, batch))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the thread; raise what it failed with. When cancelled, what is queued is still applied."""
        token = trio.lowlevel.current_trio_token()
        thread = threading.Thread(target=self._work, args=(token,), name="store-writer", daemon=True)
        thread.start()
        task_status.started()
        try:
            await self._ended.wait()
        finally:
            self._queue.put(None)
            with trio.CancelScope(shield=True):
                await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        try:
            while (items := self._take()) is not None:
                token.run_sync_soon(self._tell_all, self._apply(items))
        except Exception as error:  # noqa: BLE001 - handed to `run`, which ends the node with it
            self._failure = error
        token.run_sync_soon(self._ended.set)

    def _take(self) -> list[_Item] | None:
        """Wait for batches; return all that are there, None when the thread is to end."""
        first = self._queue.get()
        if first is None:
            return None
        items = [first]
        while len(items) < BATCHES_PER_SYNC_MAX:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)  # for the next round
                break
            items.append(item)
        return items

    def _apply(self, items: list[_Item]) -> list[tuple[int, Ending]]:
        self.syncs += 1
        try:
            with self._store.write() as txn:
                results = [(ticket, apply_batch(txn, batch)) for ticket, batch in items]
        except StoreFull as full:
            if len(items) == 1:
                return [self._apply_into_reserve(*items[0], full)]
            return [ending for item in items for ending in self._apply([item])]
        return list(results)

    def _apply_into_reserve(self, ticket: int, batch: Batch, full: StoreFull) -> tuple[int, Ending]:
        """Try a batch again that found no room: deleting must go on, it makes room."""
        if not batch.may_use_reserve:
            return ticket, full
        try:
            with self._store.write(into_reserve=True) as txn:
                result = apply_batch(txn, batch, is_full=True)
        except StoreFull as still_full:
            return ticket, still_full
        return ticket, result

    def _tell_all(self, endings: list[tuple[int, Ending]]) -> None:
        for ticket, ending in endings:
            self._tell(ticket, ending)
