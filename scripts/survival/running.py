"""Load, kills and cuts on a cluster that is up, then the reading of all nodes.

Keeps true: every write is offered once and noted as its client saw it. What goes wrong on the way is told in the history, not raised.
"""

from __future__ import annotations

import math
import random
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from kvp2p.client import Acked, Client, ClientConfig, ClientError, LatencySummary, Namespace, Refused, open_client
from kvp2p.client.load import run_open_loop
from scripts.survival.history import Cut, History, Kill, Write
from scripts.survival.plans import DOWN_SECONDS, PlannedCut
from scripts.survival.trial import cluster, cluster_document, text_of
from scripts.survival.verdicts import EQUAL_SECONDS_MAX

KEYS_MAX = 2_000  # so that a run writes each key many times
READ_KEYS = 200  # in one pipelined call
PAD = "." * 60
# 4 × 64 writes under way at each node: 1 000/s through four nodes go on while an answer takes up to a second.
CLIENT = ClientConfig(connections=4)
# What a node is offered at once. A node that is cut off lets a write wait for 5 s; it must not take all that the load may have under way.
DOOR_WRITES_MAX = 4 * 64
LOAD_WRITES_MAX = 2_000
# A node that stood still: its peers have given up its links, and it has to find out itself.
READY_SECONDS_MAX = 30.0
LAG_MS_MAX = 1_000


@dataclass(slots=True)
class Door:
    """A node as the load sees it: `is_open` until a write to it could not be sent."""

    name: str
    client: Client
    is_open: bool = True
    writes: int = 0  # under way
    killing: trio.Lock = field(default_factory=trio.Lock)


