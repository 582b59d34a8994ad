"""The simulated links keep what core/events.py promises of links, whatever happens to them."""

from collections.abc import Callable

import pytest

from kvp2p.core.events import Event, PeerDown, Received, SendFailed
from kvp2p.core.messages import Forward, Pull, PullEnd, Roster
from kvp2p.core.operations import DeleteNamespace
from kvp2p.ids import Issuer, NamespaceId, NodeId, Stamp
from kvp2p.sim.clocks import Oscillator
from kvp2p.sim.network import Network, NetworkProfile
from kvp2p.sim.schedule import MS, SECOND, Schedule
from kvp2p.sim.seeds import Seeds

ISSUER = Issuer(b"issuer 1")


class FakeHost:
    def __init__(self, schedule: Schedule, number: int) -> None:
        self.node = NodeId(bytes([number]) * 16)
        self.url = f"sim://fake{number}"
        self.is_alive = True
        self.is_paused = False
        self.life = 1
        self.oscillator = Oscillator()
        self.booted_ns = 0
        self.events: list[tuple[int, Event]] = []
        self._schedule = schedule

    def deliver(self, event: Event) -> None:
        self.events.append((self._schedule.now_ns, event))

    def kinds(self) -> list[str]:
        return [type(event).__name__ for _, event in self.events if not isinstance(event, Received)]

    def control(self) -> list[int]:
        """Return the numbers in the control messages received."""
        return [event.message.after for event in self.received() if isinstance(event.message, Pull)]

    def data(self) -> list[int]:
        """Return the numbers in the data messages received."""
        return [event.message.upto for event in self.received() if isinstance(event.message, PullEnd)]

    def received(self) -> list[Received]:
        return [event for _, event in self.events if isinstance(event, Received)]


class Pair:
    """Two hosts with a link between them."""

    def __init__(self, profile: NetworkProfile | None = None, seed: int = 1) -> None:
        self.schedule = Schedule()
        self.network = Network(
            self.schedule, Seeds(seed).random("network"), profile or NetworkProfile(), lambda _: None
        )
        self.one, self.other = FakeHost(self.schedule, 1), FakeHost(self.schedule, 2)
        self.network.hosts = {host.url: host for host in (self.one, self.other)}
        self.network.connect(self.one, self.other.url)
        self.run_for(0.5)
        assert self.one.kinds() == self.other.kinds() == ["PeerUp"]

    def run_for(self, seconds: float) -> None:
        self.schedule.run_until(self.schedule.now_ns + int(seconds * SECOND))

    def send(self, number: int) -> None:
        """Send one control and one data message."""
        self.network.send(self.one, self.other.node, Pull(1, ISSUER, Stamp(number), 1))
        self.network.send(self.one, self.other.node, PullEnd(ISSUER, Stamp(number), trimmed=False))

    def send_some(self, count: int = 50, every_ms: float = 1.0) -> None:
        for number in range(count):
            self.schedule.after(number * every_ms * MS, self._sender(number))

    def _sender(self, number: int) -> Callable[[], None]:
        return lambda: self.send(number)

    def directions(self) -> list[tuple[NodeId, NodeId]]:
        return [(self.one.node, self.other.node)]


@pytest.mark.parametrize("is_encoded", [False, True])
def test_messages_of_one_lane_arrive_in_order(is_encoded: bool) -> None:
    pair = Pair(NetworkProfile(delay_ms=5, jitter_ms=50, is_encoded=is_encoded))
    pair.send_some()
    pair.run_for(60)
    assert pair.other.control() == pair.other.data() == list(range(50))


def test_a_control_message_may_overtake_data() -> None:
    overtaken = 0
    for seed in range(20):
        pair = Pair(NetworkProfile(delay_ms=1, jitter_ms=10), seed)
        pair.network.send(pair.one, pair.other.node, PullEnd(ISSUER, Stamp(1), trimmed=False))
        pair.network.send(pair.one, pair.other.node, Pull(1, ISSUER, Stamp(1), 1))
        pair.run_for(5)
        overtaken += isinstance(pair.other.received()[0].message, Pull)
    assert 0 < overtaken < 20


@pytest.mark.parametrize("seed", range(10))
def test_a_reset_loses_a_suffix_of_each_lane_and_then_a_new_link_comes(seed: int) -> None:
    pair = Pair(NetworkProfile(delay_ms=5, jitter_ms=20), seed)
    pair.send_some()
    pair.run_for(0.025)
    assert pair.network.reset(pair.one.node, pair.other.node)
    assert not pair.network.reset(pair.one.node, pair.other.node)
    pair.run_for(0.3)  # longer than the sides take to notice, shorter than it takes to dial again
    for arrived in (pair.other.control(), pair.other.data()):
        assert arrived == list(range(len(arrived)))
        assert len(arrived) < 50
    before = pair.other.received()
    pair.run_for(5)
    assert pair.other.received() == before, "nothing of the old link arrives on the new one"
    assert pair.one.kinds() == pair.other.kinds() == ["PeerUp", "PeerDown", "PeerUp"]


