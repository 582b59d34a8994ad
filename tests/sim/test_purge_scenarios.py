"""Scenarios of purging, expiry and clocks: who was away while keys were deleted, whose clock is wrong, and what must be true then."""

from __future__ import annotations

from kvp2p.core.events import Await, Effect, Notice
from kvp2p.core.operations import Condition, Ending, Outcome, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.ids import version_stamp
from kvp2p.sim.host import Host
from tests.sim.plays import NAMESPACE, Play

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SETTINGS = ReplicaSettings(purge_interval_ms=1_000, purge_after_ms=5_000, log_age_ms=5_000)


class Listening(Host):
    """A host that keeps what its operator is told."""

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, Notice):
            self.told: list[str] = [*getattr(self, "told", []), effect.kind]
        super().perform(effect)


def told(host: Host) -> list[str]:
    assert isinstance(host, Listening)
    return host.told


def play_of(nodes: int = 3, *, drifts_ppm: tuple[int, ...] = ()) -> Play:
    return Play(nodes, settings=SETTINGS, drifts_ppm=drifts_ppm, host_type=Listening)


def put_for(play: Play, host: Host, key: bytes, seconds: int) -> Ending | None:
    return play.write(host, Put(NAMESPACE, key, b"value", expires_in=seconds))


def log_length(host: Host) -> int:
    with host.disk.store.read() as txn:
        return txn.log_positions


def latest_stamp(host: Host) -> int:
    with host.disk.store.read() as txn:
        return txn.vector.latest_stamp()


# --- purged while somebody was away


def test_a_node_that_was_away_while_keys_were_deleted_purged_and_the_log_trimmed_has_not_one_of_them() -> None:
    play = play_of()
    leader, away = play.node(1), play.node(3)
    for number in range(30):
        assert play.put(leader, b"key %d" % number, b"value") is Ending.ACKED
    play.run(1)
    assert all(play.has(away, b"key %d" % number) for number in range(30))
    cut = play.cluster.cut_off([away])
    for number in range(0, 30, 2):
        assert play.delete(leader, b"key %d" % number) is Ending.ACKED
    assert play.put(leader, b"new", b"value") is Ending.ACKED
    play.run(20)
    with leader.disk.store.read() as txn:
        assert (txn.tombstones, txn.log_positions) == (0, 0), "nothing is left that could tell of them"
    assert play.has(away, b"key 0"), "it has not heard of it"
    play.cluster.heal(cut)
    play.until(lambda: play.cluster.are_equal(play.cluster.hosts))
    assert [number for number in range(30) if play.has(away, b"key %d" % number)] == list(range(1, 30, 2))
    assert play.has(away, b"new")
    assert "walk_received" in told(away)
    play.until(play.cluster.is_purged)
    play.end()


def test_two_nodes_that_were_away_together_do_not_bring_deleted_keys_back_to_each_other() -> None:
    play = play_of(4)
    leader, one, other = play.node(1), play.node(3), play.node(4)
    for number in range(10):
        assert play.put(leader, b"key %d" % number, b"value") is Ending.ACKED
    play.run(1)
    play.cluster.crash(other)
    assert play.put(leader, b"later", b"value") is Ending.ACKED
    play.run(1)
    play.cluster.crash(one)
    for number in range(10):
        assert play.delete(leader, b"key %d" % number) is Ending.ACKED
    play.run(20)
    one.start()
    other.start()
    play.end()
    for host in play.cluster.hosts:
        assert [key for key in (b"later", *(b"key %d" % number for number in range(10))) if play.has(host, key)] == [
            b"later"
        ]
    play.until(play.cluster.is_purged)


def test_a_candidate_that_is_gone_keeps_tombstones_and_nothing_else_waits_for_it() -> None:
    play = play_of()
    leader, candidate = play.node(1), play.node(2)
    assert play.put(leader, b"key", b"value") is Ending.ACKED
    play.cluster.crash(candidate)
    assert play.delete(leader, b"key") is Ending.ACKED
    play.run(60)
    with leader.disk.store.read() as txn:
        assert txn.tombstones == 1
    assert log_length(leader) == 0, "a log is kept for nobody who is gone"
    assert play.put(play.node(3), b"other", b"value") is Ending.ACKED
    candidate.start()
    play.until(play.cluster.is_purged)
    play.end()
    assert not play.has(candidate, b"key")


