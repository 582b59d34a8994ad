"""The node process: store, replica machine, mesh and unix socket, put together.

Decides: the order of a start and of an end.
Keeps true: the mesh listens before the machine starts, so a peer that answers finds us; the unix socket opens last, when writes can be
taken. A failure of the driver or of the store's thread ends the process, and the supervisor starts it again from the store.
In and out: `run` returns when it was asked to drain and has.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import trio

from kvp2p.cluster_key import ClusterKey, read_cluster_key
from kvp2p.config import KEY_FILE, SOCKET_FILE, STORE_DIRECTORY, NodeConfig
from kvp2p.core.messages import Member
from kvp2p.core.port import Identity
from kvp2p.errors import StoreFormatError
from kvp2p.net.mesh import Mesh
from kvp2p.node.local_server import LocalServer
from kvp2p.node.spans import Spans
from kvp2p.node.status import Counters, mesh_counters, own_counters, readiness, status_document
from kvp2p.runtime.child import ChildLife
from kvp2p.runtime.driver import ReplicaDriver
from kvp2p.runtime.wall_clock import WallClock
from kvp2p.store.lmdb_store import LmdbStore

_READER_CHECK_S = 10.0  # DESIGN §6: a reader killed inside a transaction pins pages until then
_DRAIN_S = 2.0
# The store's thread and the event loop hand the interpreter to each other several times in each write; at Python's default of
# 5 ms each would wait that long whenever the other is busy.
_SWITCH_INTERVAL_S = 0.0005
log = structlog.get_logger("kvp2p.node")


def run(config: NodeConfig, life: ChildLife) -> None:
    """Run the node until SIGTERM. The working directory is the node's."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    key = read_cluster_key(Path(KEY_FILE))
    clock = WallClock(config.clock_offset_ms)
    with LmdbStore.open(STORE_DIRECTORY, map_bytes=config.store.map_bytes, migrating=_told_migration) as store:
        store.reader_check()
        with store.read() as txn:
            identity = txn.identity
            stored = {member.node: member.incarnation for member in txn.members}
        if identity.cluster != key.cluster:
            raise StoreFormatError(
                f"the store in {config.directory} belongs to cluster {identity.cluster.hex()}, {KEY_FILE} beside it to "
                f"{key.cluster.hex()}. Put the {KEY_FILE} of the store's cluster there, or start the directory that has it"
            )
        me = Member(
            identity.node,
            # Past every earlier life, even one that a restored disk has forgotten.
            max(stored.get(identity.node, 0) + 1, clock.now_ms()),
            identity.name,
            config.mesh_url,
            config.data_url,
            config.api_url,
        )
        trio.run(_serve, config, life, store, identity, key, me, clock)


@contextmanager
def _told_migration() -> Iterator[None]:
    """Log when the store is brought to the present format: until it is, gateways and api are started again and again."""
    log.warning("store_migration_begins", check="Nothing is served until it has ended; leave the node running")
    began = time.monotonic()
    yield
    log.info("store_migration_ended", took_ms=round(1_000 * (time.monotonic() - began)))


async def _serve(
    config: NodeConfig,
    life: ChildLife,
    store: LmdbStore,
    identity: Identity,
    key: ClusterKey,
    me: Member,
    clock: WallClock,
) -> None:
    if clock.is_adjustable:
        log.warning("clock_is_adjustable", offset_ms=clock.offset_ms, check="--clock-offset-ms is for tests only")
    driver = ReplicaDriver(store, config.replica, me, config.join, clock)
    mesh = Mesh(cluster=key.cluster, node=identity.node, key=key.key, host=driver, settings=config.mesh)
    driver.dialler = mesh
    counters, spans = Counters(), Spans(driver)
    documents: dict[str, Callable[[], dict[str, Any]]] = {
        "status": lambda: status_document(driver, identity, config.ready_lag_ms_max, mesh.refused_dial),
        "metrics": lambda: _sum(counters.sums(), own_counters(driver) | mesh_counters(mesh.traffic.sums())),
        "spans": spans.take,
    }
    server = LocalServer(driver, counters, documents, on_process_gone=lambda: _check_readers(store))
    driver.on_handled = lambda: server.end_turn(*readiness(driver, config.ready_lag_ms_max, mesh.refused_dial))
    async with life.supervised() as drain, trio.open_nursery() as nursery:
        await nursery.start(mesh.run, config.host, config.mesh_port)
        await nursery.start(driver.run)
        await nursery.start(server.run, SOCKET_FILE)
        nursery.start_soon(_check_readers_regularly, store)
        log.info("node_serving", node_id=identity.node.hex(), mesh_url=config.mesh_url)
        life.announce_ready()
        await drain.requested.wait()
        await driver.stop(_DRAIN_S)
        nursery.cancel_scope.cancel()


async def _check_readers_regularly(store: LmdbStore) -> None:
    while True:
        await trio.sleep(_READER_CHECK_S)
        _check_readers(store)


def _check_readers(store: LmdbStore) -> None:
    freed = store.reader_check()
    if freed:
        log.info("reader_slots_freed", slots=freed)


def _sum(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in sorted({*left, *right})}
