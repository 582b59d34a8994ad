"""Readiness, lag, skew and divergence: what a replica can say of itself.

Decides: ready = complete once since start: it reached the vector its peers showed at first contact, with the chunks of large values, H equal
where comparable; with no peer within `first_contact_ms` its own store counts. Losing the leader does not unready a node. A full disk does, from
when a peer has what cannot be stored here until all is stored that peers had shown when there was room again.
Keeps true: a difference of H at equal vectors, with nothing above them, is a fault and is told [I7].
In and out: digests and vectors in; facts for `status`, `/readyz` and the log out.
"""

from __future__ import annotations

from kvp2p.core.board import MS, Board
from kvp2p.core.messages import Digest
from kvp2p.core.roster import Members
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import NodeId

_SKEW_SAMPLES = 8  # the greatest of these is the one that waited least on its way


class Readiness:
    """Facts about how far this replica is."""

    def __init__(self, board: Board, members: Members) -> None:
        self.board = board
        self.members = members
        self.is_ready = False
        self.has_fallen_behind = False  # it was ready before its disk was full
        self._has_heard = False
        self._met: set[NodeId] = set()  # whose first digest since start is in the target
        self._target: VersionVector = EMPTY_VECTOR
        self._leader_vector: VersionVector | None = None
        self._behind_since_ns: int | None = board.now.mono_ns
        self._leader_heard_ns = board.now.mono_ns
        self._skews_ms: list[int] = []
        self._is_skewed = False

    def start(self) -> None:
        """With nobody to hear from the own store counts at once; otherwise peers have a while to be heard."""
        if self.members.is_alone():
            self.on_nobody_heard()
        else:
            self.board.set_timer("contact", self.board.settings.first_contact_ms)

    def on_nobody_heard(self) -> None:
        """No peer was reachable in time."""
        if not self._has_heard:
            self._has_heard = True
            self.on_vector()

    def on_digest(self, peer: NodeId, digest: Digest) -> None:
        """Compare with a peer."""
        if not self.is_ready and peer not in self._met:
            self._has_heard = True
            self._met.add(peer)
            self._target = self._target.join(digest.vector)
        self._compare_hashes(peer, digest)
        if self.board.leads:
            self._tell_skew(self.board.peers_skew_ms() or 0)
        # One that is to lead keeps it in mind until it does: it then begins a term.
        is_follower = not self.board.is_leader(self.board.me.node)
        if self.board.restored and is_follower and digest.complete and self.board.vector.covers_vector(digest.vector):
            self.board.forget_restored()
        if self.board.full_reason:
            self.on_disk_full()
        if self.board.is_leader(peer):
            self._leader_heard_ns = self.board.now.mono_ns
            self._note_skew(digest)
            self._leader_vector = digest.vector
        self.on_vector()

    def on_disk_full(self) -> None:
        """Be ready no more when peers have something that this disk has no room for; it goes on being read."""
        for _, digest in self.board.digests():
            if digest.complete:
                self._target = self._target.join(digest.vector)
        if self.is_ready and not self.board.vector.covers_vector(self._target):
            self.is_ready = False
            self.has_fallen_behind = True
            self.board.notice("fallen_behind", "error", reason="the disk is full")

    def on_vector(self) -> None:
        """Note how far behind the leader this is, and become ready when everything shown at first contact is here."""
        board = self.board
        if self._leader_vector is None:
            pass  # behind since the start, until the leader was heard
        elif board.vector.covers_vector(self._leader_vector):
            self._behind_since_ns = None
        elif self._behind_since_ns is None:
            self._behind_since_ns = board.now.mono_ns
        if self.is_ready or not self._has_heard or not board.complete or self.is_diverged:
            return
        if board.whole.vector().covers_vector(self._target):
            self.is_ready = True
            self.has_fallen_behind = False
            board.notice("ready")

    @property
    def lacks_chunks(self) -> bool:
        """Tell whether chunks of large values are all that this replica waits for to become ready."""
        vector, target = self.board.vector, self._target
        return vector.covers_vector(target) and not self.board.whole.vector().covers_vector(target)

    @property
    def is_diverged(self) -> bool:
        """Tell whether H differs from a peer's at an equal vector."""
        return any(peer.diverged for peer in self.board.peers.values())

    @property
    def skew_ms(self) -> int | None:
        """Return the leader's clock minus ours, as the best of the latest samples; at the leader, those of its peers. None before any."""
        if self.board.leads:
            return self.board.peers_skew_ms()
        return max(self._skews_ms) if self._skews_ms else None

    def lag_ms(self) -> int:
        """Return for how long this replica has lacked something its leader has, or has not heard from it."""
        now_ns = self.board.now.mono_ns
        if self.board.is_leader(self.board.me.node):
            return 0
        oldest_ns = now_ns
        if self._behind_since_ns is not None:
            oldest_ns = self._behind_since_ns
        if self.board.designation is None or self.board.designation.node not in self.board.peers:
            oldest_ns = min(oldest_ns, self._leader_heard_ns)
        return (now_ns - oldest_ns) // MS

    def _compare_hashes(self, peer: NodeId, digest: Digest) -> None:
        board = self.board
        if not (digest.comparable and board.is_comparable and digest.vector == board.vector and digest.complete):
            return
        is_diverged = digest.state_hash != board.state_hash.to_bytes(16, "big")
        if is_diverged and not board.peers[peer].diverged:
            board.notice("diverged", "error", peer=peer.hex(), vector=repr(board.vector))
        board.peers[peer].diverged = is_diverged

    def _note_skew(self, digest: Digest) -> None:
        board = self.board
        self._skews_ms = [*self._skews_ms[1 - _SKEW_SAMPLES :], digest.wall_ms - board.now.wall_ms]
        self._tell_skew(max(self._skews_ms))

    def _tell_skew(self, skew_ms: int) -> None:
        board = self.board
        is_skewed = abs(skew_ms) > board.settings.skew_alarm_ms
        if is_skewed != self._is_skewed:
            self._is_skewed = is_skewed
            kind = "clock_skewed" if is_skewed else "clock_skew_over"
            board.notice(
                kind, "warning" if is_skewed else "info", skew_ms=skew_ms, limit_ms=board.settings.skew_alarm_ms
            )
