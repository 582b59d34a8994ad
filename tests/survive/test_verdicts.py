"""The verdicts of scripts/survive on histories written by hand: one that kept all, and one for each thing that can go wrong."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from scripts.survival.history import Cut, History, Kill, Write
from scripts.survival.plans import PAUSE_SECONDS_MIN, plan_cuts, plan_kills
from scripts.survival.verdicts import judge, sides, windows

RATE, SECONDS = 20, 10
CUT_RATE = 100


def good_history() -> History:
    """Return a run of two keys at two nodes, with n1 killed at 4.2 s, ready at 6.4 s, and refusals meanwhile."""
    history = History("n1", rate=RATE, seconds=SECONDS, leader_kills_wanted=1)
    history.kills = [Kill("n1", killed_s=4.2, ready_s=6.4)]
    for number in range(RATE * SECONDS):
        due_s = number / RATE
        write = Write(
            number, f"key/{number % 2}", f"value {number}", "n2", due_s, due_s + 0.01, "refused", "", "no_leader"
        )
        if not 4.2 <= due_s < 6.4:
            write = replace(write, outcome="acked", version=f"{number:040x}", code="")
        history.writes.append(write)
    rows = {write.key: (write.value, write.version) for write in history.writes[-2:]}
    history.standing = {"n1": dict(rows), "n2": dict(rows)}
    history.equal_after_s = 0.5
    return history


def good_history_with_a_cut() -> History:
    """Return a run of three nodes without kills, n3 cut off from 2.1 to 5.2 s: its writes fail, those through n2 go on."""
    history = History("n1", rate=CUT_RATE, seconds=20, leader_kills_wanted=0, cuts_wanted=1)
    history.cuts = [Cut((("n1", "n2"), ("n3",)), 2.0, 2.1, 5.2, 5.3)]
    for number in range(CUT_RATE * 20):
        due_s = number / CUT_RATE
        node = "n2" if number % 2 else "n3"
        write = Write(
            number, f"key/{number % 2}", f"value {number}", node, due_s, due_s + 0.01, "acked", f"{number:040x}", ""
        )
        if node == "n3" and 2.1 <= due_s < 5.2:
            write = replace(write, outcome="unknown", version="", code="504", ended_s=due_s + 5)
        history.writes.append(write)
    rows = {write.key: (write.value, write.version) for write in history.writes[-2:]}
    history.standing = {"n1": dict(rows), "n2": dict(rows), "n3": dict(rows)}
    history.equal_after_s = 0.5
    return history


def refuse_on_the_leaders_side(history: History) -> None:
    for index, write in enumerate(history.writes):
        if write.node == "n2" and 4.5 <= write.due_s < 4.6:
            history.writes[index] = replace(write, outcome="refused", version="", code="no_leader")


def refuse_long_after_the_heal(history: History) -> None:
    for index, write in enumerate(history.writes):
        if write.node == "n3" and 12 <= write.due_s < 12.2:
            history.writes[index] = replace(write, outcome="refused", version="", code="no_leader")


def cut_nothing(history: History) -> None:
    history.cuts = []


def feel_no_cut(history: History) -> None:
    for index, write in enumerate(history.writes):
        ended_s = write.due_s + 0.01
        history.writes[index] = replace(write, outcome="acked", version=f"{write.number:040x}", ended_s=ended_s)


def lose_the_last_write(history: History) -> None:
    before = history.writes[-3]
    for rows in history.standing.values():
        rows[before.key] = (before.value, before.version)


def lose_a_key_at_one_node(history: History) -> None:
    del history.standing["n2"]["key/0"]


def invent_a_value(history: History) -> None:
    for rows in history.standing.values():
        rows["key/0"] = ("never written", "f" * 40)


def move_a_value_to_another_key(history: History) -> None:
    for rows in history.standing.values():
        rows["key/0"] = (rows["key/1"][0], "f" * 40)


def show_a_refused_write(history: History) -> None:
    refused = next(write for write in history.writes if write.outcome == "refused")
    for rows in history.standing.values():
        rows[refused.key] = (refused.value, "f" * 40)


def give_a_version_the_value_of_another_write(history: History) -> None:
    for rows in history.standing.values():
        rows["key/1"] = (history.writes[1].value, rows["key/1"][1])


def acknowledge_a_version_twice(history: History) -> None:
    history.writes[0] = replace(history.writes[0], version=history.writes[1].version)


def refuse_a_tenth_of_a_second_window(history: History) -> None:
    for number in (RATE, RATE + 1):
        history.writes[number] = replace(history.writes[number], outcome="refused", version="", code="overloaded")


def never_become_equal(history: History) -> None:
    history.equal_after_s = None


def forget_to_kill_the_leader(history: History) -> None:
    history.kills = [replace(history.kills[0], node="n2")]


def read_no_node(history: History) -> None:
    history.standing = {}


def offer_next_to_nothing(history: History) -> None:
    del history.writes[RATE:]


FAULTS: list[tuple[Callable[[History], None], str]] = [
    (lose_the_last_write, "C2"),
    (lose_a_key_at_one_node, "C2"),
    (lose_a_key_at_one_node, "C1"),
    (invent_a_value, "C5"),
    (move_a_value_to_another_key, "C5"),
    (show_a_refused_write, "C5"),
    (give_a_version_the_value_of_another_write, "C5"),
    (acknowledge_a_version_twice, "C11"),
    (refuse_a_tenth_of_a_second_window, "rate"),
    (never_become_equal, "C1"),
    (forget_to_kill_the_leader, "exercised too little"),
    (read_no_node, "exercised too little"),
    (offer_next_to_nothing, "exercised too little"),
]


CUT_FAULTS: list[tuple[Callable[[History], None], str]] = [
    (refuse_on_the_leaders_side, "rate"),
    (refuse_long_after_the_heal, "rate"),
    (cut_nothing, "exercised too little"),
    (feel_no_cut, "exercised too little"),
    (lose_the_last_write, "C2"),
    (never_become_equal, "C1"),
]


@pytest.mark.parametrize("make", [good_history, good_history_with_a_cut])
def test_run_that_kept_everything_has_no_violation(make: Callable[[], History]) -> None:
    assert judge(make()) == []


@pytest.mark.parametrize(("spoil", "claim"), CUT_FAULTS)
def test_each_fault_of_a_run_with_cuts_is_found_under_its_claim(spoil: Callable[[History], None], claim: str) -> None:
    history = good_history_with_a_cut()
    spoil(history)
    assert claim in {violation.partition(":")[0] for violation in judge(history)}


def test_seconds_of_a_cut_are_judged_by_the_leaders_side_and_those_after_a_heal_not_at_once() -> None:
    history = good_history_with_a_cut()
    assert list(windows(history)) == [0, 1, *range(11, 20)]
    assert sides(history) == {4: (50, 50)}, "second 3 began less than a second after the cut, second 5 saw its end"
    history.kills = [Kill("n2", killed_s=4.9, ready_s=6.0)]
    assert sides(history) == {}
    history.kills = [Kill("n1", killed_s=4.9, ready_s=6.0)]
    assert sides(history) == {}


@pytest.mark.parametrize(("spoil", "claim"), FAULTS)
def test_each_fault_is_found_under_its_claim(spoil: Callable[[History], None], claim: str) -> None:
    history = good_history()
    spoil(history)
    assert claim in {violation.partition(":")[0] for violation in judge(history)}


def test_write_with_unknown_outcome_may_stand_or_not() -> None:
    history = good_history()
    history.writes[-2] = replace(history.writes[-2], outcome="unknown", version="", code="504")
    assert judge(history) == []
    before = history.writes[-4]
    for rows in history.standing.values():
        rows[before.key] = (before.value, before.version)
    assert judge(history) == []


def test_only_whole_seconds_with_a_ready_leader_are_windows() -> None:
    assert list(windows(good_history())) == [0, 1, 2, 3, 7, 8, 9]


def test_plan_kills_the_leader_often_enough_and_others_too() -> None:
    names = ["n1", "n2", "n3", "n4", "n5"]
    for seed in range(50):
        plan = plan_kills(names, "n1", 28, 5, 2, random.Random(seed))
        assert [at_s for at_s, _ in plan] == [5, 10, 15, 20, 25]
        assert sum(name == "n1" for _, name in plan) >= 2
    assert {name for seed in range(50) for _, name in plan_kills(names, "n1", 28, 5, 2, random.Random(seed))} == {
        *names
    }


def test_plan_cuts_every_node_off_somewhere_and_ends_with_a_cut() -> None:
    names = ["n1", "n2", "n3", "n4", "n5"]
    alone: set[str] = set()
    for seed in range(200):
        plan = plan_cuts(names, 60, random.Random(seed))
        assert len(plan) >= 3
        assert plan[-1].until_s is None
        assert 52 <= plan[-1].at_s <= 56
        for cut in plan:
            assert sorted(name for group in cut.groups for name in group) == names
            assert len(cut.groups) in {2, 3}
            alone |= {group[0] for group in cut.groups if len(group) == 1}
        for cut, following in pairwise(plan):
            assert cut.until_s is not None
            assert cut.at_s < cut.until_s <= following.at_s - PAUSE_SECONDS_MIN
    assert alone == {*names}
    assert [cut.until_s for cut in plan_cuts(["n1", "n2"], 5, random.Random(1))] == [None]
