"""Kill nodes of a real cluster under load and count what was lost.

Writes are offered open-loop through nodes that do not lead, while a node is killed (SIGKILL, the whole node) every few seconds
and started again. Afterwards every node is read key by key over HTTP. Violations are judged by pure functions over what
clients saw:

* rate: in every whole second in which the leader was ready throughout, at least 95 % of what was offered in it was acknowledged;
* C2: on every node each key stands at the greatest version that was acknowledged for it, or a greater one;
* C5: the value is one that was written to that key; under an acknowledged version it is that write's, and it is never a refused one's;
* C11: no version was acknowledged twice;
* C1: all nodes are equal, by vector and state hash within 5 s of the end, and key by key.

A run that exercised nothing (few acknowledged writes, too few kills of the leader) fails too. Exit status: 0 kept, 1 not, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from kvp2p.client import Acked, Client, ClientConfig, ClientError, LatencySummary, Namespace, Refused, open_client
from kvp2p.client.load import percentile, run_open_loop

CLUSTER_PROGRAM = Path(__file__).resolve().with_name("cluster")
DOWN_SECONDS = 2.0  # from a kill to the start again
EQUAL_SECONDS_MAX = 5.0
ACKED_SHARE_MIN = 0.95
KEYS_MAX = 2_000  # so that a run writes each key many times
READ_KEYS = 200  # in one pipelined call
PAD = "." * 60
# 4 × 64 writes under way at each node: 1 000/s through four nodes go on while an answer takes up to a second.
CLIENT = ClientConfig(connections=4)
VIOLATIONS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Write:
    """One write as its client saw it. `due_s` and `ended_s` count from the start of the load."""

    number: int
    key: str
    value: str
    node: str
    due_s: float
    ended_s: float
    outcome: str  # acked, refused, unknown
    version: str  # 40 hex when acked
    code: str


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill of a node; `ready_s` is when it was ready again."""

    node: str
    is_leader: bool
    killed_s: float
    ready_s: float


@dataclass(slots=True)
class History:
    """All that is known of a run, and all that it is judged by."""

    leader: str
    rate: float
    seconds: float
    leader_kills_wanted: int
    writes: list[Write] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    # node -> key -> (value, version), as read over HTTP after the end
    standing: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    equal_after_s: float | None = None
    told: list[str] = field(default_factory=list)  # what went wrong on the way


# --- judging


def windows(history: History) -> dict[int, int]:
    """Return, for each whole second in which the leader was ready throughout, how many of its writes were acknowledged."""
    downs = [(kill.killed_s, kill.ready_s) for kill in history.kills if kill.node == history.leader]
    counted = {
        second: 0
        for second in range(int(history.seconds))
        if not any(killed < second + 1 and ready > second for killed, ready in downs)
    }
    for write in history.writes:
        if write.outcome == "acked" and int(write.due_s) in counted:
            counted[int(write.due_s)] += 1
    return counted


def judge(history: History) -> list[str]:
    """Return every violation as a line; an empty list when the run kept all it is about and exercised it."""
    violations = list(history.told)
    for judged in (_rate_too_low, _lost, _invented, _version_twice, _unequal, _nothing_exercised):
        violations.extend(judged(history))
    return violations


def _rate_too_low(history: History) -> Iterator[str]:
    least = ACKED_SHARE_MIN * history.rate
    for second, acked in windows(history).items():
        if acked < least:
            yield f"rate: {acked} writes acknowledged in second {second}, at least {least:.0f} with a leader"


def _lost(history: History) -> Iterator[str]:
    greatest: dict[str, Write] = {}
    for write in history.writes:
        if write.outcome == "acked" and (write.key not in greatest or greatest[write.key].version < write.version):
            greatest[write.key] = write
    for node, rows in history.standing.items():
        for key, write in greatest.items():
            standing = rows.get(key)
            if standing is None or standing[1] < write.version:
                found = "nothing" if standing is None else standing[1]
                yield f"C2: {key} at {node} stands at {found}; write {write.number} was acknowledged as {write.version}"


def _invented(history: History) -> Iterator[str]:
    by_version = {(write.key, write.version): write for write in history.writes if write.outcome == "acked"}
    by_value = {(write.key, write.value): write for write in history.writes}
    for node, rows in history.standing.items():
        for key, (value, version) in rows.items():
            acked = by_version.get((key, version))
            written = by_value.get((key, value))
            if acked is not None and acked.value != value:
                yield f"C5: {key} at {node} has under {version} another value than write {acked.number} gave it"
            elif written is None:
                yield f"C5: {key} at {node} has a value that nobody wrote to it: {value[:40]!r}"
            elif written.outcome == "refused":
                yield f"C5: {key} at {node} has the value of write {written.number}, which was refused ({written.code})"
            elif written.outcome == "acked" and written.version != version:
                yield f"C5: {key} at {node} has write {written.number} under {version}, acknowledged as {written.version}"


