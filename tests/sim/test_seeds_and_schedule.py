"""The tree of generators and the event heap."""

import pytest

from kvp2p.sim import schedule as schedule_module
from kvp2p.sim.schedule import SECOND, EndlessRun, Schedule
from kvp2p.sim.seeds import Seeds


def test_a_generator_depends_on_its_path_alone() -> None:
    first = Seeds(7).child("faults").random("crash")
    other = Seeds(7)
    other.random("network").random()  # what others draw does not matter
    assert first.random() == other.child("faults").random("crash").random()


def test_generators_of_different_paths_or_seeds_differ() -> None:
    draws = [
        Seeds(7).random("a").random(),
        Seeds(7).random("b").random(),
        Seeds(7).child("a").random("b").random(),
        Seeds(8).random("a").random(),
    ]
    assert len(set(draws)) == len(draws)


def test_generators_are_the_same_on_every_machine() -> None:
    assert Seeds(1).child("node 0").random("disk").getrandbits(32) == 3578275012


def test_actions_run_in_order_of_time_and_then_of_scheduling() -> None:
    schedule = Schedule()
    ran: list[str] = []
    schedule.at(5, lambda: ran.append("late"))
    schedule.at(3, lambda: ran.append("first of two"))
    schedule.at(3, lambda: ran.append("second of two"))
    assert not schedule.run_until(4)
    assert (ran, schedule.now_ns) == (["first of two", "second of two"], 4)
    schedule.run_until(10)
    assert ran[-1] == "late"


def test_an_action_in_the_past_runs_now_and_not_inside_the_running_one() -> None:
    schedule = Schedule()
    ran: list[tuple[str, int]] = []

    def outer() -> None:
        schedule.at(1, lambda: ran.append(("inner", schedule.now_ns)))
        ran.append(("outer", schedule.now_ns))

    schedule.at(5, outer)
    schedule.run_until(5)
    assert ran == [("outer", 5), ("inner", 5)]


def test_a_run_stops_as_soon_as_it_is_over() -> None:
    schedule = Schedule()
    ran: list[int] = []
    for at_ns in (1, 2, 3):
        schedule.at(at_ns, lambda: ran.append(schedule.now_ns))
    assert schedule.run_until(SECOND, lambda: len(ran) == 2)
    assert (ran, schedule.now_ns) == ([1, 2], 2)


def test_machines_that_keep_each_other_busy_for_nothing_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "EVENTS_MAX", 100)
    schedule = Schedule()

    def again() -> None:
        schedule.after(0, again)

    again()
    with pytest.raises(EndlessRun, match="100 events"):
        schedule.run_until(1)
