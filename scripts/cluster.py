"""Run a cluster of real nodes on this machine: start, status, stop, kill, restart, add.

What is in DIR: `cluster.json` (ports, ids, the admin token, process ids; only its owner may read it) and for each node nX a
data directory `nX`, with the node's output in `nX/log`. Nodes run on, in sessions of their own, after this program has ended.

Exit status: 0 done; 1 it could not be done, and stderr says why; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.local_cluster.signals import SIGNALS, end, send
from scripts.local_cluster.state import STATE_FILE, CannotError, UsageError, changing, read_state, write_state

if TYPE_CHECKING:
    from scripts.local_cluster.starting import Launch

# Commands import what only they need: see scripts/local_cluster/__init__.py.


def start(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.asking import describe_all, print_document
    from scripts.local_cluster.starting import launch, make_cluster, require_data, wait_for_leader, wait_until_ready

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
    for node in state.nodes:
        require_data(node)  # before any is started
    launches: dict[str, Launch] = {}
    try:
        for node in state.nodes:
            if not node.is_alive():
                send(node, signal.SIGKILL)  # children of a supervisor that died a moment ago
                launches[node.name] = launch(directory, node.name)
        state = read_state(directory)
        wait_until_ready(state.nodes, launches)
        wait_for_leader(state)
    except (CannotError, KeyboardInterrupt):
        for one in launches.values():
            send(one.node, signal.SIGKILL)
        raise
    print_document(describe_all(state, fully=False), as_json=arguments.json)


def status(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.asking import describe_all, print_document

    print_document(describe_all(read_state(arguments.dir), fully=True), as_json=arguments.json)


def stop(arguments: argparse.Namespace) -> None:
    from concurrent.futures import ThreadPoolExecutor

    nodes = read_state(arguments.dir).nodes
    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        list(pool.map(end, nodes))


def kill(arguments: argparse.Namespace) -> None:
    send(read_state(arguments.dir).node(arguments.name), SIGNALS[arguments.signal])


def restart(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    end(read_state(arguments.dir).node(arguments.name))

    from scripts.local_cluster.starting import launch, wait_until_ready

    started = launch(arguments.dir, arguments.name)
    wait_until_ready([started.node], {arguments.name: started})
    print(f"{arguments.name} is ready after {time.monotonic() - began:.2f} s")


def add(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.asking import describe, print_node
    from scripts.local_cluster.starting import add_member, launch, wait_until_ready

    name = add_member(arguments.dir)
    started = launch(arguments.dir, name)
    wait_until_ready([started.node], {name: started})
    state = read_state(arguments.dir)
    print_node(describe(state, state.node(name), fully=False), as_json=arguments.json)


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
        "--base-port", type=int, metavar="P", help="first of 3 × N ports, within 20000–32000 (free ones are found)"
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