def _version_twice(history: History) -> Iterator[str]:
    counts = Counter(write.version for write in history.writes if write.outcome == "acked")
    for version, count in counts.items():
        if count > 1:
            yield f"C11: version {version} was acknowledged {count} times"


def _unequal(history: History) -> Iterator[str]:
    if history.equal_after_s is None:
        yield f"C1: vectors or state hashes still differ {EQUAL_SECONDS_MAX:.0f} s after the end"
    names = list(history.standing)
    for node in names[1:]:
        ours, theirs = history.standing[names[0]], history.standing[node]
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                yield f"C1: {key} differs between {names[0]} and {node}"


def _nothing_exercised(history: History) -> Iterator[str]:
    acked = sum(write.outcome == "acked" for write in history.writes)
    leader_kills = sum(kill.node == history.leader and kill.killed_s < history.seconds for kill in history.kills)
    # A quarter: on a busy machine a killed leader may be away for half of a short run.
    if acked < history.rate * history.seconds / 4:
        yield f"exercised too little: {acked} writes acknowledged of {history.rate * history.seconds:.0f} offered"
    if leader_kills < history.leader_kills_wanted:
        yield f"exercised too little: the leader was killed {leader_kills} times, not {history.leader_kills_wanted}"
    if len(windows(history)) < 2:
        yield "exercised too little: the leader was ready throughout fewer than 2 whole seconds"
    if not history.standing:
        yield "exercised too little: no node was read"


# --- running


@dataclass(slots=True)
class Door:
    """A node as the load sees it: `is_open` until a write to it could not be sent."""

    name: str
    client: Client
    is_open: bool = True
    killing: trio.Lock = field(default_factory=trio.Lock)


class Run:
    """One run on a cluster that is up: load, kills, then the reading of all nodes."""

    def __init__(self, history: History, directory: Path, names: Sequence[str], randomness: random.Random) -> None:
        self.history = history
        self.directory = directory
        self.names = names
        self.random = randomness
        self.doors: dict[str, Door] = {}
        self.summary: LatencySummary | None = None
        self._started = 0.0
        self._turn = 0
        self._namespace = ""

    async def open(self, stack: AsyncExitStack, nodes: Sequence[Mapping[str, Any]], token: str) -> None:
        """Connect to every node and make a namespace that all of them know."""
        for node in nodes:
            client = await stack.enter_async_context(open_client(node["data_url"], token, config=CLIENT))
            self.doors[node["name"]] = Door(node["name"], client)
        made = await self.doors[self.names[-1]].client.create_namespace("survive")
        if not isinstance(made, Namespace):
            raise SystemExit(f"survive: the namespace could not be made: {made}")
        self._namespace = made.id
        with trio.fail_after(10):
            for door in self.doors.values():
                # The version of what made it is not told, so there is nothing to wait for but the thing itself.
                while made.id not in {one.id for one in await door.client.list_namespaces()}:  # noqa: ASYNC110
                    await trio.sleep(0.02)

    async def load(self, schedule: Sequence[tuple[float, str]]) -> None:
        """Offer the writes and kill by schedule; returns when the load has drained and all nodes are ready again."""
        self._started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for at_s, name in schedule:
                nursery.start_soon(self._kill_and_restart, at_s, name)
            self.summary = await run_open_loop(
                self._write, rate_per_s=self.history.rate, duration_s=self.history.seconds, outstanding_max=2_000
            )

    async def _write(self, number: int) -> str:
        """Offer one write to the next open node that does not lead. What was refused or is unknown is not sent again."""
        door = self._next_door()
        key = f"key/{number % KEYS_MAX}"
        value = f"{number} of {self.history.leader} {self.random.getrandbits(64):016x} {PAD}"
        ending, version, code = "unknown", "", "cut off at the end"
        try:
            outcome = await door.client.put(self._namespace, key, value.encode())
            ending = outcome.outcome
            if isinstance(outcome, Acked):
                version, code = outcome.version, "" if outcome.is_visible else "visible later"
            else:
                code = outcome.code if isinstance(outcome, Refused) else outcome.reason
        finally:
            due_s = number / self.history.rate
            record = Write(number, key, value, door.name, due_s, self._now_s(), ending, version, code)
            self.history.writes.append(record)
        if code == "not_sent":
            door.is_open = False
        return ending

    def _next_door(self) -> Door:
        others = [door for door in self.doors.values() if door.name != self.history.leader]
        candidates = [door for door in others if door.is_open] or others
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    async def _kill_and_restart(self, at_s: float, name: str) -> None:
        """Kill a node when its time has come; one that is not yet back from the kill before, when it is back."""
        await trio.sleep_until(self._started + at_s)
        async with self.doors[name].killing:
            killed_s = self._now_s()
            await trio.to_thread.run_sync(partial(cluster, "kill", "--dir", str(self.directory), name))
            await trio.sleep_until(self._started + killed_s + DOWN_SECONDS)
            try:
                await trio.to_thread.run_sync(partial(cluster, "restart", "--dir", str(self.directory), name))
                ready_s = self._now_s()
                await self.doors[name].client.reconnect()
                self.doors[name].is_open = True
            except (subprocess.CalledProcessError, ClientError) as error:
                self.history.told.append(f"{name}, killed at {killed_s:.1f} s, did not come back: {_text_of(error)}")
                ready_s = float("inf")
            self.history.kills.append(Kill(name, name == self.history.leader, killed_s, ready_s))

    async def compare(self) -> None:
        """Wait until all nodes say that they are equal, then read every key at each of them."""
        ended = trio.current_time()
        document: dict[str, Any] = {"nodes": []}
        while trio.current_time() < ended + EQUAL_SECONDS_MAX:
            document = await trio.to_thread.run_sync(
                partial(cluster_document, "status", "--dir", str(self.directory), "--json")
            )
            said = [(node["ready"], node["state_hash"], node["vector"]) for node in document["nodes"]]
            if said[0][0] and said[0][1] and all(one == said[0] for one in said):
                self.history.equal_after_s = trio.current_time() - ended
                break
            await trio.sleep(0.1)
        leaders = [node["name"] for node in document["nodes"] if node["leader"]]
        if leaders != [self.history.leader]:
            self.history.told.append(f"{leaders} lead at the end, not {self.history.leader} alone")
        for door in self.doors.values():
            try:
                self.history.standing[door.name] = await self._read_all(door.client)
            except ClientError as error:
                self.history.told.append(f"{door.name} could not be read: {error}")

    async def _read_all(self, client: Client) -> dict[str, tuple[str, str]]:
        """Return all that a node lists, and the value under each of it."""
        rows: dict[str, tuple[str, str]] = {}
        cursor = None
        while True:
            page = await client.list_keys(self._namespace, limit=READ_KEYS, cursor=cursor)
            names = [one.name for one in page.keys]
            for listed, found in zip(page.keys, await client.get_many(self._namespace, names), strict=True):
                if found is None or found.version != listed.version:
                    self.history.told.append(f"C1: {listed.name} is listed as {listed.version} and read as {found}")
                else:
                    rows[listed.name] = (found.value.decode(), found.version)
            cursor = page.cursor
            if cursor is None:
                return rows

    def _now_s(self) -> float:
        return trio.current_time() - self._started


