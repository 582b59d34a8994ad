"""A host: one node's process on virtual time, driving the real replica machine.

Decides: how effects are performed and events delivered; what a crash leaves and what a restart begins with.
Keeps true: the contract of `core/events.py`, the host's side: effects in order, timers once, answers to `Serve` from a fresh
transaction, nothing delivered to a process that has ended. A machine that raises or breaks its own invariants ends the run.
In and out: events from network, disk and clients in; effects out. The process dies at `crash`; disk, identity and clock stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from kvp2p.core.apply import summarize
from kvp2p.core.batches import Batch, BatchResult
from kvp2p.core.board import Board
from kvp2p.core.events import (
    Connect,
    Disconnect,
    Effect,
    Event,
    Notice,
    Persist,
    Persisted,
    PersistFailed,
    Reply,
    Send,
    Serve,
    SetTimer,
    Start,
    TimerFired,
)
from kvp2p.core.messages import ChunkPull, Member, Message, Pull, WalkRequest
from kvp2p.core.operations import Outcome
from kvp2p.core.port import ReadTransaction
from kvp2p.core.replica import ReplicaMachine
from kvp2p.core.serve import serve
from kvp2p.core.settings import ReplicaSettings
from kvp2p.ids import NodeId, Now
from kvp2p.limits import CHUNK_PART_BYTES
from kvp2p.sim.clocks import Oscillator
from kvp2p.sim.disk import Disk
from kvp2p.sim.network import Network
from kvp2p.sim.schedule import MS, Schedule
from kvp2p.sim.trace import Trace, show_batch, show_event, show_outcome

EPOCH_MS = 1_790_000_000_000  # wall clocks start here, some day in 2026
CHECK_EVERY = 16  # events of one machine between two calls of its `check`


class MachineFailed(Exception):
    """The real machine raised: an assertion of its own, or a plain bug. `__cause__` says what."""


class Machine(Protocol):
    """What a host drives; `board` is for those who look on."""

    @property
    def board(self) -> Board: ...

    def handle(self, event: Event, now: Now) -> list[Effect]: ...

    def check(self) -> None: ...


class Observer(Protocol):
    """Who records what happens at hosts."""

    def on_applied(self, host: Host, batch: Batch, result: BatchResult) -> None: ...

    def on_notice(self, host: Host, notice: Notice) -> None: ...

    def on_handled(self, host: Host) -> None: ...


@dataclass(frozen=True, slots=True)
class World:
    """What all hosts of a run share."""

    schedule: Schedule
    network: Network
    trace: Trace
    observer: Observer


class Host:
    """One node. `life` counts the starts of its process."""

    def __init__(
        self,
        world: World,
        member: Member,
        disk: Disk,
        settings: ReplicaSettings,
        random: Random,
        seeds: tuple[str, ...] = (),
    ) -> None:
        self.world = world
        self.node: NodeId = member.node
        self.name = member.name
        self.url = member.mesh_url
        self.member = member
        self.disk = disk
        self.settings = settings
        self.random = random
        self.seeds = seeds
        self.clock_offset_ms = 0
        self.oscillator = Oscillator()
        self.chunk_part_bytes = CHUNK_PART_BYTES
        self.life = 0
        self.is_alive = False
        self.events_handled = 0
        self.machine: Machine | None = None
        self._boot_ns = 0
        self._next_request = 1
        self._waiting: dict[int, Callable[[Outcome | None], None]] = {}
        self._late: list[Event] | None = None  # while paused: what happened meanwhile

    # --- life and death

    def start(self) -> None:
        """Start the process with what the disk holds."""
        assert not self.is_alive, "a node has one process"
        self.life += 1
        self.is_alive = True
        self._boot_ns = self.world.schedule.now_ns - 1 - int(self.random.random() * 3_600_000 * MS)
        with self.disk.store.read() as txn:
            summary = summarize(txn)
        known = [one.incarnation for one in summary.members if one.node == self.node]
        # What the disk forgot (an older copy) the operating system's clock makes up for, as in the node.
        self.member = replace(self.member, incarnation=max([self.member.incarnation, *known]) + 1)
        self.machine = self.make_machine()
        self.deliver(Start(summary, self.member, self.seeds))

    def make_machine(self) -> Machine:
        """Return a new machine."""
        return ReplicaMachine(self.settings, self.random, self.chunk_part_bytes)

    def crash(self, share_kept: float, notice_ms: float) -> None:
        """End the process at once.

        Of the batches in flight the first ones, up to `share_kept`, reach the disk all the same. Peers notice within
        `notice_ms`. Clients that wait here are told nothing: their outcomes are unknown.
        """
        assert self.is_alive, "only a living process can crash"
        self.is_alive = False
        self.machine = None
        self._late = None
        kept, lost = self.disk.crash(share_kept)
        self.note(f"crash: {len(kept)} batches in flight reached the disk, {len(lost)} are lost")
        self.on_crashed(kept, lost)
        self.world.network.host_down(self, notice_ms)
        waiting, self._waiting = self._waiting, {}
        for tell in waiting.values():
            tell(None)

    def on_crashed(self, kept: list[Batch], lost: list[Batch]) -> None:
        """Take note of what the crash left on the disk."""

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): what happens to it waits."""
        self.note("pause")
        self._late = []

    def resume(self) -> None:
        """Let a paused process go on: it finds everything that happened meanwhile at once, and its clocks far on."""
        late, self._late = self._late, None
        life = self.life
        self.note(f"resume after {len(late or ())} events")
        for event in late or ():
            if self.is_alive and self.life == life:
                self.deliver(event)

    @property
    def is_paused(self) -> bool:
        """Tell whether the process is stopped."""
        return self._late is not None

    # --- clients of this node

    def request(self, make_event: Callable[[int], Event], tell: Callable[[Outcome | None], None]) -> None:
        """Hand a client's event to the machine; `tell` gets the outcome, None if the process ended first."""
        request, self._next_request = self._next_request, self._next_request + 1
        self._waiting[request] = tell
        self.deliver(make_event(request))

    def requests_waiting(self) -> int:
        """Return how many clients wait for an outcome."""
        return len(self._waiting)

    # --- clocks

    @property
    def booted_ns(self) -> int:
        """Return what the oscillator had counted when the monotonic clock of this life read zero."""
        return self.oscillator.own_ns(self._boot_ns)

    def now(self) -> Now:
        """Read both clocks of this node: the monotonic one begins anew at each start of the machine."""
        now_ns = self.world.schedule.now_ns
        own_ns = self.oscillator.own_ns(now_ns)
        return Now(own_ns - self.booted_ns, EPOCH_MS + own_ns // MS + self.clock_offset_ms)

    # --- the machine

    def deliver(self, event: Event) -> None:
        """Let the machine handle an event and perform its effects."""
        machine = self.machine
        assert machine is not None, "nothing reaches a process that has ended"
        if self._late is not None:
            self._late.append(event)
            return
        self.events_handled += 1
        self.note(f"< {show_event(event)}")
        try:
            effects = machine.handle(event, self.now())
        except Exception as error:
            raise MachineFailed(f"{self.name} at {type(event).__name__}: {type(error).__name__}: {error}") from error
        if self.events_handled % CHECK_EVERY == 0:
            self.check()
        self.world.observer.on_handled(self)
        for effect in effects:
            self.perform(effect)

    def check(self) -> None:
        """Let the machine assert its invariants."""
        assert self.machine is not None, "only a living process can be checked"
        try:
            self.machine.check()
        except AssertionError as error:
            raise MachineFailed(f"{self.name} in its check: {error}") from error

    def perform(self, effect: Effect) -> None:
        """Perform one effect."""
        match effect:
            case Send(peer=peer, message=message):
                self.world.network.send(self, peer, message)
            case SetTimer(token=token, at_ns=at_ns):
                true_ns = self.oscillator.true_ns(at_ns + self.booted_ns)
                self.world.schedule.at(true_ns, self._in_this_life(TimerFired(token)))
            case Persist(ticket=ticket, batch=batch):
                self.persist(ticket, batch)
            case Reply(request=request, outcome=outcome):
                self.note(f"> Reply {request} {show_outcome(outcome)}")
                self._waiting.pop(request)(outcome)
            case Serve(peer=peer, request=request):
                self._serve(peer, request)
            case Connect(url=url):
                self.world.network.connect(self, url)
            case Disconnect(peer=peer, reason=reason):
                self.note(f"> Disconnect {peer.hex()[:4]} {reason}")
                self.world.network.disconnect(self, peer, reason)
            case Notice():
                self.note(f"> Notice {effect.kind} {effect.fields}")
                self.world.observer.on_notice(self, effect)

    def persist(self, ticket: int, batch: Batch) -> None:
        """Give a batch to the disk."""
        self.note(f"> Persist {ticket} {show_batch(batch)}")
        self.disk.submit(ticket, batch, self.on_persisted, self.on_persist_failed)

    def on_persisted(self, ticket: int, batch: Batch, result: BatchResult) -> None:
        """A batch is durable."""
        self.world.observer.on_applied(self, batch, result)
        self.deliver(Persisted(ticket, result))

    def on_persist_failed(self, ticket: int) -> None:
        """A batch did not fit on the disk."""
        self.deliver(PersistFailed(ticket, "the simulated disk is full"))

    def _in_this_life(self, event: Event) -> Callable[[], None]:
        life = self.life

        def deliver() -> None:
            if self.is_alive and self.life == life:
                self.deliver(event)

        return deliver

    def _serve(self, peer: NodeId, request: Pull | WalkRequest | ChunkPull) -> None:
        link = self.world.network.link_number(self, peer)

        def answer() -> None:
            if link is not None and self.is_alive and link == self.world.network.link_number(self, peer):
                with self.disk.store.read() as txn:
                    messages = list(self.answer(txn, request))
                self._send_next(link, peer, messages)

        self.world.schedule.after(self.random.random() * 2 * MS, answer)

    def answer(self, txn: ReadTransaction, request: Pull | WalkRequest | ChunkPull) -> Iterator[Message]:
        """Yield what a peer is answered from an open transaction."""
        return serve(txn, request)

    def _send_next(self, link: int, peer: NodeId, messages: list[Message]) -> None:
        """Send an answer at the link's own pace, a message about every millisecond; it ends with the link."""
        network = self.world.network
        if not self.is_alive or link != network.link_number(self, peer):
            return
        network.send(self, peer, messages[0])
        if len(messages) > 1:
            later = messages[1:]
            self.world.schedule.after(MS, lambda: self._send_next(link, peer, later))

    def note(self, text: str) -> None:
        """Add a line about this host to the trace."""
        self.world.trace.add(self.world.schedule.now_ns, f"{self.name} {text}")
