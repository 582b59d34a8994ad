"""The bytes of request bodies that this process holds, over all its connections.

Decides: whether one more part of a body is kept.
Keeps true: [I9] what clients send and no write has taken over yet is bounded for the process, not for each connection alone.
In and out: counts only; whoever holds bytes gives back what it took. It holds each body in one piece, so that the count is
    what is kept: parts kept apart, each an object of its own, took twenty times the bytes of a body that came in tiny chunks.
"""

from __future__ import annotations

from kvp2p.limits import HTTP_BODY_BYTES_HELD_MAX


class Bodies:
    """A count with a limit."""

    __slots__ = ("bytes_max", "held_bytes")

    def __init__(self, bytes_max: int = HTTP_BODY_BYTES_HELD_MAX) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0

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
