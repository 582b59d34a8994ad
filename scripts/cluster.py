"""Run a cluster of real nodes on this machine: start, status, stop, kill, restart, add.

What is in DIR: `cluster.json` (ports, ids, the admin token, process ids; only its owner may read it) and for each node nX a
data directory `nX`, with the node's output in `nX/log`. Nodes run on, in sessions of their own, after this program has ended.

Exit status: 0 done; 1 it could not be done, and stderr says why; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kvp2p.supervisor.group import read_process, signal_group, wait_for_group

HOST = "127.0.0.1"
PORT_MIN, PORT_MAX = 20_000, 32_000
PORTS_PER_NODE = 3
STATE_FILE, STATE_LOCK_FILE = "cluster.json", "cluster.lock"
POLL_SECONDS = 0.025
READY_SECONDS = 30.0
STOP_SECONDS = 8.0  # a supervisor takes 5 s at most, then it kills
HTTP_SECONDS = 2.0
LOG_LINES = 20
SIGNALS = {name: signal.Signals[f"SIG{name}"] for name in ("KILL", "TERM", "STOP", "CONT")}
STATUS_FIELDS = ("lag_ms", "state_hash", "vector")


class CannotError(Exception):
    """What was asked cannot be done; the text says why."""


class UsageError(Exception):
    """The command line asks for something that is not there."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as written down. `started` tells its supervisor from a later process of the same id."""

    name: str
    data_dir: str
    data_port: int
    api_port: int
    mesh_port: int
    pid: int | None = None
    started: int | None = None

    @property
    def directory(self) -> Path:
        return Path(self.data_dir)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def mesh_url(self) -> str:
        return f"ws://{HOST}:{self.mesh_port}"

    def is_alive(self) -> bool:
        """Tell whether the supervisor exists, stopped or not."""
        process = read_process(self.pid) if self.pid else None
        return process is not None and process.started == self.started

    def is_stopped(self) -> bool:
        """Tell whether SIGSTOP holds the supervisor."""
        process = read_process(self.pid) if self.pid else None
        return process is not None and process.is_stopped


@dataclass(slots=True)
class State:
    """What `cluster.json` holds."""

    cluster_id: str
    account_id: str
    admin_token: str
    gateways: int
    nodes: list[Node] = field(default_factory=list)

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise UsageError(f"no node {name!r}; there are {', '.join(node.name for node in self.nodes)}")

    def put(self, node: Node) -> None:
        self.nodes = [node if one.name == node.name else one for one in self.nodes]


def read_state(directory: Path) -> State:
    """Read what is known of the cluster in a directory."""
    try:
        document = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CannotError(f"{directory} has no cluster; `start --dir {directory}` makes one") from error
    return State(**{**document, "nodes": [Node(**node) for node in document["nodes"]]})


def write_state(directory: Path, state: State) -> None:
    new = directory / f"{STATE_FILE}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file, indent=1)
    new.replace(directory / STATE_FILE)


