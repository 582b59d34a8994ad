"""The model of purging holds with the rules as they are, and each rule that is let go of lets some play fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvp2p.core import serve as serving
from kvp2p.core.messages import Frame
from kvp2p.core.operations import Delete, Put
from kvp2p.core.purge import Obstacle
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer
from kvp2p.sim.planted_purge import HANDLINGS, Handling
from tests.core.harness import value_at
from tests.core.purge_model import Broken, Model, Node
from tests.core.purge_plays import PART_BYTES, run

FAILING = {  # the first seed whose play fails without the rule
    "covered entry joined again": 3,
    "fence over open issuers": 3,
    "dropped issuer read as none": 2,
    "unapplied purge passed": 24,
    "floor left by a walk": 12,
    "vector of a walk's end": 13,
    "log by row stamps": 11,
    "purge before the floor": 24,
}
OBSTRUCTED = (24, 25, 27)  # plays with Purges that could not be applied when they came


# --- plays by hand, of what chance comes upon too seldom


def put(number: int) -> tuple[Put]:
    return (Put(SYSTEM_NAMESPACE, b"k%d" % number, b"v"),)


def delete(number: int) -> tuple[Delete]:
    return (Delete(SYSTEM_NAMESPACE, b"k%d" % number),)


def issuer_of(node: Node) -> Issuer:
    assert node.issuer is not None
    return node.issuer


def pull(model: Model, node: Node, other: Node, leader: Node) -> list[Frame]:
    return model.pull(node, other, issuer_of(leader), leader.designation.term)[0]


def follow(model: Model, node: Node, leader: Node) -> list[Obstacle]:
    """Pull the leader's log from it and apply it."""
    return [model.take(node, frame) for frame in pull(model, node, leader, leader)]


def purge(model: Model, leader: Node) -> None:
    model.mono_ms += 100
    before = model.purged
    model.tend(leader)
    assert model.purged == before + 1


def play_a_row_that_a_walk_removed(model: Model) -> None:
    """C has the position of a put, and a walk that was given up has removed its row; b asks c for it."""
    a, b, c = model.nodes.values()
    model.write(a, put(1))
    follow(model, b, a)
    for number in range(2, 8):
        model.write(a, put(number))
    follow(model, c, a)
    model.write(a, delete(2))
    purge(model, a)
    while value_at(c.store, b"k2") is not None:
        model.step_of_walk(c, a)
    assert c.walk is not None
    c.walk = None
    for frame in pull(model, b, c, a):
        model.take(b, frame)
    model.heal()


def hold_foreign(model: Model) -> tuple[Node, Node, Node]:
    """Let b hold a version of c, which an operator made a leader, and of which the leader of that term has not heard when it purges."""
    a, b, c = model.nodes.values()
    model.promote(c)
    model.write(c, put(3))
    model.mono_ms += 100
    model.promote(a)
    model.write(a, (*put(1), *put(2)))
    for frame in pull(model, b, c, c):
        model.take(b, frame)
    model.write(a, delete(2))
    follow(model, b, a)
    purge(model, a)
    return a, b, c


def play_a_foreign_version_below_the_fence(model: Model) -> None:
    a, b, _ = hold_foreign(model)
    assert Obstacle.FOREIGN in follow(model, b, a) or model.handling is not PLAIN
    model.heal()


def play_a_walk_that_is_given_up_over_a_foreign_version(model: Model) -> None:
    a, b, _ = hold_foreign(model)
    model.step_of_walk(b, a)
    model.step_of_walk(b, a)
    assert b.walk is not None
    b.walk = None
    follow(model, b, a)
    model.heal()


PLAIN = Handling()
PLAYS: dict[str, Callable[[Model], None]] = {
    "frame over a gone row": play_a_row_that_a_walk_removed,
    "purge over foreign versions": play_a_foreign_version_below_the_fence,
    "fence of a walk that was given up": play_a_walk_that_is_given_up_over_a_foreign_version,
}


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "FRAME_BYTES_MAX", PART_BYTES)


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("name", PLAYS)
def test_a_play_by_hand_holds_with_the_rule_and_fails_without_it(name: str) -> None:
    PLAYS[name](Model(1, PLAIN, candidates="a"))
    with pytest.raises(Broken):
        PLAYS[name](Model(1, HANDLINGS[name], candidates="a"))


# --- plays by chance


@pytest.mark.parametrize("seeds", [range(20), range(20, 40), range(40, 60)], ids=str)
def test_stores_keep_to_the_ledger_whatever_comes_late_twice_or_never(seeds: range) -> None:
    models = [run(seed) for seed in seeds]
    assert sum(model.purged for model in models) > len(seeds), "something was purged"
    assert sum(model.walks for model in models) > len(seeds), "and walked"


def test_the_plays_meet_purges_that_cannot_be_applied_yet() -> None:
    assert sum(run(seed).obstacles for seed in OBSTRUCTED) >= len(OBSTRUCTED)


@pytest.mark.parametrize("name", FAILING)
def test_a_play_fails_without_the_rule(name: str) -> None:
    run(FAILING[name])
    with pytest.raises(Broken):
        run(FAILING[name], HANDLINGS[name])


def test_every_rule_is_shown_by_some_play() -> None:
    assert {*FAILING, *PLAYS} == set(HANDLINGS)
