"""The bytes of request bodies that this process holds, over all its connections.

Decides: whether one more part of a body is kept, and which large values are on their way at once.
Keeps true: [I9] what clients send and no write has taken over yet is bounded for the process, not for each connection alone. A large value
    has a *room* for the chunk that is being collected and one for each that the node has not stored yet. It waits for its first one in
    turn; further ones it gets only while nobody waits and there are some. Whoever has one can go on, so they all come round.
In and out: counts only; whoever holds bytes gives back what it took. It holds each body in one piece, so that the count is
    what is kept: parts kept apart, each an object of its own, took twenty times the bytes of a body that came in tiny chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from kvp2p.limits import (
    CHUNK_BYTES,
    HTTP_BODY_BYTES_HELD_MAX,
    HTTP_RECEIVE_BYTES,
    HTTP_UPLOAD_BYTES_HELD_MAX,
)

# What comes behind the end of a chunk in one receive waits for the next room in this one.
ROOM_BYTES: Final = CHUNK_BYTES + HTTP_RECEIVE_BYTES


class Bodies:
    """A count with a limit, and another for what large values may take of it."""

    __slots__ = ("_waiting", "bytes_max", "held_bytes", "rooms", "rooms_max")

    def __init__(
        self, bytes_max: int = HTTP_BODY_BYTES_HELD_MAX, rooms_max: int = HTTP_UPLOAD_BYTES_HELD_MAX // ROOM_BYTES
    ) -> None:
        self.bytes_max = bytes_max
        self.rooms_max = rooms_max
        self.held_bytes = 0
        self.rooms = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def hold(self, count: int) -> bool:
        """Count bytes in; False, and nothing counted, where that is too much."""
        if self.held_bytes + count > self.bytes_max:
            return False
        self.held_bytes += count
        return True

    def release(self, count: int) -> None:
        """Count bytes out."""
        self.held_bytes -= count
        assert self.held_bytes >= 0, "more was released than held"
        if self._waiting:
            self._let_in()

    def take_room(self) -> bool:
        """Take a room for a chunk; False where there is none, or others wait for one."""
        return not self._waiting and self._take()

    def _take(self) -> bool:
        if self.rooms >= self.rooms_max or not self.hold(ROOM_BYTES):
            return False
        self.rooms += 1
        return True

    def wait_for_room(self, given: Callable[[], None]) -> None:
        """Wait in turn for a room: `given` is called when there is one, by whoever has given it back."""
        self._waiting.append(given)

    def stop_waiting(self, given: Callable[[], None]) -> None:
        """Wait no longer."""
        self._waiting.remove(given)

    def give_room(self) -> None:
        """Give a room back."""
        self.rooms -= 1
        assert self.rooms >= 0, "more rooms were given back than taken"
        self.release(ROOM_BYTES)

    def _let_in(self) -> None:
        while self._waiting and self._take():
            self._waiting.popleft()()
