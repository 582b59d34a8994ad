"""What the parts of a replica machine share: clocks, timers, effects, the store's state, and the peers.

Decides: how effects are collected, timers named and batches ticketed; no protocol.
Keeps true: effects leave in the order they were made; a timer that was set anew no longer answers to its old token; `accepted`
covers `vector`: it is the vector that stands once everything in flight is durable.
In and out: used by the parts of `core/` only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from kvp2p.core.batches import Batch, BatchResult, Settle, StoreSummary
from kvp2p.core.clock import LeaderClock
from kvp2p.core.events import Effect, Notice, Persist, Send, SetTimer
from kvp2p.core.messages import Designation, Digest, Member, Message
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.whole import Whole
from kvp2p.ids import Issuer, NodeId, Now, Stamp

MS = 1_000_000  # nanoseconds
Item = TypeVar("Item")


class Random(Protocol):
    """The randomness a host injects: `random.Random(seed)` in the simulator, `random.SystemRandom()` in a node."""

    def randbytes(self, n: int, /) -> bytes: ...

    def random(self) -> float: ...


@dataclass(slots=True)
class Peer:
    """A peer with an open link."""

    digest: Digest | None = None
    skew_ms: int | None = None  # its wall clock less ours, as of its latest digest: too small by its way here
    diverged: bool = False
    is_refused: bool = False  # its link is being closed for what it sent; the rest that comes over it is not heard
    is_told_ahead: bool = False  # notices that one link causes at most once
    is_told_of_unissued: bool = False
    trimmed_at: dict[Issuer, Stamp] = field(default_factory=dict)  # where it could not go on, told on this link

    def is_trimmed(self, issuer: Issuer, after: Stamp) -> bool:
        """Tell whether this peer has said that its log cannot serve what comes after a position."""
        return issuer in self.trimmed_at and after <= self.trimmed_at[issuer]


@dataclass(slots=True)
class _Ticket:
    done: Callable[[BatchResult], None]
    failed: Callable[[str], None]
    needs_room: bool


class Board:
    """The shared state of one replica machine."""

    def __init__(self, settings: ReplicaSettings, random: Random, store: StoreSummary, me: Member, now: Now) -> None:
        self.settings = settings
        self.random = random
        self.now = now
        self.me = me
        self.effects: list[Effect] = []
        self.vector = store.vector
        self.accepted = store.vector
        self.floor = store.floor
        self.above = store.above
        self.state_hash = store.state_hash
        self.complete = store.complete
        self.garbage = store.garbage
        self.clock = LeaderClock(store.clock_offset_ms, now)
        self.leads = False
        self.pending = store.pending
        self.restored = store.restored
        self.whole = Whole(store.vector, store.floor, store.pending)
        self.candidates = store.candidates
        self.issuers = {row.issuer: row for row in store.issuers}
        self.designation: Designation | None = store.designation
        self.peers: dict[NodeId, Peer] = {}
        self.is_stopping = False
        self.full_reason = ""  # why the last batch found no room; "" once one that may not use the reserve was stored
        self._armed: dict[tuple[str, object], int] = {}
        self._timers: dict[int, tuple[str, object]] = {}
        self._tickets: dict[int, _Ticket] = {}
        self._next_token = 1
        self._next_ticket = 1

    def choose(self, items: Sequence[Item]) -> Item:
        """Return one of some items, each as likely as the others."""
        return items[int(self.random.random() * len(items))]

    # --- effects

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self.effects.append(effect)

    def send(self, peer: NodeId, message: Message) -> None:
        """Send to a peer with an open link."""
        assert peer in self.peers, "whoever sends has looked"
        self.effects.append(Send(peer, message))

    def notice(self, kind: str, level: str = "info", **fields: object) -> None:
        """Tell the operator."""
        self.effects.append(Notice(kind, level, fields))

    def take_effects(self) -> list[Effect]:
        """Return the effects made so far and start a new list."""
        effects, self.effects = self.effects, []
        return effects

    # --- timers

    def set_timer(self, name: str, after_ms: float, key: object = None) -> None:
        """Arm the timer (name, key), replacing one of the same name and key."""
        token, self._next_token = self._next_token, self._next_token + 1
        replaced = self._armed.get((name, key))
        if replaced is not None:
            del self._timers[replaced]
        self._armed[name, key] = token
        self._timers[token] = (name, key)
        self.effects.append(SetTimer(token, self.now.mono_ns + int(after_ms * MS)))

    def drop_timer(self, name: str, key: object = None) -> None:
        """Forget a timer; its firing will be ignored."""
        token = self._armed.pop((name, key), None)
        if token is not None:
            del self._timers[token]

    def take_timer(self, token: int) -> tuple[str, object] | None:
        """Return what a fired token stands for, None for a stale one."""
        named = self._timers.pop(token, None)
        if named is not None:
            del self._armed[named]
        return named

    # --- the store

    def persist(
        self,
        batch: Batch,
        done: Callable[[BatchResult], None] = lambda _: None,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Ask for a batch to be applied; exactly one of the callbacks is called when it ended."""
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._tickets[ticket] = _Ticket(done, failed, needs_room=not batch.may_use_reserve)
        self.effects.append(Persist(ticket, batch))

    def on_persisted(self, ticket: int, result: BatchResult) -> None:
        """Take over how the store stands now, then go on with what waited for it."""
        waiting = self._tickets.pop(ticket)
        self.vector = result.vector
        self.floor = result.floor
        self.above = result.above
        self.state_hash = result.state_hash
        self.complete = result.complete
        self.garbage = result.garbage
        if result.pending is not None:
            self.pending = result.pending
            self.whole = Whole(result.vector, result.floor, result.pending)
        else:
            self.whole = self.whole.at(result.vector, result.floor)
        if result.candidates is not None:
            self.candidates = result.candidates
        if result.issuers is not None:
            self.issuers = {row.issuer: row for row in result.issuers}
        self.accepted = self.accepted.join(self.vector)
        if self.full_reason and waiting.needs_room:
            self.full_reason = ""
            self.notice("disk_has_room")
        waiting.done(result)

    def on_persist_failed(self, ticket: int, reason: str) -> None:
        """A batch found no room and was not applied; that is told once, not for each."""
        waiting = self._tickets.pop(ticket)
        if not self.full_reason:
            self.notice("disk_full", "error", reason=reason)
        self.full_reason = reason
        # What is in flight behind it may be a gap now and will not be applied: all of that is to be asked for again [I3].
        self.accepted = self.vector
        waiting.failed(reason)

    def forget_restored(self) -> None:
        """Write down that this store is more than what a backup had, until the disk takes it."""

        def failed(_: str) -> None:
            self.set_timer("restored", self.settings.digest_idle_ms)

        self.restored = False
        self.persist(Settle(restored=False), failed=failed)

    def batches_in_flight(self) -> int:
        """Return how many batches have not ended yet."""
        return len(self._tickets)

    @property
    def is_comparable(self) -> bool:
        """Tell whether H stands for exactly the vector: no row stands above it."""
        return self.above.is_empty

    # --- time

    def clock_ms(self) -> int:
        """Return what this node believes the leader's clock to be, its own when it leads: by it values expire [I7]."""
        if self.leads:
            self.clock.lead(self.now)
        else:
            self.clock.follow(self.now)
        return self.clock.read(self.now)

    def clock_ahead_ms(self) -> int:
        """Return `clock_ms` less this machine's monotonic clock, by which other processes go on; 0 while it is not known."""
        self.clock_ms()
        return self.clock.ahead_ms(self.now)

    def peers_skew_ms(self) -> int | None:
        """Return by how much the wall clocks of peers are ahead of ours: their median, so that one that is off does not count. None without peers.

        Of two, or any even number, none is the middle one: then our own clock counts as well.
        """
        skews = [peer.skew_ms for peer in self.peers.values() if peer.skew_ms is not None]
        if skews and len(skews) % 2 == 0:
            skews.append(0)
        return sorted(skews)[len(skews) // 2] if skews else None

    # --- peers

    def is_leader(self, node: NodeId) -> bool:
        """Tell whether a node is the designated leader, as far as is known here."""
        return self.designation is not None and self.designation.node == node

    def digests(self) -> list[tuple[NodeId, Digest]]:
        """Return the latest digest of every linked peer that has sent one, oldest link first."""
        return [(node, peer.digest) for node, peer in self.peers.items() if peer.digest is not None]


class Deadlines:
    """Requests that end at a time, behind one timer. What has ended otherwise (`is_open` says so) is skipped, and wakes nobody."""

    def __init__(self, board: Board, name: str, is_open: Callable[[int], bool]) -> None:
        self._board = board
        self._name = name
        self._is_open = is_open
        self._heap: list[tuple[int, int]] = []

    def add(self, at_ns: int, request: int) -> None:
        """Note that a request ends at `at_ns` (monotonic)."""
        heapq.heappush(self._heap, (at_ns, request))
        if self._heap[0][0] == at_ns:
            self._arm()

    def take_due(self) -> list[int]:
        """Return the open requests whose time has come, after the timer fired."""
        due = []
        while self._heap:
            at_ns, request = self._heap[0]
            is_open = self._is_open(request)
            if is_open and at_ns > self._board.now.mono_ns:
                # Armed for one that is still open: most have ended long before their time, and each would cost a wake-up.
                self._arm()
                break
            heapq.heappop(self._heap)
            if is_open:
                due.append(request)
        return due

    def _arm(self) -> None:
        self._board.set_timer(self._name, max(1.0, (self._heap[0][0] - self._board.now.mono_ns) / MS))
