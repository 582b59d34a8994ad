"""What the api process does: hypercorn on trio, beside the connection to the node.

Decides: how the API port is served, and what is told to the node.
Keeps true: it drains within 4 s of SIGTERM; a store that was replaced under it ends it, and the supervisor starts it anew.
In and out: a listening socket in; HTTP there, counters to the node each second.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import hypercorn.trio
import trio
from hypercorn.config import Config

from kvp2p.api.app import Api
from kvp2p.config import NodeConfig
from kvp2p.limits import HTTP_HEADER_BYTES_MAX
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.reader import Replica

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

REPORT_INTERVAL_S: Final = 1.0
DRAIN_S: Final = 3.0  # of the 4 s that a child has


async def serve(
    config: NodeConfig,
    replica: Replica,
    socket_path: str,
    listener: socket.socket,
    announce_ready: Callable[[], None],
    stop: trio.Event,
) -> None:
    """Serve until `stop` is set; `listener` is closed then. `announce_ready` is called once connections are taken."""
    port = NodePort(socket_path, "api")
    api = Api(replica, port, config.api_url)
    async with trio.open_nursery() as nursery:
        await nursery.start(port.run)
        nursery.start_soon(_report, api, port, replica)

        async def serve_http(task_status: trio.TaskStatus[list[str]]) -> None:
            await hypercorn.trio.serve(
                cast("ASGIFramework", api.application()),
                _hypercorn_config(config, listener),
                shutdown_trigger=stop.wait,
                task_status=task_status,
                mode="asgi",
            )
            nursery.cancel_scope.cancel()

        await nursery.start(serve_http)
        announce_ready()


async def _report(api: Api, port: NodePort, replica: Replica) -> None:
    """Tell the node what was answered, and look after the store."""
    while True:
        port.report(api.endpoints.samples())
        replica.check()
        await trio.sleep(REPORT_INTERVAL_S)


def _hypercorn_config(config: NodeConfig, listener: socket.socket) -> Config:
    settings = Config()
    settings.bind = [f"fd://{listener.detach()}"]  # hypercorn makes its own socket of it, and closes that
    settings.errorlog = logging.getLogger("kvp2p.api.hypercorn")  # from warning up it goes to our own log
    settings.include_server_header = False
    settings.graceful_timeout = DRAIN_S
    settings.h11_max_incomplete_size = HTTP_HEADER_BYTES_MAX
    settings.keep_alive_timeout = config.http.idle_timeout_seconds
    return settings
