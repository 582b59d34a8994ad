"""Show what kvp2p does, on real data and with real processes: load, compare, lose the leader, go on, compare again.

It starts three nodes (`scripts/cluster`), writes the localisation strings of the pycountry package through a node that is not
the leader, reads every key back on every node, kills the leader, shows what still works, brings it back and compares again.

Exit status: 0 all was as it should be; 1 a comparison failed or a step did; 130 interrupted. It leaves nothing running,
unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pycountry
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kvp2p.client import Acked, Client, ClientConfig, ClientError, Found, Namespace, Unknown, open_client
from kvp2p.client.load import percentile

CLUSTER = Path(__file__).resolve().parent / "cluster"
DOMAINS = ("iso3166-1", "iso4217")
NAMESPACE = "demo"
NODES = 3
WRITERS = 128  # writes under way at once, over two connections
READ_BATCH = 64
TRICKLE_WRITES, TRICKLE_PER_S = 300, 60
AGAIN_WRITES = 1_000
SAMPLE = 4_000  # reads on each living node while there is no leader
PATIENCE_S = 20.0

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 120  # a file or a pipe has no width; 80 would break the table's lines


class StepFailed(Exception):
    """A step did not do what it was to show."""


# --- the data


def read_catalogue(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield msgid and translation of a gettext catalogue (GNU gettext manual, "The Format of GNU MO Files"), not the header."""
    data = path.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack_from(f"{order}3I", data, 8)
    for index in range(count):
        length, at = struct.unpack_from(f"{order}2I", data, originals + 8 * index)
        msgid = data[at : at + length].partition(b"\0")[0]
        length, at = struct.unpack_from(f"{order}2I", data, translations + 8 * index)
        if msgid:
            yield msgid.decode("utf-8"), data[at : at + length]


def read_catalogues() -> dict[str, bytes]:
    """Return all entries: domain/locale/msgid to translation."""
    entries: dict[str, bytes] = {}
    root = Path(pycountry.__file__).parent / "locales"
    for domain in DOMAINS:
        for path in sorted(root.glob(f"*/LC_MESSAGES/{domain}.mo")):
            locale = path.parent.parent.name
            for msgid, translation in read_catalogue(path):
                entries[f"{domain}/{locale}/{msgid}"] = translation
    return entries


# --- the cluster


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    data_url: str
    api_url: str


@dataclass(slots=True)
class Cluster:
    """Three nodes, started and stopped by `scripts/cluster`."""

    directory: Path
    token: str = ""
    nodes: tuple[Node, ...] = ()
    leader: str = ""

    def call(self, *arguments: str, undisturbed: bool = False) -> str:
        """Run scripts/cluster; `undisturbed` keeps a Ctrl-C on the terminal from it."""
        command = [str(CLUSTER), *arguments, "--dir", str(self.directory)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=undisturbed
        )
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            # Not killed but interrupted: it takes down what it has just started before it ends.
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
        if process.returncode:
            raise StepFailed(f"`scripts/cluster {arguments[0]}` ended with status {process.returncode}")
        return output

    def start(self) -> None:
        document = json.loads(self.call("start", "--nodes", str(NODES), "--json"))
        self.token = document["admin_token"]
        self.nodes = tuple(Node(one["name"], one["data_url"], one["api_url"]) for one in document["nodes"])
        self.leader = next(one["name"] for one in document["nodes"] if one["leader"])

    @property
    def writer(self) -> Node:
        """The node that the writes go to: n2, or the first that does not lead."""
        return next(one for one in self.nodes if one.name != self.leader)

    def alive(self) -> tuple[Node, ...]:
        """Return the nodes but the leader."""
        return tuple(one for one in self.nodes if one.name != self.leader)

    def stop(self) -> None:
        if (self.directory / "cluster.json").exists():
            self.call("stop", undisturbed=True)


# --- progress and results


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a step is: a bar on a terminal, a few lines elsewhere. Gives a function that takes what is done more."""
    start = time.monotonic()
    done = 0
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bar.update(task, completed=done)

            yield advance
    else:
        told = 0

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            if done * 4 // total > told < 3:
                told = done * 4 // total
                console.print(f"  {label}: {done:,} of {total:,}")

        yield advance
    seconds = time.monotonic() - start
    console.print(f"  {label}: {done:,} in {seconds:.1f} s, {done / seconds:,.0f}/s")


@dataclass(slots=True)
class Report:
    """What the demo found, line by line, for the table at its end."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)

    def add(self, what: str, result: str, *, good: bool) -> None:
        self.rows.append((what, result, good))

    @property
    def is_good(self) -> bool:
        return all(good for _, _, good in self.rows)

    def print(self) -> None:
        table = Table(title="Summary", title_justify="left", header_style="bold")
        table.add_column("What")
        table.add_column("Result", justify="right")
        table.add_column("")
        for what, result, good in self.rows:
            table.add_row(what, result, Text("ok", "green") if good else Text("FAILED", "bold red"))
        console.print(table)


