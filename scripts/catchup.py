"""Cut a node off a real cluster under load, heal it, and count what it receives until it has caught up.

Before the cut the cluster is given some entries, so that there is something that the node has already. During the cut, and for some
seconds after it, writes to ever new keys are offered open-loop through nodes that neither lead nor are cut off. The bytes are those
that the node itself counts on its mesh links (`kvp2p_node_mesh_received_bytes_total`, payloads without the heads of websocket and
TCP), from the heal until all nodes are equal; they are compared with the bytes of the entries that it did not have at the heal:
namespace, key and row, as a frame holds them. Violations:

* C1: it has not caught up, or not all nodes are equal, in time; C2: it lacks an acknowledged write;
* pull: it received over 10 % more than the entries it missed, or it asked for a walk through all there is. What is written while it
  catches up may come twice: the leader sends it at once, behind a gap that is still being closed, and so it is pulled as well;
* count: it received less than the entries have, so the counting is wrong;
* exercised: too few writes were acknowledged.

Exit status: 0 kept, 1 not, 2 usage.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from kvp2p.client import Acked, Client, Namespace, open_client
from kvp2p.client.load import run_open_loop
from kvp2p.core.entry import ROW_HEAD_BYTES
from kvp2p.ids import ID_BYTES
from scripts.local_cluster.asking import ask_status, get
from scripts.local_cluster.state import Node, State, read_state
from scripts.survival.running import CLIENT, LOAD_WRITES_MAX, READ_KEYS
from scripts.survival.trial import cluster, cluster_document, make_parser, print_lines, run_trial
from scripts.survival.verdicts import ACKED_SHARE_MIN, EQUAL_SECONDS_MAX

EXCESS_SHARE_MAX = 0.10  # heads, positions and digests in the same payloads; measured: 3 to 5 %
CAUGHT_UP_SECONDS_MAX = 10.0
LATE_SECONDS = 1.0  # for what is still on its way when all are equal
POLL_SECONDS = 0.02
VALUE_BYTES = 200


@dataclass(slots=True)
class Figures:
    """What a run came to; seconds are from the heal, but `equal_s`, which is from the end of the load."""

    nodes: int
    rate: float
    cut_s: float
    entries_before: int = 0
    offered: int = 0
    acked: int = 0
    missed_at_heal: int = 0  # entries
    received_entries: int = 0  # the same and what was written until the end
    received_entry_bytes: int = 0
    overtaken_bytes: int = 0  # of those among them that were written while it caught up
    received_data_bytes: int = 0
    received_control_bytes: int = 0
    walks: int = 0
    lacking: int = 0
    caught_up_s: float | None = None
    equal_s: float | None = None


def judge(figures: Figures) -> list[str]:
    """Return every violation as a line."""
    violations = []
    if figures.caught_up_s is None:
        violations.append(f"C1: it has not caught up {CAUGHT_UP_SECONDS_MAX:.0f} s after the heal")
    if figures.equal_s is None:
        violations.append(f"C1: not all nodes are equal {EQUAL_SECONDS_MAX:.0f} s after the end of the load")
    if figures.lacking:
        violations.append(f"C2: the node lacks {figures.lacking} acknowledged writes")
    share = figures.received_data_bytes / max(1, figures.received_entry_bytes)
    if figures.received_data_bytes > (1 + EXCESS_SHARE_MAX) * (figures.received_entry_bytes + figures.overtaken_bytes):
        violations.append(f"pull: it received {share:.3f} times the bytes of what it missed")
    if figures.walks:
        violations.append(f"pull: it walked through all there is {figures.walks} times")
    if share < 1:
        violations.append(f"count: it received {share:.3f} times the bytes of what it missed, which cannot be")
    if figures.acked < ACKED_SHARE_MIN * figures.offered or not figures.entries_before:
        violations.append(f"exercised too little: {figures.acked} of {figures.offered} writes were acknowledged")
    if figures.missed_at_heal < ACKED_SHARE_MIN * figures.rate * figures.cut_s:
        violations.append(f"exercised too little: the node missed {figures.missed_at_heal} entries when it was healed")
    return violations


def entry_bytes(key: str, value: bytes) -> int:
    """Return what an entry takes in a frame: namespace, key and row."""
    return ID_BYTES + len(key.encode()) + ROW_HEAD_BYTES + len(value)


def covers(vector: dict[str, str], version: str) -> bool:
    """Tell whether a vector as `status` shows it covers a version (8 digits of term, 16 of stamp, 16 of issuer)."""
    return int(vector.get(version[24:], "0"), 16) >= int(version[8:24], 16)


class Run:
    """One run on a cluster that is up; the last node is the one to be cut off."""

    def __init__(self, figures: Figures, directory: Path) -> None:
        self.figures = figures
        self.directory = directory
        self.state: State = read_state(directory)
        self.victim: Node = self.state.nodes[-1]
        self.acked: dict[str, tuple[str, bytes, float]] = {}  # key -> version, value, and when that was known
        self.clients: dict[str, Client] = {}
        self._doors: list[Client] = []
        self._namespace = ""

    async def run(self, before_s: float, after_s: float) -> None:
        """Do all of it."""
        figures = self.figures
        async with AsyncExitStack() as stack:
            for node in self.state.nodes:
                url = f"http://127.0.0.1:{node.data_port}"
                client = await stack.enter_async_context(open_client(url, self.state.admin_token, config=CLIENT))
                self.clients[node.name] = client
            leader = (await self._leader()).name
            self._doors = [one for name, one in self.clients.items() if name not in {leader, self.victim.name}]
            made = await self._doors[0].create_namespace("catchup")
            if not isinstance(made, Namespace):
                raise SystemExit(f"catchup: the namespace could not be made: {made}")
            self._namespace = made.id
            await self._until_equal()
            await self._load("before", before_s)
            if await self._until_equal() is None:
                raise SystemExit("catchup: the nodes are not equal before anything was cut")
            figures.entries_before, figures.offered, figures.acked = len(self.acked), 0, 0
            await self._faults("partition", self.victim.name)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._load, "cut", figures.cut_s + after_s)
                await trio.sleep(figures.cut_s)
                held, before = await self._status(self.victim), await self._received()
                walks = self._walks()
                wanted = (await self._status(await self._leader()))["vector"]
                await self._faults("heal")
                healed_at = trio.current_time()
                figures.caught_up_s = await self._until_covered(wanted, healed_at)
            figures.equal_s = await self._until_equal()
            await trio.sleep(LATE_SECONDS)
            self._sum_up(held["vector"], wanted, healed_at)
            grown = {name: count - before[name] for name, count in (await self._received()).items()}
            figures.received_data_bytes = grown["bytes data"]
            figures.received_control_bytes = grown["bytes control"]
            figures.walks = self._walks() - walks
            figures.lacking = await self._count_lacking()

    def _sum_up(self, held: dict[str, str], wanted: dict[str, str], healed_at: float) -> None:
        figures = self.figures
        caught_up_at = healed_at + (figures.caught_up_s or CAUGHT_UP_SECONDS_MAX)
        for key, (version, value, acked_at) in self.acked.items():
            if not covers(held, version):
                figures.missed_at_heal += covers(wanted, version)
                figures.received_entries += 1
                figures.received_entry_bytes += entry_bytes(key, value)
                if not covers(wanted, version) and acked_at <= caught_up_at:
                    figures.overtaken_bytes += entry_bytes(key, value)

    async def _load(self, stage: str, seconds: float) -> None:
        """Offer writes, each to a key of its own."""
        value = b"." * VALUE_BYTES

        async def write(number: int) -> str:
            key = f"{stage}/{number:09}"
            outcome = await self._doors[number % len(self._doors)].put(self._namespace, key, value)
            if isinstance(outcome, Acked):
                self.acked[key] = (outcome.version, value, trio.current_time())
            return outcome.outcome

        summary = await run_open_loop(
            write, rate_per_s=self.figures.rate, duration_s=seconds, outstanding_max=LOAD_WRITES_MAX
        )
        self.figures.offered += summary.count
        self.figures.acked += summary.outcomes.get("acked", 0)

    async def _faults(self, command: str, *arguments: str) -> None:
        await trio.to_thread.run_sync(partial(cluster, command, "--dir", str(self.directory), *arguments))

    async def _status(self, node: Node) -> dict[str, Any]:
        said = await trio.to_thread.run_sync(ask_status, self.state, node)
        if said is None:
            raise SystemExit(f"catchup: {node.name} does not tell its status")
        return said

    async def _leader(self) -> Node:
        for node in self.state.nodes:
            if (await self._status(node))["leader"]:
                return node
        raise SystemExit("catchup: no node leads")

    async def _received(self) -> dict[str, int]:
        """Return what the node to be cut off has received over its mesh links: `bytes data`, `messages control` and so on."""
        answer = await trio.to_thread.run_sync(get, self.victim.api_port, "/metrics", self.state.admin_token)
        text = answer[1].decode() if answer is not None else ""
        found = re.findall(r'^kvp2p_node_mesh_received_(\w+)_total{lane="(\w+)"} (\S+)$', text, re.MULTILINE)
        if not found:
            raise SystemExit(f"catchup: {self.victim.name} does not tell what it has received")
        return {f"{what} {lane}": int(float(count)) for what, lane, count in found}

    def _walks(self) -> int:
        return self.victim.log.read_text(encoding="utf-8", errors="replace").count("walk_started")

    async def _until_covered(self, wanted: dict[str, str], since: float) -> float | None:
        """Return how long after `since` the node covered a vector."""

        def is_covered(vector: dict[str, str]) -> bool:
            return all(int(vector.get(issuer, "0"), 16) >= int(stamp, 16) for issuer, stamp in wanted.items())

        while trio.current_time() < since + CAUGHT_UP_SECONDS_MAX:
            if is_covered((await self._status(self.victim))["vector"]):
                return trio.current_time() - since
            await trio.sleep(POLL_SECONDS)
        return None

    async def _until_equal(self) -> float | None:
        """Return after how long all nodes show the same vector and state hash."""
        began = trio.current_time()
        while trio.current_time() < began + EQUAL_SECONDS_MAX:
            said = [await self._status(node) for node in self.state.nodes]
            if len({(one["state_hash"], *sorted(one["vector"].items())) for one in said}) == 1:
                return trio.current_time() - began
            await trio.sleep(POLL_SECONDS)
        return None

    async def _count_lacking(self) -> int:
        """Read every acknowledged write at the node that was cut off."""
        keys = list(self.acked)
        lacking = 0
        for at in range(0, len(keys), READ_KEYS):
            some = keys[at : at + READ_KEYS]
            found = await self.clients[self.victim.name].get_many(self._namespace, some)
            lacking += sum(
                one is None or (one.version, one.value) != self.acked[key][:2]
                for key, one in zip(some, found, strict=True)
            )
        return lacking


def print_table(document: dict[str, Any]) -> None:
    """Print the figures for people."""
    entry_count, data_bytes = document["received_entries"], document["received_data_bytes"]
    lines = [
        ("nodes", document["nodes"]),
        ("offered", f"{document['rate']:g}/s, {document['acked']} of {document['offered']} acknowledged"),
        ("cut off for", f"{document['cut_s']:g} s"),
        ("entries before", document["entries_before"]),
        ("missed at the heal", f"{document['missed_at_heal']} entries"),
        (
            "missed until the end",
            f"{entry_count} entries, {document['received_entry_bytes']} bytes with namespace and row",
        ),
        ("received", f"{data_bytes} bytes of data, {document['received_control_bytes']} of control"),
        ("data to entries", f"{data_bytes / max(1, document['received_entry_bytes']):.3f}"),
        ("caught up after", _seconds(document["caught_up_s"])),
        ("all equal after", f"{_seconds(document['equal_s'])} (from the end of the load)"),
    ]
    print_lines(lines, document["violations"])


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def at_least(least: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return a reader of a number that is not too small."""

    def number(text: str) -> float:
        value = kind(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least:g} or more")
        return value

    return number


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("catchup", __doc__)
    parser.add_argument("--nodes", type=at_least(3, int), default=5, metavar="N", help="of the cluster, 3 or more (5)")
    parser.add_argument("--rate", type=at_least(1, float), default=1_000, metavar="R", help="writes a second (1000)")
    parser.add_argument("--seconds", type=at_least(1, float), default=30, metavar="S", help="length of the cut (30)")
    parser.add_argument("--before", type=at_least(1, float), default=5, metavar="S", help="of load before the cut (5)")
    parser.add_argument("--after", type=at_least(0, float), default=3, metavar="S", help="of load after the heal (3)")
    return parser.parse_args(arguments)


async def catch_up(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run the whole on a cluster in `directory` and return the figures."""
    start = ("start", "--faults", "--nodes", str(arguments.nodes), "--dir", str(directory), "--json")
    await trio.to_thread.run_sync(partial(cluster_document, *start))
    figures = Figures(arguments.nodes, arguments.rate, arguments.seconds)
    await Run(figures, directory).run(arguments.before, arguments.after)
    return {**asdict(figures), "violations": judge(figures)}


def main() -> int:
    arguments = parse(sys.argv[1:])
    return run_trial("catchup", arguments, partial(catch_up, arguments), print_table)


if __name__ == "__main__":
    sys.exit(main())
