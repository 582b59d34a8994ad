"""The roster: which members there are, where to dial them, and who tells whom.

Decides: whom this node keeps a link to.
Keeps true: of two rows of a member the greater incarnation stays (each member issues its own); I9, at most MEMBERS_MAX rows.
In and out: Roster messages in; Connect, Roster and Settle out. One reachable peer is enough: what it knows is passed on.
"""

from __future__ import annotations

from dataclasses import replace

from kvp2p.core.batches import Settle
from kvp2p.core.board import Board
from kvp2p.core.events import Connect
from kvp2p.core.messages import Member, Roster
from kvp2p.ids import NodeId
from kvp2p.limits import MEMBERS_MAX


class Members:
    """The members known here, this node included."""

    def __init__(self, board: Board, stored: tuple[Member, ...], seeds: tuple[str, ...]) -> None:
        self.board = board
        self.seeds = seeds
        self._rows: dict[NodeId, Member] = {member.node: member for member in stored}

    def start(self) -> None:
        """Take up this node's own row and dial everybody else."""
        self._rows[self.board.me.node] = self.board.me
        self.store()
        for member in self.others():
            self.board.emit(Connect(member.node, member.mesh_url))
        for url in self.seeds:
            self.board.emit(Connect(None, url))

    def all(self) -> tuple[Member, ...]:
        """Return all members, ordered by node id."""
        return tuple(self._rows[node] for node in sorted(self._rows))

    def others(self) -> tuple[Member, ...]:
        """Return all members but this node."""
        return tuple(member for member in self.all() if member.node != self.board.me.node)

    def is_alone(self) -> bool:
        """Tell whether no other member is known or looked for."""
        return not self.others() and not self.seeds

    def greet(self, peer: NodeId) -> None:
        """Tell a new peer whom we know."""
        self.board.send(peer, Roster(self.all()))

    def on_roster(self, peer: NodeId, roster: Roster) -> None:
        """Take over newer rows; pass on what was new."""
        news: list[Member] = []
        for member in roster.members:
            if member.node == self.board.me.node:
                if member.incarnation > self.board.me.incarnation:
                    # An earlier life of this node got further than this disk knows: go past it.
                    self.board.me = replace(self.board.me, incarnation=member.incarnation + 1)
                    self._rows[member.node] = self.board.me
                    news.append(self.board.me)
                continue
            known = self._rows.get(member.node)
            if known is not None and known.incarnation >= member.incarnation:
                continue
            if known is None and len(self._rows) >= MEMBERS_MAX:
                self.board.notice("roster_full", "error", members_max=MEMBERS_MAX, refused=member.name)
                continue
            self._warn_of_namesake(member)
            self._rows[member.node] = member
            news.append(member)
            if known is None or known.mesh_url != member.mesh_url:
                self.board.emit(Connect(member.node, member.mesh_url))
        if news:
            self.store()
            for other in self.board.peers:
                if other != peer or self.board.me in news:
                    self.board.send(other, Roster(tuple(news)))

    def _warn_of_namesake(self, member: Member) -> None:
        for other in self.all():
            if other.name == member.name and other.node != member.node:
                self.board.notice("two_members_with_one_name", "warning", name=member.name)

    def store(self) -> None:
        """Write down the members as they are known, by and by when the disk is full."""

        def failed(_: str) -> None:
            self.board.set_timer("roster", self.board.settings.digest_idle_ms)

        self.board.persist(Settle(members=self.all()), failed=failed)