@contextlib.contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Let one program at a time change the state; several may kill and restart different nodes at once."""
    with (directory / STATE_LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


def new_node(directory: Path, name: str, ports: Sequence[int]) -> Node:
    return Node(name, str(directory / name), *ports)


def settings_of(node: Node, gateways: int) -> dict[str, object]:
    return {
        "host": HOST,
        "data_port": node.data_port,
        "api_port": node.api_port,
        "mesh_port": node.mesh_port,
        "gateways": gateways,
    }


def make_cluster(directory: Path, count: int, gateways: int, base_port: int | None) -> State:
    """Make the directories of a new cluster; nothing runs yet, and nothing is left of a failure."""
    from kvp2p.errors import KvError
    from kvp2p.supervisor.directory import create_cluster, create_member

    found = [one.name for one in directory.iterdir() if one.name != STATE_LOCK_FILE]
    if found:
        raise CannotError(f"{directory} has {', '.join(sorted(found)[:5])}, but no {STATE_FILE}; name a new directory")
    ports = choose_ports(PORTS_PER_NODE * count, base_port)
    nodes = [
        new_node(directory, f"n{index + 1}", ports[PORTS_PER_NODE * index :][:PORTS_PER_NODE]) for index in range(count)
    ]
    try:
        first = create_cluster(nodes[0].directory, nodes[0].name, settings_of(nodes[0], gateways))
        for node in nodes[1:]:
            create_member(node.directory, node.name, nodes[0].mesh_url, first.key_file, settings_of(node, gateways))
    except KvError as error:
        for node in nodes:
            shutil.rmtree(node.directory, ignore_errors=True)
        raise CannotError(str(error)) from error
    return State(first.cluster_id.hex(), first.account_id.hex(), first.admin_token, gateways, nodes)


# --- processes


@dataclass(slots=True)
class Launch:
    """A node that this program has just started."""

    node: Node
    process: subprocess.Popen[bytes]
    log_from: int

    def log_tail(self) -> str:
        """Return the last lines that the node has written since it was started."""
        with self.node.log.open("rb") as log:
            log.seek(self.log_from)
            lines = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES:]) or "    (it has written nothing)"


def launch(directory: Path, name: str) -> Launch:
    """Start a node's supervisor in a session of its own, with no tie to this program, and write down who it is."""
    node = read_state(directory).node(name)
    with node.log.open("ab") as log:
        log_from = log.tell()
        process = subprocess.Popen(
            # -P: the working directory, a node's data, is no place to import from.
            [sys.executable, "-P", "-m", "kvp2p.supervisor", node.data_dir],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=node.data_dir,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
        )
    seen = read_process(process.pid)
    node = replace(node, pid=process.pid, started=seen.started if seen else None)
    with changing(directory):
        state = read_state(directory)
        state.put(node)
        write_state(directory, state)
    return Launch(node, process, log_from)


def wait_until_ready(launches: Sequence[Launch], seconds: float = READY_SECONDS) -> None:
    """Wait until all nodes are ready; raises CannotError, with the last lines of the log, when one is not."""
    deadline = time.monotonic() + seconds
    waiting = list(launches)
    while True:
        for one in list(waiting):
            if one.process.poll() is not None:
                raise CannotError(
                    f"{one.node.name} ended with status {one.process.returncode}; its log says\n{one.log_tail()}"
                )
            if is_ready(one.node):
                waiting.remove(one)
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise CannotError(
                "\n".join(
                    f"{one.node.name} was not ready within {seconds:.0f} s; its log says\n{one.log_tail()}"
                    for one in waiting
                )
            )
        time.sleep(POLL_SECONDS)


