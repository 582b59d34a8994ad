"""Tell systemd how the node stands.

Decides: nothing. Without NOTIFY_SOCKET in the environment it does nothing.
Keeps true: a supervisor's life never hangs on whoever reads the socket.
In and out: `READY=1` or `STOPPING=1` in, one datagram out (sd_notify(3)).
"""

from __future__ import annotations

import os
import socket


def notify_systemd(state: str) -> None:
    """Send one state to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifier:
        try:
            notifier.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            return  # nobody listens any more
