"""A store in memory: the layout of `layout.py` on sorted lists, for the simulator and for tests.

Decides: how tables that are not on a disk stay consistent for their readers.
Keeps true: what LMDB gives: a write transaction is seen whole or not at all, a reader sees the state it began with.
In and out: the store port. `snapshot` gives an independent store with the committed state: a copied disk.

A write transaction collects its changes aside and applies them when it commits. Tables are changed in place unless a reader
or a snapshot holds them; then they are copied first. So a simulation, whose readers come and go between two commits,
copies nothing.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvp2p.core.messages import Designation
from kvp2p.core.port import Identity
from kvp2p.errors import LocalProtocolError
from kvp2p.store.layout import LayoutReader
from kvp2p.store.layout_writer import Carried, LayoutWriter, found_store
from kvp2p.store.meta import Decoded
from kvp2p.store.tables import TABLE_KEY_BYTES_MAX, TABLE_NAMES


class _Table:
    """One sorted table. `is_shared` is set for good when a snapshot holds it too."""

    __slots__ = ("is_shared", "keys", "values")

    def __init__(self, keys: list[bytes], values: dict[bytes, bytes]) -> None:
        self.keys = keys
        self.values = values
        self.is_shared = False

    def copy(self) -> _Table:
        return _Table(self.keys.copy(), self.values.copy())

    def apply(self, changes: dict[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            is_there = key in self.values
            if value is not None:
                if not is_there:
                    self.keys.insert(bisect_left(self.keys, key), key)
                self.values[key] = value
            elif is_there:
                del self.keys[bisect_left(self.keys, key)]
                del self.values[key]


def _first_index(keys: list[bytes], start: bytes, *, after: bool) -> int:
    return bisect_right(keys, start) if after else bisect_left(keys, start)


class _Tables:
    """The committed tables, as a reader holds them."""

    __slots__ = ("_tables",)

    def __init__(self, tables: dict[str, _Table]) -> None:
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._tables[table].values.get(key)

    def scan(self, table: str, start: bytes = b"", *, after: bool = False) -> Iterator[tuple[bytes, bytes]]:
        held = self._tables[table]
        for index in range(_first_index(held.keys, start, after=after), len(held.keys)):
            key = held.keys[index]
            yield key, held.values[key]

    def count(self, table: str) -> int:
        return len(self._tables[table].keys)


class _Changes(_Tables):
    """The committed tables with the changes of one write transaction over them. None stands for a removed key."""

    __slots__ = ("changes",)

    def __init__(self, tables: dict[str, _Table]) -> None:
        super().__init__(tables)
        self.changes: dict[str, dict[bytes, bytes | None]] = {name: {} for name in TABLE_NAMES}

    def get(self, table: str, key: bytes) -> bytes | None:
        changes = self.changes[table]
        return changes[key] if key in changes else self._tables[table].values.get(key)

    def scan(self, table: str, start: bytes = b"", *, after: bool = False) -> Iterator[tuple[bytes, bytes]]:
        changes = self.changes[table]
        if not changes:
            yield from super().scan(table, start, after=after)
            return
        changed = sorted(key for key in changes if key > start or (key == start and not after))
        index = 0
        for key, value in super().scan(table, start, after=after):
            while index < len(changed) and changed[index] < key:
                yield from self._changed(changes, changed[index])
                index += 1
            if index < len(changed) and changed[index] == key:
                yield from self._changed(changes, key)
                index += 1
            else:
                yield key, value
        for key in changed[index:]:
            yield from self._changed(changes, key)

    @staticmethod
    def _changed(changes: dict[bytes, bytes | None], key: bytes) -> Iterator[tuple[bytes, bytes]]:
        value = changes[key]
        if value is not None:
            yield key, value

    def count(self, table: str) -> int:
        values = self._tables[table].values
        difference = sum((value is not None) - (key in values) for key, value in self.changes[table].items())
        return super().count(table) + difference

    def put(self, table: str, key: bytes, value: bytes) -> None:
        assert 1 <= len(key) <= TABLE_KEY_BYTES_MAX, "LMDB would refuse this key"
        self.changes[table][key] = value

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in items:
            self.put(table, key, value)

    def delete(self, table: str, key: bytes) -> None:
        self.changes[table][key] = None


class MemoryStore:
    """The store port in memory. Transactions may be used from several threads, one writer at a time."""

    def __init__(self, identity: Identity, *, complete: bool = True, designation: Designation | None = None) -> None:
        first = _Changes({name: _Table([], {}) for name in TABLE_NAMES})
        found_store(first, identity, complete=complete, designation=designation)
        self._begin({name: _Table([], {}) for name in TABLE_NAMES})
        self._commit(first)

    def _begin(self, tables: dict[str, _Table]) -> None:
        self._tables = tables
        self._readers = 0
        self._is_writing = False
        self._carried: Carried | None = None
        self._decoded: Decoded = {}
        self._lock = threading.Lock()

    def snapshot(self) -> MemoryStore:
        """Return an independent store with the state that is committed now. Costs nothing until one of them is changed."""
        other = MemoryStore.__new__(MemoryStore)
        with self._lock:
            for table in self._tables.values():
                table.is_shared = True
            other._begin(dict(self._tables))  # noqa: SLF001  the same class
        return other

    @contextmanager
    def read(self) -> Iterator[LayoutReader]:
        """Open a read transaction: the committed state as it is now, until the block ends."""
        with self._lock:
            self._readers += 1
            tables = self._tables
        try:
            yield LayoutReader(_Tables(tables), self._decoded)
        finally:
            with self._lock:
                self._readers -= 1

    @contextmanager
    def write(self) -> Iterator[LayoutWriter]:
        """Open the write transaction; it commits when the block ends, and leaves no trace when the block raises.

        Raises LocalProtocolError when one is open already.
        """
        with self._lock:
            if self._is_writing:
                raise LocalProtocolError("a store has one write transaction at a time")
            self._is_writing = True
        carried, self._carried = self._carried or Carried(), None
        try:
            changes = _Changes(self._tables)
            writer = LayoutWriter(changes, carried)
            yield writer
            carried = writer.flush()
            self._commit(changes)
            self._carried = carried
        finally:
            self._is_writing = False

    def _commit(self, changes: _Changes) -> None:
        with self._lock:
            tables = dict(self._tables)
            for name, changed in changes.changes.items():
                if changed:
                    if self._readers or tables[name].is_shared:
                        tables[name] = tables[name].copy()
                    tables[name].apply(changed)
            self._tables = tables

    def reader_check(self) -> int:
        """Return 0: readers in memory do not outlive their block."""
        return 0

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""
