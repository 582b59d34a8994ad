"""`Replica`: reads from a node's own file, in the process that asks. The gateways read with it too.

Decides: what a reader sees: which rows are hidden, and how a namespace is named.
Keeps true
* I7: tombstones, rows that have expired and rows of deleted namespaces are hidden, by rule and at once.
* I3: a row that lacks chunks is not shown; what stood there before is, with its own version and metadata, until the new value is whole.
* A read never waits: not for the node, not for the mesh, not for a writer.
* C8: a key that is there throughout appears exactly once in a walk by cursors.
* I9: a page looks at a bounded number of rows, so tombstones cannot make a list slow; it may be short, or empty, with a cursor.
In and out: names and keys in, copies out; nothing returned points into the file.

By which clock rows expire is told by who makes the reader: a gateway has the leader's from its node. A program that reads the file goes by
its own wall clock and by how far that was off the leader's when the node wrote it down last (`Replica.kept_now`).

A read is one LMDB transaction. What it needs to know of the namespaces is kept from read to read: LMDB's transaction number
tells that nothing was written since, the state hash of the system namespace that no system row was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import lmdb

from kvp2p.core.chunk_rows import shown_of, shown_row
from kvp2p.core.clock import OFFSET_KEPT_MS
from kvp2p.core.entry import (
    FLAG_METADATA,
    ROW_HEAD_BYTES,
    ChunkList,
    Kind,
    is_chunked,
    is_tombstone,
    is_value,
    row_digest_holds,
    row_expires_at,
    row_version,
)
from kvp2p.core.port import ReadTransaction
from kvp2p.core.system_rows import NAMESPACE_PREFIX, Namespace, decode_namespace, namespace_key, rows_under
from kvp2p.core.vector import VersionVector
from kvp2p.errors import RequestError, StoreCorrupt
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, NamespaceId, Version
from kvp2p.limits import KEY_BYTES_MAX, LIST_KEYS_MAX, LIST_ROWS_SCANNED_MAX
from kvp2p.store import meta
from kvp2p.store.chunked import OpenValue, whole_value
from kvp2p.store.cursor import decode_cursor, encode_cursor
from kvp2p.store.environment import DATA_FILE
from kvp2p.store.layout import LONG_KEY_BYTES_MIN, NEVER, LayoutReader, tail_key
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.lmdb_tables import LmdbTables
from kvp2p.store.meta import cached_field
from kvp2p.store.tables import HASHES, META, ROWS, TAILS

STORE_DIRECTORY: Final = "store"  # inside a node's data directory

# The first 12 bytes of a row that is a value, has no metadata and does not expire: all it takes to see that it is shown.
_PLAIN_HEAD = bytes([Kind.VALUE]) + bytes(11)
_PLAIN_HEAD_END = bytes([Kind.VALUE]) + bytes(10) + b"\x01"  # two comparisons are cheaper than a slice
_PENDING_LOOKED_AT_MAX = 16  # guess: with more large values on their way the node is asked, which has this at hand


class Found(NamedTuple):
    """A key's value and what was stored with it. `metadata` is compact JSON; `expires_at` is unix seconds, 0 for never."""

    value: bytes
    metadata: bytes | None
    expires_at: int
    version: Version


class ListedKey(NamedTuple):
    """A key in a list."""

    key: bytes
    metadata: bytes | None
    expires_at: int
    version: Version

    @property
    def name(self) -> str:
        """The key as text; bytes that are not UTF-8 become surrogates, which `Replica` takes back."""
        return self.key.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, in byte order. `cursor` leads to the next part; it is None when `list_complete`."""

    keys: tuple[ListedKey, ...]
    list_complete: bool
    cursor: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    """The live namespaces, and the clock's offset, as of one transaction. Replaced whole, so that threads may share it."""

    transaction: int
    clock_offset_ms: int
    generation: bytes
    namespaces: tuple[Namespace, ...]
    ids: dict[str | bytes, NamespaceId]  # by 16 bytes, by 32 hex digits, by title


def is_hidden(row: bytes, now: Callable[[], float]) -> bool:
    """Tell whether a row is hidden from readers: a tombstone, or expired. Asks for the time only when the row expires."""
    if is_tombstone(row):
        return True
    expires = row[4:12]
    return expires != NEVER and int.from_bytes(expires, "big") <= now()


def _key_bytes(key: str | bytes) -> bytes:
    return key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key


def _metadata(row: bytes) -> bytes | None:
    if not row[1] & FLAG_METADATA:
        return None
    return bytes(row[ROW_HEAD_BYTES : ROW_HEAD_BYTES + int.from_bytes(row[2:4], "big")])


