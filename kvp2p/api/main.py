"""The api process: the port at once, what serves it afterwards.

Decides: the life of the process.
Keeps true: the port listens before the libraries that serve it are imported, which takes longer than all else in a node's start
    and is done in this process alone: whoever connects meanwhile waits, and is not refused. What it does, that import above all,
    takes the processor only as far as the node and the gateways leave it.
In and out: `run` is called by the supervisor in a child; the working directory is the data directory, so that the node's socket
    has a short path.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import trio

from kvp2p.config import SOCKET_FILE, NodeConfig
from kvp2p.limits import API_BACKLOG_MAX
from kvp2p.runtime.child import ChildLife
from kvp2p.runtime.listening import open_listener
from kvp2p.store.reader import Replica

NICENESS: Final = 5  # a third of the weight of the node and of each gateway, where processors are short; nothing else


def run(config: NodeConfig, life: ChildLife) -> None:
    """Serve the API port until the supervisor asks to drain."""
    os.nice(NICENESS)
    with open_listener(config.host, config.api_port, backlog=API_BACKLOG_MAX) as listener:
        trio.run(_run, config, life, listener)


async def _run(config: NodeConfig, life: ChildLife, listener: socket.socket) -> None:
    from kvp2p.api.server import serve

    async with life.supervised() as drain:
        with Replica(config.directory) as replica:
            await serve(config, replica, SOCKET_FILE, listener, life.announce_ready, drain.requested)
