"""From format 1 to format 2: what a store of format 1 lacks is made, once, when it is opened for writing.

Decides: how each thing that format 2 has and format 1 had not is derived.
Keeps true: I4, all of it in one transaction: a store is of one format or of the other. Nothing of format 1 is lost.
In and out: an open LMDB environment of format 1 in, one of format 2 out. A kvp2p that knows only format 1 refuses it afterwards, and says why.

New in format 2: the tables `graves` (made from the rows), `pending` and `staging` (empty: there were no chunks); vectors whose entries are
versions, where format 1 had 16 bytes an issuer, issuer ‖ stamp. An issuer's term is in its own row, and in the
version of any row that it wrote. One that has neither began before issuers had rows: the least term says the least.
"""

from __future__ import annotations

from typing import Final

import lmdb

from kvp2p.core.entry import decode_row, is_tombstone, is_value, row_version
from kvp2p.core.system_rows import ISSUER_PREFIX, decode_issuer
from kvp2p.core.vector import VersionVector
from kvp2p.ids import (
    ID_BYTES,
    ISSUER_BYTES,
    SYSTEM_NAMESPACE,
    VERSION_BYTES,
    Issuer,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_term,
)
from kvp2p.store.layout import scan_rows
from kvp2p.store.lmdb_tables import LmdbTables
from kvp2p.store.meta import ABOVE, FLOOR, FORMAT_KEY, VECTOR, encode_format
from kvp2p.store.tables import GRAVES, META, TABLE_NAMES

_OLD_ENTRY_BYTES: Final = ISSUER_BYTES + 8


def migrate(handle: lmdb.Environment) -> None:
    """Bring a store of format 1 to format 2."""
    with handle.begin(write=True) as transaction:
        tables = LmdbTables(transaction, {name: handle.open_db(name.encode(), txn=transaction) for name in TABLE_NAMES})
        terms: dict[Issuer, int] = {}
        graves = []
        for full_key, row in scan_rows(tables, b"", after=False):
            version = row_version(row)
            terms[version_issuer(version)] = version_term(version)
            key = full_key[ID_BYTES:]
            if full_key.startswith(SYSTEM_NAMESPACE) and key.startswith(ISSUER_PREFIX) and is_value(row):
                told = decode_issuer(key, decode_row(SYSTEM_NAMESPACE, key, row).value)
                if told is not None:
                    terms[told.issuer] = told.term
            if is_tombstone(row):
                graves.append((bytes(version), full_key))
        tables.put_many(GRAVES, sorted(graves))
        for name in (VECTOR.name, FLOOR.name, ABOVE.name):
            raw = tables.get(META, name)
            if raw is not None:
                tables.put(META, name, _with_terms(raw, terms).encode())
        tables.put(META, FORMAT_KEY, encode_format())


def _with_terms(raw: bytes, terms: dict[Issuer, int]) -> VersionVector:
    """Read a vector of format 1: fence (20 bytes), then issuer (8) ‖ stamp (8) each."""
    tops = []
    for at in range(VERSION_BYTES, len(raw), _OLD_ENTRY_BYTES):
        issuer = Issuer(raw[at : at + ISSUER_BYTES])
        stamp = Stamp(int.from_bytes(raw[at + ISSUER_BYTES : at + _OLD_ENTRY_BYTES], "big"))
        tops.append(make_version(terms.get(issuer, 0), stamp, issuer))
    return VersionVector(tops, Version(raw[:VERSION_BYTES]))
