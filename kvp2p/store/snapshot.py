"""A copy of a store as one transaction sees it, while the node goes on writing.

Decides: how the copy is made: LMDB's own, compacted, so that pages which are in no use are not copied.
Keeps true: the copy is one committed state [I4]. The transaction is open as long as it is read: until then LMDB uses no page again that
the copy may still need, and the node's file grows by what is written meanwhile.
In and out: an open store in, the bytes of a data file out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import lmdb

from kvp2p.store.layout import LayoutReader
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.lmdb_tables import LmdbTables

_CHUNK_BYTES = 1 << 20


class Snapshot:
    """One read transaction: what it says of the store, and the whole of it as bytes."""

    def __init__(self, store: LmdbStore, transaction: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._transaction = transaction
        self._on_close = ExitStack()
        self.reader = LayoutReader(LmdbTables(transaction, store.environment.tables), store.decoded)

    @property
    def bytes_in_use(self) -> int:
        """About how long the copy will be."""
        return self._store.environment.bytes_in_use(self._transaction)

    def chunks(self) -> Iterator[bytes]:
        """Iterate over the bytes of the copy, from its first to its last; raises StoreError when the file cannot be read.

        LMDB writes into a pipe from a thread; whoever stops early closes the pipe, which ends the thread.
        """
        reading, writing = os.pipe()
        failures: list[lmdb.Error] = []

        def copy() -> None:
            try:
                self._store.environment.handle.copyfd(writing, compact=True, txn=self._transaction)
            except lmdb.Error as error:
                failures.append(error)
            finally:
                os.close(writing)

        thread = threading.Thread(target=copy, name="store-copy", daemon=True)
        thread.start()
        with ExitStack() as stack:
            stack.callback(thread.join)
            pipe = stack.enter_context(os.fdopen(reading, "rb", buffering=0))
            self._on_close.push(stack)
            while chunk := pipe.read(_CHUNK_BYTES):
                yield chunk
        if failures:
            raise self._store.translated(failures[0]) from failures[0]

    def close(self) -> None:
        """End copies that were not read to their end, then the transaction."""
        self._on_close.close()
        self._transaction.abort()


@contextmanager
def open_snapshot(store: LmdbStore) -> Iterator[Snapshot]:
    """Open a read transaction that can be copied."""
    try:
        snapshot = Snapshot(store, store.environment.handle.begin())
    except lmdb.Error as error:
        raise store.translated(error) from error
    try:
        yield snapshot
    except lmdb.Error as error:
        raise store.translated(error) from error
    finally:
        snapshot.close()
