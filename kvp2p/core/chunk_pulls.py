"""Chunk pulls: contents of chunks from peers, for rows that lack them and for large writes that wait at the leader.

Decides: which chunk is asked of whom, and when somebody else is asked too.
Keeps true
* I9: CHUNK_PULLS_MAX chunks at a time for rows, WRITE_CHUNK_PULLS_MAX from each peer for writes, from the first question until the disk has them: so much of
  parts is in memory, and no peer keeps the writes of another waiting. A peer is asked for a chunk once: it answers, or its link ends.
* A content is stored only if it hashes to its id, which the store's thread checks. Whoever sent parts of another is not asked for that chunk for
  `pull_timeout_ms`, and neither is a peer that does not have it.
* Progress outlives everything but the parts of the chunks under way: what is missing is told by the store (`Pending.wanted`), after a restart too.
* What rows lack is pulled at the lowest priority. When other entries came while a chunk was on its way, fewer are pulled at a time, and the place rests for as
  long as the chunk took: so a processor, a disk or a link that brings a chunk within CHUNK_PAUSE_MS_MAX has about half of its time for these. When nothing else
  is to be done it is used in full. No entries keep a value away: a place rests once a chunk, CHUNK_PAUSE_MS_MAX at most, and what is on its way is never put off.
* What is not wanted any more (its row was superseded) is not asked for; parts that still come are dropped.
In and out: what is wanted, and ChunkPart and ChunkMissing, in; ChunkPull and contents for the disk out.

Rows: the leader is asked first, which has every chunk of its own writes; else any complete peer, and another one after a silence. Writes: the node that
forwarded the write has staged its chunks, so it alone is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from kvp2p.core.board import MS, Board
from kvp2p.core.chunk_intake import ChunkIntake, Landing
from kvp2p.core.entry import ChunkId
from kvp2p.core.messages import ChunkMissing, ChunkPart, ChunkPull
from kvp2p.core.operations import Outcome, refused
from kvp2p.core.vector import VersionVector
from kvp2p.ids import NodeId
from kvp2p.limits import (
    CHUNK_BYTES,
    CHUNK_PAUSE_MS_MAX,
    CHUNK_PULLS_BUSY_MAX,
    CHUNK_PULLS_MAX,
    CHUNKS_WANTED_FIRST_MAX,
    PEERS_MAX,
    SERVES_PER_PEER_MAX,
    WRITE_CHUNK_PULLS_MAX,
)

_QUESTIONS_MAX = CHUNK_PULLS_MAX + WRITE_CHUNK_PULLS_MAX  # open at one peer
assert _QUESTIONS_MAX <= SERVES_PER_PEER_MAX, "a peer closes the link of whoever asks for more at once"
Ended = Callable[[ChunkId, Outcome | None], None]  # None: the chunk is here


@dataclass(slots=True)
class _Pulling:
    """A chunk on its way, from one peer or from several."""

    begun_ns: int
    heard_ns: int
    vector: VersionVector  # of the moment when it began
    is_for_write: bool
    parts: list[bytes] = field(default_factory=list)
    received: int = 0
    total: int = 0  # unknown before the first part
    senders: dict[NodeId, None] = field(default_factory=dict)
    is_landing: bool = False  # all parts are here, and on their way to the disk


class ChunkPulls:
    """Brings chunks. The counters are for `status` and the metrics."""

    def __init__(self, board: Board, intake: ChunkIntake, part_bytes: int) -> None:
        self.board = board
        self.intake = intake
        self.pulled = 0  # chunks
        self.received_bytes = 0  # of parts, also of those that were not wanted any more
        self.refused = 0  # contents that were not what their ids say
        self._part_bytes = part_bytes
        self._pulls: dict[ChunkId, _Pulling] = {}
        self._asked: dict[NodeId, dict[ChunkId, None]] = {}  # questions open on the link to a peer
        self._wants: dict[NodeId, dict[ChunkId, dict[int, Ended]]] = {}  # of writes, by the node that has staged it
        self._avoided: dict[tuple[ChunkId, NodeId], int] = {}  # until when, by the monotonic clock
        self._is_busy = False  # other entries came while the last of rows' chunks was on its way
        self._pauses = 0  # places of rows' chunks that rest
        self._is_resting = False  # the disk is full
        self._is_waiting = False  # for the timer "chunks": nobody is there to be asked for something

    # --- what is wanted

    def want(self, chunk: ChunkId, write: int, peer: NodeId, ended: Ended) -> None:
        """Bring a chunk for a write from the node that has staged it. `ended` is called once unless `unwant` comes first."""
        self._wants.setdefault(peer, {}).setdefault(chunk, {})[write] = ended
        self._avoided.pop((chunk, peer), None)  # it vouches for the chunk anew
        self.pull()

    def unwant(self, write: int, peer: NodeId, chunks: Iterable[ChunkId]) -> None:
        """Forget what a write waited for."""
        for chunk in chunks:
            self._forget(chunk, write, peer)
        self.on_pending()

    def _forget(self, chunk: ChunkId, write: int, peer: NodeId) -> None:
        wants = self._wants[peer]
        del wants[chunk][write]
        if not wants[chunk]:
            del wants[chunk]
        if not wants:
            del self._wants[peer]

    def on_pending(self) -> None:
        """Go by what is wanted now: rows became whole, were superseded, or lack something new."""
        for chunk, pulling in list(self._pulls.items()):
            if not pulling.is_landing and not self._is_wanted(chunk):
                self._drop(chunk)
        self.pull()

    def _is_wanted(self, chunk: ChunkId) -> bool:
        wanted = self.board.pending.wanted
        # Of many only the first are told: one under way may have moved behind these.
        return chunk in wanted or len(wanted) >= CHUNKS_WANTED_FIRST_MAX or bool(self._holders(chunk))

    def _holders(self, chunk: ChunkId) -> list[NodeId]:
        """Return the nodes that have staged a chunk for writes that wait here."""
        return [peer for peer, wants in self._wants.items() if chunk in wants]

    def pull(self) -> None:
        """Ask for what is wanted, as far as there is somebody to ask."""
        for wants in self._wants.values():
            for chunk in islice(wants, WRITE_CHUNK_PULLS_MAX):
                self._begin(chunk, is_for_write=True)
        if self._is_resting:
            return
        places = CHUNK_PULLS_BUSY_MAX if self._is_busy else CHUNK_PULLS_MAX
        for chunk in self.board.pending.wanted:
            if self._pauses + sum(not pulling.is_for_write for pulling in self._pulls.values()) >= places:
                return
            self._begin(chunk, is_for_write=False)

    def _begin(self, chunk: ChunkId, *, is_for_write: bool) -> None:
        """Ask for a chunk that is not under way, or look again later who can be asked."""
        if chunk in self._pulls:
            return
        now_ns = self.board.now.mono_ns
        if self._is_awaited(chunk):  # it was wanted before, and its answer is still to come
            self._pulls[chunk] = _Pulling(now_ns, now_ns, self.board.vector, is_for_write)
            self.board.set_timer("chunk", self.board.settings.pull_timeout_ms, chunk)
        elif (peer := self._source(chunk)) is not None:
            self._pulls[chunk] = _Pulling(now_ns, now_ns, self.board.vector, is_for_write)
            self._ask(chunk, peer)
        elif not self._is_waiting:
            self._is_waiting = True
            self.board.set_timer("chunks", self.board.settings.pull_timeout_ms)

    # --- who is asked

    def _source(self, chunk: ChunkId) -> NodeId | None:
        """Return whom to ask for a chunk, None when there is nobody, or nobody else."""
        for peer in self._holders(chunk):
            if self._may_ask(chunk, peer):
                return peer
        if chunk not in self.board.pending.wanted:
            return None
        sources = [peer for peer, digest in self.board.digests() if digest.complete and self._may_ask(chunk, peer)]
        leaders = [peer for peer in sources if self.board.is_leader(peer)]
        if leaders or not sources:
            return leaders[0] if leaders else None
        return self.board.choose(sources)

    def _may_ask(self, chunk: ChunkId, peer: NodeId) -> bool:
        asked = self._asked.get(peer, {})
        return chunk not in asked and len(asked) < _QUESTIONS_MAX and not self._is_avoided(chunk, peer)

    def _is_awaited(self, chunk: ChunkId) -> bool:
        """Tell whether somebody who is believed has still to answer for a chunk."""
        return any(chunk in asked and not self._is_avoided(chunk, peer) for peer, asked in self._asked.items())

    def _ask(self, chunk: ChunkId, peer: NodeId) -> None:
        pulling = self._pulls[chunk]
        pulling.heard_ns = self.board.now.mono_ns
        self._asked.setdefault(peer, {})[chunk] = None
        self.board.set_timer("chunk", self.board.settings.pull_timeout_ms, chunk)
        self.board.send(peer, ChunkPull(chunk, pulling.received, self._part_bytes))

    def _drop(self, chunk: ChunkId) -> None:
        del self._pulls[chunk]
        self.board.drop_timer("chunk", chunk)

    def _avoid(self, chunk: ChunkId, peer: NodeId) -> None:
        now_ns = self.board.now.mono_ns
        self._avoided = {place: until for place, until in self._avoided.items() if until > now_ns}
        self._avoided[chunk, peer] = now_ns + self.board.settings.pull_timeout_ms * MS

    def _is_avoided(self, chunk: ChunkId, peer: NodeId) -> bool:
        return self._avoided.get((chunk, peer), 0) > self.board.now.mono_ns

    # --- what peers say

    def on_part(self, peer: NodeId, part: ChunkPart) -> None:
        """Take a part that goes on where the chunk is, from whoever was asked; any other is late, and dropped."""
        self.received_bytes += len(part.data)
        asked = self._asked.get(peer, {})
        if part.chunk not in asked:
            return
        if part.offset + len(part.data) == part.total_bytes:
            del asked[part.chunk]  # its last part
        pulling = self._pulls.get(part.chunk)
        if pulling is not None and not pulling.is_landing and not self._is_avoided(part.chunk, peer):
            pulling.heard_ns = self.board.now.mono_ns
            self._take(peer, part, pulling)
        if part.chunk not in asked:
            self._on_answered(part.chunk)

    def _take(self, peer: NodeId, part: ChunkPart, pulling: _Pulling) -> None:
        upto = part.offset + len(part.data)
        if not part.offset <= pulling.received < upto:
            return
        pulling.senders[peer] = None
        if pulling.received and part.total_bytes != pulling.total:
            self._refuse(part.chunk, pulling)
            return
        pulling.total = part.total_bytes
        pulling.parts.append(part.data[pulling.received - part.offset :])
        pulling.received = upto
        if upto == pulling.total:
            self._store(part.chunk, pulling)

    def on_missing(self, peer: NodeId, missing: ChunkMissing) -> None:
        """Turn elsewhere. The write whose own node does not have a chunk ends."""
        chunk, asked = missing.chunk, self._asked.get(peer, {})
        if chunk in asked:
            del asked[chunk]
            self._avoid(chunk, peer)
            reason = "a chunk of the write is not at the node that took it; nothing was applied"
            self._end_wants(chunk, (peer,), reason)
            self._on_answered(chunk)

    def on_peer_down(self, peer: NodeId) -> None:
        """Forget the writes that came over the peer's link, and ask others for what it was asked for."""
        self._wants.pop(peer, None)
        for chunk in self._asked.pop(peer, {}):
            self._on_answered(chunk)
        self.on_pending()

    def _on_answered(self, chunk: ChunkId) -> None:
        """Go on with a chunk, from where it is, at another peer, if nobody has still to answer for it."""
        pulling = self._pulls.get(chunk)
        if pulling is None or pulling.is_landing:
            self.pull()  # who has answered may be asked for something else
        elif not self._is_awaited(chunk):
            peer = self._source(chunk)
            if peer is not None:
                self._ask(chunk, peer)
            else:
                self._drop(chunk)
                self.pull()

    def on_silence(self, chunk: ChunkId) -> None:
        """Ask another peer as well when nothing was heard of a chunk."""
        silent_ms = (self.board.now.mono_ns - self._pulls[chunk].heard_ns) // MS
        timeout_ms = self.board.settings.pull_timeout_ms
        if silent_ms >= timeout_ms:
            peer = self._source(chunk)
            if peer is not None:
                self._ask(chunk, peer)
                return
            silent_ms = 0  # nobody else: the answer comes, or the link ends
        self.board.set_timer("chunk", timeout_ms - silent_ms, chunk)

    def on_timer(self) -> None:
        """Look again who could be asked."""
        self._is_waiting = False
        self.pull()

    def on_pause_over(self) -> None:
        """Use a place again that has rested."""
        self._pauses -= 1
        self.pull()

    def on_rest_over(self) -> None:
        """See whether the disk has room by now."""
        self._is_resting = False
        self.pull()

    # --- the store

    def _store(self, chunk: ChunkId, pulling: _Pulling) -> None:
        pulling.is_landing = True
        self.board.drop_timer("chunk", chunk)

        def ended(landing: Landing) -> None:
            if landing is Landing.REFUSED:
                self._refuse(chunk, pulling)
                return
            del self._pulls[chunk]
            if landing is Landing.NO_ROOM:
                self._rest()
                self._end_wants(
                    chunk, self._holders(chunk), "the leader's disk is full; nothing was applied", "disk_full"
                )
            else:
                self.pulled += 1
                self._pause(pulling)
                self._end_wants(chunk, self._holders(chunk))

        self.intake.add(chunk, b"".join(pulling.parts), ended)
        pulling.parts.clear()

    def _pause(self, pulling: _Pulling) -> None:
        """Let the place of a chunk that has come rest when there is something else to do."""
        if pulling.is_for_write:
            return
        self._is_busy = pulling.vector != self.board.vector
        took_ms = (self.board.now.mono_ns - pulling.begun_ns) / MS
        if self._is_busy and took_ms >= 1:
            self._pauses += 1
            # Keyed by what was pulled so far: no two pauses share a timer.
            self.board.set_timer("chunk_pause", min(took_ms, CHUNK_PAUSE_MS_MAX), self.pulled)

    def _rest(self) -> None:
        if not self._is_resting:
            self._is_resting = True
            self.board.set_timer("chunk_rest", self.board.settings.digest_idle_ms)

    def _refuse(self, chunk: ChunkId, pulling: _Pulling) -> None:
        """Throw away what is not the chunk. With several senders any of them may be the one to blame."""
        self.refused += 1
        senders = ", ".join(peer.hex() for peer in pulling.senders)
        self.board.notice("chunk_refused", "warning", chunk=chunk.hex(), senders=senders)
        self._drop(chunk)
        for peer in pulling.senders:
            self._avoid(chunk, peer)
        reason = "a chunk of the write is not what its id says; nothing was applied"
        self._end_wants(chunk, tuple(pulling.senders), reason)

    def _end_wants(self, chunk: ChunkId, peers: Sequence[NodeId], reason: str = "", code: str = "bad_request") -> None:
        """Tell the writes that wait for a chunk from these peers that it is here, or (with a reason) that they are refused."""
        for peer in peers:
            for write, ended in list(self._wants.get(peer, {}).get(chunk, {}).items()):
                self._forget(chunk, write, peer)
                ended(chunk, refused(code, reason) if reason else None)
        self.on_pending()

    def check(self) -> None:
        """Assert what must hold between two events."""
        for_writes = sum(pulling.is_for_write for pulling in self._pulls.values())
        assert for_writes <= WRITE_CHUNK_PULLS_MAX * PEERS_MAX, "chunk pulls for writes are bounded"
        assert 0 <= self._pauses <= CHUNK_PULLS_MAX, "places that rest are counted"
        assert len(self._pulls) - for_writes + self._pauses <= CHUNK_PULLS_MAX, "chunk pulls for rows are bounded"
        for chunk, pulling in self._pulls.items():
            assert sum(map(len, pulling.parts)) <= CHUNK_BYTES, "parts in memory are bounded"
            is_asked = any(chunk in asked for asked in self._asked.values())
            assert pulling.is_landing or is_asked, "somebody has a chunk under way to answer for"
        for peer, asked in self._asked.items():
            assert peer in self.board.peers, "chunks are pulled from linked peers"
            assert len(asked) <= _QUESTIONS_MAX, "a peer's open questions are bounded"
        for peer, wants in self._wants.items():
            assert peer in self.board.peers, "a write waits for its own node"
            assert wants, "who waits for nothing is not kept"
            assert all(wants.values()), "what nobody waits for is not kept"
