"""The api process: hypercorn on trio, beside the connection to the node.

Decides: the life of the process.
Keeps true: it drains within 4 s of SIGTERM; a store that was replaced under it ends it, and the supervisor starts it anew.
In and out: `run` is called by the supervisor in a child; the working directory is the data directory, so that the node's socket
    has a short path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import hypercorn.trio
import trio
from hypercorn.config import Config

from kvp2p.api.app import Api
from kvp2p.config import SOCKET_FILE, NodeConfig
from kvp2p.limits import HTTP_HEADER_BYTES_MAX
from kvp2p.runtime.child import ChildLife
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.reader import Replica

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

REPORT_INTERVAL_S: Final = 1.0
DRAIN_S: Final = 3.0  # of the 4 s that a child has


def run(config: NodeConfig, life: ChildLife) -> None:
    """Serve the API port until the supervisor asks to drain."""
    trio.run(_run, config, life)


async def _run(config: NodeConfig, life: ChildLife) -> None:
    async with life.supervised() as drain:
        with Replica(config.directory) as replica:
            await serve(config, replica, SOCKET_FILE, life.announce_ready, drain.requested)


async def serve(
    config: NodeConfig, replica: Replica, socket_path: str, announce_ready: Callable[[], None], stop: trio.Event
) -> None:
    """Serve until `stop` is set. `announce_ready` is called once the port listens."""
    port = NodePort(socket_path, "api")
    api = Api(replica, port, config.api_url)
    async with trio.open_nursery() as nursery:
        await nursery.start(port.run)
        nursery.start_soon(_report, api, port, replica)

        async def serve_http(task_status: trio.TaskStatus[list[str]]) -> None:
            await hypercorn.trio.serve(
                cast("ASGIFramework", api.application()),
                _hypercorn_config(config),
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


def _hypercorn_config(config: NodeConfig) -> Config:
    settings = Config()
    host = f"[{config.host}]" if ":" in config.host else config.host
    settings.bind = [f"{host}:{config.api_port}"]
    settings.errorlog = logging.getLogger("kvp2p.api.hypercorn")  # from warning up it goes to our own log
    settings.include_server_header = False
    settings.graceful_timeout = DRAIN_S
    settings.h11_max_incomplete_size = HTTP_HEADER_BYTES_MAX
    settings.keep_alive_timeout = config.http.idle_timeout_seconds
    return settings
