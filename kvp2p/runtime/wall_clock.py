"""The wall clock of a node process, which tests may shift.

Decides: what a node takes for the time of day wherever its protocol asks for it: stamps, skew, expiry, incarnations. Not its logs.
Keeps true: the clock of a node that was not started for it cannot be shifted.
In and out: the system's clock in, milliseconds since 1970 out.
"""

from __future__ import annotations

import time

from kvp2p.limits import CLOCK_OFFSET_MS_MAX

_MS = 1_000_000


class WallClock:
    """The system's clock and an offset. `offset_ms` None: as it is, for good."""

    def __init__(self, offset_ms: int | None = None) -> None:
        self.is_adjustable = offset_ms is not None
        self.offset_ms = offset_ms or 0

    def now_ms(self) -> int:
        """Return milliseconds since 1970, never negative."""
        return max(0, time.time_ns() // _MS + self.offset_ms)

    def shift(self, offset_ms: int) -> None:
        """Replace the offset; from now on the clock is as wrong as that."""
        assert self.is_adjustable, "the clock of a node that serves people is not shifted"
        assert abs(offset_ms) <= CLOCK_OFFSET_MS_MAX, "offsets are checked where they come in"
        self.offset_ms = offset_ms
