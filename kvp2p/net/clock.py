"""What the clock of a peer says, told by this node's own clock: late deadlines are the peril, early ones cost a write.

Decides: how a reading of a peer's CLOCK_MONOTONIC becomes one of ours.
Keeps true: I10. A deadline that a peer has set is never taken for a later moment than the peer itself takes it for, so the leader
does not apply a write whose sender has told its client *unknown*.
In and out: readings in nanoseconds; no I/O but the clocks.

The bound. We ask (Ping) at our reading r0, the peer answers (Pong) with its reading s1 and we hear it at r1. Whatever waited wherever, at the moment of s1
our clock stood between r0 and r1:

    r0 − s1  <=  ours − theirs  <=  r1 − s1

The greatest r0 − s1 of all pings is the best lower bound. theirs + bound <= ours, so a deadline translated by it is early by the time that the best ping took, never late.

What could make it late, and what is done about it:

* The clocks run at different rates. Quartz does by 0.01 %, but a clock that is being corrected is slewed, by ntpd at 0.05 %, by chronyd at up to 8.3 % (its maxslewrate). Two that
  are slewed against each other part by 18 % of the time at most, so the bound falls by a fifth of its age. With a ping each second that makes deadlines early by up to
  0.2 s more, of 5 s.
* Our machine was suspended, and CLOCK_MONOTONIC stood still meanwhile: ours − theirs has fallen by that. CLOCK_BOOTTIME went on, and the difference of the two is
  taken off the bound at each translation, so also for what waited in the kernel's buffers during the sleep.
* Our virtual machine was stopped with all its clocks: nothing here shows it before the next Pong. There the upper bound lies under the lower, and the old bound is dropped. Until then,
  a second at most, a deadline may be late by the time the machine stood still. (Such a leader has also been silent to its peers; over 5 s of it they end the link.)

If the *peer* stood still, its clock is behind what we believe: its deadlines come early. A process that is stopped (SIGSTOP) keeps its clocks running: nothing changes.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

_CLOCK_WITH_SLEEP: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_DRIFT_DIVISOR: Final = 5  # two clocks part by at most a fifth of the time: see above


class Reading(NamedTuple):
    """Our clocks at a moment: CLOCK_MONOTONIC, and what it has missed while the machine slept."""

    mono_ns: int
    slept_ns: int


def read_clocks() -> Reading:
    """Read our clocks; `slept_ns` is rather too small."""
    # In this order: when another thread runs in between, less seems to have been slept, and more is taken off later.
    with_sleep_ns = time.clock_gettime_ns(_CLOCK_WITH_SLEEP)
    mono_ns = time.monotonic_ns()
    return Reading(mono_ns, with_sleep_ns - mono_ns)


class PeerClock:
    """A lower bound of (our CLOCK_MONOTONIC − the peer's). Nothing is known before the first `learn`."""

    __slots__ = ("_asked", "_bound_ns")

    def __init__(self) -> None:
        self._bound_ns = 0
        self._asked: Reading | None = None  # since when the bound holds

    @property
    def is_known(self) -> bool:
        """Tell whether a Pong has been heard."""
        return self._asked is not None

    def learn(self, asked: Reading, answered_ns: int) -> None:
        """Take a Pong with the peer's reading `answered_ns`, heard just now, to a Ping that was made at `asked`."""
        now_ns, slept_ns = _read_for_use()
        new_ns = asked.mono_ns - answered_ns
        if self._asked is not None:
            old_bound_ns = _aged(self._bound_ns, self._asked, now_ns, slept_ns)
            if _aged(new_ns, asked, now_ns, slept_ns) <= old_bound_ns <= now_ns - answered_ns:
                return
        self._bound_ns, self._asked = new_ns, asked

    def to_ours(self, theirs_ns: int) -> int:
        """Return a reading of our clock that is not after the peer's reading."""
        assert self._asked is not None, "a link hands nothing out before its first Pong"
        return theirs_ns + _aged(self._bound_ns, self._asked, *_read_for_use())


def _read_for_use() -> tuple[int, int]:
    """Read our clocks; `slept_ns` is rather too great."""
    mono_ns = time.monotonic_ns()
    return mono_ns, time.clock_gettime_ns(_CLOCK_WITH_SLEEP) - mono_ns


def _aged(bound_ns: int, since: Reading, now_ns: int, slept_ns: int) -> int:
    """Return what is left of a bound."""
    return bound_ns - (now_ns - since.mono_ns) // _DRIFT_DIVISOR - max(0, slept_ns - since.slept_ns)
