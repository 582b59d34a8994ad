"""Measure the data port of one node, and `kvp2p.Replica` against bare LMDB.

Starts a node with one gateway, fills a namespace, and drives it from client processes of its own in closed loops: each connection
sends its next request when the answer is there, or keeps `depth` requests in its pipeline. Every figure is the median of
the repetitions with its least and greatest. All writes are synced to disk before they are acknowledged.

Clients run on the same machine and take processor time from the node: `client cpu` near 100 % says that a client process was the
bottleneck, and `gateway µs` and `node µs` are what a request cost those processes (user and system time).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from kvp2p import Replica
from kvp2p.client import Acked, Client, Namespace, open_client, run_closed_loop
from kvp2p.client.load import Operation
from kvp2p.store.tables import ROWS

ROOT = Path(__file__).resolve().parents[1]
CLUSTER_PROGRAM = ROOT / "scripts" / "cluster"
NAMESPACE = "bench"
KEYS = 10_000
VALUE = b"v" * 200
FILL_DEPTH = 512
START_SECONDS = 0.7  # a client process imports and connects before the common start
# kind, connections, depth
CASES = [("GET", 32, 1), ("GET", 128, 1), ("GET", 32, 16), ("PUT", 32, 1), ("PUT", 128, 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of the repetitions."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(statistics.median(figures), min(figures), max(figures))


# --- a client process


async def drive(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run one client's share of a case, all repetitions, each from the common start that the task gives."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(task["data_url"], task["token"]))
            for _ in range(task["connections"])
        ]
        make = {"GET": reading, "PUT": writing}[task["kind"]]
        operations = [make(client, task["namespace"], index * 997) for index, client in enumerate(clients)]
        results = []
        for start_at in task["starts"]:
            await trio.sleep(max(0.0, start_at - time.monotonic()))
            cpu = time.process_time()
            summary = await run_closed_loop(
                operations, depth=task["depth"], count_max=100_000_000, duration_s=task["seconds"]
            )
            results.append({**asdict(summary), "per_s": summary.per_second, "cpu_s": time.process_time() - cpu})
        return results


def reading(client: Client, namespace: str, offset: int) -> Operation:
    async def read(number: int) -> str:
        found = await client.get(namespace, f"key/{(number + offset) % KEYS}")
        return "found" if found is not None and len(found.value) == len(VALUE) else "wrong"

    return read


def writing(client: Client, namespace: str, offset: int) -> Operation:
    async def write(number: int) -> str:
        return (await client.put(namespace, f"key/{(number + offset) % KEYS}", VALUE)).outcome

    return write


# --- the data port


async def fill(data_url: str, token: str) -> str:
    """Make the namespace with all its keys and return its id."""
    async with open_client(data_url, token) as client:
        made = await client.create_namespace(NAMESPACE)
        if not isinstance(made, Namespace):
            raise SystemExit(f"bench: the namespace could not be made: {made}")

        async def write(number: int) -> str:
            outcome = await client.put(made.id, f"key/{number}", VALUE)
            if not isinstance(outcome, Acked):
                raise SystemExit(f"bench: a key could not be written: {outcome}")
            return outcome.outcome

        await run_closed_loop([write], depth=FILL_DEPTH, count_max=KEYS)
        return made.id


def cpu_seconds(process_ids: Sequence[int]) -> float:
    """Return user and system time of processes so far."""
    ticks = 0
    for process_id in process_ids:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime: fields 14 and 15 of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_port(
    case: tuple[str, int, int], node: Mapping[str, Any], task: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run one case through the client processes and return its figures."""
    kind, connections, depth = case
    first = time.monotonic() + START_SECONDS + connections * 0.003
    starts = [first + index * (arguments.seconds + 0.1) for index in range(arguments.repetitions)]
    share = connections // arguments.clients
    task = {**task, "kind": kind, "connections": share, "depth": depth, "starts": starts, "seconds": arguments.seconds}
    before = [cpu_seconds(node["pids"]["gateways"]), cpu_seconds([node["pids"]["node"]])]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--client-task", json.dumps(task)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(arguments.clients)
    ]
    outputs = [process.communicate()[0] for process in processes]
    after = [cpu_seconds(node["pids"]["gateways"]), cpu_seconds([node["pids"]["node"]])]
    if any(process.returncode for process in processes):
        raise SystemExit("bench: a client process failed, see above")
    runs = list(zip(*[json.loads(output) for output in outputs], strict=True))  # by repetition
    outcomes: dict[str, int] = {}
    for one in (client for run in runs for client in run):
        for word, count in one["outcomes"].items():
            outcomes[word] = outcomes.get(word, 0) + count
    wanted = {"GET": "found", "PUT": "acked"}[kind]
    if set(outcomes) - {wanted, "unfinished"}:
        raise SystemExit(f"bench: {kind} at {connections} connections came to {outcomes}")
    return {
        "kind": kind,
        "connections": share * arguments.clients,
        "depth": depth,
        "per_s": asdict(Spread.of([sum(client["per_s"] for client in run) for run in runs])),
        "p50_ms": asdict(Spread.of([max(client["p50_ms"] for client in run) for run in runs])),
        "p99_ms": asdict(Spread.of([max(client["p99_ms"] for client in run) for run in runs])),
        "client_cpu": statistics.median(max(client["cpu_s"] for client in run) / arguments.seconds for run in runs),
        "gateway_us": (after[0] - before[0]) * 1e6 / outcomes[wanted],
        "node_us": (after[1] - before[1]) * 1e6 / outcomes[wanted],
    }