def test_a_lower_version_of_a_deposed_leader_does_not_come_back_after_a_purge() -> None:
    """n4 was cut off together with the deposed leader, and has what that wrote; the tombstone over it is gone when n4 returns."""
    play = play_of(4)
    old, new, other, late = (play.node(number) for number in (1, 2, 3, 4))
    cut = play.cluster.cut_off([old, late])
    play.run(8)
    assert play.promote(new) is Ending.ACKED
    assert play.put(old, b"key", b"of the deposed leader") is Ending.ACKED
    play.run(1)
    assert play.has(late, b"key")
    assert play.put(other, b"key", b"of the new leader") is Ending.ACKED
    assert play.delete(other, b"key") is Ending.ACKED
    play.run(20)
    with new.disk.store.read() as txn:
        assert txn.tombstones > 0, "the old leader may still add something: it is a candidate"
    still_cut = play.cluster.cut_off([late])
    play.cluster.heal(cut)
    play.run(30)
    for host in (old, new, other):
        assert not play.stores(host, b"key")
    assert play.has(late, b"key"), "it has heard of nothing"
    play.cluster.heal(still_cut)
    play.end()
    for host in play.cluster.hosts:
        assert not play.stores(host, b"key")
    play.until(play.cluster.is_purged)


def test_expired_values_go_from_every_store_and_can_be_written_again() -> None:
    play = play_of()
    for number in range(5):
        assert put_for(play, play.node(3), b"key %d" % number, 60) is Ending.ACKED
    play.run(59)
    assert all(play.has(host, b"key 0") for host in play.cluster.hosts)
    play.run(3)
    assert not any(play.has(host, b"key 0") for host in play.cluster.hosts)
    play.until(play.cluster.is_purged)
    assert not play.stores(play.node(3), b"key 0")
    assert play.write(play.node(2), Put(NAMESPACE, b"key 0", b"new", condition=Condition.ABSENT)) is Ending.ACKED
    play.end()
    assert all(play.has(host, b"key 0") for host in play.cluster.hosts)


# --- clocks


def test_a_step_of_a_replicas_clock_by_an_hour_hides_nothing_early_and_shows_nothing_late() -> None:
    play = play_of()
    assert put_for(play, play.node(1), b"key", 60) is Ending.ACKED
    play.run(1)
    for step_ms in (HOUR_MS, -HOUR_MS, 0):
        play.node(3).clock_offset_ms = step_ms
        play.run(15)
        assert all(play.has(host, b"key") for host in play.cluster.hosts)
    play.run(18)
    assert not any(play.has(host, b"key") for host in play.cluster.hosts)
    play.end()


def test_a_leader_whose_clock_is_set_back_an_hour_neither_keeps_values_longer_nor_brings_any_back() -> None:
    play = play_of()
    leader = play.node(1)
    assert put_for(play, leader, b"first", 60) is Ending.ACKED
    play.run(65)
    leader.clock_offset_ms = -HOUR_MS
    assert not play.has(leader, b"first")
    assert put_for(play, leader, b"second", 60) is Ending.ACKED
    play.run(58)
    assert play.has(leader, b"second")
    assert play.has(play.node(3), b"second")
    play.run(7)
    assert not any(play.has(host, key) for host in play.cluster.hosts for key in (b"first", b"second"))
    play.end()


def test_a_leader_whose_clock_is_set_forward_an_hour_takes_all_replicas_along() -> None:
    play = play_of()
    leader = play.node(1)
    assert put_for(play, leader, b"key", 1_800) is Ending.ACKED
    before = latest_stamp(leader)
    play.run(10)
    assert all(play.has(host, b"key") for host in play.cluster.hosts)
    leader.clock_offset_ms = HOUR_MS
    play.run(3)
    assert not any(play.has(host, b"key") for host in play.cluster.hosts), "by the leader's clock it is over"
    leader.clock_offset_ms = 0
    play.run(10)
    assert not any(play.has(host, b"key") for host in play.cluster.hosts), "what was shown as expired stays so"
    assert play.put(leader, b"other", b"value") is Ending.ACKED
    assert latest_stamp(leader) > before
    play.end()


def test_clocks_that_drift_hide_nothing_before_the_leaders_does() -> None:
    """The two fastest clocks are those of replicas; a read that hides too early is an alarm of the run."""
    play = play_of(drifts_ppm=(-200, 200, 190))
    for number in range(10):
        assert put_for(play, play.node(1), b"key %d" % number, 60 + 60 * number) is Ending.ACKED
    for _ in range(1_400):
        play.run(0.5)
        for host in play.cluster.hosts:
            for number in range(10):
                play.has(host, b"key %d" % number)
    assert play.cluster.hidden
    play.end()


