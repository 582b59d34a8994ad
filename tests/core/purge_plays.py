"""Plays of chance on the model of purging: messages that are late, lost, repeated and out of order, cuts, walks that are given up, promotions.

A seed is the whole play. Each draws its own weights, so that in some nobody walks and in others hardly anybody does anything else.
"""

from __future__ import annotations

import pytest

from kvp2p.core import serve as serving
from kvp2p.core.operations import Delete, Operation, Put
from kvp2p.ids import SYSTEM_NAMESPACE
from kvp2p.sim.planted_purge import Handling
from tests.core.harness import node_id
from tests.core.purge_model import KEYS, NAMES, Model, Node

PAIRS = (("a", "b"), ("a", "c"), ("b", "c"))
PART_BYTES = 400  # a row or two: walks have many parts
WEIGHTS: dict[str, tuple[float, ...]] = {  # of what is done next; a play draws one of each
    "write": (10, 20),
    "arrive": (5, 20),
    "hear": (5, 10),
    "exchange": (6, 16),
    "ask": (3, 10),
    "walk": (2, 10, 30),
    "tend": (10, 20),
    "promote": (0, 2, 5),
    "restart": (0, 2),
}


class Play(Model):
    """One play. Every step ends with a look at the stores that it touched."""

    def __init__(self, seed: int, handling: Handling | None = None) -> None:
        super().__init__(seed, handling)
        self.weights = {act: self.random.choice(weights) for act, weights in WEIGHTS.items()}

    def play(self, steps: int) -> None:
        """Let chance decide, then mend everything."""
        if self.candidates == "a":
            self.leave_behind()
        for _ in range(steps):
            self.step()
        self.heal()

    def leave_behind(self) -> None:
        """Begin with two ordinary replicas that were away, one longer than the other, while the leader wrote, deleted and purged."""
        weights = self.weights
        for cut, acts in (
            ((), ("write", "exchange", "arrive")),
            ((("a", "b"), ("b", "c")), ("write", "exchange", "arrive")),
            ((("a", "b"), ("a", "c")), ("write", "write", "tend")),
        ):
            self.weights = dict.fromkeys(acts, 1.0)
            for _ in range(15):
                self.cut = cut
                self.step()
        self.weights, self.cut = weights, (("a", "b"),)

    def step(self) -> None:
        random = self.random
        node, other = self.pair()
        self.mono_ms += random.choice((1, 10, 10, 50_000))
        if random.random() < 0.08:
            self.cut = tuple(pair for pair in PAIRS if random.random() < 0.4)
        is_linked = self.is_linked(node, other)
        (act,) = random.choices(tuple(self.weights), tuple(self.weights.values()))
        if act == "write":
            leaders = [one for one in self.nodes.values() if one.issuer is not None]
            if leaders:
                self.write(random.choice(leaders), (self.operation(),))
        elif act == "arrive":
            self.arrive()
        elif act == "tend":
            self.tend(node)
        elif act == "walk":
            self.go_on_walking(node, other)
        elif act == "promote":
            if node.name in self.candidates or random.random() < 0.3:
                self.promote(node)
        elif act == "restart":
            if node.designation.node == node_id(node.name):
                node.walk = None
                self.lead(node)
        elif is_linked:
            self.hear(node, other)
            if act == "ask":
                self.ask(node, other)
            elif act == "exchange" and node.walk is None:
                self.hear(other, node)
                self.catch_up(node, other, may_walk=False)

    def pair(self) -> tuple[Node, Node]:
        """Return who acts, and towards whom: often a node whose walk has not ended yet, the least like any other."""
        node, other, third = (self.nodes[name] for name in self.random.sample(NAMES, 3))
        is_odd = third.has_above and self.random.random() < 0.6
        return node, third if is_odd else other

    def go_on_walking(self, node: Node, other: Node) -> None:
        walk = node.walk
        if walk is None:
            if not self.is_linked(node, other) or self.random.random() < 0.6:
                return
        elif not self.is_linked(node, self.nodes[walk.peer]) or self.random.random() < 0.2:
            node.walk = None  # the peer went away
            return
        for _ in range(self.random.choice((2, 3, 4, 40))):
            self.step_of_walk(node, other)
            if node.walk is None:
                break

    def operation(self) -> Operation:
        key = self.random.choice(KEYS)
        kind = self.random.random()
        if kind < 0.4:
            return Delete(SYSTEM_NAMESPACE, key)
        return Put(SYSTEM_NAMESPACE, key, b"v", expires_in=60 if kind > 0.8 else 0)


def run(seed: int, handling: Handling | None = None, steps: int = 120) -> Play:
    """Play once, with parts of walks that hold a row or two; raises Broken, or an assertion of the core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "FRAME_BYTES_MAX", PART_BYTES)
        play = Play(seed, handling)
        play.play(steps)
    return play
