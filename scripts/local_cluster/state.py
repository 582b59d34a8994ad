"""What `cluster.json` holds: ports, ids, the admin token, process ids. Only its owner may read it.

Keeps true: one program at a time changes it; it is replaced whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvp2p.supervisor.group import read_process

HOST = "127.0.0.1"
STATE_FILE, STATE_LOCK_FILE = "cluster.json", "cluster.lock"


class CannotError(Exception):
    """What was asked cannot be done; the text says why."""


class UsageError(Exception):
    """The command line asks for something that is not there."""


def is_alive(pid: int | None, started: int | None) -> bool:
    """Tell whether a process that was written down exists."""
    process = read_process(pid) if pid else None
    return process is not None and process.started == started


class Node(NamedTuple):
    """A node as written down. `started` tells its supervisor from a later process of the same id. The last three are for a cluster
    with faults: what other nodes dial in place of `mesh_port`, where this one dials from, and how wrong its clock is.
    """

    name: str
    data_dir: str
    data_port: int
    api_port: int
    mesh_port: int
    pid: int | None = None
    started: int | None = None
    proxy_port: int | None = None
    address: str | None = None
    clock_offset_ms: int | None = None

    @property
    def directory(self) -> Path:
        return Path(self.data_dir)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def mesh_url(self) -> str:
        return f"ws://{HOST}:{self.proxy_port or self.mesh_port}"

    @property
    def ports(self) -> list[int]:
        return [port for port in (self.data_port, self.api_port, self.mesh_port, self.proxy_port) if port is not None]

    def is_alive(self) -> bool:
        """Tell whether the supervisor exists, stopped or not."""
        return is_alive(self.pid, self.started)

    def is_stopped(self) -> bool:
        """Tell whether SIGSTOP holds the supervisor."""
        process = read_process(self.pid) if self.pid else None
        return process is not None and process.is_stopped


class State(NamedTuple):
    """A cluster as written down; the three behind `nodes` are about the proxy that makes faults of links, if it has one.

    `settings` are those that new nodes get besides their ports, by name; None for none.
    """

    cluster_id: str
    account_id: str
    admin_token: str
    gateways: int
    nodes: list[Node]
    has_faults: bool = False
    proxy_pid: int | None = None
    proxy_started: int | None = None
    settings: dict[str, object] | None = None

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise UsageError(f"no node {name!r}; there are {', '.join(node.name for node in self.nodes)}")

    def has_proxy(self) -> bool:
        """Tell whether the proxy runs."""
        return is_alive(self.proxy_pid, self.proxy_started)

    def put(self, node: Node) -> None:
        self.nodes[self.nodes.index(self.node(node.name))] = node


def read_state(directory: Path) -> State:
    """Read what is known of the cluster in a directory."""
    try:
        document = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CannotError(f"{directory} has no cluster; `start --dir {directory}` makes one") from error
    return State(**{**document, "nodes": [Node(**node) for node in document["nodes"]]})


def write_state(directory: Path, state: State) -> None:
    """Replace what is known."""
    new = directory / f"{STATE_FILE}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({**state._asdict(), "nodes": [node._asdict() for node in state.nodes]}, file, indent=1)
    new.replace(directory / STATE_FILE)


@contextlib.contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Let one program at a time change the state; several may kill and restart different nodes at once."""
    with (directory / STATE_LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
