"""Whose large value is written next.

Decides: when the write of a large value, whose chunks the node has, goes to the node. Values of one chunk before others, until as many
    bytes of them have gone before the first of the others as it has itself; else first come, first served.
Keeps true: [I9, I10] a write's time counts from its turn on, and no more is under way before it than the leader can bring in this time, one after the
    other: 100 MiB of a node's with one of 25 MiB, which has 30 s, and 20 MiB with one that has 6 s. If all that were uploaded at once went
    to it at once, the last ones would end *refused* or *unknown* for their deadline, after all their bytes had been sent.
In and out: counts only; whoever has had a turn gives it back. Who waits too long leaves by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvp2p.limits import (
    CHUNK_BYTES,
    HTTP_LARGE_WRITE_BYTES_MAX,
    VALUE_BYTES_MAX,
    WRITE_DEADLINE_MS,
    WRITE_LARGE_MS_PER_MIB,
)

_MIB: Final = 1024 * 1024


def large_ms(value_bytes: int) -> int:
    """Return how much longer than a small one the write of a large value may take."""
    return -(-value_bytes // _MIB) * WRITE_LARGE_MS_PER_MIB


_LONGEST_MS: Final = WRITE_DEADLINE_MS + large_ms(VALUE_BYTES_MAX)


def bytes_max(gateways: int) -> int:
    """Return how much each gateway of a node may have under way: the leader brings the chunks of a node's writes two at a time, whichever gateway they come from."""
    return HTTP_LARGE_WRITE_BYTES_MAX // gateways


class Turns:
    """The writes of large values of one gateway. `bytes_max` is for the largest; others have less time, and so less before them."""

    __slots__ = ("_larger", "_passed_bytes", "_small", "bytes_max", "bytes_under_way")

    def __init__(self, bytes_max: int = HTTP_LARGE_WRITE_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.bytes_under_way = 0
        # Who waits, in turn, with the bytes of the value: those of one chunk, and the others.
        self._small: dict[Callable[[], None], int] = {}
        self._larger: dict[Callable[[], None], int] = {}
        self._passed_bytes = 0  # of values of one chunk that went while a larger one waited, since one of those went

    def take(self, value_bytes: int) -> bool:
        """Take a turn; False where there is none yet, or others wait for one."""
        if value_bytes <= CHUNK_BYTES:
            is_first = not self._small and not self._is_larger_due
        else:
            is_first = not self._small and not self._larger
        return is_first and self._take(value_bytes)

    @property
    def _is_larger_due(self) -> bool:
        """Whether enough has gone before the first of the larger ones: clients that write one small value after the other would keep it waiting for ever."""
        return bool(self._larger) and self._passed_bytes >= next(iter(self._larger.values()))

    def _take(self, value_bytes: int) -> bool:
        under_way_max = self.bytes_max * (WRITE_DEADLINE_MS + large_ms(value_bytes)) // _LONGEST_MS
        # One of any size, whatever the limit is: who is first in line goes at last.
        if self.bytes_under_way and self.bytes_under_way + value_bytes > under_way_max:
            return False
        self.bytes_under_way += value_bytes
        if value_bytes > CHUNK_BYTES:
            self._passed_bytes = 0
        elif self._larger:
            self._passed_bytes += value_bytes
        return True

    def wait(self, value_bytes: int, given: Callable[[], None]) -> None:
        """Wait for a turn: `given` is called when it has come, by whoever has made place."""
        (self._small if value_bytes <= CHUNK_BYTES else self._larger)[given] = value_bytes

    def stop_waiting(self, given: Callable[[], None]) -> None:
        """Wait no longer."""
        self._small.pop(given, None)
        self._larger.pop(given, None)
        self._let_in()  # the next may need less

    def give_back(self, value_bytes: int) -> None:
        """End a turn."""
        self.bytes_under_way -= value_bytes
        assert self.bytes_under_way >= 0, "a turn ends once"
        self._let_in()

    def _let_in(self) -> None:
        while line := self._larger if self._is_larger_due else self._small or self._larger:
            given, value_bytes = next(iter(line.items()))
            if not self._take(value_bytes):
                return  # nor does one go that needs less: the first would never find less under way
            del line[given]
            given()
