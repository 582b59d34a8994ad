"""Applying batches: the only code that changes a store, run inside one write transaction.

Decides: what each batch does to rows, log index, vector, floor and state hash.
Keeps true
* I1: an entry that the vector covers is dropped, on every path; any other is joined.
* I3: a frame is applied only when its `after` is covered, and the vector rises with the rows it vouches for.
* I4: the caller commits everything this module did, or nothing of it.
* I6: a row that a walk's part lacks was removed there if the part's vector covers it; the vector rises at the walk's end only.
* I7: a namespace's tombstone beats every entry of that id; its rows leave H at once, its space is freed in slices.
* I9: a walk's part is looked through in slices, since any number of rows may stand here where it has none.
In and out: a `Batch` in, a `BatchResult` out. Conditions of writes are checked here, against the rows as they stand.
Source: DESIGN.md §2 and §3; last-writer-wins registers after Shapiro et al. (2011).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import assert_never

from kvp2p.core import system_rows
from kvp2p.core.batches import (
    Batch,
    BatchResult,
    ChunkBatch,
    FrameBatch,
    NamespaceSweep,
    Settle,
    StampedWrite,
    StoreSummary,
    WalkBatch,
    WriteGroup,
)
from kvp2p.core.chunk_rows import pending_of
from kvp2p.core.entry import (
    ChunkId,
    Kind,
    decode_chunk_list,
    decode_row,
    encode_row,
    is_chunked,
    is_tombstone,
    is_value,
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
from kvp2p.core.port import ReadTransaction, WriteTransaction
from kvp2p.core.vector import EMPTY_VECTOR
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    VERSION_ZERO,
    AccountId,
    NamespaceId,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
)
from kvp2p.limits import NAMESPACES_PER_ACCOUNT_MAX, TTL_SECONDS_MIN, WALK_ROWS_LOOKED_AT_MAX

_NO_ROOM = refused("disk_full", "the leader's disk is full; nothing was applied. Deleting goes on, and makes room")


def apply_batch(txn: WriteTransaction, batch: Batch, *, is_full: bool = False) -> BatchResult:
    """Apply one batch to an open write transaction and say how the store stands after it.

    With `is_full` there is room for deletions only: the other writes of a group are refused.
    """
    application = _Application(txn)
    outcomes: tuple[Outcome, ...] = ()
    frame: Frame | None = None
    match batch:
        case WriteGroup():
            outcomes, frame = application.write_group(batch, is_full=is_full)
        case FrameBatch(frame=received):
            application.frame(received)
        case WalkBatch():
            application.walk(batch)
        case Settle():
            application.settle(batch)
        case NamespaceSweep(namespace=namespace, rows_max=rows_max):
            application.sweep(namespace, rows_max)
        case ChunkBatch():
            application.chunk_batch(batch)
        case _:
            assert_never(batch)
    return application.result(outcomes, frame)


def summarize(txn: ReadTransaction) -> StoreSummary:
    """Return what a machine must know of the store when it starts."""
    return StoreSummary(
        vector=txn.vector,
        floor=txn.floor,
        above=txn.above,
        state_hash=txn.state_hash,
        complete=txn.complete,
        designation=txn.designation,
        identity=txn.identity,
        members=txn.members,
        candidates=_candidates(txn),
        issuers=issuers_of(txn),
        namespaces_to_sweep=_dead_namespaces_with_rows(txn),
        pending=pending_of(txn),
        staged=tuple(txn.staged()),
    )


def is_namespace_deleted(txn: ReadTransaction, namespace: NamespaceId) -> bool:
    """Tell whether a tombstone stands over a namespace."""
    if namespace == SYSTEM_NAMESPACE:
        return False
    row = txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(namespace))
    return row is not None and is_tombstone(row)


def state_hash_seed(txn: ReadTransaction) -> int:
    """Return the cluster's 64-bit seed of the state hash: the first half of its id."""
    return int.from_bytes(txn.identity.cluster[:8], "big")


def _candidates(txn: ReadTransaction) -> tuple[bytes, ...]:
    row = txn.row(SYSTEM_NAMESPACE, system_rows.CANDIDATES_KEY)
    if row is None or not is_value(row):
        return ()
    return system_rows.decode_candidates(decode_row(SYSTEM_NAMESPACE, system_rows.CANDIDATES_KEY, row).value)


def issuers_of(txn: ReadTransaction) -> tuple[system_rows.IssuerRow, ...]:
    """Return the issuers that have a row, in byte order. They are few: one for each start of a leader."""
    rows = []
    for key, row in txn.rows(SYSTEM_NAMESPACE, start=system_rows.ISSUER_PREFIX):
        if not key.startswith(system_rows.ISSUER_PREFIX):
            break
        if is_value(row):
            rows.append(system_rows.decode_issuer(key, decode_row(SYSTEM_NAMESPACE, key, row).value))
    return tuple(row for row in rows if row is not None)


