"""New nodes and their ports; starting nodes, and waiting until they are ready.

Keeps true: a node that was started has no tie to this program: not its streams, not its session. What cannot be started
is told by name, with the end of its log.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kvp2p.supervisor.group import read_process
from scripts.local_cluster.asking import ask_status, is_ready
from scripts.local_cluster.state import (
    HOST,
    STATE_FILE,
    STATE_LOCK_FILE,
    CannotError,
    Node,
    State,
    UsageError,
    changing,
    read_state,
    write_state,
)

PORT_MIN, PORT_MAX = 20_000, 32_000
PORTS_PER_NODE = 3  # one more in a cluster with faults
POLL_SECONDS = 0.025
READY_SECONDS = 30.0
LOG_LINES = 20
LOG_TAIL_BYTES = 16_384


# --- ports


def is_free(port: int) -> bool:
    """Bind without SO_REUSEPORT, as the supervisor will."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_ports(count: int, base: int | None) -> list[int]:
    """Return so many adjacent free ports."""
    if base is not None:
        ports = list(range(base, base + count))
        if base < PORT_MIN or ports[-1] > PORT_MAX:
            raise UsageError(f"ports {base} to {ports[-1]} are not within {PORT_MIN} to {PORT_MAX}")
        taken = [port for port in ports if not is_free(port)]
        if taken:
            raise CannotError(f"port {taken[0]} is taken; choose another --base-port")
        return ports
    # A random place, so that clusters started at the same time seldom meet.
    for _ in range(200):
        first = random.randrange(PORT_MIN, PORT_MAX - count + 2)
        ports = list(range(first, first + count))
        if all(is_free(port) for port in ports):
            return ports
    raise CannotError(f"found no {count} adjacent free ports within {PORT_MIN} to {PORT_MAX}")


def ports_beside(state: State) -> list[int]:
    """Return free ports for one more node that no node of the cluster has, running or not; the next ones if possible."""
    known = {port for node in state.nodes for port in node.ports}
    above = max(known) + 1
    ports: list[int] = []
    for port in [*range(above, PORT_MAX + 1), *range(PORT_MIN, min(above, PORT_MAX))]:
        if port not in known and is_free(port):
            ports.append(port)
        if len(ports) == PORTS_PER_NODE + state.has_faults:
            return ports
    raise CannotError(f"too few free ports are left within {PORT_MIN} to {PORT_MAX}")


# --- making


def make_cluster(
    directory: Path,
    count: int,
    gateways: int,
    base_port: int | None,
    *,
    has_faults: bool,
    settings: Mapping[str, object] | None = None,
) -> State:
    """Make the directories of a new cluster, with these settings besides ports and gateways; nothing runs yet, and nothing is left
    of a failure.
    """
    from kvp2p.errors import KvError
    from kvp2p.supervisor.directory import create_cluster, create_member

    found = [one.name for one in directory.iterdir() if one.name != STATE_LOCK_FILE]
    if found:
        raise CannotError(f"{directory} has {', '.join(sorted(found)[:5])}, but no {STATE_FILE}; name a new directory")
    given = settings or {}
    chosen = [name for name in given if name in {*_OF_EACH_NODE, "host", "advertise", "join"}]
    if chosen:
        raise UsageError(f"{chosen[0]} cannot be set: this program chooses it for each node")
    each = PORTS_PER_NODE + has_faults
    ports = choose_ports(each * count, base_port)
    nodes = [_new_node(directory, index + 1, ports[each * index :][:each]) for index in range(count)]
    state = State("", "", "", gateways, nodes, has_faults, settings=dict(given))
    try:
        first = create_cluster(nodes[0].directory, nodes[0].name, _settings_of(nodes[0], state))
        for node in nodes[1:]:
            create_member(node.directory, node.name, nodes[0].mesh_url, first.key_file, _settings_of(node, state))
    except KvError as error:
        for node in nodes:
            shutil.rmtree(node.directory, ignore_errors=True)
        raise CannotError(str(error)) from error
    return state._replace(
        cluster_id=first.cluster_id.hex(), account_id=first.account_id.hex(), admin_token=first.admin_token
    )


def add_member(directory: Path) -> str:
    """Make the directory of one more node, write it down, and return its name."""
    from kvp2p.errors import KvError
    from kvp2p.supervisor.directory import create_member

    with changing(directory):
        state = read_state(directory)
        member = next((node for node in state.nodes if node.is_alive() and not node.is_stopped()), None)
        if member is None:
            raise CannotError(f"no node of {directory} runs; a new one must have one to join")
        number = 1 + max(int(node.name[1:]) for node in state.nodes)
        node = _new_node(directory, number, ports_beside(state))
        try:
            key_file = member.directory / "cluster.key"
            create_member(node.directory, node.name, member.mesh_url, key_file, _settings_of(node, state))
        except KvError as error:
            raise CannotError(str(error)) from error
        state.nodes.append(node)
        write_state(directory, state)
    return node.name


