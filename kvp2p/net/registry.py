"""Which link to a peer stays: one link a pair, decided once, by one end.

Decides: whether a proven newcomer becomes *the* link to its peer.
Keeps true: at most one link a pair counts; `on_link_up` and `on_link_down` of a peer strictly alternate, because a session begins only after the
one before it has been told down.
In and out: sessions; no I/O.

Both ends of a pair may dial at the same moment, and two ends that each judged for themselves could keep different links, or none. So only the end with
the smaller node id judges (`Handshake.decides`), and the other obeys. The judge's rules, for a newcomer while another link stands:

1. From another instance of the peer: the newcomer wins. The peer has restarted; its old process is gone, whether or not our end has noticed. (A proven newcomer is
   alive now: its proof covers our fresh nonce. Order of instances does not matter, so a restored or cloned disk is no exception.)
2. From the same instance, dialled by the peer, while our link is older than `link_timeout_ms`: the newcomer wins. A peer does not dial (and gives up a
   dial once it reads our hello) while it has a link to us, so it has lost the link that we still believe in: a dead path, noticed at one end first. Any
   dial that began before our link was up has ended by then: a handshake may take no longer.
3. Otherwise the link that stands stays. In the instant when both dial, the judge waits a moment for its own dial to that peer before it takes the
   peer's (`net/mesh.py`), so the link that stays is the one dialled by the smaller node id.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from kvp2p.ids import NodeId
from kvp2p.limits import PEERS_MAX
from kvp2p.net.handshake import Peer, Refusal
from kvp2p.net.link import Link


@dataclass(slots=True, eq=False)
class Session:
    """The link to a peer that counts. `finished` is set once the host has been told of its end, if it was told of its start."""

    peer: Peer
    link: Link
    is_dialled: bool
    opened_at: float  # of trio's clock
    before: Session | None
    is_up: bool = False
    finished: trio.Event = field(default_factory=trio.Event)


class Registry:
    """The session of each peer."""

    def __init__(self, link_timeout_seconds: float) -> None:
        self._link_timeout_seconds = link_timeout_seconds
        self._sessions: dict[NodeId, Session] = {}
        self._changed = trio.Event()

    def get(self, node: NodeId) -> Session | None:
        """Return the session that counts, up or about to be."""
        return self._sessions.get(node)

    def all(self) -> list[Session]:
        """Return all sessions that count."""
        return list(self._sessions.values())

    def is_full_for(self, node: NodeId) -> bool:
        """Tell whether one more peer would be too many."""
        return node not in self._sessions and len(self._sessions) >= PEERS_MAX

    def objection(self, peer: Peer, is_dialled: bool) -> Refusal | None:
        """Judge a proven newcomer: None when it wins."""
        if self.is_full_for(peer.node):
            return Refusal.TOO_MANY_LINKS
        standing = self._sessions.get(peer.node)
        if standing is None or standing.link.reason is not None or standing.peer.instance != peer.instance:
            return None
        age = trio.current_time() - standing.opened_at
        if not is_dialled and age > self._link_timeout_seconds:
            return None
        return Refusal.ALREADY_LINKED

    def add(self, peer: Peer, link: Link, is_dialled: bool) -> Session:
        """Make a newcomer the session that counts and end the link that stood before."""
        before = self._sessions.get(peer.node)
        session = Session(peer, link, is_dialled, trio.current_time(), before)
        self._sessions[peer.node] = session
        if before is not None:
            has_restarted = before.peer.instance != peer.instance
            before.link.close("the peer has restarted" if has_restarted else "a newer link to the peer took its place")
        self._tell_change()
        return session

    def remove(self, session: Session) -> None:
        """Forget a session, unless a newer one has taken its place."""
        session.before = None
        if self._sessions.get(session.peer.node) is session:
            del self._sessions[session.peer.node]
            self._tell_change()

    async def until_unlinked(self, node: NodeId) -> float:
        """Wait while there is a session with a node; return the age that the last one of them reached, 0 when there was none."""
        age = 0.0
        while (session := self._sessions.get(node)) is not None:
            await self._changed.wait()
            age = trio.current_time() - session.opened_at
        return age

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
