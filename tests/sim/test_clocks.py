"""Clocks of the simulator: drift that timers keep to, and what all leaders have shown."""

import pytest

from kvp2p.ids import Now
from kvp2p.sim.clocks import LeadersClocks, Oscillator
from kvp2p.sim.cluster import Cluster, ClusterPlan
from kvp2p.sim.host import EPOCH_MS
from kvp2p.sim.schedule import MS, SECOND
from kvp2p.sim.seeds import Seeds

HOUR_NS = 3_600 * SECOND


@pytest.mark.parametrize("drift_ppm", [-200, -1, 0, 1, 200])
def test_what_an_oscillator_has_counted_is_reached_at_its_time_and_not_before(drift_ppm: int) -> None:
    oscillator = Oscillator(drift_ppm)
    assert oscillator.own_ns(HOUR_NS) - HOUR_NS == 3_600_000 * drift_ppm
    for own_ns in (0, 1, 999, MS, 7 * SECOND + 3, HOUR_NS, -HOUR_NS):
        true_ns = oscillator.true_ns(own_ns)
        assert oscillator.own_ns(true_ns) >= own_ns > oscillator.own_ns(true_ns - 1)


def test_both_clocks_of_a_host_drift_and_its_timers_with_them() -> None:
    plan = ClusterPlan(nodes=2, drifts_ppm=(200, -200))
    cluster = Cluster(Seeds(1), plan)
    cluster.start()
    before = [host.now() for host in cluster.hosts]
    assert [now.wall_ms for now in before] == [EPOCH_MS, EPOCH_MS]
    cluster.run_for(100)
    after = [host.now() for host in cluster.hosts]

    def passed(first: Now, last: Now) -> tuple[int, int]:
        return (last.mono_ns - first.mono_ns) // MS, last.wall_ms - first.wall_ms

    assert [passed(*both) for both in zip(before, after, strict=True)] == [(100_020, 100_020), (99_980, 99_980)]
    assert cluster.are_equal(cluster.hosts)


def test_the_latest_of_all_leaders_clocks_goes_on_from_what_each_has_shown() -> None:
    clocks = LeadersClocks()
    assert clocks.latest_ms(5 * SECOND) == 0
    clocks.note("n1", 1, Oscillator(200), 10_000, 0)
    clocks.note("n2", 1, Oscillator(), 10_005, 0)
    assert clocks.latest_ms(0) == 10_006
    assert clocks.latest_ms(100 * SECOND) == 110_021, "the first one is fast"
    clocks.note("n1", 1, Oscillator(200), 10_000, 100 * SECOND)
    assert clocks.latest_ms(100 * SECOND) == 110_006, "what a node has shown last counts"