# --- the replica


def measure_replica(data_dir: str, namespace: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time `Replica.get` and a bare LMDB get of the same rows, in turn; each read is a transaction of its own."""
    names = [f"key/{number}" for number in range(KEYS)]
    ours, bare, ratios = [], [], []
    with Replica(data_dir) as replica:
        begin, rows, prefix = replica.begin, replica.tables[ROWS], bytes.fromhex(namespace)
        raw_names = [prefix + name.encode() for name in names]

        def get_ours() -> None:
            for name in names:
                if replica.get(namespace, name) is None:
                    raise SystemExit(f"bench: the replica does not have {name}")

        def get_bare() -> None:
            for name in raw_names:
                with begin(rows) as transaction:
                    if transaction.get(name) is None:
                        raise SystemExit(f"bench: LMDB does not have {name!r}")

        for _ in range(max(arguments.repetitions, 3)):
            ours.append(rate_of(get_ours, arguments.seconds / 4))
            bare.append(rate_of(get_bare, arguments.seconds / 4))
            ratios.append(ours[-1] / bare[-1])
    return {
        "replica_per_s": asdict(Spread.of(ours)),
        "lmdb_per_s": asdict(Spread.of(bare)),
        "ratio": asdict(Spread.of(ratios)),
    }


def rate_of(read_all: Callable[[], None], seconds: float) -> float:
    rounds, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or not rounds:
        read_all()
        rounds += 1
    return rounds * KEYS / taken


# --- telling


def machine() -> dict[str, Any]:
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def commit() -> str:
    """Return the commit of this checkout, marked when files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "no git"
    return described.stdout.strip()


def print_table(document: Mapping[str, Any]) -> None:
    here = document["machine"]
    print(f"machine   {here['processor']}, {here['cores']} cores, {here['system']}, Python {here['python']}")
    print(f"load      {here['load_average']:.1f} at the start (anything above 0 takes from these figures)")
    print(f"commit    {document['commit']}, {document['at']}")
    print(f"method    {document['method']}\n")
    print(f"{'':<17}{'per second (least–greatest)':<30}{'p50 ms':>8}{'p99 ms':>9}", end="")
    print(f"{'client cpu':>12}{'gateway µs':>12}{'node µs':>9}")
    for row in document["port"]:
        per_s = row["per_s"]
        rate = f"{per_s['median']:>8,.0f} ({per_s['least']:,.0f}–{per_s['greatest']:,.0f})"
        name = f"{row['kind']} {row['connections']} × {row['depth']}"
        print(f"{name:<17}{rate:<30}{row['p50_ms']['median']:>8.2f}{row['p99_ms']['median']:>9.2f}", end="")
        print(f"{row['client_cpu']:>12.0%}{row['gateway_us']:>12.1f}{row['node_us']:>9.1f}")
    replica = document["replica"]
    ratio = replica["ratio"]
    print(f"\nReplica.get      {replica['replica_per_s']['median']:>10,.0f}/s")
    print(f"bare LMDB get    {replica['lmdb_per_s']['median']:>10,.0f}/s")
    print(f"ratio            {ratio['median']:>10.2f} ({ratio['least']:.2f}–{ratio['greatest']:.2f})")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each repetition (3)")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="of each case, 3 or more (5)")
    parser.add_argument("--clients", type=int, choices=(1, 2), default=1, help="client processes (1)")
    parser.add_argument("--quick", action="store_true", help="3 repetitions of 0.6 s: about 15 s for the whole")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--client-task", help=argparse.SUPPRESS)  # what a client process of this program is given
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.seconds, parsed.repetitions = 0.6, 3
    if not 0.1 <= parsed.seconds <= 60 or not 3 <= parsed.repetitions <= 20:
        parser.error("--seconds must be from 0.1 to 60, --repetitions from 3 to 20")
    return parsed


def bench(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run everything on a node in `directory` and return the figures."""
    here = machine()
    run = [str(CLUSTER_PROGRAM), "start", "--nodes", "1", "--gateways", "1", "--dir", str(directory), "--json"]
    started = json.loads(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout)
    run = [str(CLUSTER_PROGRAM), "status", "--dir", str(directory), "--json"]
    node = json.loads(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout)["nodes"][0]
    namespace = trio.run(fill, node["data_url"], started["admin_token"])
    task = {"data_url": node["data_url"], "token": started["admin_token"], "namespace": namespace}
    return {
        "machine": here,
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": f"closed loop, {len(VALUE)} B values, {KEYS} keys, one gateway, {arguments.clients} client process(es) "
        f"on the same machine, median of {arguments.repetitions} × {arguments.seconds:g} s",
        "port": [measure_port(case, node, task, arguments) for case in CASES],
        "replica": measure_replica(node["data_dir"], namespace, arguments),
    }


def main() -> int:
    arguments = parse(sys.argv[1:])
    if arguments.client_task:
        print(json.dumps(trio.run(drive, json.loads(arguments.client_task))))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the node is stopped then, too
    parent = Path(tempfile.mkdtemp(prefix="kvp2p-bench-"))
    directory = parent / "cluster"
    try:
        document = bench(arguments, directory)
    except subprocess.CalledProcessError:
        print("bench: the node could not be started, see above", file=sys.stderr)
        return 1
    finally:
        if directory.exists():
            subprocess.run([str(CLUSTER_PROGRAM), "stop", "--dir", str(directory)], check=False)
        shutil.rmtree(parent)
    print(json.dumps(document, indent=1)) if arguments.json else print_table(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
