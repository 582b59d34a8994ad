"""The clock by which this gateway hides what has expired.

Decides: what time it is: the node's estimate of the leader's clock; what the store tells of it until the node has told one, which a gateway
    that is started while the node is down may wait for long.
Keeps true: I7, no gateway hides early: what the store tells ends to count with the first estimate, even if the time steps back then. From
    there on it never does, so that what was shown as expired stays so, however the estimate moves.
In and out: the offset that the node pushes (`Readiness.clock_ahead_ms`, against CLOCK_MONOTONIC, which both processes read) in, unix
    seconds out. While the node is gone, or does not know yet, its last offset counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kvp2p.runtime.node_port import NodePort


class LeaderClock:
    """Tells the time. `kept_s` is the leader's clock as the store tells it, `monotonic_s` this machine's."""

    __slots__ = ("_ahead_ms", "_greatest", "_kept_s", "_monotonic_s", "_node")

    def __init__(
        self,
        node: NodePort,
        kept_s: Callable[[], float],
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._kept_s = kept_s
        self._monotonic_s = monotonic_s
        self._ahead_ms = 0  # 0: never told
        self._greatest = 0.0

    def now(self) -> float:
        """Return unix seconds."""
        self._ahead_ms = self._node.readiness.clock_ahead_ms or self._ahead_ms
        if not self._ahead_ms:
            return self._kept_s()
        # In whole ms, as the node reads it: not a fraction of one ahead of what conditions of writes see.
        self._greatest = max(self._greatest, (int(self._monotonic_s() * 1_000) + self._ahead_ms) / 1_000)
        return self._greatest
