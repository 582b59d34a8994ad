"""Purging: when the leader lets go of tombstones and expired rows, and what every node forgets of its log.

Decides: floor, fence and time of the next Purge; which positions of the log are too old or too many.
Keeps true
* I8. The floor is the pointwise minimum of what all candidates hold durably and whole, which have seen this designation, lead nothing and have the same
  fence. The fence is not above what any issuer that is not wholly under the floor could still add. A candidate that is gone blocks purging, and nothing else.
* A trim cuts off no live candidate: what it has not covered stays in the log.
* I9: a Purge removes about PURGE_ROWS_MAX rows, a trim as many positions; more is done by the next one, at once.
In and out: the board's issuers, candidates and digests in; `PurgeBatch`, `LogTrim` and frames out.

A Purge makes positions below its fence unservable, so whoever lacks them must walk. That is why the fence keeps `purge_after_ms` behind the leader's clock.
"""

from __future__ import annotations

from kvp2p.core.batches import BatchResult, LogTrim, PurgeBatch
from kvp2p.core.board import MS, Board
from kvp2p.core.hlc import first_stamp_at
from kvp2p.core.leadership import Leadership
from kvp2p.core.messages import Digest
from kvp2p.core.purge import following, least_unknown
from kvp2p.core.vector import EVERY_STAMP, VersionVector
from kvp2p.core.writing import LeaderWriter
from kvp2p.ids import (
    ISSUER_BYTES,
    Issuer,
    NodeId,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
    version_term,
)
from kvp2p.limits import LOG_TRIM_MAX, PURGE_ROWS_MAX

_NO_ISSUER = Issuer(bytes(ISSUER_BYTES))


