"""Links between hosts on virtual time: the *stream* profile, as production links behave.

Decides: when a link comes up, when a message arrives, what is lost when a link ends.
Keeps true: what `core/events.py` promises of links. `PeerUp` and `PeerDown` of a peer alternate, messages of one lane arrive in order, a
link that ends loses a suffix of each lane, nothing of it arrives after `PeerDown`. Deadlines arrive as readings of the receiver's clock. A new link of a pair starts when both ends
of the old one are down.
In and out: wishes to connect and messages in; events at the hosts out. A cut holds back bytes in one direction; when it heals in time they
arrive late, else the link ends at both sides after `timeout_ms`, as with pings that get no answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from kvp2p.core.events import Event, PeerDown, PeerUp, Received, SendFailed
from kvp2p.core.messages import LANE_OF, Digest, Forward, Frame, Lane, Message, Roster
from kvp2p.ids import NodeId
from kvp2p.sim.clocks import Oscillator
from kvp2p.sim.schedule import MS, Schedule
from kvp2p.wire.mesh import encode_message, pack, unpack


class Endpoint(Protocol):
    """What the network knows of a host. `life` counts the starts of its process; an event for an earlier life is lost."""

    node: NodeId
    url: str
    is_alive: bool
    life: int

    @property
    def is_paused(self) -> bool: ...

    @property
    def oscillator(self) -> Oscillator: ...

    @property
    def booted_ns(self) -> int:
        """Return what the oscillator had counted when the monotonic clock of this life read zero."""
        ...

    def deliver(self, event: Event) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkProfile:
    """How links behave in one run."""

    delay_ms: float = 1.0  # the least, one way
    jitter_ms: float = 1.0  # mean of what is added, exponential
    timeout_ms: float = 5_000.0  # a link whose bytes do not get through ends so late
    drop_chance: float = 0.0  # of a Frame, Digest or Roster, as when a queue is full
    is_encoded: bool = False  # messages go through the real codec


@dataclass(slots=True)
class _End:
    host: Endpoint
    life: int
    booted_ns: int
    is_up: bool = False  # PeerUp was delivered, PeerDown was not
    up_ns: int = 0
    lost_after_ns: int | None = None  # of a broken link: what would arrive later is lost
    last_arrival_ns: dict[Lane, int] = field(default_factory=dict)
    queues: dict[Lane, deque[Message | bytes]] = field(default_factory=lambda: {lane: deque() for lane in Lane})
    held_back: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))  # by a cut: arrivals


@dataclass(slots=True)
class _Link:
    number: int
    ends: dict[NodeId, _End]
    is_broken: bool = False

    def other(self, node: NodeId) -> _End:
        first, second = self.ends.values()
        return second if first.host.node == node else first


Pair = tuple[NodeId, NodeId]


def _pair(one: NodeId, other: NodeId) -> Pair:
    return (one, other) if one < other else (other, one)


class Network:
    """All links of a run."""

    def __init__(
        self, schedule: Schedule, random: Random, profile: NetworkProfile, note: Callable[[str], None]
    ) -> None:
        self.schedule = schedule
        self.random = random
        self.profile = profile
        self.drop_chance = profile.drop_chance
        self.hosts: dict[str, Endpoint] = {}  # by URL
        self.counts: dict[str, int] = dict.fromkeys(
            ("sent", "delivered", "dropped", "lost", "held_back", "link_timeouts", "resets", "links"), 0
        )
        self._note = note
        self._links: dict[Pair, _Link] = {}
        self._wanted: dict[tuple[NodeId, str], int] = {}  # (who dials, URL) -> life that asked
        self._dialling: dict[tuple[NodeId, str], bool] = {}
        self._cuts: dict[Pair, int] = {}  # directed: (from, to) -> how many cuts hold it
        self._cut_ends: dict[Pair, int] = {}  # directed: how often it was healed; a timeout of an older cut is stale

    # --- dialling

    def connect(self, host: Endpoint, url: str) -> None:
        """Dial a URL and keep dialling while there is no link, for this life of the host."""
        self._wanted[host.node, url] = host.life
        self._dial_later(host, url, 1 + 20 * self.random.random())

    def _dial_later(self, host: Endpoint, url: str, delay_ms: float) -> None:
        if self._dialling.get((host.node, url)):
            return
        self._dialling[host.node, url] = True

        def dial() -> None:
            self._dialling[host.node, url] = False
            self._dial(host, url)

        self.schedule.after(delay_ms * MS, dial)

    def _dial(self, host: Endpoint, url: str) -> None:
        target = self.hosts.get(url)
        if not host.is_alive or self._wanted.get((host.node, url)) != host.life or target is host:
            return
        if target is not None and _pair(host.node, target.node) in self._links:
            return  # when that link has ended at both sides, `_end_link` dials again
        is_open = (
            target is not None
            and target.is_alive
            and not (target.is_paused or host.is_paused)  # a stopped process shakes no hands
            and not self._cuts.get((host.node, target.node))
            and not self._cuts.get((target.node, host.node))
        )
        if not is_open or target is None:
            self._dial_later(host, url, 100 + 900 * self.random.random())
            return
        self.counts["links"] += 1
        link = _Link(self.counts["links"], {one.node: _End(one, one.life, one.booted_ns) for one in (host, target)})
        self._links[_pair(host.node, target.node)] = link
        handshake_ms = 4 * self.profile.delay_ms
        for end in link.ends.values():
            end.up_ns = self.schedule.now_ns + int((handshake_ms + self._delay_ms()) * MS)
            self.schedule.at(end.up_ns, self._raiser(link, end))

    def _raiser(self, link: _Link, end: _End) -> Callable[[], None]:
        def come_up() -> None:
            if link.is_broken or not self._is_living(end):
                return
            end.is_up = True
            end.host.deliver(PeerUp(link.other(end.host.node).host.node))

        return come_up

    @staticmethod
    def _is_living(end: _End) -> bool:
        return end.host.is_alive and end.host.life == end.life

    # --- messages

    def _delay_ms(self) -> float:
        delay_ms = self.profile.delay_ms + self.random.expovariate(1.0) * self.profile.jitter_ms
        return delay_ms * 20 if self.random.random() < 0.002 else delay_ms  # now and then a retransmission

    def link_number(self, host: Endpoint, peer: NodeId) -> int | None:
        """Return the number of the link that is up at a host's end, so that an answer stays on the link it was asked on."""
        link = self._links.get(_pair(host.node, peer))
        if link is None or link.is_broken or not link.ends[host.node].is_up:
            return None
        return link.number

    def send(self, host: Endpoint, peer: NodeId, message: Message) -> None:
        """Send a message over the link of a pair, if there is one."""
        link = self._links.get(_pair(host.node, peer))
        if link is None or link.is_broken or not link.ends[host.node].is_up:
            return
        self.counts["sent"] += 1
        if self.drop_chance and self.random.random() < self.drop_chance and self._drop(link, host, peer, message):
            return
        to = link.ends[peer]
        lane = LANE_OF[type(message)]
        to.queues[lane].append(pack([encode_message(message)]) if self.profile.is_encoded else message)
        self._transmit(link, to, lane)

    def _drop(self, link: _Link, host: Endpoint, peer: NodeId, message: Message) -> bool:
        """Do what a full queue does; tell whether the message is gone."""
        self.counts["dropped"] += 1
        if isinstance(message, Forward):
            self.schedule.after(0, self._deliverer(link, link.ends[host.node], SendFailed(peer, message)))
        elif not isinstance(message, Frame | Digest | Roster):
            if self.random.random() < 0.7:  # full queues of control messages are rarer
                self.counts["dropped"] -= 1
                return False
            self._break(link, "a queue is full")
        return True

    def _transmit(self, link: _Link, to: _End, lane: Lane) -> None:
        """Let the lane's next message arrive after a delay. An arrival takes the front of the queue, so order is kept."""
        source = link.other(to.host.node)
        sender = source.host.node
        if self._cuts.get((sender, to.host.node)):
            self._hold_back(to, lane)
            return
        arrival_ns = self.schedule.now_ns + int(self._delay_ms() * MS)
        arrival_ns = max(arrival_ns, to.up_ns + 1, to.last_arrival_ns.get(lane, 0) + 1)
        to.last_arrival_ns[lane] = arrival_ns

        def arrive() -> None:
            is_late = to.lost_after_ns is not None and self.schedule.now_ns > to.lost_after_ns
            is_cut = bool(self._cuts.get((sender, to.host.node)))
            if not to.is_up or is_late or not self._is_living(to) or (is_cut and link.is_broken):
                self.counts["lost"] += 1
                to.lost_after_ns = -1 if to.lost_after_ns == -1 else 0  # and so is all behind it
            elif is_cut:
                self._hold_back(to, lane)  # it was on its way when the cut came
            else:
                self._arrive(to, source, to.queues[lane].popleft())

        self.schedule.at(arrival_ns, arrive)

    def _hold_back(self, to: _End, lane: Lane) -> None:
        self.counts["held_back"] += 1
        to.held_back[lane] += 1

    def _arrive(self, to: _End, source: _End, payload: Message | bytes) -> None:
        self.counts["delivered"] += 1
        for message in unpack(payload) if isinstance(payload, bytes) else (payload,):
            told = self._by_clock_of(to, source, message) if isinstance(message, Forward) else message
            to.host.deliver(Received(source.host.node, told))

    def _by_clock_of(self, to: _End, source: _End, forward: Forward) -> Forward:
        """Tell a deadline by the receiver's clock, as links do: early by what their best ping took, never late [I10]."""
        now_ns = self.schedule.now_ns
        receivers_ns = to.host.oscillator.own_ns(now_ns) - to.booted_ns
        senders_ns = source.host.oscillator.own_ns(now_ns) - source.booted_ns
        ahead_ns = receivers_ns - senders_ns - int(self.profile.delay_ms * MS)
        return replace(forward, deadline_ns=forward.deadline_ns + ahead_ns)

    def _deliverer(self, link: _Link, end: _End, event: Event) -> Callable[[], None]:
        def deliver() -> None:
            if end.is_up and self._is_living(end):
                end.host.deliver(event)

        return deliver

    # --- ends of links

    def links_up(self) -> Iterator[Pair]:
        """Iterate over the pairs that have a link which is up at both ends."""
        for pair, link in self._links.items():
            if not link.is_broken and all(end.is_up for end in link.ends.values()):
                yield pair

    def reset(self, one: NodeId, other: NodeId) -> bool:
        """End a pair's link with messages in flight; tell whether there was one."""
        link = self._links.get(_pair(one, other))
        if link is None or link.is_broken:
            return False
        self.counts["resets"] += 1
        self._break(link, "reset")
        return True

    def disconnect(self, host: Endpoint, peer: NodeId, reason: str) -> None:
        """Close the link to a peer because a host wants it closed."""
        link = self._links.get(_pair(host.node, peer))
        if link is not None and not link.is_broken:
            self._break(link, reason)

    def host_down(self, host: Endpoint, notice_ms: float) -> None:
        """A host's process has ended: its links end, and peers notice within `notice_ms`."""
        for pair, link in list(self._links.items()):
            if host.node in pair:
                link.ends[host.node].is_up = False
                self._break(link, "the peer went away", notice_ms)

    def host_silent(self, host: Endpoint) -> None:
        """A host has answered no ping for `timeout_ms`: its links end, for both sides."""
        for pair, link in list(self._links.items()):
            if host.node in pair and not link.is_broken:
                self.counts["link_timeouts"] += 1
                self._break(link, "timeout", 1_000.0)

    def _break(self, link: _Link, reason: str, notice_ms: float = 200.0) -> None:
        """End a link: each side notices at a time of its own; until some moment before that, messages still arrive."""
        if link.is_broken:
            return
        link.is_broken = True
        for end in link.ends.values():
            noticed_ns = self.schedule.now_ns + int(self.random.random() * notice_ms * MS)
            end.lost_after_ns = self.schedule.now_ns + int(self.random.random() * (noticed_ns - self.schedule.now_ns))
            self.counts["lost"] += sum(end.held_back.values())
            self.schedule.at(noticed_ns, self._lowerer(link, end, reason))

    def _lowerer(self, link: _Link, end: _End, reason: str) -> Callable[[], None]:
        node, peer = end.host.node, link.other(end.host.node).host.node

        def go_down() -> None:
            if end.is_up and self._is_living(end):
                end.is_up = False
                end.host.deliver(PeerDown(peer, reason))
            end.is_up = False
            end.lost_after_ns = -1
            if all(one.lost_after_ns == -1 for one in link.ends.values()):
                self._end_link(_pair(node, peer), link)

        return go_down

    def _end_link(self, pair: Pair, link: _Link) -> None:
        del self._links[pair]
        for end in link.ends.values():
            other = link.other(end.host.node).host
            if self._wanted.get((end.host.node, other.url)) == end.host.life:
                self._dial_later(end.host, other.url, 50 + 450 * self.random.random())

    # --- cuts

    def cut(self, directions: list[Pair]) -> None:
        """Hold back all bytes in these directions until `heal`."""
        for direction in directions:
            self._cuts[direction] = self._cuts.get(direction, 0) + 1
            if self._cuts[direction] == 1:
                self._time_out_later(direction)

    def _time_out_later(self, direction: Pair) -> None:
        epoch = self._cut_ends.get(direction, 0)
        cut_link = self._links.get(_pair(*direction))

        def time_out() -> None:
            link = self._links.get(_pair(*direction))
            if self._cut_ends.get(direction, 0) == epoch and link is cut_link and link is not None:
                if not link.is_broken:
                    self.counts["link_timeouts"] += 1
                    self._note(f"link timeout {direction[0].hex()[:4]} -> {direction[1].hex()[:4]}")
                self._break(link, "timeout", 1_000.0)

        self.schedule.after(self.profile.timeout_ms * MS, time_out)

    def heal(self, directions: list[Pair]) -> None:
        """Let bytes through again; what was held back arrives in order."""
        for direction in directions:
            self._cuts[direction] -= 1
            if self._cuts[direction]:
                continue
            del self._cuts[direction]
            self._cut_ends[direction] = self._cut_ends.get(direction, 0) + 1
            link = self._links.get(_pair(*direction))
            if link is not None and not link.is_broken:
                end = link.ends[direction[1]]
                held_back, end.held_back = end.held_back, dict.fromkeys(Lane, 0)
                for lane, arrivals in held_back.items():
                    for _ in range(arrivals):
                        self._transmit(link, end, lane)

    def is_cut(self) -> bool:
        """Tell whether any direction is cut now."""
        return bool(self._cuts)

    @contextmanager
    def cut_during(self, directions: list[Pair]) -> Iterator[None]:
        """Cut for the length of a block: for scenarios that read like a play."""
        self.cut(directions)
        yield
        self.heal(directions)