def _dead_namespaces_with_rows(txn: ReadTransaction) -> tuple[NamespaceId, ...]:
    dead = []
    for key, row in txn.rows(SYSTEM_NAMESPACE, start=system_rows.NAMESPACE_PREFIX):
        if not key.startswith(system_rows.NAMESPACE_PREFIX):
            break
        namespace = system_rows.namespace_of_key(key)
        if namespace is not None and is_tombstone(row) and next(txn.rows(namespace), None) is not None:
            dead.append(namespace)
    return tuple(dead)


class _Application:
    """One batch on one transaction; remembers what the result has to tell."""

    def __init__(self, txn: WriteTransaction) -> None:
        self.txn = txn
        self.rows = Joining(txn, state_hash_seed(txn))
        self.walk_rest: WalkBatch | None = None
        self.chunks_missing: tuple[ChunkId, ...] = ()
        self.chunks_refused: tuple[ChunkId, ...] = ()

    def result(self, outcomes: tuple[Outcome, ...], frame: Frame | None) -> BatchResult:
        txn, rows = self.txn, self.rows
        rows.chunks.settle()
        rows.finish()
        if len(txn.above) and txn.vector.covers_vector(txn.above):
            txn.set_above(EMPTY_VECTOR)
        return BatchResult(
            vector=txn.vector,
            floor=txn.floor,
            above=txn.above,
            state_hash=txn.state_hash,
            complete=txn.complete,
            outcomes=outcomes,
            frame=frame,
            namespaces_to_sweep=tuple(rows.newly_dead),
            candidates=_candidates(txn) if rows.candidates_changed else None,
            issuers=issuers_of(txn) if rows.issuers_changed else None,
            rows_changed=rows.rows_changed,
            pending=pending_of(txn) if rows.chunks.is_changed else None,
            chunks_missing=self.chunks_missing,
            chunks_refused=self.chunks_refused,
            walk_rest=self.walk_rest,
        )

    # --- the leader's own writes

    def write_group(self, group: WriteGroup, *, is_full: bool) -> tuple[tuple[Outcome, ...], Frame | None]:
        if group.designation is not None:
            self.txn.set_designation(group.designation)
        after = self.txn.vector.stamp_of(group.issuer)
        positions: list[tuple[Stamp, RowKey]] = []
        needs_room = is_full and group.designation is None  # a new term is no more than a row or two
        outcomes = tuple(
            _NO_ROOM if needs_room and not write.makes_room else self._write(group, write, positions)
            for write in group.writes
        )
        if not positions:
            return outcomes, None
        upto = positions[-1][0]
        self.txn.put_positions(group.issuer, positions)
        self.rows.chunks.cover(group.issuer, positions)
        self.txn.set_vector(self.txn.vector.raised(group.issuer, upto))
        return outcomes, Frame(group.issuer, after, upto, *self._rows_at(positions))

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
                if not self.rows.is_live(operation.namespace):
                    return refused("namespace_not_found", f"there is no namespace {operation.namespace.hex()}")
                if isinstance(operation, Put) and (
                    operation.expires_in or operation.expires_at or operation.is_chunked
                ):
                    refusal = _expiry_refusal(operation, wall_ms) or self._chunks_refusal(operation)
                    if refusal is not None:
                        return refusal
                return self._condition_refusal(operation, wall_ms)
            case DeleteNamespace(namespace=namespace):
                if namespace == SYSTEM_NAMESPACE or not self.rows.is_live(namespace):
                    return refused("namespace_not_found", f"there is no namespace {namespace.hex()}")
                return None
            case CreateNamespace(namespace=namespace, account=account, title=title):
                titles = self._namespaces_of(account)
                if title in titles:
                    return None
                if len(titles) >= NAMESPACES_PER_ACCOUNT_MAX:
                    limit = f"the account has {len(titles)} namespaces, the limit is {NAMESPACES_PER_ACCOUNT_MAX}"
                    return refused("namespace_limit", limit)
                taken = self.txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(namespace)) is not None
                if taken or namespace == SYSTEM_NAMESPACE:
                    return refused("bad_request", f"the namespace id {namespace.hex()} was used before")
                return None
            case _:
                assert_never(operation)

    def _chunks_refusal(self, operation: Put) -> Outcome | None:
        if not operation.is_chunked:
            return None
        missing = self.rows.chunks.missing(decode_chunk_list(operation.value).ids)
        if missing or operation.namespace == SYSTEM_NAMESPACE:
            return refused("bad_request", f"the write names {len(missing)} chunks that the leader does not have")
        return None

    def _condition_refusal(self, operation: Put | Delete, wall_ms: int) -> Outcome | None:
        if operation.condition == Condition.ALWAYS:
            return None
        row = self.txn.row(operation.namespace, operation.key)
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
        self.rows.join(namespace, key, row)
        return namespace, key

    def _rows_at(
        self, positions: list[tuple[Stamp, RowKey]]
    ) -> tuple[tuple[tuple[Stamp, int], ...], tuple[KeyedRow, ...]]:
        """Return positions and rows of a frame as they stand at the end of the group."""
        index_of: dict[RowKey, int] = {}
        rows: list[KeyedRow] = []
        indexed: list[tuple[Stamp, int]] = []
        for stamp, row_key in positions:
            served = key_served_for(row_key, self.rows.is_dead)
            index = index_of.get(served)
            if index is None:
                row = self.txn.row(*served)
                assert row is not None, "a position of this very transaction has a row"
                index = index_of[served] = len(rows)
                rows.append((*served, row))
            indexed.append((stamp, index))
        return tuple(indexed), tuple(rows)

    def _namespaces_of(self, account: AccountId) -> dict[str, tuple[NamespaceId, Version]]:
        titles = {}
        for key, row in self.txn.rows(SYSTEM_NAMESPACE, start=system_rows.NAMESPACE_PREFIX):
            if not key.startswith(system_rows.NAMESPACE_PREFIX):
                break
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

    # --- what peers send

    def frame(self, frame: Frame) -> None:
        issuer = frame.issuer
        vector, above = self.txn.vector, self.txn.above
        covered = vector.stamp_of(issuer)
        if covered < frame.after:
            return  # a gap: nothing is applied, the log is pulled first [I3]
        raised = vector.raised(issuer, frame.upto)
        for namespace, key, row in frame.rows:
            version = row_version(row)
            if vector.covers(version):
                continue  # [I1]
            self.rows.join(namespace, key, row)
            if not raised.covers(version):  # of another issuer, or later: it came along as the newer row of a key
                above = above.raised(version_issuer(version), version_stamp(version))
        rows = frame.rows
        positions = [(stamp, rows[index][:2]) for stamp, index in frame.positions if stamp > covered]
        self.txn.put_positions(issuer, positions)
        self.rows.chunks.cover(issuer, positions)
        if above is not self.txn.above:
            self.txn.set_above(above)
        self.txn.set_vector(raised)

    def walk(self, batch: WalkBatch) -> None:
        part, vector = batch.part, self.txn.vector
        # Until the vector covers what the peer covered when it read this part, rows may stand above the vector, and others
        # may be gone that it still covers.
        self.txn.set_above(self.txn.above.join(part.vector))
        if not self._remove_what_is_gone(batch):
            return  # the next slice stores the rest
        for namespace, key, row in part.rows:
            if not vector.covers(row_version(row)):  # [I1]
                self.rows.join(namespace, key, row)
            self.rows.chunks.walk_over(namespace, key, row)
        if batch.end is not None:
            floor = self.txn.floor
            for issuer, stamp in batch.end.items():
                if stamp > vector.stamp_of(issuer):
                    floor = floor.raised(issuer, stamp)  # these positions came without a log
            self.txn.set_floor(floor)
            self.txn.set_vector(vector.join(batch.end))
            self.txn.set_complete(True)

    def _remove_what_is_gone(self, batch: WalkBatch) -> bool:
        """Remove what the peer has removed, as its absence tells [I6]; tell whether all of the part was looked at."""
        part = batch.part
        sent = {(namespace, key) for namespace, key, _ in part.rows}
        gone = []
        chunked = []
        start = part.after if batch.looked_upto is None else batch.looked_upto
        for looked_at, (namespace, key, row) in enumerate(self.txn.all_rows(after=start), 1):
            row_key = (namespace, key)
            if part.upto is not None and row_key > part.upto:
                break
            if row_key not in sent and part.vector.covers(row_version(row)):
                gone.append((namespace, key, row))
            elif is_chunked(row):
                chunked.append((namespace, key, row))
            if looked_at == WALK_ROWS_LOOKED_AT_MAX:
                self.walk_rest = WalkBatch(part, batch.end, row_key)
                break
        for namespace, key, row in gone:
            self.rows.remove(namespace, key, row)
        for namespace, key, row in chunked:
            self.rows.chunks.walk_over(namespace, key, row)
        return self.walk_rest is None

    # --- what a node keeps for itself

    def settle(self, batch: Settle) -> None:
        if batch.designation is not None:
            self.txn.set_designation(batch.designation)
        if batch.members is not None:
            self.txn.set_members(batch.members)
        if batch.complete is not None:
            self.txn.set_complete(batch.complete)

    def sweep(self, namespace: NamespaceId, rows_max: int) -> None:
        if not self.rows.is_dead(namespace):
            return
        rows = list(islice(self.txn.rows(namespace), rows_max + 1))
        for key, row in rows[:rows_max]:
            self.rows.remove(namespace, key, row)
        if len(rows) > rows_max:
            self.rows.newly_dead.append(namespace)

    # --- chunks

    def chunk_batch(self, batch: ChunkBatch) -> None:
        chunks = self.rows.chunks
        chunks.stage(batch.stage)
        if batch.contents:
            self.chunks_refused = chunks.store(batch.contents)
        self.chunks_missing = chunks.missing(batch.stage)
        chunks.release(batch.release)


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