def test_a_leader_a_day_ahead_is_told_of_and_its_stamps_never_go_back() -> None:
    play = play_of()
    leader, new = play.node(1), play.node(2)
    leader.clock_offset_ms = DAY_MS
    assert play.put(leader, b"key", b"of tomorrow") is Ending.ACKED
    play.run(5)
    for host in play.cluster.hosts:
        assert "clock_skewed" in told(host)
    assert "stamps_ahead" in told(new)
    stamps = [latest_stamp(leader)]
    leader.clock_offset_ms = 0
    assert play.put(leader, b"key", b"set right") is Ending.ACKED
    stamps.append(latest_stamp(leader))
    play.run(5)
    assert play.promote(new) is Ending.ACKED
    play.run(2)
    assert play.put(play.node(3), b"key", b"of the next leader") is Ending.ACKED
    stamps.append(latest_stamp(new))
    play.cluster.crash(new)
    new.start()
    play.run(5)
    assert play.put(play.node(3), b"key", b"of its next life") is Ending.ACKED
    stamps.append(latest_stamp(new))
    assert stamps == sorted(set(stamps))
    play.end()


def test_a_candidate_a_day_ahead_is_promoted_by_an_override_only() -> None:
    play = play_of()
    new = play.node(2)
    new.clock_offset_ms = DAY_MS
    play.run(5)
    play.cluster.crash(play.node(1))
    play.run(1)
    assert play.promote(new) is Ending.REFUSED
    assert play.put(play.node(3), b"key", b"value") is Ending.REFUSED
    assert play.promote(new, override=True) is Ending.ACKED
    play.run(1)
    assert play.put(play.node(3), b"key", b"value") is Ending.ACKED
    play.node(1).start()
    play.end()


# --- a process that stands still


def test_a_leader_that_stood_still_for_a_minute_goes_on_leading_and_lets_nothing_abandoned_surface() -> None:
    play = play_of()
    leader = play.node(1)
    assert put_for(play, leader, b"expires", 60) is Ending.ACKED
    assert play.put(leader, b"key", b"before") is Ending.ACKED
    play.run(1)
    before = play.cluster.read(play.node(3), NAMESPACE, b"key").content
    leader.pause()
    ended: list[Outcome | None] = []
    play.cluster.write(play.node(3), Put(NAMESPACE, b"key", b"abandoned"), told=ended.append)
    play.run(5)
    play.cluster.network.host_silent(leader)
    play.run(55)
    assert ended[0] is not None
    assert ended[0].ending is Ending.UNKNOWN
    leader.resume()
    play.run(5)
    assert not any(play.has(host, b"expires") for host in play.cluster.hosts)
    assert {play.cluster.read(host, NAMESPACE, b"key").content for host in play.cluster.hosts} == {before}
    assert play.put(play.node(3), b"key", b"after") is Ending.ACKED
    play.until(play.cluster.is_purged)
    play.end()


def test_a_replica_that_stood_still_for_a_minute_has_not_one_deleted_or_expired_key() -> None:
    play = play_of()
    leader, still = play.node(1), play.node(3)
    for number in range(5):
        assert play.put(leader, b"key %d" % number, b"value") is Ending.ACKED
        assert put_for(play, leader, b"short %d" % number, 60) is Ending.ACKED
    play.run(1)
    still.pause()
    for number in range(5):
        assert play.delete(leader, b"key %d" % number) is Ending.ACKED
    play.run(5)
    play.cluster.network.host_silent(still)
    play.run(57)
    assert not play.has(still, b"short 0"), "its gateways go on by what it told them last"
    assert play.has(still, b"key 0"), "it has heard of no delete"
    still.resume()
    play.end()
    assert not any(play.has(still, name % number) for name in (b"key %d", b"short %d") for number in range(5))
    play.until(play.cluster.is_purged)


def test_a_version_of_a_leader_before_the_fence_counts_as_covered() -> None:
    """Whoever waits for one that was purged long ago need not wait: a reader is told at once."""
    play = play_of()
    leader = play.node(1)
    assert play.delete(leader, b"key") is Ending.ACKED
    with leader.disk.store.read() as txn:
        (top, *_) = [version for version, _ in txn.graves()]
    play.until(play.cluster.is_purged)
    answers: list[Outcome | None] = []
    reader = play.node(3)
    reader.request(lambda request: Await(request, top, reader.now().mono_ns), answers.append)
    assert answers == [Outcome(Ending.ACKED, version=top)]
    with play.node(3).disk.store.read() as txn:
        assert txn.vector.covers(top)
        assert version_stamp(txn.vector.fence) > version_stamp(top)
    play.end()
