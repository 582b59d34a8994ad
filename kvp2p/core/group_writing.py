"""A group of writes at the leader, inside the transaction of `core/apply.py`.

Decides: which writes of a group are applied, what each makes of its rows, and the frame that tells peers of them.
Keeps true: a write is applied whole or not at all: conditions, expiries and chunks are looked at before anything is stored, against the rows as they
stand there. I7: by the group's clock, the leader's, an expired row counts as absent, as it does for a reader.
In and out: a `WriteGroup` in, an outcome for each write and the frame of the group out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from kvp2p.core import system_rows
from kvp2p.core.batches import StampedWrite, WriteGroup
from kvp2p.core.entry import (
    Kind,
    decode_chunk_list,
    decode_row,
    encode_row,
    is_tombstone,
    row_expires_at,
    row_version,
)
from kvp2p.core.joining import Joining
from kvp2p.core.messages import Frame, KeyedRow, RowKey
from kvp2p.core.operations import (
    Condition,
    CreateNamespace,
    Delete,
    DeleteNamespace,
    Ending,
    Operation,
    Outcome,
    Put,
    refused,
)
from kvp2p.core.port import WriteTransaction
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import SYSTEM_NAMESPACE, VERSION_ZERO, AccountId, NamespaceId, Stamp, Version, make_version
from kvp2p.limits import NAMESPACES_PER_ACCOUNT_MAX, TTL_SECONDS_MIN

_NO_ROOM = refused("disk_full", "the leader's disk is full; nothing was applied. Deleting goes on, and makes room")


class GroupWriter:
    """Applies one group to a transaction and its rows' keeper."""

    def __init__(self, txn: WriteTransaction, rows: Joining) -> None:
        self._txn = txn
        self._rows = rows

    def write(self, group: WriteGroup, *, is_full: bool) -> tuple[tuple[Outcome, ...], Frame | None]:
        if group.designation is not None:
            self._txn.set_designation(group.designation)
        after = self._txn.vector.reach(group.term, group.issuer)
        positions: list[tuple[Stamp, RowKey]] = []
        needs_room = is_full and group.designation is None  # a new term is no more than a row or two
        outcomes = tuple(
            _NO_ROOM if needs_room and not write.makes_room else self._write(group, write, positions)
            for write in group.writes
        )
        if not positions:
            return outcomes, None
        upto = positions[-1][0]
        self._txn.put_positions(group.issuer, positions)
        self._rows.chunks.cover(group.term, group.issuer, positions)
        self._txn.set_vector(self._txn.vector.raised(make_version(group.term, upto, group.issuer)))
        return outcomes, Frame(group.term, group.issuer, after, upto, *self._rows_at(positions))

    def _write(self, group: WriteGroup, write: StampedWrite, positions: list[tuple[Stamp, RowKey]]) -> Outcome:
        """Apply all operations of one write, or none of them: conditions are checked before anything is stored."""
        for operation in write.operations:
            refusal = self._refusal(operation, group.wall_ms)
            if refusal is not None:
                return refusal
        greatest = VERSION_ZERO
        namespace, created = None, False  # of the last CreateNamespace
        for stamp, operation in enumerate(write.operations, write.first_stamp):
            version = make_version(group.term, Stamp(stamp), group.issuer)
            if isinstance(operation, CreateNamespace):
                standing = self._namespaces_of(operation.account).get(operation.title)
                created = standing is None
                namespace = operation.namespace if standing is None else standing[0]
                if standing is not None:
                    greatest = max(greatest, standing[1])
                    continue
            row_key = self._store(operation, version, group.wall_ms)
            positions.append((Stamp(stamp), row_key))
            greatest = max(greatest, version)
        return Outcome(Ending.ACKED, version=greatest, namespace=namespace, created=created)

    def _refusal(self, operation: Operation, wall_ms: int) -> Outcome | None:
        match operation:
            case Put() | Delete():
                if not self._rows.is_live(operation.namespace):
                    return refused("namespace_not_found", f"there is no namespace {operation.namespace.hex()}")
                if isinstance(operation, Put) and (
                    operation.expires_in or operation.expires_at or operation.is_chunked
                ):
                    refusal = _expiry_refusal(operation, wall_ms) or self._chunks_refusal(operation)
                    if refusal is not None:
                        return refusal
                return self._condition_refusal(operation, wall_ms)
            case DeleteNamespace(namespace=namespace):
                if namespace == SYSTEM_NAMESPACE or not self._rows.is_live(namespace):
                    return refused("namespace_not_found", f"there is no namespace {namespace.hex()}")
                return None
            case CreateNamespace(namespace=namespace, account=account, title=title):
                titles = self._namespaces_of(account)
                if title in titles:
                    return None
                if len(titles) >= NAMESPACES_PER_ACCOUNT_MAX:
                    limit = f"the account has {len(titles)} namespaces, the limit is {NAMESPACES_PER_ACCOUNT_MAX}"
                    return refused("namespace_limit", limit)
                taken = self._txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(namespace)) is not None
                if taken or namespace == SYSTEM_NAMESPACE:
                    return refused("bad_request", f"the namespace id {namespace.hex()} was used before")
                return None
            case _:
                assert_never(operation)

    def _chunks_refusal(self, operation: Put) -> Outcome | None:
        if not operation.is_chunked:
            return None
        if operation.namespace == SYSTEM_NAMESPACE:
            return refused("bad_request", "a value of the system namespace is never in chunks; nothing was applied")
        missing = self._rows.chunks.missing(decode_chunk_list(operation.value).ids)
        if missing:
            what = f"the write names {len(missing)} chunks that the leader does not have"
            return refused("bad_request", f"{what}; nothing was applied")
        return None

    def _condition_refusal(self, operation: Put | Delete, wall_ms: int) -> Outcome | None:
        if operation.condition == Condition.ALWAYS:
            return None
        row = self._txn.row(operation.namespace, operation.key)
        standing = row_version(row) if row is not None and _is_visible(row, wall_ms) else None
        match operation.condition:
            case Condition.VERSION_IS:
                holds = standing is not None and standing == operation.if_version
            case Condition.ABSENT:
                holds = standing is None
            case _:
                holds = standing is not None
        if holds:
            return None
        what = f"the key stands at version {standing.hex()}" if standing else "the key does not exist"
        return refused("precondition_failed", f"the condition does not hold: {what}", standing)

    def _store(self, operation: Operation, version: Version, wall_ms: int) -> RowKey:
        """Join the row of an operation; return its key."""
        namespace = SYSTEM_NAMESPACE
        match operation:
            case Put():
                namespace, key = operation.namespace, operation.key
                kind = Kind.CHUNKED if operation.is_chunked else Kind.VALUE
                # Rounded up: by the leader's clock it is never hidden early.
                in_s = -(-wall_ms // 1000) + operation.expires_in
                expires_at = in_s if operation.expires_in else operation.expires_at
                row = encode_row(kind, operation.value, operation.metadata, expires_at, version)
            case Delete():
                namespace, key = operation.namespace, operation.key
                row = encode_row(Kind.TOMBSTONE, b"", None, 0, version)
            case DeleteNamespace():
                key = system_rows.namespace_key(operation.namespace)
                row = encode_row(Kind.TOMBSTONE, b"", None, 0, version)
            case CreateNamespace():
                made = system_rows.Namespace(operation.namespace, operation.account, operation.title, wall_ms)
                key, text = system_rows.encode_namespace(made)
                row = encode_row(Kind.VALUE, text, None, 0, version)
            case _:
                assert_never(operation)
        self._rows.join(namespace, key, row)
        return namespace, key

    def _rows_at(
        self, positions: list[tuple[Stamp, RowKey]]
    ) -> tuple[tuple[tuple[Stamp, int], ...], tuple[KeyedRow, ...]]:
        """Return positions and rows of a frame as they stand at the end of the group."""
        index_of: dict[RowKey, int] = {}
        rows: list[KeyedRow] = []
        indexed: list[tuple[Stamp, int]] = []
        for stamp, row_key in positions:
            served = key_served_for(row_key, self._rows.is_dead)
            index = index_of.get(served)
            if index is None:
                row = self._txn.row(*served)
                assert row is not None, "a position of this very transaction has a row"
                index = index_of[served] = len(rows)
                rows.append((*served, row))
            indexed.append((stamp, index))
        return tuple(indexed), tuple(rows)

    def _namespaces_of(self, account: AccountId) -> dict[str, tuple[NamespaceId, Version]]:
        titles = {}
        for key, row in system_rows.rows_under(self._txn, system_rows.NAMESPACE_PREFIX):
            entry = decode_row(SYSTEM_NAMESPACE, key, row)
            if entry.kind != Kind.VALUE:
                continue
            try:
                namespace = system_rows.decode_namespace(key, entry.value)
            except RemoteProtocolError:
                continue  # written by hand, and no namespace to anybody
            if namespace.account == account:
                titles[namespace.title] = (namespace.namespace, entry.version)
        return titles


def key_served_for(row_key: RowKey, is_dead: Callable[[NamespaceId], bool]) -> RowKey:
    """Return the key whose row is sent for a position: a deleted namespace's positions are served as its tombstone [I7]."""
    namespace = row_key[0]
    return (SYSTEM_NAMESPACE, system_rows.namespace_key(namespace)) if is_dead(namespace) else row_key


def _expiry_refusal(operation: Put, wall_ms: int) -> Outcome | None:
    """Refuse an expiry that is nearer than allowed, by the leader's clock."""
    if operation.expires_in:
        is_early = operation.expires_in < TTL_SECONDS_MIN
    else:
        is_early = 0 < operation.expires_at < wall_ms // 1000 + TTL_SECONDS_MIN
    if not is_early:
        return None
    when = f"in {operation.expires_in} s" if operation.expires_in else f"at {operation.expires_at}"
    message = (
        f"an entry cannot expire {when}: at least {TTL_SECONDS_MIN} s ahead are needed, it is {wall_ms // 1000} now"
    )
    return refused("bad_expiry", f"{message}; nothing was applied")


def _is_visible(row: bytes, wall_ms: int) -> bool:
    """Tell whether a condition sees the row: a reader of this moment would [I7]."""
    expires_at = row_expires_at(row)
    return not is_tombstone(row) and (expires_at == 0 or expires_at * 1000 > wall_ms)
