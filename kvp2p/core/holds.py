"""Holds: replies and readers that wait until this replica shows something, so that a client reads its own writes.

Decides: when a held reply or a waiting reader is answered.
Keeps true: I3, what is told as visible is whole here; I9, whoever waits has a deadline, and they are bounded.
In and out: versions to wait for in, one Reply each out.

A writer waits for its own rows only, so that somebody's large value does not delay it. A reader (KV-Min-Version) names the greatest version that it has
heard of, and what it reads may be an older row: it waits for everything up to that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from kvp2p.core.board import Board, Deadlines
from kvp2p.core.events import Await, Reply
from kvp2p.core.operations import Ending, Outcome, refused
from kvp2p.ids import Issuer, Version, version_issuer
from kvp2p.limits import HOLDS_MAX
from kvp2p.values import value

_ENDED_MAX = 64  # guess: so seldom that it costs nothing


@value
class _Held:
    """A request that waits until something is shown. `operations` 0: until everything up to the version is."""

    version: Version
    operations: int
    shown: Outcome
    late: Outcome | None


class Holds:
    """Replies that wait until this replica shows the write they are for, and readers that wait for all up to a version."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._writers: dict[Issuer, list[tuple[Version, int]]] = {}  # until the vector covers them
        self._readers: dict[Issuer, list[tuple[Version, int]]] = {}
        self._hidden: dict[int, None] = {}  # writers whose version is covered, and not shown yet
        self._waiting: dict[int, _Held] = {}
        self._ended = 0  # requests out of time that still stand in a heap
        self._deadlines = Deadlines(board, "hold", self._waiting.__contains__)

    def __len__(self) -> int:
        return len(self._waiting)

    def hold(
        self,
        request: int,
        version: Version,
        shown: Outcome,
        late: Outcome | None,
        deadline_ns: int,
        operations: int = 0,
    ) -> None:
        """Reply `shown` as soon as the version is, `late` when time runs out.

        `late` None: the same as `shown`, but not visible here. Made when it is needed, which is hardly ever.
        """
        held = _Held(version, operations, shown, late)
        if self._is_shown(held):
            self.board.emit(Reply(request, shown))
        elif len(self._waiting) >= HOLDS_MAX:
            self.board.emit(Reply(request, late or shown._replace(visible=False)))
        else:
            self._waiting[request] = held
            by_issuer = self._writers if operations else self._readers
            heap = by_issuer.setdefault(version_issuer(version), [])
            heapq.heappush(heap, (version, request))
            self._deadlines.add(deadline_ns, request)

    def _is_shown(self, held: _Held) -> bool:
        whole = self.board.whole
        return whole.shows(held.version, held.operations) if held.operations else whole.covers(held.version)

    def on_shown(self) -> None:
        """Release what is shown now: the vector has moved, or chunks have come."""
        for request in self._take(self._writers, self.board.vector.covers):
            self._hidden[request] = None
        for request in () if self.board.pending.has_more else list(self._hidden):
            if self._is_shown(self._waiting[request]):
                del self._hidden[request]
                self._release(request)
        for request in self._take(self._readers, self.board.whole.covers):
            self._release(request)

    def _take(
        self, by_issuer: dict[Issuer, list[tuple[Version, int]]], is_there: Callable[[Version], bool]
    ) -> list[int]:
        """Take the requests that still wait, for what is there now."""
        taken: list[int] = []
        for issuer in list(by_issuer):
            heap = by_issuer[issuer]
            while heap and is_there(heap[0][0]):
                request = heapq.heappop(heap)[1]
                if request in self._waiting:
                    taken.append(request)
                else:
                    self._ended -= 1
            if not heap:
                del by_issuer[issuer]
        return taken

    def _release(self, request: int) -> None:
        self.board.emit(Reply(request, self._waiting.pop(request).shown))

    def on_timer(self) -> None:
        """End what has run out of time."""
        for request in self._deadlines.take_due():
            held = self._waiting.pop(request)
            self.board.emit(Reply(request, held.late or held.shown._replace(visible=False)))
            if request in self._hidden:
                del self._hidden[request]
            else:
                self._ended += 1
        if self._ended > len(self._waiting) + _ENDED_MAX:
            self._forget_ended()

    def _forget_ended(self) -> None:
        # A version that never comes, which any reader may name, must not stay for ever [I9].
        for by_issuer in (self._writers, self._readers):
            for issuer in list(by_issuer):
                kept = [(version, request) for version, request in by_issuer[issuer] if request in self._waiting]
                heapq.heapify(kept)
                by_issuer[issuer] = kept
                if not kept:
                    del by_issuer[issuer]
        self._ended = 0


def await_version(holds: Holds, event: Await) -> None:
    """Let a local reader wait until all up to a version is whole (KV-Min-Version)."""
    late = refused("not_caught_up", "this node has not caught up with the version asked for")
    holds.hold(event.request, event.version, Outcome(Ending.ACKED, version=event.version), late, event.deadline_ns)
