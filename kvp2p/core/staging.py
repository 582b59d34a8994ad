"""Staging: which chunks are kept for values and writes under way, and when they are let go.

Decides: when a staged chunk is released, which frees its content unless a row names it.
Keeps true
* A chunk stays staged in the store while anybody here keeps it: several uploads and writes may share one, and are counted in memory only. What the
  store has staged when the machine starts was for an earlier life, and is released.
* Batches are applied in order. So a release that was asked for before somebody began to keep the chunk again does no harm: that one stages it anew.
* I9: one batch at a time, of at most STAGED_RELEASED_MAX chunks.
In and out: chunks to keep and to let go; batches that only release, which a full disk takes too. Whoever keeps a chunk stages it by a batch of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvp2p.core.batches import BatchResult, ChunkBatch
from kvp2p.core.board import Board
from kvp2p.core.entry import ChunkId
from kvp2p.limits import STAGED_RELEASED_MAX


class Staging:
    """Counts who keeps which chunk, in this life of the node."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._keepers: dict[ChunkId, int] = {}
        self._to_release: dict[ChunkId, None] = {}
        self._is_releasing = False

    def start(self, staged: Iterable[ChunkId]) -> None:
        """Release what the store has staged for an earlier life."""
        self._to_release.update(dict.fromkeys(staged))
        self._release()

    def keep(self, chunks: Iterable[ChunkId]) -> None:
        """Keep chunks for somebody more, who stages them now."""
        for chunk in chunks:
            self._keepers[chunk] = self._keepers.get(chunk, 0) + 1

    def let_go(self, chunks: Iterable[ChunkId]) -> None:
        """Keep chunks for somebody fewer."""
        for chunk in chunks:
            keepers = self._keepers[chunk] - 1
            if keepers:
                self._keepers[chunk] = keepers
            else:
                del self._keepers[chunk]
                self._to_release[chunk] = None
        self._release()

    def on_timer(self) -> None:
        """Try again what a disk without any room did not take."""
        self._release()

    def _release(self) -> None:
        if self._is_releasing:
            return
        released: list[ChunkId] = []
        for chunk in list(self._to_release):
            if len(released) == STAGED_RELEASED_MAX:
                break
            del self._to_release[chunk]
            if chunk not in self._keepers:  # else somebody keeps it again, and comes back here when that ends
                released.append(chunk)
        if not released:
            return
        self._is_releasing = True

        def done(_: BatchResult) -> None:
            self._is_releasing = False
            self._release()

        def failed(_: str) -> None:
            self._is_releasing = False
            self._to_release.update(dict.fromkeys(released))
            self.board.set_timer("release", self.board.settings.digest_idle_ms)

        self.board.persist(ChunkBatch(release=tuple(released)), done, failed)

    def check(self) -> None:
        """Assert what must hold between two events."""
        assert all(keepers > 0 for keepers in self._keepers.values()), "who keeps nothing is not counted"