class Run:
    """One run on a cluster that is up: load, kills, then the reading of all nodes."""

    def __init__(
        self,
        history: History,
        directory: Path,
        names: Sequence[str],
        randomness: random.Random,
        suspend_s: float | None = None,
    ) -> None:
        self.history = history
        self.directory = directory
        self.names = names
        self.random = randomness
        self.suspend_s = suspend_s  # None: nodes are killed
        self.doors: dict[str, Door] = {}
        self.summary: LatencySummary | None = None
        self.ended_at = 0.0  # the load, or the last cut
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

    async def load(self, kills: Sequence[tuple[float, str]], cuts: Sequence[PlannedCut] = ()) -> None:
        """Offer the writes, kill and cut by plan; returns when the load has drained, all nodes are ready again and nothing is cut."""
        self._started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for at_s, name in kills:
                nursery.start_soon(self._kill_and_restart if self.suspend_s is None else self._suspend, at_s, name)
            for plan in cuts:
                nursery.start_soon(self._cut_and_heal, plan)
            self.summary = await run_open_loop(
                self._write,
                rate_per_s=self.history.rate,
                duration_s=self.history.seconds,
                outstanding_max=LOAD_WRITES_MAX,
            )
        for cut in self.history.cuts:
            if cut.healed_s == math.inf:
                await self._heal(cut)
        self.ended_at = trio.current_time()

    async def _write(self, number: int) -> str:
        """Offer one write to the next open node that does not lead. What was refused or is unknown is not sent again."""
        door = self._next_door()
        key = f"key/{number % KEYS_MAX}"
        value = f"{number} of {self.history.leader} {self.random.getrandbits(64):016x} {PAD}"
        ending, version, code = "unknown", "", "cut off at the end"
        door.writes += 1
        try:
            outcome = await door.client.put(self._namespace, key, value.encode())
            ending = outcome.outcome
            if isinstance(outcome, Acked):
                version, code = outcome.version, "" if outcome.is_visible else "visible later"
            else:
                code = outcome.code if isinstance(outcome, Refused) else outcome.reason
        finally:
            door.writes -= 1
            due_s = number / self.history.rate
            record = Write(number, key, value, door.name, due_s, self._now_s(), ending, version, code)
            self.history.writes.append(record)
        if code == "not_sent":
            door.is_open = False
        return ending

    def _next_door(self) -> Door:
        others = [door for door in self.doors.values() if door.name != self.history.leader]
        candidates = [door for door in others if door.is_open and door.writes < DOOR_WRITES_MAX]
        candidates = candidates or [door for door in others if door.is_open] or others
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
                self.history.told.append(f"{name}, killed at {killed_s:.1f} s, did not come back: {text_of(error)}")
                ready_s = float("inf")
            self.history.kills.append(Kill(name, killed_s, ready_s))

    async def _suspend(self, at_s: float, name: str) -> None:
        """Let a node stand still when its time has come. It is ready when all nodes that run lag no more than a moment.

        It is given no new writes meanwhile: each would hang until its client gives up. Those under way do.
        """
        assert self.suspend_s is not None
        await trio.sleep_until(self._started + at_s)
        async with self.doors[name].killing:
            stopped_s = self._now_s()
            self.doors[name].is_open = False
            await self._cluster("kill", name, "--signal", "STOP")
            await trio.sleep_until(self._started + stopped_s + self.suspend_s)
            await self._cluster("kill", name, "--signal", "CONT")
            ready_s, why = math.inf, f"it is not in step after {READY_SECONDS_MAX} s"
            with trio.move_on_after(READY_SECONDS_MAX):
                while not self._is_in_step(await self._document(), name):  # noqa: ASYNC110
                    await trio.sleep(0.1)
                try:
                    await self.doors[name].client.reconnect()
                    self.doors[name].is_open = True
                    ready_s = self._now_s()
                except ClientError as error:
                    why = text_of(error)
            if ready_s == math.inf:
                self.history.told.append(f"{name}, stopped at {stopped_s:.1f} s, did not come back: {why}")
            self.history.kills.append(Kill(name, stopped_s, ready_s))

    @staticmethod
    def _is_in_step(document: Mapping[str, Any], name: str) -> bool:
        """Tell whether a node, and all others that answer, are ready and near their leader; one that is stopped does not answer."""
        said = {node["name"]: node for node in document["nodes"] if node["lag_ms"] is not None}
        return name in said and all(node["ready"] and node["lag_ms"] < LAG_MS_MAX for node in said.values())

    async def _document(self) -> dict[str, Any]:
        return await trio.to_thread.run_sync(
            partial(cluster_document, "status", "--dir", str(self.directory), "--json")
        )

    async def _cut_and_heal(self, plan: PlannedCut) -> None:
        """Cut the mesh when the time has come, and heal it again if the plan says when."""
        await trio.sleep_until(self._started + plan.at_s)
        cut = Cut(plan.groups, self._now_s())
        self.history.cuts.append(cut)
        await self._cluster("partition", *(",".join(group) for group in plan.groups))
        cut.cut_s = self._now_s()
        if plan.until_s is not None:
            await trio.sleep_until(self._started + plan.until_s)
            await self._heal(cut)

    async def _heal(self, cut: Cut) -> None:
        cut.heal_s = self._now_s()
        await self._cluster("heal")
        cut.healed_s = self._now_s()

    async def _cluster(self, command: str, *arguments: str) -> None:
        """Make or mend faults; one that cannot be made fails the run, and its other tasks go on."""
        try:
            await trio.to_thread.run_sync(partial(cluster, command, "--dir", str(self.directory), *arguments))
        except subprocess.CalledProcessError as error:
            self.history.told.append(f"{command} {' '.join(arguments)} failed: {text_of(error)}")

    async def compare(self) -> None:
        """Wait until all nodes say that they are equal, then read every key at each of them."""
        document: dict[str, Any] = {"nodes": []}
        while trio.current_time() < self.ended_at + EQUAL_SECONDS_MAX:
            document = await self._document()
            said = [(node["ready"], node["state_hash"], node["vector"]) for node in document["nodes"]]
            if said[0][0] and said[0][1] and all(one == said[0] for one in said):
                self.history.equal_after_s = trio.current_time() - self.ended_at
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
