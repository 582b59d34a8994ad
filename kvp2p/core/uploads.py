"""Uploads: large values that local clients are sending to this node, a chunk at a time.

Decides: which chunk is taken, and what becomes of those of an upload that has ended.
Keeps true
* I5: a chunk is acknowledged when it is durable here. The write that names it comes after all of these.
* I9: uploads, their chunks and the bytes that wait for the disk are bounded.
* Nothing of an upload outlives it: its write, if it was acknowledged, has made references of its own [I4].
In and out: StageChunk and EndUpload in, one Reply to each StageChunk out.
"""

from __future__ import annotations

from kvp2p.core.board import Board
from kvp2p.core.chunk_intake import ChunkIntake, Landing
from kvp2p.core.entry import ChunkId
from kvp2p.core.events import EndUpload, Reply, StageChunk
from kvp2p.core.operations import Ending, Outcome, refused
from kvp2p.core.staging import Staging
from kvp2p.limits import CHUNKS_PER_VALUE_MAX, UPLOAD_BYTES_WAITING_MAX, UPLOADS_MAX

_OUTCOMES = {
    Landing.STORED: Outcome(Ending.ACKED),
    Landing.REFUSED: refused("bad_request", "the chunk's content is not what its id says; nothing was stored"),
    Landing.NO_ROOM: refused("disk_full", "this node's disk is full; the chunk was not stored"),
    Landing.CANCELLED: refused("bad_request", "the upload has ended; the chunk was not stored"),
}


class Uploads:
    """The uploads under way at this node, by the host's numbers."""

    def __init__(self, board: Board, staging: Staging, intake: ChunkIntake) -> None:
        self.board = board
        self.staging = staging
        self.intake = intake
        self._uploads: dict[int, dict[ChunkId, None]] = {}

    def __len__(self) -> int:
        return len(self._uploads)

    def stage(self, event: StageChunk) -> None:
        """Keep and store a chunk of an upload; its first one begins it."""
        chunks = self._uploads.get(event.upload, {})
        refusal = self._refusal(event, chunks)
        if refusal is not None:
            self.board.emit(Reply(event.request, refusal))
            return
        self._uploads[event.upload] = chunks
        if event.chunk not in chunks:
            chunks[event.chunk] = None
            self.staging.keep((event.chunk,))

        def ended(landing: Landing) -> None:
            self.board.emit(Reply(event.request, _OUTCOMES[landing]))

        def is_wanted() -> bool:
            return self._uploads.get(event.upload) is chunks

        self.intake.add(event.chunk, event.content, ended, stage=True, is_wanted=is_wanted)

    def end(self, event: EndUpload) -> None:
        """Let go of an upload's chunks."""
        chunks = self._uploads.pop(event.upload, None)
        if chunks is not None:
            self.staging.let_go(chunks)  # what still waits of it is not wanted, so it is not staged behind this

    def _refusal(self, event: StageChunk, chunks: dict[ChunkId, None]) -> Outcome | None:
        if self.board.is_stopping:
            return refused("no_leader", "this node is stopping; the chunk was not stored")
        if not chunks and len(self._uploads) >= UPLOADS_MAX:
            return refused("overloaded", f"{UPLOADS_MAX} large values are on their way in; the chunk was not stored")
        if len(chunks) >= CHUNKS_PER_VALUE_MAX and event.chunk not in chunks:
            return refused("bad_request", f"a value has at most {CHUNKS_PER_VALUE_MAX} chunks; this one was not stored")
        if self.intake.waiting_bytes + len(event.content) > UPLOAD_BYTES_WAITING_MAX:
            return refused("overloaded", "too many chunks wait for this node's disk; this one was not stored")
        return None
