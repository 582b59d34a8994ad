"""Anti-entropy: frames, gaps, pulls from any peer for any issuer, and the walk that gives an empty node everything.

Decides: which frame is applied, what is asked of whom, and when a walk replaces the log.
Keeps true: I1, I3 (a frame whose `after` is not accepted is dropped and its gap pulled first), I6 (the vector rises at a walk's end, to
that of its first part; a peer that goes away ends the walk), I8 (a Purge that cannot be applied stops its log here until it can), I9 (pulls, grace
notes and bytes in flight are bounded).
In and out: digests, frames, PullEnd and WalkPart in; Pull, WalkRequest and batches out. Every peer answers pulls for every issuer,
so survivors become equal without any leader.
Source: Demers et al., *Epidemic Algorithms* (1987), with one vector as the "I have" of Plumtree (Leitao et al. 2007).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvp2p.core.batches import BatchResult, FrameBatch, WalkBatch
from kvp2p.core.board import MS, Board
from kvp2p.core.leadership import Leadership
from kvp2p.core.messages import Digest, Frame, KeyedRow, Pull, PullEnd, RowKey, WalkPart, WalkRequest
from kvp2p.core.purge import Obstacle
from kvp2p.core.vector import VersionVector
from kvp2p.ids import Issuer, NodeId, Stamp, Version, make_version, version_issuer, version_stamp, version_term
from kvp2p.limits import PERSIST_BYTES_IN_FLIGHT_MAX, PULL_BYTES_MAX, PULLS_MAX

_WALK_PATIENCE_MAX = 64


@dataclass(slots=True)
class _Pulling:
    peer: NodeId
    term: int
    after: Stamp
    heard_ns: int


@dataclass(slots=True)
class _Walking:
    walk: int
    peer: NodeId
    after: RowKey | None = None
    first: VersionVector | None = None  # the vector of the first part
    last: WalkPart | None = None  # waits until every part before it is durable
    is_asking: bool = False


class AntiEntropy:
    """Brings this replica what it lacks."""

    def __init__(self, board: Board, leadership: Leadership) -> None:
        self.board = board
        self.leadership = leadership
        self._pulls: dict[Issuer, _Pulling] = {}
        self._grace: dict[Issuer, Version] = {}
        self._walking: _Walking | None = None
        self._walks = 0
        self._walk_patience = 1  # doubles with each silent peer: over a slow path no walk would ever end
        self._bytes_in_flight = 0
        self._parts_in_flight = 0
        self._failures = 0  # batches that the disk did not take, since it last took one
        self._is_resting = False  # the disk is full: asking on and on would only cost the peers

    # --- what peers say

    def on_digest(self, peer: NodeId, digest: Digest, is_first: bool) -> None:
        """Compare a peer's vector with ours: what is new may be on its way, unless this is the first word on a link."""
        if not self.board.complete:
            self._walk_if_needed()
            return
        for top in self._lacking(digest):
            if is_first:
                self._pull(version_term(top), version_issuer(top))
            else:
                self._pull_after_grace(top)

    def on_frame(self, peer: NodeId, frame: Frame) -> None:
        """Apply a frame that follows on what we have; pull what is missing before one that does not."""
        board = self.board
        pulling = self._pulls.get(frame.issuer)
        if pulling is not None and pulling.peer == peer:
            pulling.heard_ns = board.now.mono_ns
        accepted = board.accepted.reach(frame.term, frame.issuer)
        if not board.complete or frame.upto <= accepted or self._is_resting:
            return
        if frame.after > accepted:
            self._pull(frame.term, frame.issuer, prefer=peer)  # a gap [I3]
            return
        frame_bytes = _rows_bytes(frame.rows)
        end = make_version(frame.term, frame.upto, frame.issuer)
        if self._bytes_in_flight + frame_bytes > PERSIST_BYTES_IN_FLIGHT_MAX:
            self._pull_after_grace(end)  # safe to drop: it is pulled when the disk has caught up [I3]
            return
        board.accepted = board.accepted.raised(end)
        self._persist(FrameBatch(frame), frame_bytes)

    def on_pull_end(self, peer: NodeId, end: PullEnd) -> None:
        """Go on pulling while a peer has more; turn elsewhere when this one cannot serve."""
        pulling = self._pulls.get(end.issuer)
        if pulling is None or pulling.peer != peer:
            return
        self._drop_pull(end.issuer)
        if end.trimmed:
            self.board.peers[peer].trimmed_at[end.issuer] = end.upto
        is_progress = self.board.accepted.reach(pulling.term, end.issuer) > pulling.after
        if is_progress or end.trimmed:
            self._pull(pulling.term, end.issuer)
        else:
            self._pull_all_after_grace()
        self._pull_waiting()

    def on_walk_part(self, peer: NodeId, part: WalkPart) -> None:
        """Store a part of the walk and ask for the next."""
        walking = self._walking
        if walking is None or (walking.peer, walking.walk, walking.after) != (peer, part.walk, part.after):
            return
        if not walking.is_asking or (part.upto is not None and part.after is not None and part.upto <= part.after):
            return
        walking.is_asking = False
        if walking.first is None:
            walking.first = part.vector
        walking.after = part.upto
        self._set_walk_timer()
        if part.upto is None:
            walking.last = part
            self._end_walk()
        else:
            self._persist(WalkBatch(part, None), _rows_bytes(part.rows))
            self._ask_for_part()

    def on_peer_down(self, peer: NodeId) -> None:
        """Ask others for what this peer was asked for."""
        orphans = [(pulling.term, issuer) for issuer, pulling in self._pulls.items() if pulling.peer == peer]
        for _, issuer in orphans:
            self._drop_pull(issuer)
        for term, issuer in orphans:
            self._pull(term, issuer)
        if self._walking is not None and self._walking.peer == peer:
            self._abandon_walk("the peer went away")

    # --- time

    def on_grace_over(self, issuer: Issuer) -> None:
        """What a digest told of has had its time to arrive."""
        awaited = self._grace.pop(issuer)
        if not self.board.accepted.covers(awaited):
            self._pull(version_term(awaited), issuer)

    def on_pull_timeout(self, issuer: Issuer) -> None:
        """Turn to another peer when one has been silent."""
        pulling = self._pulls[issuer]
        silent_ms = (self.board.now.mono_ns - pulling.heard_ns) // MS
        timeout_ms = self.board.settings.pull_timeout_ms
        if silent_ms < timeout_ms:
            self.board.set_timer("pull", timeout_ms - silent_ms, issuer)
            return
        self._drop_pull(issuer)
        self._pull(pulling.term, issuer, avoid=pulling.peer)

    def on_walk_timeout(self) -> None:
        """Start the walk over, with another peer if there is one."""
        assert self._walking is not None, "the timer is dropped with the walk"
        if not self._walking.is_asking:
            self._set_walk_timer()  # our own disk is what is slow
            return
        self._walk_patience = min(2 * self._walk_patience, _WALK_PATIENCE_MAX)
        self._abandon_walk("the peer was silent")

    def on_rest_over(self) -> None:
        """See whether there is room by now."""
        self._is_resting = False
        if self.board.complete:
            self._pull_waiting()
        else:
            self._walk_if_needed()

    # --- pulls

    def _lacking(self, digest: Digest) -> Iterator[Version]:
        """Iterate over what a peer has and this replica lacks. What this node itself issues it lacks nothing of, whatever is shown."""
        own = self.leadership.issuer
        for top in digest.vector.tops():
            if not self.board.accepted.covers(top) and version_issuer(top) != own:
                yield top

    def _pull_after_grace(self, awaited: Version) -> None:
        issuer = version_issuer(awaited)
        if issuer in self._pulls:
            return
        if issuer not in self._grace:
            self._grace[issuer] = awaited
            self.board.set_timer("grace", self.board.settings.pull_grace_ms, issuer)

    def _pull_all_after_grace(self) -> None:
        for _, digest in self.board.digests():
            for top in self._lacking(digest):
                self._pull_after_grace(top)

    def _pull(self, term: int, issuer: Issuer, prefer: NodeId | None = None, avoid: NodeId | None = None) -> None:
        if issuer in self._pulls or not self.board.complete or self._is_walking or self._is_resting:
            return
        if len(self._pulls) >= PULLS_MAX:
            return  # `_pull_waiting` comes back to it
        after = self.board.accepted.reach(term, issuer)
        sources, trimmed = self._sources(term, issuer, after)
        if prefer is not None and not self.board.peers[prefer].is_trimmed(issuer, after):
            source = prefer
        elif sources:
            others = [peer for peer in sources if peer != avoid] or sources
            source = self.board.choose(others)
        else:
            if trimmed:
                # Any of them: one may hold a damaged row.
                self._walk(self.board.choose(trimmed), "no log goes back to what is missing")
            return
        self._pulls[issuer] = _Pulling(source, term, after, self.board.now.mono_ns)
        self.board.set_timer("pull", self.board.settings.pull_timeout_ms, issuer)
        self.board.send(source, Pull(term, issuer, after, PULL_BYTES_MAX))

    def _sources(self, term: int, issuer: Issuer, after: Stamp) -> tuple[list[NodeId], list[NodeId]]:
        """Return the peers whose log has what comes after, and those that have it without a log.

        Where a fence alone covers the issuer nobody can tell whether anything comes after. The Purge that raised it will: if it finds something
        missing, that is walked for then.
        """
        sources: list[NodeId] = []
        trimmed: list[NodeId] = []
        for peer, digest in self.board.digests():
            top = digest.vector.top_of(issuer)
            if digest.complete and top is not None and version_stamp(top) > after:
                has_log = digest.floor.reach(term, issuer) <= after
                is_able = has_log and not self.board.peers[peer].is_trimmed(issuer, after)
                (sources if is_able else trimmed).append(peer)
        return sources, trimmed

    def _pull_waiting(self) -> None:
        for _, digest in self.board.digests():
            for top in self._lacking(digest):
                if len(self._pulls) >= PULLS_MAX:
                    return
                if version_issuer(top) not in self._grace:
                    self._pull(version_term(top), version_issuer(top))

    def _drop_pull(self, issuer: Issuer) -> None:
        del self._pulls[issuer]
        self.board.drop_timer("pull", issuer)

    # --- the walk

    @property
    def _is_walking(self) -> bool:
        """Whether a walk is under way, or parts of one are on their way to the disk: the vector rises with the last of them."""
        return self._walking is not None or self._parts_in_flight > 0

    def _walk_if_needed(self) -> None:
        if self.board.complete or self._is_walking or self._is_resting:
            return
        sources = [peer for peer, digest in self.board.digests() if digest.complete]
        if sources:
            self._walk(self.board.choose(sources), "this node has not had everything yet")

    def _walk(self, peer: NodeId, reason: str) -> None:
        self._walks += 1
        self._walking = _Walking(self._walks, peer)
        self.board.notice("walk_started", peer=peer.hex(), reason=reason)
        self._set_walk_timer()
        self._ask_for_part()

    def _set_walk_timer(self) -> None:
        self.board.set_timer("walk", self._walk_patience * self.board.settings.walk_timeout_ms)

    def _ask_for_part(self) -> None:
        walking = self._walking
        if walking is None or walking.is_asking or walking.last is not None:
            return
        if self._bytes_in_flight <= PERSIST_BYTES_IN_FLIGHT_MAX // 2:
            walking.is_asking = True
            self.board.send(walking.peer, WalkRequest(walking.walk, walking.after))

    def _end_walk(self) -> None:
        """Store the last part, and the vector with it, once every other part is durable: one may have failed [I6]."""
        walking = self._walking
        if walking is None or walking.last is None or self._parts_in_flight:
            return
        self._walking = None
        self.board.drop_timer("walk")
        self._walk_patience = 1
        self.board.notice("walk_received", peer=walking.peer.hex())
        self._persist(WalkBatch(walking.last, walking.first), _rows_bytes(walking.last.rows))

    def _abandon_walk(self, reason: str) -> None:
        assert self._walking is not None
        self.board.notice("walk_abandoned", "warning", peer=self._walking.peer.hex(), reason=reason)
        self._walking = None
        self.board.drop_timer("walk")
        if self.board.complete:
            self._pull_all_after_grace()
        else:
            self._walk_if_needed()

    # --- a Purge that could not be applied

    def _on_obstacle(self, frame: Frame, obstacle: Obstacle) -> None:
        """Get what a Purge waits for: what is under its floor from the logs, or, where no log has it any more, all of it by a walk [I8]."""
        board = self.board
        # What was in flight behind it is a gap now.
        board.accepted = board.vector
        assert frame.purge is not None, "only a Purge meets an obstacle"
        purge = frame.purge
        lacking = [top for top in purge.floor.tops() if not board.accepted.covers(top)]
        is_lost = obstacle is Obstacle.FOREIGN or (
            obstacle is Obstacle.BEHIND and not any(self._is_known(top) for top in lacking)
        )
        if is_lost and not self._is_walking and not self._is_resting:
            ahead = [peer for peer, digest in board.digests() if digest.complete and digest.vector.fence >= purge.fence]
            if ahead:
                board.notice("purge_needs_walk", obstacle=str(obstacle), fence=purge.fence.hex())
                self._walk(board.choose(ahead), "a Purge cannot be applied without it")
        self._pull_all_after_grace()

    def _is_known(self, top: Version) -> bool:
        """Tell whether some peer's vector has an entry that covers what is lacking: then its log, or its refusal, leads on.

        An entry that ends before is no help. Two replicas that are behind alike would each take the other for one who can.
        """
        shown = [digest.vector.top_of(version_issuer(top)) for _, digest in self.board.digests() if digest.complete]
        return any(one is not None and one >= top for one in shown)

    # --- the store

    def _persist(self, batch: FrameBatch | WalkBatch, batch_bytes: int) -> None:
        parts = int(isinstance(batch, WalkBatch))
        self._bytes_in_flight += batch_bytes
        self._parts_in_flight += parts

        def done(result: BatchResult) -> None:
            self._failures = 0
            if result.walk_rest is not None:
                self.board.persist(result.walk_rest, done, failed)
                return
            self._bytes_in_flight -= batch_bytes
            self._parts_in_flight -= parts
            if isinstance(batch, FrameBatch) and result.obstacle:
                self._on_obstacle(batch.frame, result.obstacle)
            if parts:
                self._pull_waiting()
                self._ask_for_part()
                self._end_walk()

        def failed(_: str) -> None:
            self._bytes_in_flight -= batch_bytes
            self._parts_in_flight -= parts
            self._failures += 1
            if self._failures > 1 and not self._is_resting:
                self._is_resting = True
                self.board.set_timer("rest", self.board.settings.digest_idle_ms)
            if parts and self._walking is not None:
                self._abandon_walk("a part could not be stored")
            self._pull_all_after_grace()

        self.board.persist(batch, done, failed)

    def check(self) -> None:
        """Assert what must hold between two events."""
        assert len(self._pulls) <= PULLS_MAX, "pulls are bounded"
        assert all(pulling.peer in self.board.peers for pulling in self._pulls.values()), "pulls go to linked peers"
        assert self._walking is None or self._walking.peer in self.board.peers, "a walk has a linked peer"
        assert self._bytes_in_flight >= 0, "bytes in flight are counted once each way"


def _rows_bytes(rows: tuple[KeyedRow, ...]) -> int:
    return sum(len(key) + len(row) for _, key, row in rows)
