"""The ordered tables of `tables.py` in one LMDB transaction.

Decides: which calls of py-lmdb read and write them.
Keeps true: what `tables.py` says. Errors of LMDB pass through: whoever owns the transaction translates them.
In and out: a transaction and the handles of its tables in; bytes in and out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lmdb


class LmdbTables:
    """The tables in one LMDB transaction."""

    __slots__ = ("_handles", "_transaction")

    def __init__(self, transaction: lmdb.Transaction[bytes], handles: dict[str, Any]) -> None:
        self._transaction = transaction
        self._handles = handles

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._transaction.get(key, None, self._handles[table])

    def scan(self, table: str, start: bytes = b"", *, after: bool = False) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._transaction.cursor(self._handles[table])
        if not cursor.set_range(start):
            return iter(())
        if after and cursor.key() == start and not cursor.next():
            return iter(())
        return cursor.iternext()

    def count(self, table: str) -> int:
        return self._transaction.stat(self._handles[table])["entries"]

    def put(self, table: str, key: bytes, value: bytes) -> None:
        # dupdata, overwrite, append: by position, because naming `db` alone costs as much as a third of the call.
        self._transaction.put(key, value, True, True, False, self._handles[table])

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._transaction.cursor(self._handles[table]).putmulti(items)

    def delete(self, table: str, key: bytes) -> None:
        self._transaction.delete(key, db=self._handles[table])
