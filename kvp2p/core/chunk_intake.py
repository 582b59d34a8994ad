"""Chunk intake: contents of chunks on their way to the disk, a few at a time.

Decides: when a content is given to the store. First come, first served.
Keeps true: I9, and that a large value delays nobody: at most CHUNK_BYTES_TO_DISK_MAX are with the store, so a small write finds no more than
that before it in its sync. Whoever adds a content bounds what waits here.
In and out: contents in; one batch each out, and how it ended to whoever brought it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kvp2p.core.batches import BatchResult, ChunkBatch
from kvp2p.core.board import Board
from kvp2p.core.entry import ChunkId
from kvp2p.limits import CHUNK_BYTES_TO_DISK_MAX


class Landing(Enum):
    """How a content ended."""

    STORED = 0  # or dropped, because nothing waits for it any more
    REFUSED = 1  # it is not what its id says
    NO_ROOM = 2  # the disk is full
    CANCELLED = 3  # it was not given to the store


@dataclass(slots=True)
class _Content:
    chunk: ChunkId
    content: bytes
    stage: bool
    is_wanted: Callable[[], bool]
    ended: Callable[[Landing], None]


class ChunkIntake:
    """The queue of contents before the store. `waiting_bytes` is for whoever adds."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.waiting_bytes = 0
        self._waiting: deque[_Content] = deque()
        self._bytes_to_disk = 0

    def add(
        self,
        chunk: ChunkId,
        content: bytes,
        ended: Callable[[Landing], None],
        *,
        stage: bool = False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Store a content in its turn; with `stage` the chunk is kept for a write under way as well. `is_wanted` is asked before."""
        self._waiting.append(_Content(chunk, content, stage, is_wanted, ended))
        self.waiting_bytes += len(content)
        self.flush()

    def flush(self) -> None:
        """Give to the store what has its turn, and end what is not wanted any more."""
        while self._waiting:
            first = self._waiting[0]
            size = len(first.content)
            is_wanted = first.is_wanted()
            if is_wanted and self._bytes_to_disk + size > CHUNK_BYTES_TO_DISK_MAX:
                return
            self._waiting.popleft()
            self.waiting_bytes -= size
            if is_wanted:
                self._persist(first)
            else:
                first.ended(Landing.CANCELLED)

    def _persist(self, content: _Content) -> None:
        size = len(content.content)
        self._bytes_to_disk += size

        def landed(landing: Landing) -> None:
            self._bytes_to_disk -= size
            content.ended(landing)
            self.flush()

        def done(result: BatchResult) -> None:
            landed(Landing.REFUSED if result.chunks_refused else Landing.STORED)

        def failed(_: str) -> None:
            landed(Landing.NO_ROOM)

        stage = (content.chunk,) if content.stage else ()
        self.board.persist(ChunkBatch(stage, ((content.chunk, content.content),)), done, failed)

    def check(self) -> None:
        """Assert what must hold between two events."""
        assert 0 <= self._bytes_to_disk <= CHUNK_BYTES_TO_DISK_MAX, "what is with the store is counted and bounded"
        assert self.waiting_bytes == sum(len(one.content) for one in self._waiting), "what waits is counted"
