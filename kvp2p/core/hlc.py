"""Hybrid logical clock: 64-bit stamps that follow the wall clock and never go back.

Decides: the next stamp a leader issues.
Keeps true: I2, within one process a stamp is greater than every stamp issued or observed before, whatever the wall clock does.
In and out: wall-clock milliseconds in, stamps out.
Source: Kulkarni, Demirbas et al., *Logical Physical Clocks* (2014). Here physical time and counter share one integer, so a
full counter simply carries into the milliseconds.
"""

from __future__ import annotations

from kvp2p.ids import Stamp
from kvp2p.limits import STAMP_OBSERVED_MAX

_COUNTER_BITS = 16


def stamp_wall_ms(stamp: Stamp) -> int:
    """Return the 48 bits of milliseconds of a stamp."""
    return stamp >> _COUNTER_BITS


def first_stamp_at(wall_ms: int) -> Stamp:
    """Return the least stamp of a millisecond."""
    return Stamp(wall_ms << _COUNTER_BITS)


class HybridClock:
    """Issues stamps; `latest` is the greatest stamp issued or observed."""

    __slots__ = ("latest",)

    def __init__(self, latest: Stamp = Stamp(0)) -> None:
        self.latest = latest

    def observe(self, stamp: Stamp) -> None:
        """Take note of a stamp that was seen: the next one issued is greater, unless nobody could send that one."""
        if stamp <= STAMP_OBSERVED_MAX:
            self.latest = max(self.latest, stamp)

    def tick(self, wall_ms: int) -> Stamp:
        """Issue the next stamp."""
        self.latest = Stamp(max(self.latest + 1, first_stamp_at(wall_ms)))
        return self.latest