def plan_kills(
    names: Sequence[str], leader: str, seconds: float, every_s: float, leader_kills: int, randomness: random.Random
) -> list[tuple[float, str]]:
    """Return when to kill whom: random nodes, the leader at least so often, the last early enough to be back at the end."""
    count = max(0, int((seconds - DOWN_SECONDS) / every_s))
    victims = [randomness.choice(names) for _ in range(count)]
    missing = max(0, leader_kills - victims.count(leader))
    others = [index for index, name in enumerate(victims) if name != leader]
    for index in randomness.sample(others, min(missing, len(others))):
        victims[index] = leader
    return [((index + 1) * every_s, name) for index, name in enumerate(victims)]


def cluster(*arguments: str) -> str:
    """Run scripts/cluster and return its stdout."""
    done = subprocess.run([str(CLUSTER_PROGRAM), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def cluster_document(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(cluster(*arguments))
    return document


def _text_of(error: Exception) -> str:
    return error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)


# --- telling


def describe(history: History, run: Run, violations: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a run as one document."""
    counted = windows(history)
    latencies_ms = sorted(
        (write.ended_s - write.due_s) * 1000
        for write in history.writes
        if write.outcome == "acked" and int(write.due_s) in counted
    )
    assert run.summary is not None
    return {
        "nodes": len(run.names),
        "rate": history.rate,
        "seconds": history.seconds,
        "outcomes": run.summary.outcomes,
        "codes": dict(Counter(f"{write.outcome} {write.code}" for write in history.writes if write.code)),
        "generator_lag_ms_max": round(run.summary.start_lag_ms_max, 1),
        "windows": counted,
        "acked_per_s_min": min(counted.values(), default=0),
        "acked_per_s_mean": round(sum(counted.values()) / max(len(counted), 1), 1),
        "p50_ms": round(percentile(latencies_ms, 50), 2),
        "p99_ms": round(percentile(latencies_ms, 99), 2),
        "kills": [asdict(kill) for kill in sorted(history.kills, key=lambda kill: kill.killed_s)],
        "equal_after_s": history.equal_after_s,
        "keys_compared": sum(len(rows) for rows in history.standing.values()),
        "violations": list(violations),
    }


def print_table(document: Mapping[str, Any]) -> None:
    kills = ", ".join(
        f"{kill['node']} at {kill['killed_s']:.1f} s (ready at {kill['ready_s']:.1f})" for kill in document["kills"]
    )
    equal = document["equal_after_s"]
    lines = [
        ("nodes", document["nodes"]),
        ("offered", f"{document['rate']:g}/s for {document['seconds']:g} s, through nodes that do not lead"),
        ("outcomes", ", ".join(f"{count} {word}" for word, count in sorted(document["outcomes"].items()))),
        ("not acknowledged", ", ".join(f"{count} {code}" for code, count in document["codes"].items()) or "none"),
        ("SIGKILL", kills or "none"),
        ("windows with a leader", f"{len(document['windows'])} whole seconds"),
        ("acknowledged in them", f"mean {document['acked_per_s_mean']:.0f}/s, least {document['acked_per_s_min']}/s"),
        ("latency in them", f"p50 {document['p50_ms']} ms, p99 {document['p99_ms']} ms"),
        ("generator late by", f"{document['generator_lag_ms_max']} ms at most"),
        ("all nodes equal after", "never" if equal is None else f"{equal:.2f} s"),
        ("comparisons", f"{document['keys_compared']} values read over HTTP (keys × nodes)"),
        ("violations", len(document["violations"])),
    ]
    for name, told in lines:
        print(f"{name:<22} {told}")
    for violation in document["violations"][:VIOLATIONS_SHOWN]:
        print(f"    {violation}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="scripts/survive",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, default=5, metavar="N", help="nodes of the cluster, 2 or more (5)")
    parser.add_argument("--rate", type=float, default=1_000, metavar="R", help="writes offered per second (1000)")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="length of the load (30)")
    parser.add_argument("--kill-every-s", type=float, default=5, metavar="S", help="time between two kills (5)")
    parser.add_argument("--seed", type=int, metavar="X", help="of the victims and values (a random one, printed)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="a new directory (a temporary one, removed at the end)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running and the directory in place")
    parsed = parser.parse_args(arguments)
    if parsed.nodes < 2 or parsed.rate * parsed.seconds < 1 or parsed.kill_every_s <= 0:
        parser.error("--nodes must be 2 or more, --rate, --seconds and --kill-every-s more than nothing")
    return parsed


async def survive(arguments: argparse.Namespace, directory: Path, seed: int) -> dict[str, Any]:
    """Run the whole on a cluster in `directory` and return the figures; history.jsonl beside it tells every write."""
    started = await trio.to_thread.run_sync(
        partial(cluster_document, "start", "--nodes", str(arguments.nodes), "--dir", str(directory), "--json")
    )
    names = [node["name"] for node in started["nodes"]]
    leader = next(node["name"] for node in started["nodes"] if node["leader"])
    randomness = random.Random(seed)
    kill_count = int((arguments.seconds - DOWN_SECONDS) / arguments.kill_every_s)
    history = History(leader, arguments.rate, arguments.seconds, leader_kills_wanted=2 if kill_count >= 3 else 1)
    run = Run(history, directory, names, randomness)
    async with AsyncExitStack() as stack:
        await run.open(stack, started["nodes"], started["admin_token"])
        await run.load(
            plan_kills(
                names, leader, arguments.seconds, arguments.kill_every_s, history.leader_kills_wanted, randomness
            )
        )
        await run.compare()
    violations = judge(history)
    lines = "".join(json.dumps(asdict(write)) + "\n" for write in history.writes)
    await trio.Path(directory.parent / "history.jsonl").write_text(lines, encoding="utf-8")
    return {"seed": seed, **describe(history, run, violations)}


def main() -> int:
    arguments = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the nodes are stopped then, too
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    parent = arguments.dir.resolve() if arguments.dir else Path(tempfile.mkdtemp(prefix="kvp2p-survive-"))
    directory = parent / "cluster"
    document: dict[str, Any] = {"violations": ["it did not get to its end"]}
    try:
        parent.mkdir(parents=True, exist_ok=True)
        document = trio.run(survive, arguments, directory, seed)
    except subprocess.CalledProcessError as error:
        print(f"survive: {_text_of(error)}", file=sys.stderr)
    finally:
        if directory.exists() and not arguments.keep:
            cluster("stop", "--dir", str(directory))
        # What went wrong must stay to be looked at.
        if not arguments.keep and not arguments.dir and not document["violations"]:
            shutil.rmtree(parent)
    if "seed" not in document:
        return 1
    if arguments.json:
        print(json.dumps(document, indent=1))
    else:
        print_table(document)
        print(f"seed {seed}" + (f", {parent}" if parent.exists() else ""))
    return 1 if document["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
