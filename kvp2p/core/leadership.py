"""Leadership: who may issue versions, and from when on.

Decides: when a designated node starts to lead, when it steps down, and what a promotion takes.
Keeps true: I2: a node that starts to lead draws a new issuer and first hears a complete peer's vector, term and clock; with none
reachable for `first_contact_ms` its own store counts. A leader behind such a digest that it saw catches up before it leads. Of
two designations that meet, the lower steps down; a promotion takes 1 + the greatest term heard of, and is durable before it is told.
I9: nobody begins a log that would make the vector too long to be read again.
In and out: digests in; `LeaderWriter` while leading. Leadership is read from the store, not from the configuration.
Source: DESIGN.md §2 to §4; terms as in Ongaro and Ousterhout, *Raft* (2014), given by an operator instead of an election.
"""

from __future__ import annotations

from enum import StrEnum

from kvp2p.core import system_rows
from kvp2p.core.batches import Settle
from kvp2p.core.board import Board
from kvp2p.core.events import Promote, Reply
from kvp2p.core.hlc import HybridClock
from kvp2p.core.messages import Designation, Digest
from kvp2p.core.operations import Ending, Outcome, Put, refused
from kvp2p.core.roster import Members
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.core.writing import LeaderWriter
from kvp2p.ids import ISSUER_BYTES, SYSTEM_NAMESPACE, Issuer, NodeId
from kvp2p.limits import VECTOR_ISSUERS_MAX

_ISSUERS_KEPT_FREE = 64  # guess: issuers that other leaders may have begun and this node has not heard of yet


class Role(StrEnum):
    """What a node is doing about leadership."""

    FOLLOWER = "follower"
    HEARING = "hearing"  # designated, waits for a first word from a peer
    CATCHING_UP = "catching_up"  # designated, lacks what a peer has
    TAKING_OVER = "taking_over"  # promoted, the new designation is not durable yet
    LEADING = "leading"


