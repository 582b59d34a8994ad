"""Listening sockets of this machine's processes.

Decides: how a port is bound.
Keeps true: the supervisor has made sure that no other node has the port, so the processes of a node may share it: the kernel spreads connections over
    all that listen.
In and out: an address in, a bound and listening socket out, non-blocking.
"""

from __future__ import annotations

import socket


def open_listener(host: str, port: int, *, backlog: int, is_shared: bool = False) -> socket.socket:
    """Bind and listen; `is_shared` lets other processes of this node listen on the port too. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
