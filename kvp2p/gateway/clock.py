"""The clock by which this gateway hides what has expired.

Decides: what time it is: the node's estimate of the leader's clock; this machine's own until the node has told one.
Keeps true: I7, no gateway hides early: its own clock ends to count with the first estimate, even if the time steps back then. From there
    on it never does, so that what was shown as expired stays so, however the estimate moves.
In and out: the offset that the node pushes (`Readiness.clock_ahead_ms`, against CLOCK_MONOTONIC, which both processes read) in, unix
    seconds out. While the node is gone, or does not know yet, its last offset counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kvp2p.runtime.node_port import NodePort


class LeaderClock:
    """Tells the time. `wall_s` and `monotonic_s` are this machine's clocks."""

    __slots__ = ("_ahead_ms", "_greatest", "_monotonic_s", "_node", "_wall_s")

    def __init__(
        self,
        node: NodePort,
        wall_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._ahead_ms = 0  # 0: never told
        self._greatest = 0.0

    def now(self) -> float:
        """Return unix seconds."""
        self._ahead_ms = self._node.readiness.clock_ahead_ms or self._ahead_ms
        if not self._ahead_ms:
            return self._wall_s()
        self._greatest = max(self._greatest, self._monotonic_s() + self._ahead_ms / 1_000)
        return self._greatest
