"""From format 1 to format 2: what a store of kvp2p 0.1 lacks is made, once, when it is opened for writing.

Decides: how each thing that format 2 has and format 1 had not is derived.
Keeps true: I4, all of it in one transaction: a store is of one format or of the other. Nothing of format 1 is lost.
In and out: an open LMDB environment of format 1 in, one of format 2 out. kvp2p 0.1 refuses it afterwards, and says why.

New in format 2: the tables `graves` (made from the rows), `pending` and `staging` (empty: there were no chunks).
"""

from __future__ import annotations

from typing import Final

import lmdb

from kvp2p.core.entry import is_tombstone
from kvp2p.store.layout import scan_rows
from kvp2p.store.lmdb_tables import LmdbTables
from kvp2p.store.meta import FORMAT_KEY, encode_format
from kvp2p.store.tables import GRAVES, META, TABLE_NAMES

OLD_FORMAT: Final = 1


def migrate(handle: lmdb.Environment) -> None:
    """Bring a store of format 1 to format 2."""
    with handle.begin(write=True) as transaction:
        tables = LmdbTables(transaction, {name: handle.open_db(name.encode(), txn=transaction) for name in TABLE_NAMES})
        for full_key, row in scan_rows(tables, b"", after=False):
            if is_tombstone(row):
                tables.put(GRAVES, row[12:32], full_key)
        tables.put(META, FORMAT_KEY, encode_format())
