"""Removal: what a Purge and a trim of the log take out of a store, inside the transaction of `core/apply.py`.

Decides: which rows and positions go.
Keeps true
* I7: only these, a newer row and a namespace's tombstone remove; a clock hides.
* I8: a Purge removes the same rows at every replica that applies it: tombstones below the fence, rows below it that expired by its time, the rows
  of closed issuers that ended below it. In the same transaction the fence rises, and the floor of the log with it: a position below the fence may be that of a
  row that is gone, so it is not served any more.
* I4, I9: one Purge is one transaction; its leader chose it small. Positions below the floor are unreachable at once, their space is freed by trims.
In and out: an open transaction and the rows' keeper in; changed rows, vector and floor out.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice, takewhile

from kvp2p.core import system_rows
from kvp2p.core.batches import LogTrim
from kvp2p.core.entry import decode_row, is_value, row_version
from kvp2p.core.joining import Joining
from kvp2p.core.messages import Purge, RowKey
from kvp2p.core.port import ReadTransaction, WriteTransaction
from kvp2p.core.purge import purge_key
from kvp2p.core.vector import EVERY_STAMP
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    Issuer,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
    version_term,
)


class Removal:
    """Applies a Purge to one transaction."""

    def __init__(self, txn: WriteTransaction, rows: Joining) -> None:
        self._txn = txn
        self._rows = rows

    def has_work(self, purge: Purge) -> bool:
        """Tell whether a Purge would remove anything."""
        return next(self._victims(purge), None) is not None

    def waits_for_sweep(self, fence: Version) -> bool:
        """Tell whether a namespace's tombstone would go while rows of the namespace are still to be freed: nobody would free them then."""
        for version, (namespace, key) in self._txn.graves():
            if version >= fence:
                break
            dead = system_rows.namespace_of_key(key) if namespace == SYSTEM_NAMESPACE else None
            if dead is not None and next(self._txn.rows(dead), None) is not None:
                return True
        return False

    def apply(self, purge: Purge, at: Version) -> None:
        """Remove what a Purge names; `at` is its position, which is covered from here on, as is everything below its fence."""
        txn = self._txn
        for namespace, key in list(dict.fromkeys(self._victims(purge))):
            row = txn.row(namespace, key)
            assert row is not None, "an index names rows that stand"
            self._rows.remove(namespace, key, row)
        txn.put_positions(version_issuer(at), [(version_stamp(at), purge_key(purge))])
        txn.set_vector(txn.vector.raised(at).fenced(purge.fence))
        txn.set_floor(txn.floor.fenced(purge.fence))

    def _victims(self, purge: Purge) -> Iterator[RowKey]:
        txn, fence = self._txn, purge.fence
        for version, row_key in txn.graves():
            if version >= fence:
                break
            yield row_key
        for place, row_key in txn.expiring():
            if place > purge.expired_upto:
                break
            row = txn.row(*row_key)
            if row is not None and row_version(row) < fence:
                yield row_key
        yield from _ended_issuers(txn, fence)


def _ended_issuers(txn: ReadTransaction, fence: Version) -> Iterator[RowKey]:
    """Iterate over the rows of issuers that ended below the fence: vectors do not name them any more."""
    for key, row in system_rows.rows_under(txn, system_rows.ISSUER_PREFIX):
        if not is_value(row) or row_version(row) >= fence:
            continue
        ended = system_rows.decode_issuer(key, decode_row(SYSTEM_NAMESPACE, key, row).value)
        if ended is None or ended.closed is None:
            continue
        if make_version(ended.term, ended.closed, ended.issuer) < fence:
            yield SYSTEM_NAMESPACE, key


def trim_log(txn: WriteTransaction, trim: LogTrim) -> int:
    """Free positions below the log's floor, then forget the oldest ones above it and raise the floor; return how many."""
    floor, left = txn.floor, trim.count_max
    beyond: list[Iterator[tuple[Stamp, Issuer]]] = []
    terms: dict[Issuer, int] = {}
    for issuer in list(txn.log_issuers()):
        top = txn.vector.top_of(issuer)
        unserved = (
            EVERY_STAMP if top is None else floor.reach(version_term(top), issuer)
        )  # None: the fence has passed it
        freed = list(islice(_positions(txn, issuer, Stamp(0), unserved), left))
        txn.remove_positions(issuer, [stamp for stamp, _ in freed])
        left -= len(freed)
        if top is not None:
            terms[issuer] = version_term(top)
            beyond.append(_positions(txn, issuer, unserved, trim.keep.reach(terms[issuer], issuer)))
    excess = txn.log_positions - trim.positions_max
    going: dict[Issuer, list[Stamp]] = {}
    for count, (stamp, issuer) in enumerate(islice(heapq.merge(*beyond), left)):
        if stamp >= trim.older_than and count >= excess:
            break
        going.setdefault(issuer, []).append(stamp)
        left -= 1
    for issuer, stamps in going.items():
        txn.remove_positions(issuer, stamps)
        floor = floor.raised(make_version(terms[issuer], stamps[-1], issuer))
    if floor is not txn.floor:
        txn.set_floor(floor)
    return trim.count_max - left


def _positions(txn: ReadTransaction, issuer: Issuer, after: Stamp, upto: Stamp) -> Iterator[tuple[Stamp, Issuer]]:
    for stamp, _ in takewhile(lambda position: position[0] <= upto, txn.positions(issuer, after)):
        yield stamp, issuer
