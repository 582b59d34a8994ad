"""The leader's clock as replicas believe it: never ahead of the leader's, never back, and what it is before anybody was heard [I7]."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kvp2p.core.clock import OFFSET_KEPT_MS, LeaderClock
from kvp2p.core.messages import Digest
from kvp2p.ids import Now
from tests.core.harness import EPOCH_MS, MS, SETTINGS, START_NS, Cluster, Node, designated, digest_of

SECOND = 1_000 * MS
HOUR_MS = 3_600_000


@dataclass
class Machine:
    """A computer whose clocks go `drift_ppm` too fast, with a wall clock that someone may set."""

    drift_ppm: int = 0
    offset_ms: int = 0
    boot_ns: int = 0
    clock: LeaderClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = LeaderClock(0, self.now(0))

    def now(self, true_ns: int) -> Now:
        own_ns = true_ns + true_ns * self.drift_ppm // 1_000_000
        return Now(own_ns - self.boot_ns, EPOCH_MS + own_ns // MS + self.offset_ms)

    def leading(self, true_ns: int) -> int:
        self.clock.lead(self.now(true_ns))
        return self.clock.read(self.now(true_ns))

    def believed(self, true_ns: int) -> int:
        return self.clock.read(self.now(true_ns))


# --- what a replica believes


def test_before_anybody_was_heard_the_wall_clock_counts_with_the_offset_that_was_written_down() -> None:
    clock = LeaderClock(-5_000, Now(7 * MS, EPOCH_MS))
    assert clock.read(Now(7 * MS, EPOCH_MS)) == EPOCH_MS - 5_000
    assert not clock.is_known
    assert clock.ahead_ms(Now(7 * MS, EPOCH_MS)) == 0, "nothing that other processes should go by"


def test_the_first_reading_replaces_a_provisional_estimate_even_by_an_earlier_one() -> None:
    """The machine may have started with its clock a year ahead."""
    clock = LeaderClock(365 * 24 * HOUR_MS, Now(0, EPOCH_MS))
    assert clock.read(Now(0, EPOCH_MS)) > EPOCH_MS
    clock.hear(EPOCH_MS - 3, Now(MS, EPOCH_MS))
    assert clock.read(Now(MS, EPOCH_MS)) == EPOCH_MS - 3
    assert clock.is_known


def test_of_several_readings_the_one_that_waited_least_counts() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    for delay_ms, at_ms in ((400, 1_000), (3, 2_000), (900, 3_000)):
        clock.hear(EPOCH_MS + at_ms - delay_ms, Now(at_ms * MS, 0))
    assert clock.read(Now(3_000 * MS, 0)) == EPOCH_MS + 3_000 - 3 - 1, "a little slower than the second in between"


def test_a_correction_of_the_leaders_clock_is_followed_after_some_readings() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    clock.hear(EPOCH_MS + 9_000, Now(0, EPOCH_MS))
    for second in range(1, 17):
        clock.hear(EPOCH_MS + second * 1_000, Now(second * SECOND, EPOCH_MS))
    later = Now(40 * SECOND, EPOCH_MS)
    assert EPOCH_MS + 39_900 < clock.read(later) <= EPOCH_MS + 40_000


def test_an_estimate_never_steps_back() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    clock.hear(EPOCH_MS + 9_000, Now(0, EPOCH_MS))
    shown = clock.read(Now(0, EPOCH_MS))
    for second in range(1, 30):
        now = Now(second * SECOND, EPOCH_MS - second * HOUR_MS)
        clock.hear(EPOCH_MS + second * 100, now)
        assert clock.read(now) >= shown
        shown = clock.read(now)


def test_a_step_of_a_replicas_own_wall_clock_changes_nothing() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    clock.hear(EPOCH_MS, Now(0, EPOCH_MS))
    before = clock.read(Now(SECOND, EPOCH_MS))
    for wall_ms in (EPOCH_MS + HOUR_MS, EPOCH_MS - HOUR_MS, 0):
        assert clock.read(Now(SECOND, wall_ms)) == before
        assert clock.offset_ms(Now(SECOND, wall_ms)) == before - wall_ms


def test_other_processes_of_the_machine_go_on_from_the_monotonic_clock() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    now = Now(5_000 * MS, EPOCH_MS)
    clock.hear(EPOCH_MS + 77, now)
    assert clock.ahead_ms(now) == EPOCH_MS + 77 - 5_000
    # An estimate that may not step back is held, and so is what others go on from.
    clock.hear(EPOCH_MS, Now(5_001 * MS, EPOCH_MS))
    for _ in range(16):
        clock.hear(EPOCH_MS, Now(5_002 * MS, EPOCH_MS))
    assert clock.read(Now(5_002 * MS, EPOCH_MS)) == EPOCH_MS + 77
    assert clock.ahead_ms(Now(5_002 * MS, EPOCH_MS)) == EPOCH_MS + 77 - 5_002 - 1


def test_what_other_processes_go_on_from_does_not_move_with_fractions_of_a_millisecond() -> None:
    machine = Machine(boot_ns=123_456)
    told = set()
    for true_ns in range(0, 50 * MS, 137_731):
        now = machine.now(true_ns + SECOND)
        machine.clock.lead(now)
        if true_ns > 10 * MS:
            told.add(machine.clock.ahead_ms(now))
        assert machine.clock.ahead_ms(now) + now.mono_ns // MS <= machine.clock.read(now), "never early"
    assert len(told) == 1


@settings(max_examples=60)
@given(
    st.lists(st.integers(-250, 250), min_size=3, max_size=3),
    st.lists(
        st.tuples(
            st.integers(0, 30_000), st.sampled_from([(0, 1), (0, 2), (1, 2), (2, 1), (1, 0)]), st.integers(0, 9_000)
        ),
        max_size=40,
    ),
    st.lists(st.integers(-HOUR_MS, HOUR_MS), max_size=4),
)
def test_no_replica_is_ever_ahead_of_its_leader_whatever_delays_digests_have(
    drifts_ppm: list[int], digests: list[tuple[int, tuple[int, int], int]], steps_ms: list[int]
) -> None:
    """Node 0 leads. Digests go between all, as fast or as slow as may be; clocks drift, and the leader's is set to and fro."""
    machines = [Machine(drift, boot_ns=-number * SECOND) for number, drift in enumerate(drifts_ppm)]
    arriving: list[tuple[int, int, int]] = []  # when, to whom, what it says
    at_ns, shown = 0, [0, 0, 0]
    for number, (after_ms, (sender, receiver), delay_ms) in enumerate(digests):
        at_ns += after_ms * MS + number
        if number % 7 == 0 and steps_ms:
            machines[0].offset_ms += steps_ms[number // 7 % len(steps_ms)]
        while arriving and arriving[0][0] <= at_ns:
            when_ns, heard_by, clock_ms = heapq.heappop(arriving)
            machines[heard_by].clock.hear(clock_ms, machines[heard_by].now(when_ns))
        leads_ms = machines[0].leading(at_ns)
        for follower in (1, 2):
            if machines[follower].clock.is_known:
                believed_ms = machines[follower].believed(at_ns)
                assert shown[follower] <= believed_ms <= leads_ms
                shown[follower] = believed_ms
        said_ms = leads_ms if sender == 0 else machines[sender].believed(at_ns)
        if receiver != 0 and (sender == 0 or machines[sender].clock.is_known):
            heapq.heappush(arriving, (at_ns + delay_ms * MS, receiver, said_ms))


def test_two_fast_clocks_do_not_run_ahead_of_their_leader_together() -> None:
    """Each hears its own reading come back from the other, hardly older than it was."""
    leader, one, other = Machine(), Machine(200), Machine(180)
    at_ns = 0
    for _ in range(4 * 3_600):  # an hour of digests
        at_ns += 250 * MS
        leads_ms = leader.leading(at_ns)
        for follower, peer in ((one, other), (other, one)):
            heard_by = follower.now(at_ns + MS // 20)
            follower.clock.hear(leads_ms, heard_by)
            if peer.clock.is_known:
                follower.clock.hear(peer.believed(at_ns), heard_by)
        assert leads_ms - 2 <= one.believed(at_ns + MS) <= leads_ms + 1


def test_a_replica_that_does_not_hear_its_leader_falls_behind_by_little() -> None:
    leader, follower = Machine(), Machine()
    follower.clock.hear(leader.leading(0), follower.now(0))
    hour_ns = 3_600 * SECOND
    assert 0 < leader.leading(hour_ns) - follower.believed(hour_ns) < 2_000


# --- the leader's own


def test_an_offset_of_an_earlier_life_does_not_bind_a_leader_that_has_heard_nobody() -> None:
    """It was written down while the wall clock was an hour behind; now that is right again."""
    clock = LeaderClock(HOUR_MS, Now(0, EPOCH_MS))
    clock.lead(Now(0, EPOCH_MS))
    assert clock.read(Now(SECOND, EPOCH_MS + 1_000)) == EPOCH_MS + 1_000
    heard = LeaderClock(HOUR_MS, Now(0, EPOCH_MS))
    heard.hear(EPOCH_MS + HOUR_MS, Now(0, EPOCH_MS))
    heard.lead(Now(0, EPOCH_MS))
    assert heard.read(Now(0, EPOCH_MS)) == EPOCH_MS + HOUR_MS


def test_a_leaders_clock_is_its_wall_clock() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    for second in range(3):
        now = Now(second * SECOND, EPOCH_MS + second * 1_000)
        clock.lead(now)
        assert clock.read(now) == now.wall_ms
        assert clock.offset_ms(now) == 0


def test_a_leaders_clock_follows_a_step_forwards_and_none_backwards() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    clock.lead(Now(0, EPOCH_MS))
    clock.lead(Now(SECOND, EPOCH_MS + HOUR_MS))
    assert clock.read(Now(SECOND, EPOCH_MS + HOUR_MS)) == EPOCH_MS + HOUR_MS
    clock.lead(Now(11 * SECOND, EPOCH_MS - HOUR_MS))
    assert clock.read(Now(11 * SECOND, EPOCH_MS - HOUR_MS)) == EPOCH_MS + HOUR_MS + 10_000, (
        "it goes on, at its own pace"
    )


def test_a_new_leader_whose_wall_clock_is_behind_goes_on_from_what_it_has_heard() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS - HOUR_MS))
    clock.hear(EPOCH_MS, Now(0, EPOCH_MS - HOUR_MS))
    now = Now(10 * SECOND, EPOCH_MS - HOUR_MS + 10_000)
    clock.lead(now)
    taken_over = clock.read(now)
    assert EPOCH_MS + 9_990 <= taken_over <= EPOCH_MS + 10_000
    later = Now(now.mono_ns + 1_000 * SECOND, now.wall_ms + 1_000_000)
    clock.lead(later)
    assert clock.read(later) == taken_over + 1_000_000, "as fast as its own clock"


