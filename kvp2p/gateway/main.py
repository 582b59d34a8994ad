"""The gateway process.

Decides: what a gateway opens and in which order; when it is ready, when it ends.
Keeps true: it needs the store and the port, not the node: reads go on while the node process is down. It opens the store
    for reading only. The process stands in the node's data directory, so the socket's path is short.
In and out: `run` returns when the process was asked to end and has drained, and raises what it cannot live with.
"""

from __future__ import annotations

import gc
import resource
from typing import Final

import structlog
import trio

from kvp2p.config import SOCKET_FILE, NodeConfig
from kvp2p.gateway.server import Gateway
from kvp2p.gateway.streams import streams_max
from kvp2p.gateway.turns import bytes_max
from kvp2p.limits import HTTP_BACKLOG_MAX
from kvp2p.runtime.child import ChildLife
from kvp2p.runtime.listening import open_listener
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.reader import Replica

_LOG = structlog.get_logger("kvp2p.gateway")
_SPARE_DESCRIPTORS: Final = 64  # store, sockets of its own, logs


def run(config: NodeConfig, life: ChildLife, index: int) -> None:
    """Serve the data port until SIGTERM. `index` numbers the gateways of a node from 1."""
    _raise_descriptor_limit(config.http.connections_max + _SPARE_DESCRIPTORS)
    with Replica(config.directory) as replica:
        # What was made until now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        trio.run(_serve, config, life, index, replica)


async def _serve(config: NodeConfig, life: ChildLife, index: int, replica: Replica) -> None:
    node = NodePort(SOCKET_FILE, "gateway")
    async with life.supervised() as drain, trio.open_nursery() as nursery:
        listener = open_listener(config.host, config.data_port, backlog=HTTP_BACKLOG_MAX, is_shared=True)
        await nursery.start(node.run)
        gateway = Gateway(
            nursery,
            [listener],
            replica,
            node,
            config.http,
            config.api_url,
            config.ready_lag_ms_max,
            streams_max(config.gateways),
            bytes_max(config.gateways),
        )
        gateway.start()
        _LOG.info("serving", index=index, url=config.data_url)
        life.announce_ready()
        await drain.requested.wait()
        await gateway.drain()
        nursery.cancel_scope.cancel()


def _raise_descriptor_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        _LOG.warning("few_descriptors", limit=limit, wanted=wanted)
