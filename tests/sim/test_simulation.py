"""Two hundred fixed seeds, the planted bugs that grade them, and the harness itself."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from kvp2p.core.board import Board
from kvp2p.core.events import Effect, Event
from kvp2p.ids import Now
from kvp2p.sim import simulation as simulation_module
from kvp2p.sim.faults import KINDS, FaultPlan
from kvp2p.sim.history import from_line, to_line
from kvp2p.sim.host import Host, Machine
from kvp2p.sim.planted import PLANTED
from kvp2p.sim.planted_purge import FOUND_BY_SCENARIOS, PURGE_BUGS
from kvp2p.sim.seeds import Seeds
from kvp2p.sim.simulation import ACKED_MIN, Report, Simulation, draw_plan
from kvp2p.store.check import Damage, StoreCheck

SEEDS = range(200)
QUICK_SEEDS = SEEDS[:10]
PURGE_BUG_SEEDS = {  # the first seed that found each: where to begin, to save time
    "covered entry joined again": 4,
    "dropped issuer read as none": 0,
    "expiry by the own clock": 11,
    "expiry told too late": 1,
    "floor left by a walk": 3,
    "log by row stamps": 12,
    "unapplied purge passed": 20,
    "vector of a walk's end": 18,
}


def tell(report: Report) -> str:
    """Return what a failure has to say: the seed, the violated claims, and how it came to that."""
    violations = "\n".join(map(str, report.violations))
    events = "\n".join(report.lines[-80:])
    return f"seed {report.seed}\n{violations}\n{events}\nreproduce: scripts/simulate --seed {report.seed} --trace"


def run_and_scrub(seed: int) -> tuple[Report, dict[str, list[Damage]]]:
    """Run a seed; return its report, and what a scrub would say of each disk [I4]."""
    simulation = Simulation(seed)
    report = replace(simulation.run(), history=())
    damage = {}
    for host in simulation.cluster.hosts:
        with host.disk.store.read() as reader:
            damage[host.name] = StoreCheck().go_on(reader).damage
    return report, damage


def judge(report: Report, damage: dict[str, list[Damage]]) -> None:
    assert report.is_good, tell(report)
    # A run that exercised nothing is a violation by itself; said once more, where a reader looks for it.
    assert report.acked >= ACKED_MIN
    assert all(report.fired.values())
    assert not any(damage.values()), damage


@pytest.mark.parametrize("seed", QUICK_SEEDS)
def test_cluster_keeps_its_claims_under_the_faults_of_a_seed(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    report, damage = run_and_scrub(seed)
    record_property("simulated", (report.virtual_s, report.real_s))
    judge(report, damage)


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[int, Future[tuple[Report, dict[str, list[Damage]]]]]]:
    """Give the runs of the other seeds, all begun: they share the cores, in processes of their own."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield {seed: pool.submit(run_and_scrub, seed) for seed in SEEDS if seed not in QUICK_SEEDS}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS[len(QUICK_SEEDS) :])
def test_cluster_keeps_its_claims_under_the_faults_of_each_other_seed(
    seed: int,
    runs: dict[int, Future[tuple[Report, dict[str, list[Damage]]]]],
    record_property: Callable[[str, object], None],
) -> None:
    report, damage = runs[seed].result()
    record_property("simulated", (report.virtual_s, report.real_s))
    judge(report, damage)


def test_the_seeds_show_every_fault_and_every_kind_of_cluster() -> None:
    plans = [draw_plan(Seeds(seed)) for seed in SEEDS]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(KINDS)
    assert {plan.cluster.nodes for plan in plans} == {3, 4, 5}
    assert {plan.cluster.network.is_encoded for plan in plans} == {True, False}
    assert min(plan.cluster.candidates for plan in plans) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANTED))
def test_planted_bug_is_found_by_some_seed(name: str, record_property: Callable[[str, object], None]) -> None:
    for seed in SEEDS:
        report = Simulation(seed, host_type=PLANTED[name]).run()
        if not report.is_good:
            record_property("planted bug", f"{name}: found after {seed + 1} seeds, by {report.violations[0].claim}")
            return
    pytest.fail(f"no seed finds {name}: the simulator has a hole")


