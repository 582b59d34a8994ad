"""What peers say that cannot be true, or hardly: positions that only this node can issue, and stamps far ahead of its clock.

Decides: which message ends its peer's link for what it claims, and when an operator is told that a clock, or a peer, is wrong.
Keeps true: C11, seen from the issuer: nobody else issues under the issuer that this node leads with now, so rows at positions beyond the last one that
was given out are made up. Such a message changes nothing: its link is closed, and nothing more of that link is heard. I9: what is told is
told once a link.
In and out: frames, walk parts and digests in; Disconnect and notices out.

A *digest* that shows such positions closes nothing. Its sender may have been lied to itself: it is ahead by positions that do not exist, and in the end it
needs this node's true ones. So it is told (`unissued_positions_shown`), the clock goes past what was shown as it does for any stamp [I2], so that what is written from
then on is news to that peer too, and what it shows is not asked for. Positions of this node's *earlier* issuers are no such matter: a disk that was rolled back
has forgotten them, and its peers have not.

Stamps far ahead of this node's clock (`stamps_ahead`) are taken all the same: a leader whose clock is a day ahead is a fault that an operator has to mend, and what it
acknowledged counts [I1]. The wire refuses only what no clock shows (`STAMP_MAX`).
"""

from __future__ import annotations

from kvp2p.core.board import Board
from kvp2p.core.entry import row_version
from kvp2p.core.events import Disconnect
from kvp2p.core.hlc import stamp_wall_ms
from kvp2p.core.leadership import Leadership
from kvp2p.core.messages import Digest, Frame, WalkPart
from kvp2p.core.vector import VersionVector
from kvp2p.ids import Issuer, NodeId, Stamp, version_position, version_stamp
from kvp2p.limits import STAMPS_AHEAD_MS_MAX


class Doubts:
    """Looks at what may change this replica, before it does."""

    def __init__(self, board: Board, leadership: Leadership) -> None:
        self.board = board
        self.leadership = leadership

    def takes(self, peer: NodeId, message: Frame | WalkPart) -> bool:
        """Tell whether a message may be applied; if it was made up, close the link that it came over."""
        issued = self.leadership.issued
        if issued is not None and (reason := _made_up(message, *issued)) is not None:
            board = self.board
            board.peers[peer].is_refused = True
            board.notice("peer_refused", "error", peer=peer.hex(), reason=reason)
            board.emit(Disconnect(peer, reason))
            return False
        self._look_ahead(peer, message)
        # One's own log comes back from nobody who is asked for it; what is just becoming durable must not come in from outside.
        return issued is None or not isinstance(message, Frame) or message.issuer != issued[0]

    def on_digest(self, peer: NodeId, digest: Digest) -> None:
        """Tell of what a digest shows that is not there, or far ahead."""
        issued = self.leadership.issued
        if issued is not None:
            issuer, last = issued
            shown = _shown(digest.vector, issuer)
            state = self.board.peers[peer]
            if shown > last and not state.is_told_of_unissued:
                state.is_told_of_unissued = True
                self.board.notice(
                    "unissued_positions_shown", "error", peer=peer.hex(), shown=f"{shown:016x}", issued=f"{last:016x}"
                )
        self._look_ahead(peer, digest)

    def _look_ahead(self, peer: NodeId, message: Frame | WalkPart | Digest) -> None:
        state = self.board.peers[peer]
        if state.is_told_ahead:
            return
        ahead_ms = stamp_wall_ms(_latest_stamp(message)) - self.board.now.wall_ms
        if ahead_ms > STAMPS_AHEAD_MS_MAX:
            state.is_told_ahead = True
            self.board.notice(
                "stamps_ahead", "warning", peer=peer.hex(), ahead_ms=ahead_ms, limit_ms=STAMPS_AHEAD_MS_MAX
            )


def _made_up(message: Frame | WalkPart, issuer: Issuer, last: Stamp) -> str | None:
    """Say what is made up, None when nothing is that this node can tell."""
    if isinstance(message, Frame):
        shown = message.upto if message.issuer == issuer else Stamp(0)
    else:
        shown = max(_shown(message.vector, issuer), _shown(message.above, issuer))
    if shown <= last:
        positions = [version_position(row_version(row)) for _, _, row in message.rows]
        shown = max([stamp for stamp, row_issuer in positions if row_issuer == issuer], default=Stamp(0))
    return None if shown <= last else f"it sends positions up to {shown:016x}, and this node has issued {last:016x}"


def _shown(vector: VersionVector, issuer: Issuer) -> Stamp:
    top = vector.top_of(issuer)
    return Stamp(0) if top is None else version_stamp(top)


def _latest_stamp(message: Frame | WalkPart | Digest) -> Stamp:
    if isinstance(message, Digest):
        return message.vector.latest_stamp()
    if isinstance(message, Frame):
        whole = message.upto
    else:
        whole = max(message.vector.latest_stamp(), message.above.latest_stamp())
    return max([whole, *(version_stamp(row_version(row)) for _, _, row in message.rows)])