def _new_node(directory: Path, number: int, ports: Sequence[int]) -> Node:
    name = f"n{number}"
    data_port, api_port, mesh_port, *more = ports
    node = Node(name, str(directory / name), data_port, api_port, mesh_port)
    if not more:
        return node
    # All of 127.0.0.0/8 is this machine's own (Linux): an address for each node, by which the proxy knows it.
    address = f"127.0.{1 + number // 250}.{1 + number % 250}"
    return node._replace(proxy_port=more[0], address=address, clock_offset_ms=0)


_OF_EACH_NODE = {
    "data_port": "data_port",
    "api_port": "api_port",
    "mesh_port": "mesh_port",
    "advertise_mesh_port": "proxy_port",
    "mesh.dial_from": "address",
}


def _settings_of(node: Node, state: State) -> dict[str, object]:
    own = {name: getattr(node, field) for name, field in _OF_EACH_NODE.items()}
    return {"host": HOST, "gateways": state.gateways, **(state.settings or {}), **own}


# --- starting


class Launch(NamedTuple):
    """A node that this program has just started."""

    node: Node
    process: subprocess.Popen[bytes]
    log_from: int


def require_data(node: Node) -> None:
    """Raise CannotError for a node whose data directory is gone: there is nothing that could be started."""
    if not node.directory.is_dir():
        raise CannotError(
            f"{node.name} has no data directory ({node.directory}). Put it back; or, to go on without it, take {node.name} out "
            f"of the nodes in {node.directory.parent / STATE_FILE}, start the others and `add` an empty one"
        )


def launch(directory: Path, name: str) -> Launch:
    """Start a node's supervisor in a session of its own, with no tie to this program, and write down who it is."""
    node = read_state(directory).node(name)
    require_data(node)
    # The clock of a machine stays as wrong as it is when a process is started again.
    clock = [] if node.clock_offset_ms is None else ["--clock-offset-ms", str(node.clock_offset_ms)]
    with node.log.open("ab") as log:
        log_from = log.tell()
        process = subprocess.Popen(
            # -P: the working directory, a node's data, is no place to import from.
            [sys.executable, "-P", "-m", "kvp2p.supervisor", node.data_dir, *clock],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=node.data_dir,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
        )
    seen = read_process(process.pid)
    node = node._replace(pid=process.pid, started=seen.started if seen else None)
    with changing(directory):
        state = read_state(directory)
        state.put(node)
        write_state(directory, state)
    return Launch(node, process, log_from)


def wait_until_ready(nodes: Sequence[Node], launches: Mapping[str, Launch], seconds: float = READY_SECONDS) -> None:
    """Wait until all nodes are ready, started by this program (`launches`, by name) or before.

    Raises CannotError, with the last lines of its log, for each that is not in time, at once for one that has ended.
    """
    deadline = time.monotonic() + seconds
    waiting = list(nodes)
    while True:
        for node in list(waiting):
            started = launches.get(node.name)
            if started is not None and started.process.poll() is not None:
                status = started.process.returncode
                raise CannotError(f"{node.name} ended with status {status}; its log says\n{_log_tail(node, started)}")
            if started is None and not node.is_alive():
                raise CannotError(f"{node.name} has ended; its log says\n{_log_tail(node, started)}")
            if not node.is_stopped() and is_ready(node):
                waiting.remove(node)
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise CannotError(
                "\n".join(
                    f"{one.name} was not ready within {seconds:.0f} s{_how(one)}; its log says\n"
                    f"{_log_tail(one, launches.get(one.name))}"
                    for one in waiting
                )
            )
        time.sleep(POLL_SECONDS)


def wait_for_leader(state: State, seconds: float = READY_SECONDS) -> None:
    """Wait until a node says that it leads."""
    deadline = time.monotonic() + seconds
    while not any(node.is_alive() and (ask_status(state, node) or {}).get("leader") for node in state.nodes):
        if time.monotonic() > deadline:
            raise CannotError(f"no node leads after {seconds:.0f} s; see the logs, {state.nodes[0].log} first")
        time.sleep(POLL_SECONDS)


def _how(node: Node) -> str:
    return f" (SIGSTOP holds it: kill {node.name} --signal CONT)" if node.is_stopped() else ""


def _log_tail(node: Node, started: Launch | None) -> str:
    """Return the last lines that a node has written, since it was started if this program did that."""
    with node.log.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(started.log_from if started else 0, end - LOG_TAIL_BYTES))
        lines = log.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES:]) or "    (it has written nothing)"
