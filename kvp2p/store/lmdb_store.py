"""The store of a node: the layout of `layout.py` in one LMDB file, written by one process and read by many.

Decides: how transactions begin and end on LMDB.
Keeps true
* I4: a write transaction commits whole or not at all.
* I5: `write` returns after LMDB has synced the file.
In and out: the store port; errors of LMDB come out as StoreFull, StoreFormatError or StoreError, with nothing applied.

A write transaction belongs to the thread that opened it; the node has one such thread. Read transactions may be opened from
any thread. A reader process that is killed inside one pins pages until somebody calls `reader_check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import lmdb

from kvp2p.core.messages import Designation
from kvp2p.core.port import Identity
from kvp2p.errors import StoreError, StoreFull
from kvp2p.limits import STORE_RESERVE_BYTES
from kvp2p.replacement import sync_directory
from kvp2p.store.environment import (
    DATA_FILE,
    MAP_BYTES_DEFAULT,
    Environment,
    Migrating,
    file_key,
    free_bytes,
    fullness,
    make_environment,
    open_environment,
    translate,
)
from kvp2p.store.layout import LayoutReader
from kvp2p.store.layout_writer import Carried, LayoutWriter, found_store
from kvp2p.store.lmdb_tables import LmdbTables
from kvp2p.store.meta import Decoded
from kvp2p.store.tables import TABLE_NAMES


class LmdbStore:
    """An open store. Close it, or use it as a context manager."""

    def __init__(self, environment: Environment, free: Callable[[], int]) -> None:
        """Use `create` or `open`. `free` tells the free bytes of the disk; tests replace it."""
        self._environment = environment
        self._handle = environment.handle
        self._free = free
        self._decoded: Decoded = {}
        self._carried: Carried | None = None
        self._carried_id = -1  # the LMDB transaction that left it
        self._is_closed = False

    @classmethod
    def create(
        cls,
        path: Path | str,
        identity: Identity,
        *,
        complete: bool,
        designation: Designation | None = None,
        map_bytes: int = MAP_BYTES_DEFAULT,
    ) -> LmdbStore:
        """Make a store in a directory that has none, durably, and open it for writing.

        `complete` is False for a node that is to join others. Raises StoreError when there is a store already.
        """
        directory = Path(path).absolute()
        environment = make_environment(directory, map_bytes)
        try:
            handle = environment.handle
            # One transaction makes all of it, so that no reader finds a part of a store.
            with handle.begin(write=True) as transaction:
                handles = {name: handle.open_db(name.encode(), txn=transaction) for name in TABLE_NAMES}
                found_store(LmdbTables(transaction, handles), identity, complete=complete, designation=designation)
            for made in (directory, directory.parent):  # LMDB syncs the file, not the name it has
                sync_directory(made)
        except lmdb.Error as error:
            raise translate(error, directory, lambda: free_bytes(directory)) from error
        except OSError as error:
            raise StoreError(f"no store can be made in {directory}: {error}") from error
        finally:
            environment.release()
        return cls.open(directory, map_bytes=map_bytes)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        map_bytes: int = MAP_BYTES_DEFAULT,
        readonly: bool = False,
        free: Callable[[], int] | None = None,
        migrating: Migrating = nullcontext,
    ) -> LmdbStore:
        """Open the store of a directory. A reader takes the writer's map, whatever `map_bytes` says.

        Opening for writing rewrites a store of the older format, in one transaction, inside what `migrating` makes. Raises
        StoreFormatError when it is of another format or no store (StoreOutdated when it is of the older format and `readonly`),
        StoreError when it is not there or not complete.
        """
        directory = Path(path).absolute()
        environment = open_environment(directory, map_bytes, readonly=readonly, migrating=migrating)
        return cls(environment, free or (lambda: free_bytes(directory)))

    @property
    def directory(self) -> Path:
        """The directory of the file."""
        return self._environment.directory

    @property
    def environment(self) -> Environment:
        """LMDB's handles, for the reader whose hot path has no layer between."""
        return self._environment

    @property
    def decoded(self) -> Decoded:
        """The cache of facts that all read transactions share."""
        return self._decoded

    def translated(self, error: lmdb.Error) -> StoreError:
        """Return what an LMDB error means for this store."""
        return translate(error, self.directory, self._free)

    @contextmanager
    def read(self, *, views: bool = False) -> Iterator[LayoutReader]:
        """Open a read transaction; what it returns is copied out of the file.

        With `views`, rows and values are memoryviews of the file: valid until the block ends, then garbage without an
        exception. Only for code that copies the part it needs at once.
        """
        try:
            transaction = cast("lmdb.Transaction[bytes]", self._handle.begin(buffers=cast("Any", views)))
            try:
                yield LayoutReader(LmdbTables(transaction, self._environment.tables), self._decoded)
            finally:
                transaction.abort()
        except lmdb.Error as error:
            raise self.translated(error) from error

    @contextmanager
    def write(self, *, into_reserve: bool = False) -> Iterator[LayoutWriter]:
        """Open the write transaction: it is durable when the block has ended, and undone when the block raises.

        `into_reserve` is for transactions that make room. Raises StoreFull before the block when the disk has no room but the
        reserve, or at its end; StoreError when the disk fails. Nothing is applied then.
        """
        if not into_reserve and self._has_reserve_only():
            raise StoreFull(
                f"the store in {self.directory} {fullness(self.directory)}. Less than {STORE_RESERVE_BYTES >> 20} MiB are "
                "left, which are kept for deleting"
            )
        try:
            transaction = self._handle.begin(write=True)
            is_open = True
            try:
                # A write transaction has the id after that of the last commit, so it tells whether another process wrote.
                number = transaction.id()
                carried = self._carried if self._carried_id == number - 1 else None
                self._carried, self._carried_id = None, -1
                writer = LayoutWriter(LmdbTables(transaction, self._environment.tables), carried or Carried())
                yield writer
                carried = writer.flush()
                is_open = False  # a failed commit ends the transaction too
                transaction.commit()
                self._carried, self._carried_id = carried, number
            finally:
                if is_open:
                    transaction.abort()
        except lmdb.Error as error:
            raise self.translated(error) from error

    def _has_reserve_only(self) -> bool:
        """Tell whether neither the disk nor the file has room. LMDB never gives pages back: what deleting frees is in the file."""
        free = self._free()
        if free >= STORE_RESERVE_BYTES:
            return False
        if free < STORE_RESERVE_BYTES // 2:
            # While an old reader pins them, freed pages are not used again and the file grows: the rest is for what makes room.
            return True
        try:
            with self._handle.begin() as transaction:
                bytes_in_use = self._environment.bytes_in_use(transaction)
        except lmdb.Error as error:
            raise self.translated(error) from error
        return free + self.used_bytes() - bytes_in_use < STORE_RESERVE_BYTES

    def reader_check(self) -> int:
        """Free the slots of reader processes that are gone; returns how many there were."""
        try:
            return self._handle.reader_check()
        except lmdb.Error as error:
            raise self.translated(error) from error

    def check_in_place(self) -> None:
        """Raise StoreError when the file at the path is no longer the one that is open: open it again."""
        if self._is_closed or file_key(self.directory) != self._environment.file:
            raise StoreError(f"{self.directory / DATA_FILE} was removed or replaced: open the store again")

    def used_bytes(self) -> int:
        """Return how much of the file is in use or was once: the file's size."""
        return (self._handle.info()["last_pgno"] + 1) * self._handle.stat()["psize"]

    def close(self) -> None:
        """Let go of the file. Transactions must have ended."""
        if not self._is_closed:
            self._is_closed = True
            self._environment.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