def heading(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


# --- the steps


async def load(client: Client, entries: dict[str, bytes], label: str) -> str:
    """Write all entries by single PUTs and return the greatest version. The first write that is not acknowledged ends it."""
    waiting = iter(entries.items())
    newest = ""

    with progress(label, len(entries)) as advance:

        async def work() -> None:
            nonlocal newest
            for key, value in waiting:
                outcome = await client.put(NAMESPACE, key, value)
                if not isinstance(outcome, Acked):
                    raise StepFailed(f"the write of {key!r} was not acknowledged: {outcome}")
                newest = max(newest, outcome.version)
                advance(1)

        await in_parallel([work] * WRITERS)
    return newest


async def in_parallel(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run functions at the same time; the first failure is raised as it is."""
    try:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        ours, others = group.split((StepFailed, ClientError))
        if ours is None or others is not None:
            raise
        failure: BaseException = ours
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise StepFailed(str(failure)) from failure


async def compare(
    clients: dict[str, Client], entries: dict[str, bytes], newest: str, label: str
) -> tuple[int, list[str]]:
    """Read every key on every node; return the number of comparisons and what differed."""
    different: list[str] = []
    keys = list(entries)
    compared = 0
    with progress(label, len(keys) * len(clients)) as advance:

        async def read(name: str, client: Client) -> None:
            # One read waits until the node has the newest write; all others are then plain reads from its disk.
            await client.get(NAMESPACE, keys[0], min_version=newest)
            batches = iter(range(0, len(keys), READ_BATCH))

            async def work() -> None:
                nonlocal compared
                for start in batches:
                    batch = keys[start : start + READ_BATCH]
                    for key, found in zip(batch, await client.get_many(NAMESPACE, batch), strict=True):
                        compared += 1
                        if found is None or found.value != entries[key]:
                            different.append(f"{name}: {key!r} {_difference(found, entries[key])}")
                    advance(len(batch))

            await in_parallel([work] * 4)

        await in_parallel([lambda name=name, client=client: read(name, client) for name, client in clients.items()])  # type: ignore[misc]
    return compared, different


def _difference(found: Found | None, value: bytes) -> str:
    return "is missing" if found is None else f"is {found.value[:40]!r}, not {value[:40]!r}"


async def trickle(clients: dict[str, Client], writer: Client) -> list[float]:
    """Write at a steady rate; for each write return the ms from its acknowledgement until all nodes have shown it.

    `writer` has connections of its own: on a shared one a read would wait behind the answer to a write.
    """
    latencies_ms: list[float] = []

    async def watch(key: str, value: bytes, version: str, acknowledged: float) -> None:
        async def see(name: str) -> None:
            found = await clients[name].get(NAMESPACE, key, min_version=version)
            if found is None or found.value != value:
                raise StepFailed(f"{name} answered a read with KV-Min-Version {version} with something else")

        await in_parallel([lambda name=name: see(name) for name in clients])  # type: ignore[misc]
        latencies_ms.append((trio.current_time() - acknowledged) * 1_000)

    async def write(number: int, due: float) -> None:
        await trio.sleep_until(due)
        key, value = f"trickle/{number}", f"{time.time_ns()}".encode()
        outcome = await writer.put(NAMESPACE, key, value)
        if not isinstance(outcome, Acked):
            raise StepFailed(f"a write of the trickle was not acknowledged: {outcome}")
        await watch(key, value, outcome.version, trio.current_time())

    start = trio.current_time()
    await in_parallel(
        [lambda number=number: write(number, start + number / TRICKLE_PER_S) for number in range(TRICKLE_WRITES)]  # type: ignore[misc]
    )
    return latencies_ms


async def first_refusal(node: Node, token: str) -> httpx.Response:
    """Write until the node says that it has no leader, and return how. Each try is a key of its own."""
    headers = {"Authorization": f"Bearer {token}"}
    deadline = trio.current_time() + PATIENCE_S
    tried = 0
    async with httpx.AsyncClient(
        base_url=node.data_url, headers=headers, trust_env=False, timeout=PATIENCE_S
    ) as client:
        while trio.current_time() < deadline:
            tried += 1
            answer = await client.put(f"/v1/{NAMESPACE}/without-a-leader/{tried}", content=b"?")
            if answer.status_code != httpx.codes.GATEWAY_TIMEOUT:
                return answer
            # Unknown: it was sent in the instant of the kill, so nobody can say. The next try is another write.
    raise StepFailed(f"no write was refused within {PATIENCE_S:.0f} s of the leader's death")


async def wait_for_writes(client: Client) -> float:
    """Wait until writes are accepted again, and return how many seconds that took."""
    start = trio.current_time()
    while True:
        outcome = await client.put(NAMESPACE, "leader-is-back", b"yes")
        if isinstance(outcome, Acked):
            return trio.current_time() - start
        if trio.current_time() - start > PATIENCE_S or isinstance(outcome, Unknown):
            raise StepFailed(f"writes are not accepted again: {outcome}")
        await trio.sleep(0.05)  # it was refused, so nothing was applied and asking again is safe [I10]


class Demo:
    """The steps, in order, on one cluster."""

    def __init__(self, cluster: Cluster, entries: dict[str, bytes]) -> None:
        self.cluster = cluster
        self.entries = entries
        self.comparisons = 0
        self.newest = ""
        self.report = Report()

    def run(self) -> None:
        cluster = self.cluster
        heading(f"1  {NODES} nodes, {cluster.leader} leads")
        for node in cluster.nodes:
            console.print(f"  {node.name}  {node.data_url}  API {node.api_url}")
        trio.run(self._with_clients, self._load_and_compare, cluster.nodes)
        trio.run(self._with_clients, self._measure, cluster.nodes)
        heading(f"5  Kill the leader, {cluster.leader}, with SIGKILL: supervisor, node, gateways, all of it")
        cluster.call("kill", cluster.leader)
        console.print(f"  {cluster.leader}'s own ports are down with it; the other nodes go on.")
        trio.run(self._with_clients, self._without_leader, cluster.alive())
        heading(f"6  Restart {cluster.leader}")
        console.print("  " + cluster.call("restart", cluster.leader).strip())
        trio.run(self._with_clients, self._write_again_and_compare, cluster.nodes)

    async def _with_clients(
        self, step: Callable[[dict[str, Client]], Awaitable[None]], nodes: tuple[Node, ...]
    ) -> None:
        # Between two steps a connection may lie idle for so long that its gateway closes it.
        config = ClientConfig(connections=2, reconnects=True)
        async with AsyncExitStack() as stack:
            clients = {}
            for node in nodes:
                opened = open_client(node.data_url, self.cluster.token, config=config)
                clients[node.name] = await stack.enter_async_context(opened)
            await step(clients)

    async def _load_and_compare(self, clients: dict[str, Client]) -> None:
        writer = self.cluster.writer.name
        heading(
            f"2  Load {len(self.entries):,} localisation strings by single PUTs to {writer}, which is not the leader"
        )
        made = await clients[writer].create_namespace(NAMESPACE)
        if not isinstance(made, Namespace):
            raise StepFailed(f"the namespace was not created: {made}")
        console.print(f"  namespace {NAMESPACE!r} is {made.id}")
        start = trio.current_time()
        self.newest = await load(clients[writer], self.entries, "written")
        seconds = trio.current_time() - start
        self.report.add(
            f"single PUTs through {writer}",
            f"{len(self.entries):,} acknowledged, {len(self.entries) / seconds:,.0f}/s",
            good=True,
        )
        heading("3  Read every key on every node and compare it byte by byte")
        await self._compare(clients, "first comparison")

    async def _compare(self, clients: dict[str, Client], what: str) -> None:
        compared, different = await compare(clients, self.entries, self.newest, "compared")
        for one in different[:5]:
            console.print(f"  [red]different[/red] {one}", markup=True)
        self.comparisons += compared
        wanted = len(self.entries) * len(clients)
        self.report.add(
            f"{what}, {len(clients)} nodes",
            f"{len(self.entries):,} × {len(clients)}: {compared - len(different):,} equal, {len(different):,} different",
            good=not different and compared == wanted,
        )

    async def _measure(self, clients: dict[str, Client]) -> None:
        writer = self.cluster.writer
        heading(
            f"4  From acknowledged to visible everywhere: {TRICKLE_WRITES} writes to {writer.name}, {TRICKLE_PER_S} a second"
        )
        console.print(
            "  The clock starts when the client has the acknowledgement. Then every node is asked for the key over HTTP"
        )
        console.print(
            "  with KV-Min-Version, which waits until the node has that write; it stops with the last node's answer."
        )
        async with open_client(writer.data_url, self.cluster.token) as own:
            ordered = sorted(await trickle(clients, own))
        p50, p99, most = (percentile(ordered, percent) for percent in (50, 99, 100))
        console.print(f"  p50 {p50:.1f} ms   p99 {p99:.1f} ms   max {most:.1f} ms")
        self.report.add(
            "acknowledged → visible everywhere", f"p50 {p50:.1f}  p99 {p99:.1f}  max {most:.1f} ms", good=True
        )

    async def _without_leader(self, clients: dict[str, Client]) -> None:
        step = max(1, len(self.entries) // SAMPLE)
        sample = dict(list(self.entries.items())[::step])
        compared, different = await compare(clients, sample, self.newest, "read without a leader")
        self.report.add(
            f"reads without a leader, on {' and '.join(clients)}",
            f"{compared - len(different):,} equal, {len(different):,} different",
            good=not different and compared > 0,
        )
        writer = self.cluster.writer
        answer = await first_refusal(writer, self.cluster.token)
        console.print(
            f"  a write to {writer.name}: {answer.status_code}, Retry-After: {answer.headers.get('retry-after')}"
        )
        console.print(f"  {answer.text}", markup=False)
        is_clear = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and answer.json()["error"]["applied"] == "no"
        self.report.add("a write without a leader", f"{answer.status_code}, not applied", good=is_clear)

    async def _write_again_and_compare(self, clients: dict[str, Client]) -> None:
        writer = self.cluster.writer.name
        seconds = await wait_for_writes(clients[writer])
        console.print(f"  writes are accepted {seconds:.2f} s after it was ready")
        keys = list(self.entries)
        again = {
            key: self.entries[key] + b" (again)" for key in keys[:: max(1, len(keys) // AGAIN_WRITES)][:AGAIN_WRITES]
        }
        self.entries = self.entries | again
        self.newest = await load(clients[writer], again, "written again")
        self.report.add("writes after the leader's return", f"{len(again):,} acknowledged", good=True)
        heading("7  Compare everything once more")
        await self._compare(clients, "second comparison")
        self.report.add("comparisons (keys × nodes, twice)", f"{self.comparisons:,}", good=self.comparisons > 0)


def show_kept(cluster: Cluster) -> None:
    heading("The cluster goes on (--keep)")
    for node in cluster.nodes:
        console.print(f"  {node.name}  {node.data_url}  API {node.api_url}")
    console.print(
        f"  token {cluster.token}\n  try: kvp2p list {NAMESPACE} --prefix iso4217/de/ --url {cluster.writer.data_url} --token …"
    )
    console.print(f"  stop it: scripts/cluster stop --dir {cluster.directory}")


def interrupt(_number: int, _frame: Any) -> None:
    """Take SIGTERM and SIGHUP like Ctrl-C: clean up, then end."""
    signal.raise_signal(signal.SIGINT)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the cluster up, print its URLs and the token")
    parser.add_argument("--dir", type=Path, help="where the nodes keep their data (default: a new temporary directory)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has started it in the background
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    began = time.monotonic()
    directory = Path(arguments.dir or tempfile.mkdtemp(prefix="kvp2p-demo-")).absolute()
    cluster = Cluster(directory)
    is_kept = False
    try:
        entries = read_catalogues()
        console.print(f"kvp2p demo: {len(entries):,} entries of pycountry's catalogues {' and '.join(DOMAINS)}")
        cluster.start()
        demo = Demo(cluster, entries)
        demo.run()
        console.print()
        demo.report.print()
        console.print(f"{time.monotonic() - began:.0f} s in all")
        is_kept = arguments.keep
        return 0 if demo.report.is_good else 1
    except (StepFailed, ClientError) as error:
        console.print(f"[bold red]failed:[/bold red] {error}")
        return 1
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and error.split(KeyboardInterrupt)[0] is None:
            raise
        console.print("interrupted, cleaning up")
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave anything running
        if is_kept:
            show_kept(cluster)
        else:
            cluster.stop()
            if arguments.dir is None:
                shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
