"""Ordered tables of bytes to bytes: the little that LMDB and the memory store have in common.

Decides: which tables a store has, and what may be done with one inside a transaction.
Keeps true: every scan is in ascending byte order, and sees one consistent state.
In and out: keys of 1 to 511 bytes (LMDB's limit), values of any length below 4 GiB. What they mean is `layout.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

ROWS: Final = "rows"
TAILS: Final = "tails"
LOG: Final = "log"
EXPIRY: Final = "expiry"
CHUNKS: Final = "chunks"
PENDING: Final = "pending"
STAGING: Final = "staging"
GRAVES: Final = "graves"
HASHES: Final = "hashes"
META: Final = "meta"
TABLE_NAMES: Final = (ROWS, TAILS, LOG, EXPIRY, CHUNKS, PENDING, STAGING, GRAVES, HASHES, META)

TABLE_KEY_BYTES_MAX: Final = 511


class ReadableTables(Protocol):
    """All tables of one store, as one transaction sees them."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value at a key, None when there is none."""
        ...

    def scan(self, table: str, start: bytes = b"", *, after: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over (key, value) from `start` on; `after` leaves `start` itself out.

        The table must not be changed before the iteration ends: a writer collects first.
        """
        ...

    def count(self, table: str) -> int:
        """Return the number of keys in a table."""
        ...


class WritableTables(ReadableTables, Protocol):
    """The tables of the one open write transaction, which sees its own changes."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Store a value, replacing one of the same key."""
        ...

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store keys and values, replacing those of the same keys: `put` for each, but quicker."""
        ...

    def delete(self, table: str, key: bytes) -> None:
        """Remove a key if it is there."""
        ...