def wait_for_leader(state: State, seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not any(node.is_alive() and (ask_status(state, node) or {}).get("leader") for node in state.nodes):
        if time.monotonic() > deadline:
            raise CannotError(f"no node leads after {seconds:.0f} s; see the logs, {state.nodes[0].log} first")
        time.sleep(POLL_SECONDS)


def end(node: Node) -> None:
    """Stop a node: an orderly drain, and SIGKILL for what is left."""
    if node.pid is None:
        return
    if node.is_alive():
        os.kill(node.pid, signal.SIGTERM)
        signal_group(node.pid, node.directory, signal.SIGCONT)
        wait_for_group(node.pid, node.directory, lambda members: not members, STOP_SECONDS)
    send(node, signal.SIGKILL)


def send(node: Node, number: signal.Signals) -> None:
    """Signal the supervisor first, then its group, and wait until that has had its effect."""
    if node.pid is None:
        return
    deadline = time.monotonic() + STOP_SECONDS
    members = signal_group(node.pid, node.directory, number)
    while members:
        if number is signal.SIGSTOP:
            left = wait_for_group(node.pid, node.directory, lambda now: all(one.is_stopped for one in now), 0.5)
            members = [one for one in left if not one.is_stopped]
        elif number is signal.SIGCONT:
            left = wait_for_group(node.pid, node.directory, lambda now: not any(one.is_stopped for one in now), 0.5)
            members = [one for one in left if one.is_stopped]
        else:
            members = wait_for_group(node.pid, node.directory, lambda now: not now, 0.5)
        if members and time.monotonic() > deadline:
            told = ", ".join(f"{one.process_id} ({one.state})" for one in members)
            raise CannotError(f"{number.name} had no effect on {told} of {node.name} within {STOP_SECONDS:.0f} s")
        if members and number is not signal.SIGTERM:  # a child that was forked in between; a second TERM is no drain
            signal_group(node.pid, node.directory, number)


# --- what nodes say


def get(port: int, path: str, token: str = "") -> tuple[int, bytes] | None:
    """Ask a node; None when it does not answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def is_ready(node: Node) -> bool:
    answer = get(node.data_port, "/readyz")
    return answer is not None and answer[0] == http.HTTPStatus.OK


def ask_status(state: State, node: Node) -> dict[str, Any] | None:
    """Return what a node says of itself, None when it cannot say it now."""
    answer = get(node.api_port, "/admin/v1/status", state.admin_token)
    if answer is None or answer[0] != http.HTTPStatus.OK:
        return None
    try:
        document = json.loads(answer[1])
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def read_pids(node: Node) -> dict[str, Any] | None:
    try:
        pids = json.loads((node.directory / "pids.json").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pids if isinstance(pids, dict) and pids.get("supervisor") == node.pid else None


def describe(state: State, node: Node, *, fully: bool) -> dict[str, Any]:
    """Return a node's part of the document; `fully` as `status` prints it."""
    is_alive = node.is_alive()
    answers = is_alive and not node.is_stopped()
    says = (ask_status(state, node) if answers else None) or {}
    document: dict[str, Any] = {
        "name": node.name,
        "pid": node.pid if is_alive else None,
        "data_url": f"http://{HOST}:{node.data_port}",
        "api_url": f"http://{HOST}:{node.api_port}",
        "mesh_url": node.mesh_url,
        "data_dir": node.data_dir,
        "leader": says.get("leader") is True,
    }
    if fully:
        document |= {"alive": is_alive, "ready": answers and is_ready(node)}
        document |= {name: says.get(name) for name in STATUS_FIELDS}
        document["pids"] = read_pids(node) if answers else None
    return document


def describe_all(state: State, *, fully: bool) -> dict[str, Any]:
    """Return the document; nodes are asked at the same time, so that one that hangs costs its own time only."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        nodes = list(pool.map(lambda node: describe(state, node, fully=fully), state.nodes))
    return {
        "cluster_id": state.cluster_id,
        "account_id": state.account_id,
        "admin_token": state.admin_token,
        "nodes": nodes,
    }


def print_document(document: dict[str, Any]) -> None:
    print(f"cluster {document['cluster_id']}  account {document['account_id']}")
    print(f"admin token {document['admin_token']}")
    for node in document["nodes"]:
        print_node(node)


def print_node(node: dict[str, Any]) -> None:
    role = "leads" if node["leader"] else ""
    line = f"{node['name']:<5}{node['pid'] or '-':>8}  {node['data_url']}  api {node['api_url']}  {role:<5}"
    if "alive" in node:
        condition = "ready" if node["ready"] else "not ready" if node["alive"] else "not running"
        lag = "-" if node["lag_ms"] is None else f"{node['lag_ms']} ms"
        line += f"  {condition:<11}  lag {lag:<8}  H {(node['state_hash'] or '-')[:12]}"
    print(line.rstrip())


# --- commands


def start(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.dir
    directory.mkdir(parents=True, exist_ok=True)
    with changing(directory):
        if (directory / STATE_FILE).exists():
            state = read_state(directory)
            if arguments.nodes not in {None, len(state.nodes)}:
                print(f"cluster: {directory} has {len(state.nodes)} nodes, resuming those", file=sys.stderr)
        else:
            state = make_cluster(directory, arguments.nodes or 3, arguments.gateways, arguments.base_port)
            write_state(directory, state)
    launches: list[Launch] = []
    try:
        for node in state.nodes:
            if not node.is_alive():
                send(node, signal.SIGKILL)  # children of a supervisor that died a moment ago
                launches.append(launch(directory, node.name))
        wait_until_ready(launches)
        state = read_state(directory)
        wait_for_leader(state)
    except (CannotError, KeyboardInterrupt):
        for one in launches:
            send(one.node, signal.SIGKILL)
        raise
    document = describe_all(state, fully=False)
    print(json.dumps(document, indent=1)) if arguments.json else print_document(document)


def status(arguments: argparse.Namespace) -> None:
    document = describe_all(read_state(arguments.dir), fully=True)
    print(json.dumps(document, indent=1)) if arguments.json else print_document(document)


def stop(arguments: argparse.Namespace) -> None:
    nodes = read_state(arguments.dir).nodes
    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        list(pool.map(end, nodes))


def kill(arguments: argparse.Namespace) -> None:
    send(read_state(arguments.dir).node(arguments.name), SIGNALS[arguments.signal])


def restart(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    end(read_state(arguments.dir).node(arguments.name))
    wait_until_ready([launch(arguments.dir, arguments.name)])
    print(f"{arguments.name} is ready after {time.monotonic() - began:.2f} s")


def add(arguments: argparse.Namespace) -> None:
    from kvp2p.errors import KvError
    from kvp2p.supervisor.directory import create_member

    directory: Path = arguments.dir
    with changing(directory):
        state = read_state(directory)
        member = next((node for node in state.nodes if node.is_alive() and not node.is_stopped()), None)
        if member is None:
            raise CannotError(f"no node of {directory} runs; a new one must have one to join")
        name = f"n{1 + max(int(node.name[1:]) for node in state.nodes)}"
        node = new_node(directory, name, ports_beside(state))
        try:
            key_file = member.directory / "cluster.key"
            create_member(node.directory, name, member.mesh_url, key_file, settings_of(node, state.gateways))
        except KvError as error:
            raise CannotError(str(error)) from error
        state.nodes.append(node)
        write_state(directory, state)
    wait_until_ready([launch(directory, name)])
    state = read_state(directory)
    document = describe(state, state.node(name), fully=False)
    print(json.dumps(document, indent=1)) if arguments.json else print_node(document)


def ports_beside(state: State) -> list[int]:
    """Return three free ports that no node of the cluster has, running or not; the next ones if possible."""
    known = {port for node in state.nodes for port in (node.data_port, node.api_port, node.mesh_port)}
    above = max(known) + 1
    ports: list[int] = []
    for port in [*range(above, PORT_MAX + 1), *range(PORT_MIN, min(above, PORT_MAX))]:
        if port not in known and is_free(port):
            ports.append(port)
        if len(ports) == PORTS_PER_NODE:
            return ports
    raise CannotError(f"no three free ports are left within {PORT_MIN} to {PORT_MAX}")


def count_of(least: int, greatest: int) -> Any:
    """Return a reader of a whole number within bounds."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= greatest:
            raise argparse.ArgumentTypeError(f"must be from {least} to {greatest}")
        return value

    return number


def signal_name(text: str) -> str:
    return text.upper().removeprefix("SIG")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="scripts/cluster",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any, told: str, *, json_form: bool = False, name: bool = False) -> argparse.ArgumentParser:
        one = commands.add_parser(run.__name__, help=told, description=told, allow_abbrev=False)
        one.set_defaults(run=run)
        one.add_argument("--dir", type=Path, required=True, metavar="DIR", help="the cluster's directory")
        if json_form:
            one.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        if name:
            one.add_argument("name", metavar="NAME", help="the node: n1, n2, …")
        return one

    starting = command(
        start, "start a new cluster, or resume the one in DIR; returns when all are ready", json_form=True
    )
    starting.add_argument("--nodes", type=count_of(1, 32), metavar="N", help="of a new cluster (3)")
    starting.add_argument("--gateways", type=count_of(1, 64), default=2, metavar="G", help="of each new node (2)")
    starting.add_argument(
        "--base-port",
        type=int,
        metavar="P",
        help=f"first of 3 × N ports, within {PORT_MIN}–{PORT_MAX} (free ones are found)",
    )
    command(status, "tell how each node is; exit status 0 also when some are dead", json_form=True)
    command(stop, "stop all nodes; the data is kept")
    killing = command(kill, "signal a node's supervisor, then its whole group; returns when done", name=True)
    killing.add_argument(
        "--signal", type=signal_name, choices=sorted(SIGNALS), default="KILL", help="KILL, TERM, STOP or CONT (KILL)"
    )
    command(restart, "start a dead node, or stop and start a live one; returns when it is ready", name=True)
    command(add, "add one more, empty node; returns when it is ready", json_form=True)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    arguments.dir = arguments.dir.resolve()
    try:
        arguments.run(arguments)
    except UsageError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except CannotError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
