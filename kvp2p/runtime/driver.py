"""The actor that owns a replica machine: one task, one bounded inbox, effects performed in order.

Decides: when events are handled and how each effect becomes I/O.
Keeps true: the host's side of the contract in `core/events.py`; I9, the inbox is bounded: peers and local clients wait for room,
the store's answers and timers, which the machine asked for, do not.
In and out: events from links, unix socket, store thread and clock in; messages, batches and replies out. A link that fails becomes
`PeerDown`; a failure of the driver or of the store's thread ends the node.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import trio

from kvp2p.core.apply import summarize
from kvp2p.core.entry import ChunkId
from kvp2p.core.events import (
    Await,
    Connect,
    Disconnect,
    Effect,
    EndUpload,
    Event,
    Notice,
    PeerDown,
    PeerUp,
    Persist,
    Persisted,
    PersistFailed,
    Received,
    Reply,
    Send,
    SendFailed,
    Serve,
    SetTimer,
    StageChunk,
    Start,
    Stop,
    TimerFired,
    Write,
)
from kvp2p.core.messages import ChunkPull, Forward, Member, Message, Pull, WalkRequest
from kvp2p.core.operations import Operation, Outcome
from kvp2p.core.replica import ReplicaMachine
from kvp2p.core.serve import serve
from kvp2p.core.settings import ReplicaSettings
from kvp2p.errors import LinkClosed
from kvp2p.ids import NodeId, Now, Version
from kvp2p.limits import INBOX_EVENTS_MAX, SERVES_PER_PEER_MAX
from kvp2p.runtime.store_writer import Ending, StoreWriter
from kvp2p.runtime.wall_clock import WallClock
from kvp2p.store.lmdb_store import LmdbStore

MS = 1_000_000
_EVENTS_PER_TURN = 64  # then other tasks run; guess
Tell = Callable[[Outcome], None]

log = structlog.get_logger("kvp2p.replica")


class Link(Protocol):
    """What the driver needs of a link to a peer."""

    def try_send(self, message: Message) -> bool:
        """Queue a message; False when its lane has no room. A Forward that is not sent by its deadline never is."""
        ...

    async def send(self, message: Message) -> None:
        """Queue a message once there is room; raises LinkClosed when the link ends."""
        ...


class Dialler(Protocol):
    """What the driver needs of the mesh."""

    def connect(self, node: NodeId | None, url: str) -> None: ...

    def disconnect(self, peer: NodeId, reason: str) -> None: ...


class ReplicaDriver:
    """Runs the machine of one node. Lives inside `run`."""

    def __init__(
        self,
        store: LmdbStore,
        settings: ReplicaSettings,
        me: Member,
        seeds: tuple[str, ...],
        clock: WallClock | None = None,
    ) -> None:
        self.store = store
        self.clock = clock or WallClock()
        self.machine = ReplicaMachine(settings, random.SystemRandom())
        self.writer = StoreWriter(store, self._on_ending)
        self.dialler: Dialler | None = None  # set by the node before `run`
        self.on_handled: Callable[[], None] = lambda: None  # called after each turn
        self.frames_dropped = 0
        self._me = me
        self._seeds = seeds
        self._inbox: deque[Event] = deque()
        self._arrivals = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._timers: list[tuple[int, int]] = []
        self._timer_set = trio.lowlevel.ParkingLot()
        self._links: dict[NodeId, Link] = {}  # as the machine knows them: changed when PeerUp and PeerDown are handled
        self._opened: deque[Link] = deque()  # one for each PeerUp in the inbox, in the same order
        # What peers ask for: their pulls and walks, and apart from these their pulls of chunks, so that none waits behind a large value.
        self._serving: dict[tuple[NodeId, bool], deque[Pull | WalkRequest | ChunkPull]] = {}
        self._tells: dict[int, Tell] = {}
        self._next_request = 1
        self._next_upload = 1
        self._nursery: trio.Nursery | None = None

    # --- events from outside

    async def post(self, event: Event) -> None:
        """Put an event into the inbox, waiting for room."""
        await self._wait_for_room()
        self._post(event)

    async def _wait_for_room(self) -> None:
        while len(self._inbox) >= INBOX_EVENTS_MAX:
            await self._room.park()

    async def write(self, operations: tuple[Operation, ...], deadline_ns: int, tell: Tell) -> None:
        """Hand in a local client's write; `tell` is called once, with its outcome."""
        await self._wait_for_room()
        self._post(Write(self._expect(tell), operations, deadline_ns))

    async def await_version(self, version: Version, deadline_ns: int, tell: Tell) -> None:
        """Call `tell` when this replica covers a version, or has not by then."""
        await self._wait_for_room()
        self._post(Await(self._expect(tell), version, deadline_ns))

    async def stage_chunk(self, upload: int, chunk: ChunkId, content: bytes, tell: Tell) -> None:
        """Hand in a chunk of a local client's value; `tell` is called once it is durable here, or refused."""
        await self._wait_for_room()
        self._post(StageChunk(self._expect(tell), upload, chunk, content))

    def new_upload(self) -> int:
        """Return a number for an upload, which nobody had in this life of the node."""
        upload, self._next_upload = self._next_upload, self._next_upload + 1
        return upload

    def end_upload(self, upload: int) -> None:
        """Let go of an upload's chunks. Never waits: a process that has gone cannot, and each upload ends once."""
        self._post(EndUpload(upload))

    async def on_link_up(self, peer: NodeId, link: Link) -> None:
        """Take a new link into use, once the machine has heard that the one before it has ended."""
        await self._wait_for_room()
        self._opened.append(link)
        self._post(PeerUp(peer))

    async def on_link_down(self, peer: NodeId, reason: str) -> None:
        """Let go of a link."""
        await self.post(PeerDown(peer, reason))

    async def on_messages(self, peer: NodeId, messages: Sequence[Message]) -> None:
        """Take a peer's messages; the link's credit comes back when there was room for all of them."""
        for message in messages:
            await self._wait_for_room()
            self._post(Received(peer, message))

    async def stop(self, patience_s: float) -> None:
        """Refuse new writes and wait until what is in hand is durable and told, forwarded writes and holds included."""
        with trio.move_on_after(patience_s):
            await self.post(Stop())
            is_busy = True
            while is_busy:
                is_busy = bool(self._inbox or self._tells or self.machine.board.batches_in_flight())
                await trio.sleep(0.01)  # once more at the end, so that what was told last leaves this process

    def now(self) -> Now:
        """Read both clocks."""
        return Now(time.monotonic_ns(), self.clock.now_ms())

    def _expect(self, tell: Tell) -> int:
        request, self._next_request = self._next_request, self._next_request + 1
        self._tells[request] = tell
        return request

    def _post(self, event: Event) -> None:
        self._inbox.append(event)
        if self._arrivals:
            self._arrivals.unpark()

    def _on_ending(self, ticket: int, ending: Ending) -> None:
        if isinstance(ending, Exception):
            self._post(PersistFailed(ticket, str(ending)))
        else:
            self._post(Persisted(ticket, ending))

    # --- the actor

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the machine from the store and run it until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.writer.run)
            with self.store.read() as txn:
                summary = summarize(txn)
            self._handle(Start(summary, self._me, self._seeds), self.now())
            task_status.started()
            nursery.start_soon(self._keep_time)
            while True:
                if self._inbox:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._arrivals.park()
                # One reading for all: whatever an event in the inbox tells of happened before it.
                now = self.now()
                for _ in range(min(len(self._inbox), _EVENTS_PER_TURN)):
                    self._handle(self._inbox.popleft(), now)
                self._room.unpark_all()
                self.on_handled()

    async def _keep_time(self) -> None:
        """Put due timers into the inbox. A task of its own, so that the actor needs no deadline each time it waits."""
        while True:
            while self._timers and self._timers[0][0] <= time.monotonic_ns():
                self._post(TimerFired(heapq.heappop(self._timers)[1]))
            due_s = (self._timers[0][0] - time.monotonic_ns()) / 1e9 if self._timers else math.inf
            with trio.move_on_after(max(0.0, due_s)):
                await self._timer_set.park()

    def _handle(self, event: Event, now: Now) -> None:
        match event:
            case PeerUp(peer=peer):
                self._links[peer] = self._opened.popleft()
            case PeerDown(peer=peer):
                # Not sooner: what is meant for the old link must not leave on a new one [I10].
                self._links.pop(peer, None)
                self._serving.pop((peer, False), None)
                self._serving.pop((peer, True), None)
            case _:
                pass
        for effect in self.machine.handle(event, now):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(peer=peer, message=message):
                self._send(peer, message)
            case Persist(ticket=ticket, batch=batch):
                self.writer.submit(ticket, batch)
            case Reply(request=request, outcome=outcome):
                self._tells.pop(request)(outcome)
            case SetTimer(token=token, at_ns=at_ns):
                heapq.heappush(self._timers, (at_ns, token))
                if self._timers[0][1] == token:
                    self._timer_set.unpark()
            case Serve(peer=peer, request=wanted):
                self._serve(peer, wanted)
            case Notice(kind=kind, level=level, fields=fields):
                getattr(log, level)(kind, **fields)
            case Connect(node=node, url=url):
                assert self.dialler is not None
                self.dialler.connect(node, url)
            case Disconnect(peer=peer, reason=reason):
                assert self.dialler is not None
                self.dialler.disconnect(peer, reason)

    def _send(self, peer: NodeId, message: Message) -> None:
        link = self._links.get(peer)
        if link is None or link.try_send(message):
            return  # without a link PeerDown is on its way
        if isinstance(message, Forward):
            self._post(SendFailed(peer, message))
        else:
            self.frames_dropped += 1  # safe to drop: the peer sees the gap and pulls at its own pace [I3, I9]

    # --- answers from the store

    def _serve(self, peer: NodeId, request: Pull | WalkRequest | ChunkPull) -> None:
        assert self._nursery is not None
        place = (peer, isinstance(request, ChunkPull))
        waiting = self._serving.get(place)
        if waiting is None:
            self._serving[place] = deque([request])
            self._nursery.start_soon(self._serve_peer, place, self._serving[place])
        elif len(waiting) < SERVES_PER_PEER_MAX:
            waiting.append(request)
        else:
            assert self.dialler is not None
            self.dialler.disconnect(peer, "it asks for more at once than the protocol allows")

    async def _serve_peer(self, place: tuple[NodeId, bool], waiting: deque[Pull | WalkRequest | ChunkPull]) -> None:
        link = self._links.get(place[0])
        while link is not None and waiting:
            with self.store.read() as txn:
                messages = list(serve(txn, waiting.popleft()))  # bounded by PULL_BYTES_MAX, or one chunk
            for message in messages:
                try:
                    await link.send(message)
                except LinkClosed:
                    return  # PeerDown is on its way, and the peer will ask again
            await trio.lowlevel.checkpoint()
        if self._serving.get(place) is waiting:
            del self._serving[place]
