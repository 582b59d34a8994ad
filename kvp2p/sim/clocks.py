"""Clocks: what the oscillator of a host makes of virtual time, and what all that lead have shown.

Decides: how fast both clocks of a host go, and how late at most the clock of a leader stands now.
Keeps true: integers only; a timer fires when the host's own clock has reached its time, never before; the estimate of a leader's clock is not too early.
In and out: virtual nanoseconds in, the host's own out, and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvp2p.sim.schedule import MS

_MILLION: Final = 1_000_000


@dataclass(slots=True)
class Oscillator:
    """Goes `drift_ppm` too fast, or too slow when that is negative."""

    drift_ppm: int = 0

    def own_ns(self, true_ns: int) -> int:
        """Return how much this oscillator has counted since virtual time zero."""
        return true_ns + true_ns * self.drift_ppm // _MILLION

    def true_ns(self, own_ns: int) -> int:
        """Return the first virtual time at which it has counted so much."""
        true_ns = own_ns * _MILLION // (_MILLION + self.drift_ppm)
        while self.own_ns(true_ns) < own_ns:
            true_ns += 1
        return true_ns


class LeadersClocks:
    """The clocks of all that lead or have led, each as it would stand now."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, int], tuple[int, int, Oscillator]] = {}

    def note(self, name: str, life: int, oscillator: Oscillator, clock_ms: int, true_ns: int) -> None:
        """Take note of what the clock of a node that leads shows in one of its lives."""
        self._read[name, life] = (clock_ms, true_ns, oscillator)

    def latest_ms(self, true_ns: int) -> int:
        """Return the greatest of them at a virtual time; 0 before anybody led."""
        return max(
            (
                # A reading ends with the millisecond that has begun; that may have ended almost.
                clock_ms + 1 + (oscillator.own_ns(true_ns) - oscillator.own_ns(read_ns)) // MS
                for clock_ms, read_ns, oscillator in self._read.values()
            ),
            default=0,
        )