def test_a_short_cut_delays_and_loses_nothing() -> None:
    pair = Pair()
    pair.send_some()
    pair.run_for(0.02)
    with pair.network.cut_during(pair.directions()):
        pair.run_for(2)
        assert len(pair.other.control()) < 50
        pair.network.send(pair.other, pair.one.node, Pull(1, ISSUER, Stamp(99), 1))
        pair.run_for(0.5)
        assert pair.one.control() == [99], "the other direction is open"
    pair.run_for(2)
    assert pair.other.control() == pair.other.data() == list(range(50))
    assert pair.other.kinds() == ["PeerUp"]


def test_a_long_one_way_cut_ends_the_link_at_both_sides_and_no_new_one_comes() -> None:
    pair = Pair(NetworkProfile(timeout_ms=5_000))
    pair.network.cut(pair.directions())
    pair.send_some()
    pair.run_for(4.9)
    assert pair.one.kinds() == pair.other.kinds() == ["PeerUp"]
    pair.run_for(20)
    assert pair.one.kinds() == pair.other.kinds() == ["PeerUp", "PeerDown"]
    assert not pair.other.received()
    pair.network.heal(pair.directions())
    pair.run_for(3)
    assert pair.one.kinds() == ["PeerUp", "PeerDown", "PeerUp"]
    assert not pair.other.received(), "what the old link held back is lost"
    assert not pair.network.is_cut()


def test_two_cuts_of_one_direction_both_have_to_heal() -> None:
    pair = Pair()
    with pair.network.cut_during(pair.directions()):
        with pair.network.cut_during(pair.directions()):
            pair.send(1)
        pair.run_for(1)
        assert not pair.other.received()
    pair.run_for(1)
    assert pair.other.control() == [1]


def test_peers_notice_a_dead_process_and_reach_its_next_life() -> None:
    pair = Pair()
    pair.other.is_alive = False
    pair.network.host_down(pair.other, 100)
    pair.send(1)
    pair.run_for(1)
    assert pair.one.kinds() == ["PeerUp", "PeerDown"]
    assert pair.other.kinds() == ["PeerUp"], "a dead process hears nothing"
    pair.other.is_alive, pair.other.life = True, 2
    pair.run_for(3)
    assert pair.one.kinds() == ["PeerUp", "PeerDown", "PeerUp"]
    assert pair.other.kinds() == ["PeerUp", "PeerUp"]  # one in each life


def test_a_paused_process_loses_its_links_and_shakes_no_hands_until_it_goes_on() -> None:
    pair = Pair()
    pair.other.is_paused = True
    pair.network.host_silent(pair.other)
    pair.run_for(10)
    assert pair.one.kinds() == ["PeerUp", "PeerDown"]
    pair.other.is_paused = False
    pair.run_for(2)
    assert pair.one.kinds() == ["PeerUp", "PeerDown", "PeerUp"]


def test_a_host_that_disconnects_hears_so() -> None:
    pair = Pair()
    pair.network.disconnect(pair.one, pair.other.node, "done with it")
    pair.run_for(0.25)
    assert isinstance(pair.one.events[-1][1], PeerDown)
    assert isinstance(pair.other.events[-1][1], PeerDown)


def test_a_full_queue_drops_a_roster_and_gives_a_forward_back() -> None:
    pair = Pair()
    pair.network.drop_chance = 1.0
    pair.network.send(pair.one, pair.other.node, Roster(()))
    forward = Forward(5, 1_000, ())
    pair.network.send(pair.one, pair.other.node, forward)
    pair.run_for(1)
    assert not pair.other.received()
    assert pair.one.events[-1][1] == SendFailed(pair.other.node, forward)
    assert pair.network.counts["dropped"] == 2


@pytest.mark.parametrize("is_encoded", [False, True])
def test_a_deadline_is_told_by_the_clock_of_the_receiver_and_never_late(is_encoded: bool) -> None:
    pair = Pair(NetworkProfile(delay_ms=5, is_encoded=is_encoded))
    pair.network.reset(pair.one.node, pair.other.node)
    pair.run_for(1)
    pair.one.booted_ns, pair.other.booted_ns = -70 * SECOND, -10 * SECOND
    pair.network.reset(pair.one.node, pair.other.node)
    pair.run_for(5)
    # At 100 s of the schedule, when the sender's clock reads 170 s and the receiver's 110 s.
    pair.network.send(pair.one, pair.other.node, Forward(1, 170 * SECOND, (DeleteNamespace(NamespaceId(bytes(16))),)))
    pair.run_for(1)
    (forward,) = [event.message for event in pair.other.received()]
    assert isinstance(forward, Forward)
    assert 110 * SECOND - 6 * MS <= forward.deadline_ns <= 110 * SECOND


def test_a_queue_too_full_for_a_control_message_costs_the_link_now_and_then() -> None:
    pair = Pair()
    pair.network.drop_chance = 1.0
    for number in range(20):
        pair.send(number)
    pair.run_for(1)
    assert "PeerDown" in pair.one.kinds()
    assert pair.other.control() == list(range(len(pair.other.control())))


def test_an_answer_belongs_to_the_link_it_was_asked_on() -> None:
    pair = Pair()
    number = pair.network.link_number(pair.one, pair.other.node)
    assert number is not None
    pair.network.reset(pair.one.node, pair.other.node)
    assert pair.network.link_number(pair.one, pair.other.node) is None
    pair.run_for(5)
    assert pair.network.link_number(pair.one, pair.other.node) not in (None, number)