def test_a_deposed_leader_goes_on_without_a_step() -> None:
    clock = LeaderClock(0, Now(0, EPOCH_MS))
    clock.lead(Now(100 * SECOND, EPOCH_MS + 100_000))
    clock.follow(Now(100 * SECOND, EPOCH_MS + 100_000))
    assert clock.read(Now(100 * SECOND, EPOCH_MS - HOUR_MS)) == EPOCH_MS + 100_000
    now = Now(101 * SECOND, EPOCH_MS)
    shown = clock.read(now)
    assert shown == EPOCH_MS + 100_999
    clock.hear(EPOCH_MS + 100_900, now)
    assert clock.read(now) == shown, "nor a step back when it hears a late reading"


# --- in a machine


def believed(node: Node) -> int:
    node.machine.board.now = node.now()
    return node.machine.board.clock_ms()


def test_replicas_hear_the_leaders_clock_from_it_and_from_each_other() -> None:
    cluster = Cluster()
    a, b, c = (cluster.add(name, leads=name == "a") for name in "abc")
    a.wall_offset_ms, b.wall_offset_ms, c.wall_offset_ms = 40_000, -HOUR_MS, HOUR_MS
    cluster.link("a", "b")
    cluster.link("b", "c")  # c never hears its leader itself
    cluster.pass_ms(10_000)
    true_ms = EPOCH_MS + 10_000 + 40_000
    assert believed(a) == true_ms
    for node in (b, c):
        assert true_ms - 10 <= believed(node) <= true_ms
        assert node.sent_to("b" if node is c else "a", Digest)[-1].clock_ms <= true_ms


