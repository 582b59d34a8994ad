"""The leader's clock, as every node believes it: what decides when a value has expired.

Decides: what time it is for values that expire, here, and by how much this machine's wall clock is off.
Keeps true: I7. A replica never hides a value before its leader would: what it hears is at least as old as its way here, so the greatest of the latest
readings is a lower bound of the leader's clock. From reading to reading the estimate goes slower than this machine's monotonic clock, by more than any clock
drifts. What is shown as expired stays so: the estimate never steps back. A leader's own clock never does either: a step of its wall clock
backwards is not followed, one forwards is.
In and out: readings from digests (`clock_ms`) and both clocks of this machine in; milliseconds since 1970 out.
Source: Cristian, *Probabilistic clock synchronization* (1989), its lower half; a bound is all that hiding needs.

Why slower: readings come from all peers, not from the leader alone. Two followers whose clocks run fast would hear their own readings come back from
each other, hardly older than they were, and together run ahead of their leader without end. So a value is hidden late, not early, where the leader is not heard:
by less than two seconds after an hour.

Before anything was heard in this life the estimate is provisional: the wall clock, plus the offset that was written down when it was last known.
A machine may have started with its wall clock far off, so the first reading replaces it, even by an earlier one, and a node that leads without having
heard anybody goes by its wall clock alone: an offset that was written down while its clock was wrong would hide, and purge, what still lives.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from kvp2p.ids import Now

_NS_PER_MS: Final = 1_000_000
_READINGS: Final = 16  # a few seconds of four peers: so a clock that is corrected slowly is followed
# Two clocks of computers go apart by 200 ppm at most (quartz), and by 500 while one of them is being slewed (Linux).
_DRIFT_PARTS: Final = 2_000  # one in so many
OFFSET_KEPT_MS: Final = 500  # guess: a change of the offset by less is not written down


class LeaderClock:
    """An estimate of the leader's clock; exact at the leader itself."""

    __slots__ = ("_ahead_ns", "_latest_ms", "_leads", "_readings", "is_known")

    def __init__(self, offset_ms: int, now: Now) -> None:
        """Begin with the offset against the wall clock that was written down last."""
        self._leads = False
        self._ahead_ns = (now.wall_ms + offset_ms) * _NS_PER_MS - self._elapsed_ns(now)  # of the leader's clock
        self._latest_ms = 0
        self._readings: deque[int] = deque(maxlen=_READINGS)
        self.is_known = False

    def hear(self, clock_ms: int, now: Now) -> None:
        """Take a reading of the leader's clock that is on its way here since some moment."""
        self.follow(now)
        self._readings.append(clock_ms * _NS_PER_MS - self._elapsed_ns(now))
        self._ahead_ns = max(self._readings)
        self.is_known = True

    def lead(self, now: Now) -> None:
        """This node leads: its own wall clock counts, unless that is behind what was heard in this life."""
        self._go_on(now, leads=True)
        wall_ns = now.wall_ms * _NS_PER_MS - self._elapsed_ns(now)
        self._ahead_ns = max(self._ahead_ns, wall_ns) if self.is_known else wall_ns
        self._readings.clear()
        self.is_known = True

    def follow(self, now: Now) -> None:
        """This node does not lead, or no longer: its estimate goes on from where it is."""
        self._go_on(now, leads=False)

    def _go_on(self, now: Now, *, leads: bool) -> None:
        if leads != self._leads:
            estimate_ns = self._ahead_ns + self._elapsed_ns(now)
            self._leads = leads
            self._ahead_ns = estimate_ns - self._elapsed_ns(now)

    def _elapsed_ns(self, now: Now) -> int:
        """Return the monotonic clock as it counts here: slower while only others know the leader's."""
        return now.mono_ns if self._leads else now.mono_ns - now.mono_ns // _DRIFT_PARTS

    def read(self, now: Now) -> int:
        """Return the estimate in ms since 1970."""
        estimate_ms = (self._ahead_ns + self._elapsed_ns(now)) // _NS_PER_MS
        if self.is_known:  # a provisional one binds nobody
            estimate_ms = self._latest_ms = max(self._latest_ms, estimate_ms)
        return estimate_ms

    def offset_ms(self, now: Now) -> int:
        """Return the estimate less this machine's wall clock."""
        return self.read(now) - now.wall_ms

    def ahead_ms(self, now: Now) -> int:
        """Return the estimate less the monotonic clock, 0 while nothing is known: what processes of this machine go on with.

        Rounded down, so that it does not go up and down with the fractions of both.
        """
        if not self.is_known:
            return 0
        held_ms = self.read(now) - now.mono_ns // _NS_PER_MS - 1
        return max(held_ms, (self._ahead_ns + self._elapsed_ns(now) - now.mono_ns) // _NS_PER_MS)
