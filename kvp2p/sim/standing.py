"""What a node's store holds at the end of a run, read out for the checkers.

Decides: what a `StoreState` says of a store.
Keeps true: H, and how often rows name each chunk, are recounted from the rows, independently of `core/apply.py`.
In and out: a host in, records out; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from kvp2p.core import system_rows
from kvp2p.core.apply import is_namespace_deleted, issuers_of, state_hash_seed
from kvp2p.core.entry import STATE_HASH_MASK, Kind, row_expires_at, row_kind, row_state_hash, row_version
from kvp2p.core.group_writing import key_served_for
from kvp2p.core.port import ReadTransaction
from kvp2p.core.purge import purge_at
from kvp2p.ids import Issuer, NamespaceId, Stamp, version_issuer, version_term
from kvp2p.sim import large
from kvp2p.sim.history import StandingIssuer, StandingPosition, StandingRow, StoreState
from kvp2p.sim.host import Host


def state_of(host: Host, clock_ms: int) -> StoreState:
    """Return a node's store as it stands; H is recounted from the rows, independently of `core/apply.py`."""
    with host.disk.store.read() as txn:
        seed = state_hash_seed(txn)
        recount = 0
        rows = []
        dead: dict[NamespaceId, bool] = {}
        for namespace, key, row in txn.all_rows():
            if namespace not in dead:
                dead[namespace] = is_namespace_deleted(txn, namespace)
            if dead[namespace]:
                continue
            recount += row_state_hash(namespace, key, row, seed)
            content = large.content_of_row(txn, namespace, key, row)
            gone = row_kind(row) == Kind.TOMBSTONE
            where = (namespace.hex(), key.hex())
            rows.append(StandingRow(*where, row_version(row).hex(), content, gone, row_expires_at(row)))
        counted, named = large.chunk_counts(txn)
        return StoreState(
            node=host.name,
            complete=txn.complete,
            vector=tuple((issuer.hex(), stamp) for issuer, stamp in txn.vector.items()),
            fence=txn.vector.fence.hex(),
            floor=tuple((issuer.hex(), stamp) for issuer, stamp in _floor(txn)),
            state_hash=_hex(sum(totals.state_hash for _, totals in txn.all_totals())),
            recount=_hex(recount),
            namespaces=_live_namespaces(txn),
            rows=tuple(rows),
            log=tuple(_log(txn)),
            issuers=tuple(
                StandingIssuer(row.issuer.hex(), "" if row.node is None else row.node.hex(), row.closed)
                for row in issuers_of(txn)
            ),
            clock_ms=clock_ms,
            graves=txn.tombstones,
            expiring=sum(1 for _ in txn.expiring()),
            chunks=counted,
            chunks_named=named,
            staged=sum(1 for _ in txn.staged()),
            pending=sum(1 for _ in txn.pending_rows()),
        )


def _hex(state_hash: int) -> str:
    return f"{state_hash & STATE_HASH_MASK:032x}"


def _live_namespaces(txn: ReadTransaction) -> tuple[str, ...]:
    live = []
    for key, row in system_rows.rows_under(txn, system_rows.NAMESPACE_PREFIX):
        namespace = system_rows.namespace_of_key(key)
        if namespace is not None and row_kind(row) == Kind.VALUE:
            live.append(namespace.hex())
    return tuple(live)


def _floor(txn: ReadTransaction) -> Iterator[tuple[Issuer, Stamp]]:
    """Iterate over what the log cannot serve of the issuers that the vector names."""
    for top in txn.vector.tops():
        issuer = version_issuer(top)
        yield issuer, txn.floor.reach(version_term(top), issuer)


def _log(txn: ReadTransaction) -> list[StandingPosition]:
    positions = []
    for issuer, unserved in _floor(txn):
        for stamp, row_key in txn.positions(issuer, unserved):
            if purge_at(row_key) is not None:
                continue
            namespace, key = key_served_for(
                row_key, partial(is_namespace_deleted, txn)
            )  # a deleted namespace's: its tombstone [I7]
            positions.append(StandingPosition(issuer.hex(), stamp, namespace.hex(), key.hex()))
    return positions