class Leadership:
    """One node's part in leading."""

    def __init__(self, board: Board, members: Members) -> None:
        self.board = board
        self.members = members
        self.role = Role.FOLLOWER
        self.writer: LeaderWriter | None = None
        self._taking_over: LeaderWriter | None = None
        self._clock = HybridClock()
        self._target: VersionVector = EMPTY_VECTOR
        self._has_heard = False
        self._promotion: Promote | None = None
        self._is_full_told = False

    @property
    def issuer(self) -> Issuer | None:
        """Return the issuer under which this node leads, None while it does not."""
        return self.writer.issuer if self.writer is not None else None

    def start(self) -> None:
        """Take up leadership again if the store says that it was given to this node."""
        if self.board.is_leader(self.board.me.node):
            self._prepare()

    def promote(self, event: Promote) -> None:
        """Make this node the leader at a new term, if it may."""
        me = self.board.me.node
        if self._promotion is not None:
            self._reply(event, refused("bad_request", "a promotion is under way already"))
        elif self.board.is_stopping:
            self._reply(event, refused("bad_request", "this node is stopping"))
        elif self.role is Role.LEADING:
            self._reply(event, Outcome(Ending.ACKED))
        elif not self.board.complete:
            self._reply(event, refused("bad_request", "this node has not received the cluster's data yet"))
        elif me not in self.board.candidates and not event.override:
            self._reply(event, refused("bad_request", "this node is not a candidate; see the candidates in `status`"))
        else:
            self._promotion = event
            self._prepare()

    def on_digest(self, digest: Digest) -> None:
        """Learn of leadership from a peer; one of two designations gives way."""
        self._clock.observe(digest.vector.latest_stamp())
        theirs = digest.designation
        ours = self._taking_over.designation if self._taking_over is not None else self.board.designation
        if theirs is not None and (ours is None or theirs.order() > ours.order()):
            self._follow(theirs)
        # A new node's vector says nothing: it is no witness of what there is, and has nothing to catch up with either.
        if digest.complete and self.role in (Role.HEARING, Role.CATCHING_UP):
            self._has_heard = True
            self._target = self._target.join(digest.vector)
            self.on_vector()

    def on_vector(self) -> None:
        """Start to lead once everything that was heard of is here."""
        if self.role not in (Role.HEARING, Role.CATCHING_UP) or not self._has_heard:
            return
        if self.board.complete and self.board.vector.covers_vector(self._target):
            self._lead()
        elif self.role is Role.HEARING:
            self.role = Role.CATCHING_UP
            self.board.notice("leader_catching_up", "warning", behind=repr(self._target))

    def on_nobody_heard(self) -> None:
        """No complete peer was reachable in time: the own store counts [I2]."""
        if self.role is Role.HEARING and not self._has_heard:
            self._has_heard = True
            self.on_vector()

    def on_peer_down(self, peer: NodeId) -> None:
        """Drop the writes of a link that has closed [I10]."""
        if self.writer is not None:
            self.writer.on_peer_down(peer)

    def stop(self) -> None:
        """Refuse what waits. A promotion that is being persisted still ends."""
        if self.writer is not None:
            self.writer.close("the leader is stopping; nothing was applied")
        if self._promotion is not None and self._taking_over is None:
            self.role = Role.FOLLOWER
            self._refuse_promotion("bad_request", "this node is stopping")

    def _prepare(self) -> None:
        self.role = Role.HEARING
        self._has_heard = False
        self._target = EMPTY_VECTOR
        is_override = self._promotion is not None and self._promotion.override
        if self.members.is_alone() or is_override:
            self._has_heard = True
        complete = [digest for _, digest in self.board.digests() if digest.complete]
        if complete:
            self._has_heard = True
        if not is_override:
            for digest in complete:
                self._target = self._target.join(digest.vector)
        if not self._has_heard:
            self.board.set_timer("hear", self.board.settings.first_contact_ms)
        self.on_vector()

    def _lead(self) -> None:
        board = self.board
        if len(board.accepted) >= VECTOR_ISSUERS_MAX - _ISSUERS_KEPT_FREE:
            self._refuse_to_lead()
            return
        issuer = Issuer(board.random.randbytes(ISSUER_BYTES))  # never used before: one issuer, one log [I2]
        for seen in (board.vector, board.accepted, board.above, self._target):
            self._clock.observe(seen.latest_stamp())
        if self._promotion is None:
            assert board.designation is not None, "without a promotion only the designated node leads"
            self._open(LeaderWriter(board, self._clock, board.designation, issuer))
            return
        heard = [digest.designation.term for _, digest in board.digests() if digest.designation is not None]
        own = board.designation.term if board.designation is not None else 0
        designation = Designation(1 + max([own, *heard]), issuer, board.me.node)
        self._take_over(LeaderWriter(board, self._clock, designation, issuer))

    def _refuse_to_lead(self) -> None:
        """One issuer more and some store or message could not be read again: stay as it is, and look again later."""
        if not self._is_full_told:
            self._is_full_told = True
            self.board.notice(
                "too_many_issuers", "error", issuers=len(self.board.accepted), issuers_max=VECTOR_ISSUERS_MAX
            )
        if self._promotion is not None:
            self.role = Role.FOLLOWER
            self._refuse_promotion("bad_request", "the cluster's version vector has no room for another leader")
            self.start()

    def _take_over(self, writer: LeaderWriter) -> None:
        """Persist the new designation with the first log entry under it; until then nothing of it is told."""
        self.role = Role.TAKING_OVER
        self._taking_over = writer

        def done() -> None:
            if self._taking_over is writer:  # else a higher designation was heard of meanwhile
                self._taking_over = None
                self.board.designation = writer.designation
                self._open(writer)
                promotion, self._promotion = self._promotion, None
                assert promotion is not None, "only a promotion takes over"
                self._reply(promotion, Outcome(Ending.ACKED))

        def failed(reason: str) -> None:
            if self._taking_over is writer:
                self._taking_over = None
                self.role = Role.FOLLOWER
                self._refuse_promotion("disk_full", f"the new designation could not be stored: {reason}")
                self.start()

        row = system_rows.encode_leader(writer.designation.node, writer.designation.term)
        writer.begin_term((Put(SYSTEM_NAMESPACE, system_rows.LEADER_KEY, row),), done, failed)

    def _open(self, writer: LeaderWriter) -> None:
        self.writer = writer
        self.role = Role.LEADING
        self.board.notice("leading", term=writer.designation.term, issuer=writer.issuer.hex())

    def _follow(self, designation: Designation) -> None:
        board = self.board
        board.designation = designation
        board.persist(Settle(designation=designation))
        is_mine = designation.node == board.me.node
        if is_mine and self.role in (Role.HEARING, Role.CATCHING_UP):
            return
        if self.role is not Role.FOLLOWER:
            board.notice("stepped_down", "warning", term=designation.term, leader=designation.node.hex())
        self.role = Role.FOLLOWER
        self._taking_over = None
        board.drop_timer("hear")
        if self.writer is not None:
            self.writer.close("another designation was heard of; nothing was applied")
            self.writer = None
        if is_mine:
            self._prepare()  # given to an earlier life of this node, which this disk has forgotten
        else:
            self._refuse_promotion("bad_request", f"the node {designation.node.hex()} leads at a higher term")

    def _refuse_promotion(self, code: str, message: str) -> None:
        promotion, self._promotion = self._promotion, None
        if promotion is not None:
            self._reply(promotion, refused(code, message))

    def _reply(self, event: Promote, outcome: Outcome) -> None:
        self.board.emit(Reply(event.request, outcome))