def test_who_never_heard_a_leader_says_nothing_of_its_clock() -> None:
    cluster = Cluster()
    a, b = cluster.add("a"), cluster.add("b")
    cluster.link("a", "b")
    cluster.pass_ms(5_000)
    assert {digest.clock_ms for digest in a.sent_to("b", Digest)} == {0}
    assert not b.machine.board.clock.is_known


def test_a_leader_does_not_take_its_own_clock_back_from_a_peer() -> None:
    a = Cluster().add("a", leads=True)
    a.meets("b", digest_of(designation=designated("a"), clock_ms=EPOCH_MS + HOUR_MS))
    assert believed(a) < EPOCH_MS + HOUR_MS


def test_the_offset_of_the_leaders_clock_is_written_down_and_is_there_after_a_restart() -> None:
    cluster = Cluster()
    b = cluster.add("b")
    b.wall_offset_ms = 7_000
    b.meets("a", digest_of(designation=designated("a"), clock_ms=EPOCH_MS))
    cluster.pass_ms(2 * SETTINGS.digest_idle_ms)

    def written() -> int:
        with b.store.read() as txn:
            return txn.clock_offset_ms

    assert -7_010 <= written() <= -7_000
    first = written()
    b.wall_offset_ms += OFFSET_KEPT_MS // 2
    cluster.pass_ms(2 * SETTINGS.digest_idle_ms)
    assert written() == first, "too little to write down"
    b.start()
    assert not b.machine.board.clock.is_known
    assert abs(believed(b) - (EPOCH_MS + (cluster.mono_ns - START_NS) // MS)) <= OFFSET_KEPT_MS


def test_other_processes_of_the_machine_go_on_with_the_monotonic_clock_once_the_leaders_is_known() -> None:
    cluster = Cluster()
    a = cluster.add("a", knows="b")
    assert a.machine.board.clock_ahead_ms() == 0
    a.meets("b", digest_of(clock_ms=EPOCH_MS + 5_000))
    board = a.machine.board
    assert board.clock_ahead_ms() == board.clock_ms() - board.now.mono_ns // MS
