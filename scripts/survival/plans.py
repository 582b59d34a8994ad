"""When to kill and to cut whom: drawn before a run from its seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

DOWN_SECONDS = 2.0  # from a kill to the start again
# Shorter and longer than what a link lives without hearing of its peer, 5 s: some cuts end links, some do not.
CUT_SECONDS_MIN, CUT_SECONDS_MAX = 2.0, 8.0
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 6.0, 9.0  # from a heal to the next cut: long enough for a second that is judged
LAST_CUT_SECONDS_MIN, LAST_CUT_SECONDS_MAX = 4.0, 8.0


class PlannedCut(NamedTuple):
    """A partition to come; `until_s` None: until the load has ended and drained."""

    at_s: float
    until_s: float | None
    groups: tuple[tuple[str, ...], ...]


def plan_kills(
    names: Sequence[str], leader: str, seconds: float, every_s: float, leader_kills: int, randomness: random.Random
) -> list[tuple[float, str]]:
    """Return when to kill whom within so many seconds: random nodes, the leader at least so often."""
    count = max(0, int(seconds / every_s))
    victims = [randomness.choice(names) for _ in range(count)]
    missing = max(0, leader_kills - victims.count(leader))
    others = [index for index, name in enumerate(victims) if name != leader]
    for index in randomness.sample(others, min(missing, len(others))):
        victims[index] = leader
    return [((index + 1) * every_s, name) for index, name in enumerate(victims)]


def plan_cuts(names: Sequence[str], seconds: float, randomness: random.Random) -> list[PlannedCut]:
    """Return the partitions of a run: one after the other, the last in force when the load ends."""
    last_at_s = max(1.0, seconds - randomness.uniform(LAST_CUT_SECONDS_MIN, LAST_CUT_SECONDS_MAX))
    plan: list[PlannedCut] = []
    at_s = randomness.uniform(1.0, 4.0)
    while (until_s := at_s + randomness.uniform(CUT_SECONDS_MIN, CUT_SECONDS_MAX)) + PAUSE_SECONDS_MIN <= last_at_s:
        plan.append(PlannedCut(at_s, until_s, _split(names, randomness)))
        at_s = until_s + randomness.uniform(PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX)
    plan.append(PlannedCut(last_at_s, None, _split(names, randomness)))
    return plan


def _split(names: Sequence[str], randomness: random.Random) -> tuple[tuple[str, ...], ...]:
    """Return two groups of random nodes, now and then three."""
    shuffled = randomness.sample(names, len(names))
    count = 3 if len(names) > 3 and randomness.random() < 0.25 else 2
    marks = sorted(randomness.sample(range(1, len(names)), count - 1))
    bounds = [0, *marks, len(names)]
    return tuple(tuple(sorted(shuffled[one:other])) for one, other in pairwise(bounds))
