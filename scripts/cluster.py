"""Run a cluster of real nodes on this machine: start, status, stop, kill, restart, add; make faults of its links and clocks.

What is in DIR: `cluster.json` (ports, ids, the admin token, process ids; only its owner may read it) and for each node nX a
data directory `nX`, with the node's output in `nX/log`. Nodes run on, in sessions of their own, after this program has ended.

After `start --faults` all links between nodes run through one more process, which holds, delays or resets what passes: partition,
heal, link. No privilege is needed. It speaks through `DIR/faults.sock` and writes to `DIR/faults.log`. The clocks of such nodes
can be made wrong: clock.

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

from kvp2p.limits import CLOCK_OFFSET_MS_MAX
from scripts.local_cluster.signals import SIGNALS, end, send
from scripts.local_cluster.state import STATE_FILE, CannotError, UsageError, changing, read_state, write_state

if TYPE_CHECKING:
    from scripts.local_cluster.starting import Launch

# Commands import what only they need: see scripts/local_cluster/__init__.py.


def start(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.asking import describe_all, print_document
    from scripts.local_cluster.faults import end_proxy, ensure_proxy, require_faults
    from scripts.local_cluster.starting import launch, make_cluster, require_data, wait_for_leader, wait_until_ready

    directory: Path = arguments.dir
    directory.mkdir(parents=True, exist_ok=True)
    with changing(directory):
        if (directory / STATE_FILE).exists():
            if arguments.settings:
                raise UsageError(
                    f"{directory} has a cluster, and --set is for new nodes: edit nX/kvp2p.toml in it and `restart` nX"
                )
            state = require_faults(directory) if arguments.faults else read_state(directory)
            if arguments.nodes not in {None, len(state.nodes)}:
                print(f"cluster: {directory} has {len(state.nodes)} nodes, resuming those", file=sys.stderr)
        else:
            state = make_cluster(
                directory,
                arguments.nodes or 3,
                arguments.gateways,
                arguments.base_port,
                has_faults=arguments.faults,
                settings=dict(arguments.settings),
            )
            write_state(directory, state)
    for node in state.nodes:
        require_data(node)  # before any is started
    is_new_proxy = ensure_proxy(directory)
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
        if is_new_proxy:
            end_proxy(read_state(directory))
        raise
    print_document(describe_all(directory, state, fully=False), as_json=arguments.json)


def status(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.asking import describe_all, print_document

    print_document(describe_all(arguments.dir, read_state(arguments.dir), fully=True), as_json=arguments.json)


def stop(arguments: argparse.Namespace) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from scripts.local_cluster.faults import end_proxy

    state = read_state(arguments.dir)
    with ThreadPoolExecutor(max_workers=max(1, len(state.nodes))) as pool:
        list(pool.map(end, state.nodes))
    end_proxy(state)


def kill(arguments: argparse.Namespace) -> None:
    send(read_state(arguments.dir).node(arguments.name), SIGNALS[arguments.signal])


def restart(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    end(read_state(arguments.dir).node(arguments.name))

    from scripts.local_cluster.faults import ensure_proxy
    from scripts.local_cluster.starting import launch, wait_until_ready

    ensure_proxy(arguments.dir)
    started = launch(arguments.dir, arguments.name)
    wait_until_ready([started.node], {arguments.name: started})
    print(f"{arguments.name} is ready after {time.monotonic() - began:.2f} s")


def add(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.asking import describe, print_node
    from scripts.local_cluster.faults import ensure_proxy
    from scripts.local_cluster.starting import add_member, launch, wait_until_ready

    name = add_member(arguments.dir)
    ensure_proxy(arguments.dir)
    started = launch(arguments.dir, name)
    wait_until_ready([started.node], {name: started})
    state = read_state(arguments.dir)
    print_node(describe(state, state.node(name), fully=False), as_json=arguments.json)


def partition(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.faults import partition as cut_between

    print(" | ".join(",".join(group) for group in cut_between(arguments.dir, arguments.group)))


def heal(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.faults import heal as mend_all

    mend_all(arguments.dir)


def link(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.faults import MENDED, change_links, show_fault

    pairs = [(arguments.source, arguments.target)]
    if arguments.both:
        pairs.append((arguments.target, arguments.source))
    changes = dict(MENDED) if arguments.mend else {}
    changes |= {name: value for name in MENDED if (value := getattr(arguments, name)) is not None}
    for fault in change_links(arguments.dir, pairs, changes, reset=arguments.reset):
        print(show_fault(fault))


def clock(arguments: argparse.Namespace) -> None:
    from scripts.local_cluster.clock import shift_clock

    shift_clock(arguments.dir, arguments.name, arguments.offset_ms)


def count_of(least: int, greatest: int) -> Any:
    """Return a reader of a whole number within bounds."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= greatest:
            raise argparse.ArgumentTypeError(f"must be from {least} to {greatest}")
        return value

    return number


