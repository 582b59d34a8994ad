"""Large writes at the leader: those whose values are in chunks, until every chunk is here.

Decides: when such a write enters the writer's queue, and what is asked of whom before.
Keeps true
* I10: until then it is only waiting. Its deadline, the end of its link, or the end of leading drop it, and nothing of it surfaces later.
* I4: its chunks are staged for it from before they are looked for until its group was persisted or refused: no other row that goes away takes them along.
* I9: LARGE_WRITES_MAX writes, CHUNKS_PER_WRITE_MAX chunks in each.
* Writes that are not large overtake those that wait. Whoever promises an order to a client (the gateway, for one connection) sends
  nothing behind a large write before its outcome.
In and out: writes of this node's clients and Forwards in; batches that stage, wishes for chunks, and writes for `LeaderWriter`, out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from kvp2p.core.batches import BatchResult, ChunkBatch
from kvp2p.core.board import Board, Deadlines
from kvp2p.core.chunk_pulls import ChunkPulls
from kvp2p.core.entry import ChunkId
from kvp2p.core.operations import Outcome, chunks_of, refused
from kvp2p.core.staging import Staging
from kvp2p.core.writing import AskedWrite, LeaderWriter
from kvp2p.ids import NodeId
from kvp2p.limits import CHUNKS_PER_WRITE_MAX, LARGE_WRITES_MAX

_LATE: Final = refused(
    "deadline_passed",
    "the write's chunks were not at the leader by its deadline; nothing was applied. Over a slow line, put large values at the leader",
)


@dataclass(slots=True, eq=False)
class _LargeWrite:
    """A write that waits for its chunks."""

    number: int
    writer: LeaderWriter
    asked: AskedWrite
    chunks: tuple[ChunkId, ...]
    missing: dict[ChunkId, None] = field(default_factory=dict)


class LargeWrites:
    """Writes with chunks, from their arrival at the leader to their end."""

    def __init__(self, board: Board, staging: Staging, pulls: ChunkPulls) -> None:
        self.board = board
        self.staging = staging
        self.pulls = pulls
        self._waiting: dict[int, _LargeWrite] = {}
        self._open = 0  # the waiting ones, and those in a writer's queue
        self._next = 1
        self._deadlines = Deadlines(board, "large", self._waiting.__contains__)

    def submit(self, writer: LeaderWriter, asked: AskedWrite) -> None:
        """Take a write that `is_large`, or refuse it at once."""
        chunks = chunks_of(asked.operations)
        number, self._next = self._next, self._next + 1
        write = _LargeWrite(number, writer, asked, chunks)
        refusal = self._refusal(write)
        if refusal is not None:
            asked.answer(self.board, refusal)
            return
        writer.on_closed = self._on_closed
        self._waiting[number] = write
        self._open += 1
        self._deadlines.add(asked.deadline_ns, number)
        self.staging.keep(chunks)

        def staged(result: BatchResult) -> None:
            if number in self._waiting:
                self._on_staged(write, result.chunks_missing)

        def failed(reason: str) -> None:
            if number in self._waiting:
                self._end(write, refused("disk_full", f"the leader could not store the write: {reason}"))

        self.board.persist(ChunkBatch(stage=chunks), staged, failed)

    def on_peer_down(self, peer: NodeId) -> None:
        """Drop what came over a link that has closed: its sender has told `unknown` [I10]."""
        for write in [write for write in self._waiting.values() if write.asked.peer == peer]:
            write.missing.clear()  # the pulls have forgotten what came from there
            self._end(write, None)

    def on_timer(self) -> None:
        """Refuse what has waited past its deadline."""
        for number in self._deadlines.take_due():
            self._end(self._waiting[number], _LATE)

    def _refusal(self, write: _LargeWrite) -> Outcome | None:
        if write.writer.is_closed:
            return refused("no_leader", "this node has stopped leading; nothing was applied")
        if len(write.chunks) > CHUNKS_PER_WRITE_MAX:
            limit = f"the values of one write have at most {CHUNKS_PER_WRITE_MAX} chunks, not {len(write.chunks)}"
            return refused("bad_request", f"{limit}; nothing was applied")
        if self._open >= LARGE_WRITES_MAX:
            return refused("overloaded", "too many large values are on their way to the leader; nothing was applied")
        return None

    def _on_staged(self, write: _LargeWrite, missing: tuple[ChunkId, ...]) -> None:
        if not missing:
            self._pass_on(write)
        elif write.asked.peer is None:
            lacking = f"{len(missing)} chunks of the write were not uploaded to this node; nothing was applied"
            self._end(write, refused("bad_request", lacking))
        else:
            write.missing = dict.fromkeys(missing)
            for chunk in missing:
                self.pulls.want(chunk, write.number, write.asked.peer, partial(self._on_chunk, write))

    def _on_chunk(self, write: _LargeWrite, chunk: ChunkId, refusal: Outcome | None) -> None:
        """A chunk is here, or cannot be had."""
        del write.missing[chunk]
        if refusal is not None:
            self._end(write, refusal)
        elif not write.missing:
            self._pass_on(write)

    def _pass_on(self, write: _LargeWrite) -> None:
        """All chunks are here, and stay until the write has ended: from now on it is a write like any other."""
        del self._waiting[write.number]

        def ended() -> None:
            self._open -= 1
            self.staging.let_go(write.chunks)

        write.writer.submit(replace(write.asked, ended=ended))

    def _end(self, write: _LargeWrite, outcome: Outcome | None) -> None:
        """End a write that waits; without an outcome nobody is told."""
        del self._waiting[write.number]
        self._open -= 1
        if write.asked.peer is not None and write.missing:
            self.pulls.unwant(write.number, write.asked.peer, write.missing)
        self.staging.let_go(write.chunks)
        if outcome is not None:
            write.asked.answer(self.board, outcome)

    def _on_closed(self, message: str) -> None:
        for write in [write for write in self._waiting.values() if write.writer.is_closed]:
            self._end(write, refused("no_leader", message))

    def check(self) -> None:
        """Assert what must hold between two events."""
        assert len(self._waiting) <= self._open <= LARGE_WRITES_MAX, "large writes are counted and bounded"
        links = ((write.asked.peer, write.asked.link) for write in self._waiting.values())
        assert all(peer is None or self.board.peers[peer] is link for peer, link in links), "a write waits on its link"