def test_each_bug_of_purging_has_a_seed_or_a_scenario() -> None:
    assert set(PURGE_BUG_SEEDS) == set(PURGE_BUGS) - FOUND_BY_SCENARIOS


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PURGE_BUG_SEEDS))
def test_planted_bug_of_purging_is_found_by_some_seed(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    for seed in (PURGE_BUG_SEEDS[name], *SEEDS[:50]):
        report = Simulation(seed, host_type=PURGE_BUGS[name]).run()
        if not report.is_good:
            record_property("planted bug", f"{name}: found by seed {seed}, by {report.violations[0].claim}")
            return
    pytest.fail(f"no seed of 50 finds {name}: the simulator has a hole")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_under_another_hash_seed() -> None:
    program = "from kvp2p.sim.simulation import Simulation; import sys; print(Simulation(int(sys.argv[1])).run().trace_digest)"
    for seed in (1, 13):
        here = Simulation(seed).run().trace_digest
        assert here == Simulation(seed).run().trace_digest
        for hash_seed in ("1", "4294967295"):
            there = subprocess.run(
                [sys.executable, "-c", program, str(seed)],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            assert there.stdout.strip() == here


def test_different_seeds_give_different_runs() -> None:
    assert Simulation(2).run().trace_digest != Simulation(8).run().trace_digest


def test_a_new_fault_does_not_reshuffle_what_is_there() -> None:
    plan = draw_plan(Seeds(2))
    more = replace(plan, faults=(*plan.faults, FaultPlan("clock", 1_000.0)))
    without, with_clock = Simulation(2, plan=plan), Simulation(2, plan=more)
    for simulation in (without, with_clock):
        simulation.cluster.start()
        simulation.workload.start()
        simulation.nemesis.start()
        simulation.cluster.run_for(20)
    assert without.cluster.trace.digest() == with_clock.cluster.trace.digest()


def test_a_run_with_too_few_acknowledged_writes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_module, "SAFETY_S_MAX", 10.0)
    plan = draw_plan(Seeds(2))
    lazy = replace(plan, workload=replace(plan.workload, think_ms=60_000.0), faults=(), safety_s=5.0)
    report = Simulation(2, plan=lazy).run()
    assert [violation.claim for violation in report.violations] == ["harness"]
    assert f"at least {ACKED_MIN}" in str(report.violations[0])


def test_a_run_whose_fault_never_fired_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_module, "SAFETY_S_MAX", 10.0)
    monkeypatch.setattr(simulation_module, "ACKED_MIN", 1)
    plan = replace(draw_plan(Seeds(2)), faults=(FaultPlan("cut", 1_000.0),), safety_s=5.0)
    report = Simulation(2, plan=plan).run()
    assert [str(violation) for violation in report.violations] == [
        "harness: the fault cut was switched on and never fired"
    ]


class _Failing:
    """A machine that fails when its time has come."""

    def __init__(self, machine: Machine, *, in_check: bool) -> None:
        self._machine = machine
        self._in_check = in_check

    def handle(self, event: Event, now: Now) -> list[Effect]:
        if not self._in_check:
            raise KeyError("a bug of ours")
        return self._machine.handle(event, now)

    @property
    def board(self) -> Board:
        return self._machine.board

    def check(self) -> None:
        if self._in_check:
            raise AssertionError("an invariant does not hold")


class RaisingHost(Host):
    def make_machine(self) -> Machine:
        return _Failing(super().make_machine(), in_check=False)


class UnsoundHost(Host):
    def make_machine(self) -> Machine:
        return _Failing(super().make_machine(), in_check=True)


@pytest.mark.parametrize(
    ("host_type", "text"), [(RaisingHost, "a bug of ours"), (UnsoundHost, "an invariant does not hold")]
)
def test_a_machine_that_fails_is_a_violation_with_its_trace(host_type: type[Host], text: str) -> None:
    report = Simulation(2, host_type=host_type).run()
    assert [violation.claim for violation in report.violations] == ["machine"]
    assert text in str(report.violations[0])
    assert report.lines, "the last events are there"


def test_a_history_is_the_same_after_being_written_and_read() -> None:
    report = Simulation(2).run()
    assert len(report.history) > 2 * ACKED_MIN
    assert tuple(from_line(to_line(record)) for record in report.history) == report.history