def setting(text: str) -> tuple[str, object]:
    """Read NAME=VALUE; the value is written as in TOML, and what is none of TOML's is a string."""
    import tomllib

    name, mark, value = text.partition("=")
    if not (name and mark and value):
        raise argparse.ArgumentTypeError("must be NAME=VALUE, as mesh.ping_interval_ms=500")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


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
        help="first of 3 × N ports, 4 × N with --faults, within 20000–32000 (free ones are found)",
    )
    starting.add_argument(
        "--set",
        action="append",
        default=[],
        type=setting,
        dest="settings",
        metavar="NAME=VALUE",
        help="a setting of kvp2p.toml for each new node, those of `add` too, as mesh.ping_interval_ms=500; may be repeated",
    )
    starting.add_argument(
        "--faults",
        action="store_true",
        help="let all links of a new cluster run through a proxy, for partition and link",
    )
    command(status, "tell how each node is; exit status 0 also when some are dead", json_form=True)
    command(stop, "stop all nodes; the data is kept")
    killing = command(kill, "signal a node's supervisor, then its whole group; returns when done", name=True)
    killing.add_argument(
        "--signal", type=signal_name, choices=sorted(SIGNALS), default="KILL", help="KILL, TERM, STOP or CONT (KILL)"
    )
    command(restart, "start a dead node, or stop and start a live one; returns when it is ready", name=True)
    command(add, "add one more, empty node; returns when it is ready", json_form=True)
    cutting = command(
        partition, "cut all links between groups of nodes; connections stay open, and what is sent is held"
    )
    cutting.add_argument(
        "group", nargs="+", metavar="NODES", help="as n1,n2; nodes that are not named form one more group"
    )
    command(heal, "mend all links, whatever is wrong with them")
    linking = command(link, "put faults on the link from one node to another; without options, show those it has")
    linking.add_argument("source", metavar="FROM", help="the node whose bytes are concerned")
    linking.add_argument("target", metavar="TO", help="the node that they are for")
    linking.add_argument("--both", action="store_true", help="the other direction, too")
    linking.add_argument("--mend", action="store_true", help="first take off what there is")
    linking.add_argument("--cut", action="store_true", default=None, help="let nothing pass, and hold what is sent")
    linking.add_argument(
        "--stall",
        action="store_true",
        default=None,
        help="let bytes stand still, as before a receiver that does not read",
    )
    linking.add_argument(
        "--delay-ms", type=count_of(0, 60_000), metavar="MS", help="let bytes come so much later; 0: at once"
    )
    linking.add_argument(
        "--rate-kbps",
        type=count_of(0, 10_000_000),
        metavar="KBIT",
        help="let so many kilobits pass a second; 0: any number",
    )
    linking.add_argument(
        "--reset", action="store_true", help="reset the connections at the TO end, once; a new one may be made"
    )
    shifting = command(clock, "let the wall clock of a node be wrong, also when it is started again", name=True)
    shifting.add_argument(
        "--offset-ms",
        type=count_of(-CLOCK_OFFSET_MS_MAX, CLOCK_OFFSET_MS_MAX),
        required=True,
        metavar="MS",
        help="by so much ahead of this machine's clock, or behind it if negative; 0: right again",
    )
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
