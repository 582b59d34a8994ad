"""Large values: the parts of the machine that deal with chunks, put together.

Decides: which part an event belongs to. What each keeps true is said there.

    uploads        chunks that local clients send
    large_writes   writes that name chunks, at the leader
    chunk_pulls    chunks from peers
    chunk_intake   contents on their way to the disk
    staging        which chunks are kept for uploads and writes under way

What rows do to chunks happens inside the store's transaction (`chunk_rows.py`); what readers are shown meanwhile is told by `whole.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvp2p.core.board import Board
from kvp2p.core.chunk_intake import ChunkIntake
from kvp2p.core.chunk_pulls import ChunkPulls
from kvp2p.core.entry import ChunkId
from kvp2p.core.large_writes import LargeWrites
from kvp2p.core.staging import Staging
from kvp2p.core.uploads import Uploads
from kvp2p.ids import NodeId

TIMERS = ("large", "release", "chunk", "chunks", "chunk_pause", "chunk_rest")


class LargeValues:
    """All about chunks, in one machine."""

    def __init__(self, board: Board, part_bytes: int) -> None:
        self._staging = Staging(board)
        self._intake = ChunkIntake(board)
        self.uploads = Uploads(board, self._staging, self._intake)
        self.pulls = ChunkPulls(board, self._intake, part_bytes)
        self.writes = LargeWrites(board, self._staging, self.pulls)

    def start(self, staged: Iterable[ChunkId]) -> None:
        """Let go of what was staged for an earlier life."""
        self._staging.start(staged)

    def on_peer_down(self, peer: NodeId) -> None:
        """Drop the writes of a link that has closed, and ask others for what its peer was asked for."""
        self.pulls.on_peer_down(peer)
        self.writes.on_peer_down(peer)

    def on_timer(self, name: str, key: object) -> None:
        """Do what one of TIMERS was set for."""
        match name:
            case "large":
                self.writes.on_timer()
            case "release":
                self._staging.on_timer()
            case "chunk":
                assert isinstance(key, bytes)
                self.pulls.on_silence(ChunkId(key))
            case "chunks":
                self.pulls.on_timer()
            case "chunk_pause":
                self.pulls.on_pause_over()
            case _:
                self.pulls.on_rest_over()

    def check(self) -> None:
        """Assert what must hold between two events."""
        for part in (self._staging, self._intake, self.pulls, self.writes):
            part.check()
