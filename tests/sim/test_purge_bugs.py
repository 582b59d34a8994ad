"""Planted bugs of purging that no seed of 50 meets: for each an order of events, by hand, that lets a user see what the rule is for.

Every scenario is played twice: by nodes that keep the rule, and by nodes that let go of it. What it needs on its way is asserted for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kvp2p.core import serve as serving
from kvp2p.core.operations import Ending, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.ids import Version
from kvp2p.sim.host import Host
from kvp2p.sim.planted_purge import FOUND_BY_SCENARIOS, PURGE_BUGS
from tests.sim.plays import NAMESPACE, Play

SETTINGS = ReplicaSettings(
    purge_interval_ms=100,
    purge_after_ms=3_000,
    pull_timeout_ms=60_000,  # a peer that stands still is waited for
)
PART_BYTES = 400  # a row or two: walks have many parts


def put(play: Play, host: Host, *keys: bytes) -> None:
    for key in keys:
        assert play.put(host, key, b"value of " + key) is Ending.ACKED


def fence(host: Host) -> Version:
    with host.disk.store.read() as txn:
        return txn.vector.fence


def is_walking(host: Host) -> bool:
    """Tell whether parts of a walk are stored, and not its end."""
    with host.disk.store.read() as txn:
        return not txn.above.is_empty


def purge(play: Play, leader: Host, key: bytes) -> None:
    """Let the leader remove the tombstone of a key."""
    play.until(lambda: not play.stores(leader, key))


# --- the scenarios


def a_leader_that_was_cut_off_acknowledges_a_write(play: Play) -> None:
    """n3, made a leader by an operator's override, adds to its log below where the next leader's fence would be by its own log alone."""
    n1, n2, n3 = play.cluster.hosts
    put(play, n1, b"gone")
    assert play.delete(n1, b"gone") is Ending.ACKED
    assert play.promote(n3, override=True) is Ending.ACKED
    play.run(1)
    play.group([n1, n2], [n3])
    assert play.promote(n2) is Ending.ACKED
    put(play, n3, b"kept")
    purge(play, n2, b"gone")


def a_purge_overtakes_what_is_under_its_floor(play: Play) -> None:
    """n3 waits for the old leader's log from n4, which stands still, while the new leader tells it of a Purge."""
    n1, n2, n3, n4 = play.cluster.hosts
    put(play, n1, b"gone")
    play.run(1)
    play.group([n1, n2, n4])
    put(play, n1, b"kept")
    play.until(lambda: play.has(n4, b"kept"))
    play.run(6)  # until n3's links have ended
    play.group([n1, n2, n4], [n3, n4])
    play.until(lambda: play.are_linked(n3, n4))
    n4.pause()
    play.group(play.cluster.hosts)
    play.until(lambda: play.are_linked(n3, n1) and play.are_linked(n3, n2))
    assert play.promote(n2) is Ending.ACKED
    assert play.delete(n2, b"gone") is Ending.ACKED
    play.until(lambda: not play.has(n3, b"gone"))
    purge(play, n2, b"gone")
    play.run(1)
    assert not play.has(n3, b"kept")
    n4.resume()


def a_log_has_the_position_of_a_row_that_a_walk_removed(play: Play) -> None:
    """n4 has the tombstone of a key in its log and a walk, given up, has removed it; n3, which has the key, asks n4 for the log.

    n5 has what follows on it, and nothing of the Purge: so n3 needs no walk, which would make it right.
    """
    n1, n2, n3, n4, n5 = play.cluster.hosts
    put(play, n1, b"a gone", *(b"filler %d" % number for number in range(10)))
    play.run(1)
    play.group([n1, n2, n4, n5], [n3])
    assert play.delete(n1, b"a gone") is Ending.ACKED
    put(play, n1, b"second")
    play.run(0.1)
    play.group([n1, n2, n5], [n3], [n4])
    put(play, n1, b"third")
    play.run(0.1)
    play.group([n1, n2], [n3], [n4], [n5])
    purge(play, n1, b"a gone")
    play.run(6)  # until all links that were cut have ended
    play.group([n1, n2, n4], [n3], [n5])
    play.until(lambda: not play.stores(n4, b"a gone"))
    play.group([n1, n2], [n3, n4], [n5])
    play.cluster.crash(n4)
    n4.start()
    assert is_walking(n4)
    assert play.has(n3, b"a gone")
    play.until(lambda: play.has(n3, b"second"))
    play.group([n1, n2], [n4], [n3, n5])
    play.until(lambda: play.has(n3, b"third"))


