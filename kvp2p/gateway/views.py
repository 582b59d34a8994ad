"""The view that requests read in: one read transaction for all that one socket read brought.

Decides: how long a read transaction lives, and that access is checked against the very state that is read.
Keeps true: what one answer says comes from one transaction. A request that arrives later, or behind a write that has ended,
    gets a newer view: a view is opened after the bytes of its requests were received.
In and out: `current` opens a view when there is none; `release` ends it. Never held over an await, because an old view pins pages; only a
    value that is streamed takes its view with it (`hand_over`).
"""

from __future__ import annotations

from kvp2p.gateway.access import Access
from kvp2p.store.reader import Replica, View


class Views:
    """At most one open view per process: one thread, and no view lives over an await."""

    def __init__(self, replica: Replica, access: Access) -> None:
        self.replica = replica
        self._access = access
        self.view: View | None = None

    def current(self) -> View:
        """Return the open view, or a new one. Raises StoreError."""
        if self.view is None:
            view = self.replica.view().__enter__()
            self.view = view
            self._access.refresh(view)
        return self.view

    def hand_over(self) -> None:
        """Let somebody else end the open view: a large value that is read on from it. The next request gets another."""
        self.view = None

    def release(self) -> None:
        """End the view, if one is open."""
        view, self.view = self.view, None
        if view is not None:
            view.__exit__(None, None, None)
