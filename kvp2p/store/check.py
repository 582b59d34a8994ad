"""Checking a store against itself: do rows, log, expiry index, totals and vector agree?

Decides: what counts as damage.
Keeps true: I4 is what is checked; nothing is changed. Things that are compared were read in one transaction, so that a node may write
meanwhile: a `StoreCheck` goes on in one transaction where it stopped in another. Totals are compared with the rows of their
namespace if they were the same before its first row was read and after its last: no row of it has changed in between then.
In and out: read transactions in, `Damage` out. `scrub.py` opens the file and paces the work.

A row         fits the format and its digest; is covered by the vector, unless `above` tells that some are not; stands in the log at its
              own position, unless the log does not reach back so far; is in the expiry index if it expires, among the graves if it is a tombstone
A marker      has a row with a long key behind it
A position    is covered by the vector, and its key has a row that is no older. It needs none when the namespace is deleted, or when
              the position is not to be served: up to the floor, below the fence, while a walk is under way
An entry of the expiry index    leads to a row that expires then
A grave       leads to a tombstone of its version
Chunks        see `check_chunks.py`
Totals        are the count and the sum of the rows; a deleted namespace has none
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kvp2p.core import system_rows
from kvp2p.core.apply import state_hash_seed
from kvp2p.core.entry import (
    ROW_HEAD_BYTES,
    STATE_HASH_MASK,
    check_row,
    is_tombstone,
    row_expires_at,
    row_state_hash,
    row_version,
)
from kvp2p.core.port import NamespaceTotals
from kvp2p.core.purge import PURGE_MARK
from kvp2p.core.vector import EMPTY_VECTOR
from kvp2p.errors import RemoteProtocolError, StoreError
from kvp2p.ids import (
    ID_BYTES,
    ISSUER_BYTES,
    SYSTEM_NAMESPACE,
    VERSION_ZERO,
    Issuer,
    NamespaceId,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
    version_term,
)
from kvp2p.store.check_chunks import ChunkCheck
from kvp2p.store.layout import MARKER_BYTES, LayoutReader, scan_rows, short_hash
from kvp2p.store.meta import FIELDS
from kvp2p.store.tables import CHUNKS, EXPIRY, GRAVES, LOG, PENDING, ReadableTables

_ENTRY_BYTES: Final = 64  # what an entry costs besides its length; guess
_NO_TOTALS: Final = NamespaceTotals(0, 0, 0)
_LAST_STAMP: Final = b"\xff" * 8
_PURGE: Final = SYSTEM_NAMESPACE + PURGE_MARK


class Damage(NamedTuple):
    """Something that contradicts something else. `what` is a stable word; namespace and key are None where there is none."""

    what: str
    namespace: NamespaceId | None
    key: bytes | None
    message: str


class Slice(NamedTuple):
    """What was found in one transaction, and how much was looked at."""

    damage: list[Damage]
    bytes_seen: int


class StoreCheck:
    """A check of one store, in as many transactions as one likes."""

    def __init__(self) -> None:
        self.damage: list[Damage] = []  # of the present slice
        self.rows_seen = 0
        self.positions_seen = 0
        self.not_compared: list[NamespaceId] = []  # whose totals changed while their rows were read
        self._stages: deque[tuple[str, Callable[[_View], Iterator[int]]]] = deque(
            [
                ("rows", self._rows),
                ("expiry", self._expiry),
                ("graves", self._graves),
                ("log", self._log),
                ("pending", self._pending),
                ("chunks", self._chunks),
            ]
        )
        self._chunk_check = ChunkCheck(self._found)
        self._reader: LayoutReader | None = None
        self._is_one_transaction = True
        self._has_facts = False
        self._after = b""  # where the stage goes on
        self._entries_left = 0  # of the stage
        self._log_upto = EMPTY_VECTOR  # the vector when the log's turn came
        self._counting: _Counting | None = None
        self._counted: set[NamespaceId] = set()

    @property
    def stage(self) -> str:
        """What is being looked at: rows, expiry, graves, log, pending, chunks; "" at the end."""
        return self._stages[0][0] if self._stages else ""

    def go_on(self, reader: LayoutReader, bytes_max: int | None = None) -> Slice:
        """Look at about `bytes_max` bytes (None: at all that is left) in an open transaction."""
        self.damage = []
        seen = 0
        if not self._has_facts and not self._check_facts(reader):
            self.give_up()  # nothing can be judged without them
            return Slice(self.damage, seen)
        self._is_one_transaction = self._is_one_transaction and self._reader in (None, reader)
        self._reader = reader
        view = _View(reader)
        while self._stages:
            for entry_bytes in self._stages[0][1](view):
                seen += entry_bytes + _ENTRY_BYTES
                if bytes_max is not None and seen >= bytes_max:
                    return Slice(self.damage, seen)
            self._stages.popleft()
            self._after = b""
        return Slice(self.damage, seen)

    def give_up(self) -> None:
        """End the check where it is: LMDB cannot go on."""
        self._stages.clear()

    def _found(self, what: str, full_key: bytes | None, message: str) -> None:
        if full_key is None:
            self.damage.append(Damage(what, None, None, message))
        else:
            self.damage.append(Damage(what, NamespaceId(full_key[:ID_BYTES]), full_key[ID_BYTES:], message))

    def _check_facts(self, reader: LayoutReader) -> bool:
        self._has_facts = True
        for field in FIELDS:
            try:
                getattr(reader, field.name.decode())
            except StoreError as error:
                self.damage.append(Damage("fact", None, None, str(error)))
        return not self.damage

    # --- rows and what they add up to

    def _rows(self, view: _View) -> Iterator[int]:
        for full_key, row in scan_rows(view.tables, self._after, after=bool(self._after), tells_markers=True):
            self._after = full_key
            if not row and len(full_key) == MARKER_BYTES:
                self._found("marker_without_rows", full_key, "a marker of long keys has no row behind it")
                continue
            self.rows_seen += 1
            self._count(view, full_key, row)
            self._check_row(view, full_key, row)
            yield len(full_key) + len(row)
        self._end_counting(view)
        self._check_other_totals(view)

    def _check_row(self, view: _View, full_key: bytes, row: bytes) -> None:
        try:
            check_row(full_key[ID_BYTES:], row)
        except RemoteProtocolError as error:
            self._found("row", full_key, str(error))
            return  # what it says of itself is not worth a look
        expires_at = row_expires_at(row)
        if expires_at and view.tables.get(EXPIRY, _expiry_place(expires_at, full_key)) != full_key:
            self._found("expiry_missing", full_key, f"the row expires at {expires_at}, and the expiry index lacks it")
        if is_tombstone(row) and view.tables.get(GRAVES, row_version(row)) != full_key:
            self._found("grave_missing", full_key, "the row is a tombstone, and the graves lack it")
        self._chunk_check.take_row(view.reader, full_key, row)
        if view.is_deleted(NamespaceId(full_key[:ID_BYTES])):
            return  # its positions are those of its tombstone [I7]
        version = row_version(row)
        issuer, stamp = version_issuer(version), version_stamp(version)
        if not view.vector.covers(version):
            if not view.has_rows_above:
                self._found(
                    "row_above_vector", full_key, f"the vector does not cover the row's version {version.hex()}"
                )
        elif view.is_in_log(issuer, stamp) and view.tables.get(LOG, issuer + stamp.to_bytes(8, "big")) != full_key:
            self._found(
                "position_missing", full_key, f"the log lacks the position of the row's version {version.hex()}"
            )

    def _count(self, view: _View, full_key: bytes, row: bytes) -> None:
        namespace = NamespaceId(full_key[:ID_BYTES])
        if self._counting is None or self._counting.namespace != namespace:
            self._end_counting(view)
            self._counting = _Counting(namespace, view.reader.totals(namespace))
        self._counting.add(full_key[ID_BYTES:], row, view.seed)

    def _end_counting(self, view: _View) -> None:
        counting, self._counting = self._counting, None
        if counting is None:
            return
        namespace = counting.namespace
        self._counted.add(namespace)
        stored = view.reader.totals(namespace)
        if view.is_deleted(namespace):
            self._refuse_totals_of_deleted(namespace, stored)
        elif stored != counting.before:
            self.not_compared.append(namespace)
        elif (stored or _NO_TOTALS) != counting.totals():
            self._totals_differ(
                namespace, f"the totals are {_show(stored)}, the rows add up to {_show(counting.totals())}"
            )

    def _check_other_totals(self, view: _View) -> None:
        """Look at the totals of namespaces that had no row when the walk passed their place; some may have got one since."""
        for namespace, stored in view.reader.all_totals():
            if namespace in self._counted:
                continue
            if view.is_deleted(namespace):
                self._refuse_totals_of_deleted(namespace, stored)
            elif next(view.reader.rows(namespace), None) is not None:
                self.not_compared.append(namespace)
            elif stored != _NO_TOTALS:
                self._totals_differ(namespace, f"the totals are {_show(stored)}, and there is no row")

    def _refuse_totals_of_deleted(self, namespace: NamespaceId, stored: NamespaceTotals | None) -> None:
        if stored is not None:
            self._totals_differ(namespace, f"the namespace is deleted, and has the totals {_show(stored)}")

    def _totals_differ(self, namespace: NamespaceId, message: str) -> None:
        self.damage.append(Damage("totals", namespace, None, message))

    # --- indexes

    def _expiry(self, view: _View) -> Iterator[int]:
        def check(place: bytes, full_key: bytes) -> None:
            row = view.row(full_key)
            if row is None or _expiry_place(row_expires_at(row), full_key) != place:
                expires_at = int.from_bytes(place[:8], "big")
                self._found("expiry_stale", full_key, f"the expiry index has {expires_at}, and no such row is there")

        return self._entries(view, EXPIRY, check)

    def _graves(self, view: _View) -> Iterator[int]:
        def check(place: bytes, full_key: bytes) -> None:
            row = view.row(full_key)
            if row is None or not is_tombstone(row) or row_version(row) != place:
                self._found("grave_stale", full_key, f"the graves have {place.hex()}, and no such tombstone is there")

        return self._entries(view, GRAVES, check)

    def _pending(self, view: _View) -> Iterator[int]:
        return self._entries(view, PENDING, lambda place, raw: self._chunk_check.take_pending(view.reader, place, raw))

    def _chunks(self, view: _View) -> Iterator[int]:
        def check(place: bytes, raw: bytes) -> None:
            self._chunk_check.take_chunk(view.reader, place, raw, is_one_transaction=self._is_one_transaction)

        return self._entries(view, CHUNKS, check)

    def _entries(self, view: _View, table: str, check: Callable[[bytes, bytes], None]) -> Iterator[int]:
        """Walk over a table. A node that adds entries at its end, as fast as they are read, does not keep that going for ever."""
        if not self._after:
            self._entries_left = 2 * view.tables.count(table)
        for place, content in view.tables.scan(table, self._after, after=bool(self._after)):
            if not self._entries_left:
                break
            self._entries_left -= 1
            self._after = place
            check(place, content)
            yield len(place) + len(content)

    def _log(self, view: _View) -> Iterator[int]:
        if not self._after:
            self._log_upto = view.vector
        is_ahead = True
        while is_ahead:
            is_ahead = False
            for place, full_key in view.tables.scan(LOG, self._after, after=bool(self._after)):
                issuer, stamp = Issuer(place[:ISSUER_BYTES]), Stamp(int.from_bytes(place[ISSUER_BYTES:], "big"))
                self.positions_seen += 1
                self._check_position(view, issuer, stamp, full_key)
                # What was written since would keep this going for ever: one position behind the end is enough.
                top = self._log_upto.top_of(issuer)
                is_ahead = top is not None and stamp > version_stamp(top)
                self._after = issuer + _LAST_STAMP if is_ahead else place
                yield len(place) + len(full_key)
                if is_ahead:
                    break

    def _check_position(self, view: _View, issuer: Issuer, stamp: Stamp, full_key: bytes) -> None:
        if full_key.startswith(_PURGE):
            return  # it stands for itself
        position = f"{issuer.hex()} {stamp:016x}"
        if not view.covers_position(issuer, stamp):
            self._found("position_above_vector", full_key, f"the vector does not cover the position {position}")
            return
        row = view.row(full_key)
        if row is None:
            is_served = view.is_in_log(issuer, stamp) and not view.has_rows_above
            if is_served and not view.is_deleted(NamespaceId(full_key[:ID_BYTES])):
                self._found("position_without_row", full_key, f"the key of the position {position} has no row")
        elif row_version(row) < view.version_at(issuer, stamp) and not _wins_by_kind(full_key, row):
            self._found("row_too_old", full_key, f"the row is older than the position {position} of its key")


class _Counting:
    """The rows of one namespace as they add up, and its totals when the first of them was read."""

    __slots__ = ("before", "live", "namespace", "rows", "state_hash")

    def __init__(self, namespace: NamespaceId, before: NamespaceTotals | None) -> None:
        self.namespace = namespace
        self.before = before
        self.state_hash = self.rows = self.live = 0

    def add(self, key: bytes, row: bytes, seed: int) -> None:
        self.rows += 1
        if len(row) >= ROW_HEAD_BYTES:  # a shorter one is damage of its own
            self.state_hash += row_state_hash(self.namespace, key, row, seed)
            self.live += not is_tombstone(row)

    def totals(self) -> NamespaceTotals:
        return NamespaceTotals(self.state_hash & STATE_HASH_MASK, self.rows, self.live)


class _View:
    """One transaction, with what is asked of it again and again."""

    def __init__(self, reader: LayoutReader) -> None:
        self.reader = reader
        self.tables: ReadableTables = reader.tables
        self.vector = reader.vector
        self.floor = reader.floor
        self.has_rows_above = not reader.above.is_empty
        self.seed = state_hash_seed(reader)
        self._deleted: dict[NamespaceId, bool] = {}

    def row(self, full_key: bytes) -> bytes | None:
        """Return a row that is long enough to be one, None for any other."""
        row = self.reader.row(NamespaceId(full_key[:ID_BYTES]), full_key[ID_BYTES:])
        return row if row is not None and len(row) >= ROW_HEAD_BYTES else None

    def is_deleted(self, namespace: NamespaceId) -> bool:
        is_deleted = self._deleted.get(namespace)
        if is_deleted is None:
            row = self.row(SYSTEM_NAMESPACE + system_rows.namespace_key(namespace))
            is_deleted = row is not None and namespace != SYSTEM_NAMESPACE and is_tombstone(row)
            self._deleted[namespace] = is_deleted
        return is_deleted

    def covers_position(self, issuer: Issuer, stamp: Stamp) -> bool:
        """Tell whether the vector covers a position: by its entry for the issuer or, when it has none, by its fence, which has passed the issuer."""
        top = self.vector.top_of(issuer)
        return self.vector.fence > VERSION_ZERO if top is None else stamp <= version_stamp(top)

    def is_in_log(self, issuer: Issuer, stamp: Stamp) -> bool:
        """Tell whether the log serves a position that was given out and is covered."""
        top = self.vector.top_of(issuer)
        return top is not None and stamp > self.floor.reach(version_term(top), issuer)

    def version_at(self, issuer: Issuer, stamp: Stamp) -> Version:
        """Return the version of a position, or the least that it can have."""
        top = self.vector.top_of(issuer)
        return make_version(0 if top is None else version_term(top), stamp, issuer)


def _expiry_place(expires_at: int, full_key: bytes) -> bytes:
    return expires_at.to_bytes(8, "big") + short_hash(full_key)


def _wins_by_kind(full_key: bytes, row: bytes) -> bool:
    """Tell whether a row is a namespace's tombstone, which beats every version of the namespace's row [I7]."""
    is_system = full_key[:ID_BYTES] == SYSTEM_NAMESPACE
    return is_system and is_tombstone(row) and system_rows.namespace_of_key(full_key[ID_BYTES:]) is not None


def _show(totals: NamespaceTotals | None) -> str:
    if totals is None:
        return "none"
    return f"{totals.rows} rows, {totals.live} of them live, hash {totals.state_hash:032x}"
