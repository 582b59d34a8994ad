"""Deadlines told by another clock: early by what a ping took, never late."""

import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.net.clock import PeerClock, read_clocks

SECOND_NS = 1_000_000_000
PEER_AHEAD_NS = 1 << 50


class Machine:
    """Our machine on a clock that the test turns: real time, and what our clocks missed of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real_ns = 1_000 * SECOND_NS
        self.asleep_ns = 0  # CLOCK_MONOTONIC missed it
        self.stopped_ns = 0  # all clocks missed it
        self.fast_ppm = 0
        self.clock = PeerClock()
        monkeypatch.setattr(time, "monotonic_ns", self.monotonic_ns)
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _: self.monotonic_ns() + self.asleep_ns)

    def monotonic_ns(self) -> int:
        own_ns = self.real_ns - self.asleep_ns - self.stopped_ns
        return own_ns + own_ns * self.fast_ppm // 1_000_000

    def peer_ns(self) -> int:
        return self.real_ns + PEER_AHEAD_NS

    def ping(self, there_ms: int = 1, back_ms: int = 1, asleep_ms: int = 0) -> None:
        asked = read_clocks()
        self.real_ns += there_ms * 1_000_000
        answered_ns = self.peer_ns()
        self.real_ns += (back_ms + asleep_ms) * 1_000_000
        self.asleep_ns += asleep_ms * 1_000_000
        self.clock.learn(asked, answered_ns)

    def early_ms(self) -> float:
        """Return how early a deadline of now comes out: negative would be late."""
        return (self.monotonic_ns() - self.clock.to_ours(self.peer_ns())) / 1_000_000


def test_nothing_is_told_before_the_first_answer() -> None:
    with pytest.raises(AssertionError, match="first Pong"):
        PeerClock().to_ours(1)


def test_a_deadline_is_early_by_what_the_best_ping_took(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.ping(30, 0)
    assert machine.early_ms() == pytest.approx(30 + 30 / 5, abs=0.1)
    machine.ping(2, 40)
    assert machine.early_ms() == pytest.approx(2 + 42 / 5, abs=0.1)
    machine.ping(90, 0)
    assert machine.early_ms() == pytest.approx(2 + 132 / 5, abs=0.1), "a slow answer does not replace a better one"


def test_a_bound_falls_with_its_age_until_it_is_learnt_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.ping(2)
    machine.real_ns += 10 * SECOND_NS
    assert machine.early_ms() == pytest.approx(2_000, abs=5), "a fifth of it"
    machine.ping(2)
    assert machine.early_ms() == pytest.approx(2, abs=1)


def test_a_clock_that_stood_still_while_the_machine_slept_makes_nothing_late(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.ping(2)
    machine.real_ns += 3_600 * SECOND_NS
    machine.asleep_ns += 3_600 * SECOND_NS
    assert machine.early_ms() >= 2
    machine.ping(2)
    assert machine.early_ms() == pytest.approx(2, abs=1)


def test_a_machine_that_stopped_with_all_its_clocks_is_found_out_by_the_next_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    machine.ping(2)
    machine.real_ns += 60 * SECOND_NS
    machine.stopped_ns += 60 * SECOND_NS
    assert machine.early_ms() < 0, "nothing here could show it"
    machine.ping(2)
    assert machine.early_ms() == pytest.approx(2, abs=1)


@given(st.integers(0, 1 << 32), st.sampled_from([-160_000, -83_000, -500, 0, 500, 160_000]))
def test_no_deadline_is_ever_late(seed: int, fast_ppm: int) -> None:
    random = Random(seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Machine(monkeypatch)
        machine.fast_ppm = fast_ppm
        machine.ping(random.randrange(1_000))
        for _ in range(30):
            passed_ns = random.randrange(3 * SECOND_NS)
            machine.real_ns += passed_ns
            machine.asleep_ns += passed_ns if random.random() < 0.2 else 0
            assert machine.early_ms() > -0.001
            machine.ping(random.randrange(300), random.randrange(300), random.choice([0, 0, 900]))
            assert machine.early_ms() > -0.001
