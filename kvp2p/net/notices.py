"""Log events of the mesh that a stranger can cause: each kind at most once in a while.

Decides: which of them reach the log.
Keeps true: I9, somebody who connects a thousand times a second does not fill the disk; what was left out is counted in the next event.
In and out: an event word, a word for its kind and fields; a structlog event, or nothing.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

NOTICE_SECONDS: Final = 10.0  # guess: often enough to see that it goes on
_log = structlog.get_logger("kvp2p.mesh")


class Notices:
    """Remembers when each kind was told. Kinds are our own words, so there are only a few."""

    def __init__(self) -> None:
        self._told_at: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def tell(self, event: str, kind: str, **fields: object) -> None:
        """Log an event as a warning, unless one of its kind was logged just now."""
        key = (event, kind)
        now = trio.current_time()
        if now - self._told_at.get(key, -NOTICE_SECONDS) < NOTICE_SECONDS:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return
        self._told_at[key] = now
        left_out = self._left_out.pop(key, 0)
        if left_out:
            fields["left_out"] = left_out
        _log.warning(event, reason=kind, **fields)