class Purger:
    """Purges while this node leads, and trims its log in any role. `purges` counts the Purges that it has issued in this life."""

    def __init__(self, board: Board, leadership: Leadership) -> None:
        self.board = board
        self.leadership = leadership
        self.purges = 0
        self._is_purging = False
        self._is_trimming = False
        self._hurry_until_ns = 0  # there may be more to purge than one Purge removes
        self._trim_at_ns = 0

    def start(self) -> None:
        """Begin to look now and then."""
        self._look_later()

    @property
    def blocked_by(self) -> NodeId | None:
        """Return who keeps this leader from purging, a candidate or itself; None while nobody does or this node does not lead."""
        if self.leadership.writer is None:
            return None
        return next((node for node in (*self._candidates(), self.board.me.node) if self.hindrance(node)), None)

    def hindrance(self, candidate: NodeId) -> str:
        """Tell why what a candidate, or this node, holds keeps this leader from purging now, "" when it does not."""
        board, digest = self.board, self._digest_of(candidate)
        if candidate == board.me.node:
            if not board.is_comparable:
                return "it has rows of a walk that did not end, and nobody shows their log"
            return self._lack(board.vector, board.whole.vector())
        if digest is None:
            return "it is not reachable"
        return self._doubt(digest) or self._lack(digest.vector, _whole(digest))

    def _doubt(self, digest: Digest) -> str:
        """Tell why a candidate's word cannot be counted on, "" when it can."""
        if not digest.complete:
            return "it has not received everything yet"
        if digest.designation != self.board.designation or digest.leads is not None:
            return "it has not taken in who leads"
        if digest.vector.fence != self.board.vector.fence:
            return "it has not applied the last purge"
        return "" if digest.clock_ms else "it does not know the leader's clock"

    def _lack(self, vector: VersionVector, whole: VersionVector) -> str:
        """Tell that a fence waits for chunks of values which are old enough to be passed, "" when it does not."""
        writer = self.leadership.writer
        if writer is None:
            return ""
        is_waiting = least_unknown(whole, vector) < self._youngest_to_go(self._old_ms(), writer)
        return "it lacks chunks of large values, or does not tell of which" if is_waiting else ""

    def on_timer(self) -> None:
        """Purge and trim what is due."""
        self._look_later()
        board = self.board
        if self._is_purging or board.is_stopping:
            return
        if board.now.mono_ns >= self._trim_at_ns:
            self._trim_at_ns = board.now.mono_ns + board.settings.purge_interval_ms * MS
            self._trim()
        self._purge()

    def _look_later(self) -> None:
        settings = self.board.settings
        is_hurried = self.board.now.mono_ns < self._hurry_until_ns
        # A Purge needs a word from every candidate that it has the one before: no more than a digest of theirs is waited for.
        soon_ms = min(settings.digest_busy_ms, settings.purge_interval_ms)
        self.board.set_timer("purge", soon_ms if is_hurried else settings.purge_interval_ms)

    # --- the log

    def _trim(self) -> None:
        board, settings = self.board, self.board.settings
        if self._is_trimming or not board.garbage.log_positions:
            return
        keep = board.vector
        for candidate in self._candidates():
            digest = self._digest_of(candidate)
            if digest is None and candidate in board.peers:
                return  # it has just come back, and has not said yet what it lacks
            if digest is not None and digest.complete:
                keep = keep.minimum(digest.vector)
        age_ms = max(0, board.clock_ms() - settings.log_age_ms)
        trim = LogTrim(keep, first_stamp_at(age_ms), settings.log_positions_max, LOG_TRIM_MAX)

        self._is_trimming = True

        def done(result: BatchResult) -> None:
            self._is_trimming = False
            if result.trimmed == LOG_TRIM_MAX:
                self._trim()

        def failed(_: str) -> None:
            self._is_trimming = False  # a full disk: the timer tries again

        board.persist(trim, done, failed)

    # --- tombstones and expired rows

    def _purge(self) -> None:
        board, writer = self.board, self.leadership.writer
        if writer is None or not self._is_due():
            return
        held = self._held_by_candidates()
        if held is None:
            return
        floor, clock_ms = held
        settings = board.settings
        old_ms = self._old_ms()
        if not old_ms:
            return
        fence_max = min(self._youngest_to_go(old_ms, writer), self._least_addable(floor, writer))
        before_s = (clock_ms - settings.purge_skew_ms) // 1_000
        if fence_max <= board.vector.fence or not self._has_garbage(fence_max, before_s):
            return
        self._is_purging = True

        def make(stamp: Stamp) -> PurgeBatch:
            term, issuer = writer.designation.term, writer.issuer
            return PurgeBatch(term, issuer, stamp, floor, fence_max, max(0, before_s), PURGE_ROWS_MAX)

        def done(result: BatchResult) -> None:
            self._is_purging = False
            self._hurry_until_ns = 0
            if result.frame is not None:
                self.purges += 1
                board.notice("purged", "debug", rows=result.rows_changed, fence=result.vector.fence.hex())
                self._hurry_until_ns = board.now.mono_ns + settings.purge_interval_ms * MS
                self._look_later()

        def failed(_: str) -> None:
            self._is_purging = False  # a full disk: the timer tries again

        writer.add_purge(make, done, failed)

    def _is_due(self) -> bool:
        return self.board.garbage.has_any or any(row.closed is not None for row in self.board.issuers.values())

    def _has_garbage(self, fence: Version, before_s: int) -> bool:
        garbage = self.board.garbage
        if garbage.oldest_grave is not None and garbage.oldest_grave < fence:
            return True
        if garbage.first_expiry_s and garbage.first_expiry_s <= before_s:
            return True
        return any(
            row.closed is not None and make_version(row.term, row.closed, row.issuer) < fence
            for row in self.board.issuers.values()
        )

    def _held_by_candidates(self) -> tuple[VersionVector, int] | None:
        """Return what all candidates hold whole, and the least of their estimates of the leader's clock; None while one is missing."""
        board = self.board
        floor = board.whole.vector()
        clock_ms = board.clock_ms()
        for candidate in self._candidates():
            digest = self._digest_of(candidate)
            if digest is None or self._doubt(digest):
                return None
            floor = floor.minimum(_whole(digest))
            clock_ms = min(clock_ms, digest.clock_ms)
        return floor, clock_ms

    def _candidates(self) -> list[NodeId]:
        """Return the other candidates."""
        return [NodeId(node) for node in self.board.candidates if node != self.board.me.node]

    def _digest_of(self, node: NodeId) -> Digest | None:
        peer = self.board.peers.get(node)
        return None if peer is None else peer.digest

    def _old_ms(self) -> int:
        """Return the time before which everything is old enough to go; 0 by a clock that has just begun."""
        return max(0, self.board.clock_ms() - self.board.settings.purge_after_ms)

    def _youngest_to_go(self, old_ms: int, writer: LeaderWriter) -> Version:
        """Return the version below which everything is older than `old_ms`, whatever its term: the log goes on serving the rest."""
        old = first_stamp_at(old_ms)
        young = [version_term(top) for top in self.board.vector.tops() if version_stamp(top) >= old]
        return make_version(min([writer.designation.term, *young]), old, _NO_ISSUER)

    def _least_addable(self, floor: VersionVector, writer: LeaderWriter) -> Version:
        """Return the least version that an issuer not wholly under `floor` could still add, or has added beyond it [I8]."""
        board = self.board
        terms = {version_issuer(top): version_term(top) for top in board.vector.tops()}
        # What a peer shows counts too: a deposed leader may have begun an issuer that nobody else has heard of yet. What is covered here was
        # heard of, and may have ended long ago: a peer that is far behind, and goes on showing it, holds nothing back.
        shown = [top for _, digest in board.digests() for top in digest.vector.tops() if not board.vector.covers(top)]
        terms |= {version_issuer(top): version_term(top) for top in shown}
        terms |= {row.issuer: row.term for row in board.issuers.values()}
        terms[writer.issuer] = writer.designation.term
        return min(
            following(floor, term, issuer)
            for issuer, term in terms.items()
            if issuer == writer.issuer or not self._is_wholly_under(floor, term, issuer)
        )

    def _is_wholly_under(self, floor: VersionVector, term: int, issuer: Issuer) -> bool:
        row = self.board.issuers.get(issuer)
        if row is None or row.closed is None:
            return floor.reach(term, issuer) == EVERY_STAMP
        return floor.reach(term, issuer) >= row.closed and floor.covers_vector(self.board.vector.only(issuer))


def _whole(digest: Digest) -> VersionVector:
    return digest.vector if digest.whole is None else digest.whole