def hold_foreign(play: Play) -> None:
    """Let n3 hold a row of a leader of which the leader that purges has never heard; it gets the Purge, and tells that one nothing.

    n4 was made a leader by an operator's override, while it was cut off, and died before it told anybody of the write.
    """
    n1, n2, n3, n4 = play.cluster.hosts
    put(play, n1, b"gone")
    play.group([n1, n2, n3], [n4])
    assert play.promote(n4, override=True) is Ending.ACKED
    play.cluster.write(n4, Put(NAMESPACE, b"foreign", b"value"))
    play.cluster.crash(n4, share_kept=1)
    assert play.has(n4, b"foreign")
    n4.start()
    play.run(6)  # until its links have ended
    for host in (n2, n1):  # twice: n1's term is above n4's
        assert play.promote(host) is Ending.ACKED
        play.run(1)
    assert play.delete(n1, b"gone") is Ending.ACKED
    play.run(0.1)
    with play.cluster.network.cut_during([(n3.node, n1.node), (n3.node, n2.node)]):
        play.group([n1, n2, n3], [n3, n4])
        play.until(lambda: play.has(n3, b"foreign"))
        assert play.stores(n1, b"gone")
        purge(play, n1, b"gone")
        play.run(0.1)
        assert play.are_linked(n3, n1)


def a_replica_holds_a_row_below_the_fence_that_the_leader_never_had(play: Play) -> None:
    """n3 holds it when it gets the Purge."""
    hold_foreign(play)


def such_a_replica_gives_up_a_walk_before_the_purge(play: Play) -> None:
    """n3 holds it, stores parts of a walk, crashes, and gets the Purge again."""
    hold_foreign(play)
    n1, n2, n3, n4 = play.cluster.hosts
    assert play.has(n3, b"foreign")
    play.group([n1, n2, n3], [n4])
    play.until(lambda: is_walking(n3))
    play.cluster.crash(n3)
    n3.start()
    assert is_walking(n3)
    assert play.has(n3, b"foreign")
    play.until(lambda: fence(n3) == fence(n1))


@dataclass(frozen=True, slots=True)
class Scenario:
    nodes: int
    play: Callable[[Play], None]
    claim: str  # the one of which a user sees the most


SCENARIOS = {
    "fence over open issuers": Scenario(3, a_leader_that_was_cut_off_acknowledges_a_write, "C2"),
    "frame over a gone row": Scenario(5, a_log_has_the_position_of_a_row_that_a_walk_removed, "C3"),
    "purge before the floor": Scenario(4, a_purge_overtakes_what_is_under_its_floor, "C2"),
    "purge over foreign versions": Scenario(4, a_replica_holds_a_row_below_the_fence_that_the_leader_never_had, "C1"),
    "fence of a walk that was given up": Scenario(4, such_a_replica_gives_up_a_walk_before_the_purge, "C1"),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_holds_with_the_rule_and_shows_what_it_is_for_without(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "FRAME_BYTES_MAX", PART_BYTES)
    scenario = SCENARIOS[name]
    verdicts = []
    for host_type in (Host, PURGE_BUGS[name]):
        play = Play(scenario.nodes, settings=SETTINGS, host_type=host_type)
        scenario.play(play)
        verdicts.append({violation.claim for violation in play.verdict()})
    kept, let_go = verdicts
    assert kept == set()
    assert scenario.claim in let_go


def test_there_is_a_scenario_for_each_bug_that_is_said_to_have_one() -> None:
    assert set(SCENARIOS) == FOUND_BY_SCENARIOS
