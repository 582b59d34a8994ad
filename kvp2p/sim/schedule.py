"""The event heap and virtual time.

Decides: what happens next: the earliest action, and of two at the same time the one that was scheduled first.
Keeps true: nothing reads a real clock; a run without end is a failure, not a hang (`EVENTS_MAX`).
In and out: actions without arguments, scheduled at virtual nanoseconds since the start of the run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

MS = 1_000_000  # nanoseconds
SECOND = 1_000_000_000
EVENTS_MAX = 20_000_000  # some hundred times what a run takes

Action = Callable[[], None]


class EndlessRun(Exception):
    """A run took more events than any run should: machines that keep each other busy for nothing."""


class Schedule:
    """A heap of actions and the virtual time of the one that runs."""

    __slots__ = ("_heap", "_scheduled", "events_run", "now_ns")

    def __init__(self) -> None:
        self.now_ns = 0
        self.events_run = 0
        self._heap: list[tuple[int, int, Action]] = []
        self._scheduled = 0

    def at(self, at_ns: int, action: Action) -> None:
        """Run an action at a time, at once (but not inside the running action) when that time has passed."""
        self._scheduled += 1
        heapq.heappush(self._heap, (max(at_ns, self.now_ns), self._scheduled, action))

    def after(self, delay_ns: float, action: Action) -> None:
        """Run an action after a delay."""
        self.at(self.now_ns + int(delay_ns), action)

    def run_until(self, until_ns: int, is_over: Callable[[], bool] | None = None) -> bool:
        """Run actions up to a time, or until `is_over()`, which is asked after each; tell whether it was."""
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            at_ns, _, action = heapq.heappop(heap)
            self.now_ns = at_ns
            self.events_run += 1
            if self.events_run > EVENTS_MAX:
                raise EndlessRun(f"{EVENTS_MAX} events by {at_ns / SECOND:.3f} s of virtual time")
            action()
            if is_over is not None and is_over():
                return True
        self.now_ns = max(self.now_ns, until_ns)
        return False
