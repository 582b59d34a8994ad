"""Joining: the rows of one write transaction, and the counts that change with them.

Decides: which of two rows of a key stays, and what totals and state hash become.
Keeps true
* I1: what stays is the join; so any order, grouping or duplication gives the same rows.
* I4: rows and totals change in the same transaction; totals are written once a batch, by `finish`.
* I7: a namespace's tombstone beats every entry of that id; its rows leave H at once.
In and out: rows in; changed rows, totals, and what the batch's result has to tell of them out.
"""

from __future__ import annotations

from kvp2p.core import system_rows
from kvp2p.core.chunk_rows import ChunkRows
from kvp2p.core.entry import STATE_HASH_MASK, is_tombstone, is_value, join_rows, row_state_hash
from kvp2p.core.port import NamespaceTotals, WriteTransaction
from kvp2p.ids import SYSTEM_NAMESPACE, NamespaceId


class _Space:
    """A namespace as a batch finds and leaves it. `state_hash` is reduced when the batch ends."""

    __slots__ = ("is_changed", "is_dead", "is_live", "live", "rows", "state_hash")

    def __init__(self, standing: bytes | None, totals: NamespaceTotals | None) -> None:
        self.note_row(standing)
        self.state_hash = totals.state_hash if totals is not None else 0
        self.rows = totals.rows if totals is not None else 0
        self.live = totals.live if totals is not None else 0
        self.is_changed = False

    def note_row(self, standing: bytes | None) -> None:
        """Take note of the namespace's own row. Without one it is neither dead nor live: its entries may come first."""
        self.is_dead = standing is not None and is_tombstone(standing)
        self.is_live = standing is not None and is_value(standing)

    def forget(self) -> None:
        """Hide the namespace: out of H at once, its space is freed later [I7]."""
        self.state_hash = self.rows = self.live = 0
        self.is_changed = True


class Joining:
    """Joins and removes rows for one batch. What it was asked about a namespace it does not ask the store again."""

    __slots__ = (
        "_seed",
        "_spaces",
        "_txn",
        "candidates_changed",
        "chunks",
        "issuers_changed",
        "newly_dead",
        "rows_changed",
    )

    def __init__(self, txn: WriteTransaction, seed: int) -> None:
        self._txn = txn
        self._seed = seed
        self._spaces: dict[NamespaceId, _Space] = {}
        self.chunks = ChunkRows(txn)
        self.rows_changed = 0
        self.newly_dead: list[NamespaceId] = []
        self.candidates_changed = False
        self.issuers_changed = False

    def is_live(self, namespace: NamespaceId) -> bool:
        """Tell whether entries may be written to a namespace."""
        return namespace == SYSTEM_NAMESPACE or self._space(namespace).is_live

    def is_dead(self, namespace: NamespaceId) -> bool:
        """Tell whether a tombstone stands over a namespace."""
        return self._space(namespace).is_dead

    def join(self, namespace: NamespaceId, key: bytes, row: bytes) -> None:
        """Store a row unless what stands at its key, or over its namespace, beats it."""
        space = self._spaces.get(namespace) or self._space(namespace)
        if space.is_dead:
            return  # the namespace's tombstone beats it, whatever its version [I7]
        txn = self._txn
        mine = txn.row(namespace, key)
        if mine is None:
            space.rows += 1
        else:
            if self._stays(namespace, key, mine, row):
                return
            space.state_hash -= row_state_hash(namespace, key, mine, self._seed)
            space.live -= not is_tombstone(mine)
        txn.put_row(namespace, key, row)
        self.chunks.replace(namespace, key, mine, row)
        space.state_hash += row_state_hash(namespace, key, row, self._seed)
        space.live += not is_tombstone(row)
        space.is_changed = True
        self.rows_changed += 1
        if namespace == SYSTEM_NAMESPACE:
            self._system_row_changed(key, row)

    def remove(self, namespace: NamespaceId, key: bytes, row: bytes) -> None:
        """Remove the row that stands at a key."""
        self._txn.delete_row(namespace, key)
        self.chunks.remove(row)
        self.rows_changed += 1
        space = self._space(namespace)
        if space.rows:  # those of a deleted namespace are not counted any more
            space.state_hash -= row_state_hash(namespace, key, row, self._seed)
            space.rows -= 1
            space.live -= not is_tombstone(row)
            space.is_changed = True
        if namespace == SYSTEM_NAMESPACE:
            self._system_row_changed(key, None)

    def finish(self) -> None:
        """Write the totals that have changed."""
        for namespace, space in self._spaces.items():
            if space.is_changed:
                totals = NamespaceTotals(space.state_hash & STATE_HASH_MASK, space.rows, space.live)
                self._txn.set_totals(namespace, None if space.is_dead else totals)

    def _space(self, namespace: NamespaceId) -> _Space:
        space = self._spaces.get(namespace)
        if space is None:
            txn = self._txn
            is_system = namespace == SYSTEM_NAMESPACE  # it has no row, so nothing can delete it
            standing = None if is_system else txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(namespace))
            space = self._spaces[namespace] = _Space(standing, txn.totals(namespace))
        return space

    @staticmethod
    def _stays(namespace: NamespaceId, key: bytes, mine: bytes, row: bytes) -> bool:
        if (
            namespace == SYSTEM_NAMESPACE
            and is_tombstone(mine) != is_tombstone(row)
            and system_rows.namespace_of_key(key) is not None
        ):
            return is_tombstone(mine)  # a namespace's tombstone beats every version of its row too [I7]
        return join_rows(mine, row) is mine

    def _system_row_changed(self, key: bytes, row: bytes | None) -> None:
        if key == system_rows.CANDIDATES_KEY:
            self.candidates_changed = True
        elif key.startswith(system_rows.ISSUER_PREFIX):
            self.issuers_changed = True
        namespace = system_rows.namespace_of_key(key)
        if namespace is None:
            return
        space = self._space(namespace)
        space.note_row(row)
        if space.is_dead:
            space.forget()
            self.newly_dead.append(namespace)