class View:
    """One read transaction of a gateway: a context manager, as cheap as can be. What it returns is copied."""

    __slots__ = ("_replica", "_transaction")

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._transaction: lmdb.Transaction[bytes]

    def __enter__(self) -> Self:
        try:
            self._transaction = self._replica.begin()
        except lmdb.Error as error:
            raise self._replica.store.translated(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transaction.abort()
        if isinstance(error, lmdb.Error):
            raise self._replica.store.translated(error) from error

    @property
    def system_generation(self) -> bytes:
        """Bytes that change whenever a system row does: the totals of the system namespace. Empty before the first row."""
        return self._transaction.get(SYSTEM_NAMESPACE, b"", self._replica.tables[HASHES])

    @property
    def vector(self) -> VersionVector:
        """The vector that the rows of this view belong to."""
        raw = self._transaction.get(meta.VECTOR.name, None, self._replica.tables[META])
        return cached_field(meta.VECTOR, raw, self._replica.store.decoded)

    @property
    def transaction(self) -> ReadTransaction:
        """The whole read transaction, for what this class has no short way to. It ends with the view."""
        return LayoutReader(LmdbTables(self._transaction, self._replica.tables), self._replica.store.decoded)

    def raw_row(self, namespace: NamespaceId, key: bytes) -> bytes | None:
        """Return a row as stored, hidden or not, whole or not: ask `hides`; `shown_row` returns what readers see."""
        if len(key) < LONG_KEY_BYTES_MIN:
            return self._transaction.get(namespace + key, None, self._replica.tables[ROWS])
        return self._transaction.get(tail_key(namespace + key), None, self._replica.tables[TAILS])

    def shown_row(self, namespace: NamespaceId, key: bytes) -> bytes | None:
        """Return the row that readers see: not the stored one while that lacks chunks [I3]. It may be hidden all the same."""
        return shown_row(self.transaction, namespace, key)

    def hides(self, row: bytes) -> bool:
        """Tell whether readers do not see a row: a tombstone, or expired by the replica's clock."""
        return is_hidden(row, self._replica.now)

    def shows(self, version: Version) -> bool:
        """Tell whether this store has everything up to a version of its issuer, and has it whole. It may say no while it has."""
        if not self.vector.covers(version):
            return False
        for looked_at, pending in enumerate(self.transaction.pending_rows()):
            if looked_at == _PENDING_LOOKED_AT_MAX or pending.may_hide_upto(version):
                return False  # of more than these the node can tell, which is asked when this says no
        return True

    def open_value(self, chunks: ChunkList) -> OpenValue:
        """Read chunk by chunk a value that a row of this view names the chunks of. The view belongs to it from now on, and ends with it."""
        return OpenValue(self.transaction, chunks, lambda: self.__exit__(None, None, None))


class Replica:
    """A reader of the node whose data directory this is; the node need not run.

    `path` is the data directory or the store inside it. `now` gives the unix seconds by which rows expire (None: `kept_now`), `wall_s` this
    machine's clock. Titles are looked up in `account` (None: the cluster's first). Raises StoreError, or StoreFormatError, when there is no store
    that can be read.
    May be used from several threads. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        now: Callable[[], float] | None = None,
        wall_s: Callable[[], float] = time.time,
        account: AccountId | None = None,
    ) -> None:
        directory = Path(path)
        if not (directory / DATA_FILE).exists() and (directory / STORE_DIRECTORY).exists():
            directory /= STORE_DIRECTORY
        self.store = LmdbStore.open(directory, readonly=True)
        self._given_now = now
        self._wall_s = wall_s
        self._account = account
        self.tables: dict[str, Any] = self.store.environment.tables
        self._rows = self.tables[ROWS]
        self.begin: Callable[..., lmdb.Transaction[bytes]] = self.store.environment.handle.begin
        self._known = _Known(-1, 0, b"", (), {})
        self._hot = (self._known.transaction, self._known.ids)

    def close(self) -> None:
        """Let go of the file. Views must have ended."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """Raise StoreError when the file was replaced since it was opened; readers that live long ask now and then."""
        self.store.check_in_place()

    def view(self) -> View:
        """Open a read transaction: `with replica.view() as view`."""
        return View(self)

    def hide_by(self, now: Callable[[], float]) -> None:
        """Let rows expire by another clock from here on."""
        self._given_now = now

    def kept_now(self) -> float:
        """Return what the leader's clock is at least, as far as the file tells, in unix seconds: up to a second less than it is.

        While a step of this machine's clock is not written down yet (2 s, or as long as the node is gone) it is off by as much.
        """
        return self._kept_now(self._current())

    def _kept_now(self, known: _Known) -> float:
        # The node does not write down what is less, so by less than that it may be later by this machine's clock [I7].
        return self._wall_s() + (known.clock_offset_ms - OFFSET_KEPT_MS) / 1_000

    def now(self) -> float:
        """Return the unix seconds by which rows are hidden; asked for rows that expire only."""
        return self._kept_now(self._known) if self._given_now is None else self._given_now()

    # --- single keys

    def get(self, namespace: str | bytes, key: str | bytes) -> bytes | None:
        """Return the value of a key, None when there is none to see.

        `namespace` is an id (32 hex digits or 16 bytes) or a title; an id wins. Raises RequestError `namespace_not_found` or
        `bad_key`.
        """
        # The same as `find`, written out for the usual case, because the budget is half the speed of a bare LMDB read. The
        # rest is left to `find`: a commit since the last read, a new name, a key that is long, no UTF-8 or of a subclass of
        # str, a row with more than a value. Keys of over 495 bytes are not in this table; one of 495 finds its marker,
        # which is empty.
        try:
            raw_key: bytes = key.encode() if type(key) is str else key  # type: ignore[assignment]
            transaction = self.begin(self._rows)
            try:
                number, ids = self._hot
                if transaction.id() == number:
                    row = transaction.get(ids[namespace] + raw_key)
                    if row is None:
                        if 0 < len(raw_key) < LONG_KEY_BYTES_MIN:
                            return None
                    elif _PLAIN_HEAD <= row < _PLAIN_HEAD_END:
                        return row[ROW_HEAD_BYTES:]
            finally:
                transaction.abort()
        except (KeyError, TypeError, UnicodeEncodeError, lmdb.Error):
            pass  # `find` says what is wrong, if anything is
        found = self.find(namespace, key)
        return None if found is None else found.value

    def get_with_metadata(self, namespace: str | bytes, key: str | bytes) -> tuple[bytes, bytes | None] | None:
        """Return value and metadata (compact JSON, None when there is none) of a key."""
        found = self.find(namespace, key)
        return None if found is None else (found.value, found.metadata)

    def find(self, namespace: str | bytes, key: str | bytes, *, verify: bool = False) -> Found | None:
        """Return all there is to a key. `verify` checks the row's digest: StoreCorrupt when the file is damaged there.

        Chunks of large values are always checked.
        """
        raw_key = _key_bytes(key)
        try:
            transaction = self.begin(self._rows)
            try:
                row = self._row(transaction, namespace, raw_key)
                if row is not None and is_chunked(row):
                    return self._shown_in(transaction, row, verify=verify)
            finally:
                transaction.abort()
        except lmdb.Error as error:
            raise self.store.translated(error) from error
        return None if row is None else self._shown(row, verify=verify)

    def _row(self, transaction: lmdb.Transaction[bytes], namespace: str | bytes, key: bytes) -> bytes | None:
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise RequestError(
                "bad_key", f"the key has {len(key)} bytes, 1 to {KEY_BYTES_MAX} are allowed", KEY_BYTES_MAX
            )
        full_key = self._find_namespace(self._refresh(transaction), namespace) + key
        if len(key) < LONG_KEY_BYTES_MIN:
            return transaction.get(full_key, None, self._rows)
        return transaction.get(tail_key(full_key), None, self.tables[TAILS])

    def _shown_in(self, transaction: lmdb.Transaction[bytes], row: bytes, *, verify: bool) -> Found | None:
        """Return what is seen of a chunked row, from the transaction that it was read in."""
        reader = LayoutReader(LmdbTables(transaction, self.tables), self.store.decoded)
        seen = shown_of(reader, row)
        return None if seen is None else self._shown(seen, reader, verify=verify)

    def _shown(self, row: bytes, reader: ReadTransaction | None = None, *, verify: bool) -> Found | None:
        if verify and not row_digest_holds(row):
            raise StoreCorrupt(f"the row of version {row_version(row).hex()} does not match its digest")
        if is_hidden(row, self.now):
            return None
        if is_chunked(row):
            assert reader is not None, "chunks are read where their row was"
            value = whole_value(reader, row)
        else:
            value = row[ROW_HEAD_BYTES + int.from_bytes(row[2:4], "big") :]
        return Found(value, _metadata(row), row_expires_at(row), row_version(row))

    # --- lists

    def list(
        self, namespace: str | bytes, prefix: str | bytes = b"", limit: int = LIST_KEYS_MAX, cursor: str | None = None
    ) -> Page:
        """Return the next at most `limit` keys that start with `prefix`, after `cursor`.

        Raises RequestError `namespace_not_found`, `bad_cursor`, `bad_limit` or `bad_prefix`.
        """
        prefix = _key_bytes(prefix)
        if not 1 <= limit <= LIST_KEYS_MAX:
            raise RequestError("bad_limit", f"limit is {limit}, 1 to {LIST_KEYS_MAX} are allowed", LIST_KEYS_MAX)
        if len(prefix) > KEY_BYTES_MAX:
            message = f"the prefix has {len(prefix)} bytes, the limit is {KEY_BYTES_MAX}"
            raise RequestError("bad_prefix", message, KEY_BYTES_MAX)
        namespace_id = self.resolve(namespace)
        after = None if cursor is None else decode_cursor(namespace_id, cursor)
        if after is not None and after < prefix:
            after = None  # the cursor of a list with another prefix, which ended before this one begins
        return self._page(namespace_id, prefix, limit, after)

    def _page(self, namespace: NamespaceId, prefix: bytes, limit: int, after: bytes | None) -> Page:
        keys: list[ListedKey] = []
        last = b""
        with self.store.read(views=True) as transaction:
            standing = transaction.row(SYSTEM_NAMESPACE, namespace_key(namespace))
            if standing is None or not is_value(standing):  # deleted since it was resolved [I7]
                raise RequestError("namespace_not_found", f"there is no namespace {namespace.hex()!r}")
            for scanned, (key, row) in enumerate(transaction.rows(namespace, prefix, after)):
                if not key.startswith(prefix):
                    break
                if scanned >= LIST_ROWS_SCANNED_MAX:
                    return Page(tuple(keys), list_complete=False, cursor=encode_cursor(namespace, last))
                head = bytes(row[:ROW_HEAD_BYTES])  # copied once: each look into a memoryview makes another
                if is_chunked(head) and (seen := shown_of(transaction, head)) is not head:
                    row = seen or b""  # noqa: PLW2901  what is seen in its place
                    head = row[:ROW_HEAD_BYTES]
                if head and not is_hidden(head, self.now):
                    if len(keys) == limit:
                        return Page(tuple(keys), list_complete=False, cursor=encode_cursor(namespace, last))
                    expires_at = int.from_bytes(head[4:12], "big")
                    metadata = _metadata(row) if head[1] & FLAG_METADATA else None
                    keys.append(ListedKey(key, metadata, expires_at, Version(head[12:32])))
                last = key
        return Page(tuple(keys), list_complete=True, cursor=None)

    # --- namespaces

    def namespaces(self) -> tuple[Namespace, ...]:
        """Return the live namespaces of all accounts, ordered by id."""
        return self._current().namespaces

    def resolve(self, namespace: str | bytes) -> NamespaceId:
        """Return the id of a live namespace; raises RequestError `namespace_not_found`."""
        return self._find_namespace(self._current(), namespace)

    def _current(self) -> _Known:
        try:
            transaction = self.begin(self._rows)
            try:
                return self._refresh(transaction)
            finally:
                transaction.abort()
        except lmdb.Error as error:
            raise self.store.translated(error) from error

    @staticmethod
    def _find_namespace(known: _Known, namespace: str | bytes) -> NamespaceId:
        found = known.ids.get(namespace)
        if found is None and isinstance(namespace, str) and len(namespace) == 32:
            found = known.ids.get(namespace.lower())  # hex digits in upper case; a title of that form cannot be
        if found is None:
            shown = namespace if isinstance(namespace, str) else namespace.hex()
            raise RequestError("namespace_not_found", f"there is no namespace {shown[:80]!r}")
        return found

    def _refresh(self, transaction: lmdb.Transaction[bytes]) -> _Known:
        known = self._known
        number = transaction.id()
        if known.transaction == number:
            return known
        generation = transaction.get(SYSTEM_NAMESPACE, b"", self.tables[HASHES])
        raw_offset = transaction.get(meta.CLOCK_OFFSET.name, None, self.tables[META])
        offset_ms = cached_field(meta.CLOCK_OFFSET, raw_offset, self.store.decoded)
        if known.transaction >= 0 and known.generation == generation:
            known = _Known(number, offset_ms, generation, known.namespaces, known.ids)
        else:
            known = self._load(
                LayoutReader(LmdbTables(transaction, self.tables), self.store.decoded), number, offset_ms, generation
            )
        self._known = known
        self._hot = (known.transaction, known.ids)
        return known

    def _load(self, transaction: ReadTransaction, number: int, offset_ms: int, generation: bytes) -> _Known:
        account = self._account or transaction.identity.account
        namespaces = []
        for key, row in rows_under(transaction, NAMESPACE_PREFIX):
            if is_value(row):
                namespaces.append(decode_namespace(key, row[ROW_HEAD_BYTES:]))
        ids: dict[str | bytes, NamespaceId] = {one.title: one.namespace for one in namespaces if one.account == account}
        for one in namespaces:  # after the titles: an id wins
            ids[one.namespace.hex()] = ids[bytes(one.namespace)] = one.namespace
        return _Known(number, offset_ms, generation, tuple(namespaces), ids)
