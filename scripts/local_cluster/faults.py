"""What `partition`, `heal` and `link` ask of the proxy, and the life of its process.

Keeps true: a cluster with faults has its proxy before any of its nodes. A proxy that was started anew begins without faults.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvp2p.supervisor.group import read_process
from scripts.local_cluster.state import CannotError, State, UsageError, changing, read_state, write_state

SOCKET_FILE, LOG_FILE = "faults.sock", "faults.log"
ASK_SECONDS = 5.0
START_SECONDS = 10.0
POLL_SECONDS = 0.02
MENDED = {"cut": False, "stall": False, "delay_ms": 0, "rate_kbps": 0}
Pair = tuple[str, str]


# --- the process


def ensure_proxy(directory: Path) -> bool:
    """Start the proxy of a cluster with faults if it does not run, and tell it of all nodes; returns when it listens for them.

    True when it was started.
    """
    with changing(directory):
        state = read_state(directory)
        if not state.has_faults:
            return False
        is_new = not state.has_proxy()
        if is_new:
            state = _launch_proxy(directory, state)
            write_state(directory, state)
    nodes = [
        {"name": node.name, "address": node.address, "port": node.proxy_port, "mesh_port": node.mesh_port}
        for node in state.nodes
    ]
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask(directory, {"do": "add", "nodes": nodes})
            return is_new
        except CannotError as error:
            if not state.has_proxy() or time.monotonic() > deadline:
                raise CannotError(f"{error}; {directory / LOG_FILE} may say more") from error
            time.sleep(POLL_SECONDS)


def _launch_proxy(directory: Path, state: State) -> State:
    with (directory / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            # -P: the working directory is no place to import from.
            [sys.executable, "-P", "-m", "scripts.local_cluster.fault_proxy", SOCKET_FILE],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            start_new_session=True,
        )
    seen = read_process(process.pid)
    return state._replace(proxy_pid=process.pid, proxy_started=seen.started if seen else None)


def end_proxy(state: State) -> None:
    """End the proxy at once: it has nothing to put away."""
    if state.proxy_pid is None:
        return
    deadline = time.monotonic() + ASK_SECONDS
    while state.has_proxy():
        with suppress(ProcessLookupError):
            os.kill(state.proxy_pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise CannotError(f"SIGKILL had no effect on the fault proxy, process {state.proxy_pid}")
        time.sleep(POLL_SECONDS)


def ask(directory: Path, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask the proxy for something and return the links that have faults after it. Raises CannotError."""
    try:
        with connect_below(directory, SOCKET_FILE) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(b"".join(iter(lambda: connection.recv(65_536), b"")))
    except (OSError, ValueError) as error:
        raise CannotError(
            f"the fault proxy of {directory} does not answer ({error}); `start --dir {directory}` starts it again"
        ) from error
    if "error" in answer:
        raise CannotError(f"the fault proxy refuses: {answer['error']}")
    faults: list[dict[str, Any]] = answer["faults"]
    return faults


def connect_below(directory: Path, name: str) -> socket.socket:
    """Connect to a unix socket in a directory. Its path may have 107 bytes, that of a directory as many as its user likes."""
    connection = socket.socket(socket.AF_UNIX)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.settimeout(ASK_SECONDS)
        connection.connect(f"/proc/self/fd/{descriptor}/{name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(descriptor)
    return connection


# --- the commands


def require_faults(directory: Path) -> State:
    """Return the state of a cluster whose links may have faults."""
    state = read_state(directory)
    if not state.has_faults:
        raise UsageError(
            f"the links of {directory} cannot have faults: they are direct. `start --faults` with a new directory makes a "
            "cluster whose links run through a proxy"
        )
    return state


def partition(directory: Path, groups: Sequence[str]) -> list[list[str]]:
    """Cut every link between groups and mend the cuts inside; return the groups, with the nodes that none named as one more."""
    state = require_faults(directory)
    named = [group.split(",") for group in groups]
    seen: set[str] = set()
    for name in (one for group in named for one in group):
        state.node(name)
        if name in seen:
            raise UsageError(f"{name} is in two groups, or twice in one")
        seen.add(name)
    rest = [node.name for node in state.nodes if node.name not in seen]
    whole = [*named, rest] if rest else named
    if len(whole) < 2:
        raise UsageError("all nodes are in one group, so there is nothing to cut; `heal` mends all links")
    group_of = {name: number for number, group in enumerate(whole) for name in group}
    pairs = _all_pairs(state)
    ask(directory, _set({(one, other): {"cut": group_of[one] != group_of[other]} for one, other in pairs}))
    return whole


def heal(directory: Path) -> None:
    """Mend all links."""
    ask(directory, _set(dict.fromkeys(_all_pairs(require_faults(directory)), MENDED)))


def change_links(
    directory: Path, pairs: Sequence[Pair], changes: dict[str, Any], *, reset: bool
) -> list[dict[str, Any]]:
    """Put faults on links, or show those they have when nothing is to be changed; return the links among them that have any."""
    state = require_faults(directory)
    for name in pairs[0]:
        state.node(name)
    if pairs[0][0] == pairs[0][1]:
        raise UsageError(f"a link leads from one node to another, not from {pairs[0][0]} to itself")
    faults = ask(directory, _set(dict.fromkeys(pairs, changes)) if changes else {"do": "show"})
    if reset:
        faults = ask(directory, {"do": "reset", "links": pairs})
    return [one for one in faults if (one["from"], one["to"]) in pairs]


def show_fault(fault: dict[str, Any]) -> str:
    """Return a link and its faults as a line."""
    told = [word for word in ("cut", "stall") if fault[word]]
    if fault["delay_ms"]:
        told.append(f"delay {fault['delay_ms']} ms")
    if fault["rate_kbps"]:
        told.append(f"at most {fault['rate_kbps']} kbit/s")
    return f"{fault['from']} -> {fault['to']}: {', '.join(told)}"


def _all_pairs(state: State) -> list[Pair]:
    names = [node.name for node in state.nodes]
    return [(one, other) for one in names for other in names if one != other]


def _set(changes: dict[Pair, dict[str, Any]]) -> dict[str, Any]:
    return {"do": "set", "links": [[*pair, faults] for pair, faults in changes.items()]}
