"""What a supervisor claims before it starts anything: the directory, the ports, file descriptors, a process group.

Decides: whether this node may start here.
Keeps true: one directory has one node. LMDB would let two open it. The lock is held on one open file that the children inherit,
so it is free only when the *last* process of a node is gone, not when its supervisor is. And no two nodes share a
port: SO_REUSEPORT, which the gateways use, would let them do so in silence, so each port is first bound without it.
In and out: a configuration in; a lock, or an error that names what is taken, out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import time
from pathlib import Path

from kvp2p.config import NodeConfig
from kvp2p.errors import ConfigError, StoreError, StoreLocked
from kvp2p.supervisor.group import read_process

# Children of a dead supervisor end within 1 s; a lock that only they hold is waited for.
ORPHANS_WAIT_SECONDS = 3.0
OPEN_FILES_MAX = 65_536  # enough for 4 096 connections a gateway; far below the millions that some systems allow


def lock_directory(path: Path) -> int:
    """Take the lock file, write our process id into it, and return the open descriptor, which children inherit.

    Raises StoreLocked, naming the holder's process id, when another node runs in the directory, and StoreError when nothing
    can be written there.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path.parent} cannot be written ({error.strerror}): a node writes there. Give it to the user that kvp2p "
            "runs as, and see that its file system is not mounted read-only and has room"
        ) from error
    deadline = time.monotonic() + ORPHANS_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            if _is_process(holder) or time.monotonic() > deadline:
                os.close(descriptor)
                alive = "" if _is_process(holder) else ", which is gone while a child of it is not"
                raise StoreLocked(
                    f"{path.parent} is in use by the node of process {holder or 'unknown'}{alive}; stop that one first"
                ) from error
            time.sleep(0.02)
    # For information only: a node whose disk is full still starts, to serve reads and to delete.
    with contextlib.suppress(OSError):
        text = f"{os.getpid()}\n".encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
    return descriptor


def check_ports(config: NodeConfig) -> None:
    """Bind each port alone and let go of it again.

    Raises ConfigError that names the port which is taken, or the host that this machine does not have.
    """
    for word, port in (("data", config.data_port), ("api", config.api_port), ("mesh", config.mesh_port)):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                config.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as claim:
                # Connections of an earlier run that linger in TIME_WAIT do not count; a listener does.
                claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                claim.bind(address)
                claim.listen(1)
        except OSError as error:
            name = f"{word} port {config.host}:{port}"
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                message = f"{name}: {config.host} is no address of this machine ({error.strerror}); set another host"
            elif isinstance(error, PermissionError):
                message = f"{name} is not allowed to this user ({error.strerror}); set another {word}_port"
            else:
                message = f"{name} is taken; stop the program that listens there, or set another {word}_port"
            raise ConfigError(message) from error


def check_dial_from(config: NodeConfig) -> None:
    """Raise ConfigError when this machine does not have the address that peers are to be dialled from."""
    address = config.mesh.dial_from
    if address is None:
        return
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as claim:
            claim.bind((address, 0))
    except OSError as error:
        raise ConfigError(
            f"[mesh] dial_from {address} is no address of this machine ({error.strerror}); set one that it has, or none"
        ) from error


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files as far as is useful and allowed; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def lead_process_group() -> None:
    """Make this process and the children to come one group that can be signalled whole.

    In a terminal's foreground group nothing changes: who presses Ctrl-C there must still reach the supervisor.
    """
    if os.getpgrp() == os.getpid():
        return
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        try:
            if os.tcgetpgrp(terminal) == os.getpgrp():
                return
        finally:
            os.close(terminal)
    os.setpgid(0, 0)


def _is_process(text: str) -> bool:
    return text.isdecimal() and read_process(int(text)) is not None
