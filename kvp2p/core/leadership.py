"""Leadership: who may issue versions, and from when on.

Decides: when a designated node starts to lead, when it steps down, and what a promotion takes.
Keeps true: I2: a node that starts to lead draws a new issuer and first hears a complete peer's vector, term and clock; with none
reachable for `first_contact_ms` its own store counts, unless it was made of a backup: then a peer or an operator's word is needed. A leader behind such a digest that it saw catches up before it leads. Of
two designations that meet, the lower steps down; a promotion takes 1 + the greatest term heard of. Whoever leads has first made durable
that its issuer is open (and, when promoted, its designation), and that those of its earlier lives are closed; until then nothing is told.
I9: nobody begins a log that would make the vector too long to be read again, and a node that goes on crashing begins one in 10 s.
In and out: digests in; `LeaderWriter` and `IssuerCloser` while leading. Leadership is read from the store, not from the configuration.
Source: DESIGN.md §2 to §4; terms as in Ongaro and Ousterhout, *Raft* (2014), given by an operator instead of an election.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kvp2p.core import system_rows
from kvp2p.core.batches import Settle
from kvp2p.core.board import Board
from kvp2p.core.events import CloseIssuer, Promote, Reply
from kvp2p.core.hlc import HybridClock, stamp_wall_ms
from kvp2p.core.issuers import IssuerCloser, opening_rows
from kvp2p.core.messages import Designation, Digest
from kvp2p.core.operations import Ending, Operation, Outcome, Put, refused
from kvp2p.core.roster import Members
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.core.writing import LeaderWriter
from kvp2p.ids import (
    ISSUER_BYTES,
    SYSTEM_NAMESPACE,
    Issuer,
    NodeId,
    Stamp,
    version_issuer,
    version_stamp,
    version_term,
)
from kvp2p.limits import (
    ISSUERS_KEPT_FREE,
    ISSUERS_LATELY_MAX,
    ISSUERS_LATELY_MS,
    ISSUERS_PAUSE_MS,
    ISSUERS_WARNED_OF,
    TERM_MAX,
    VECTOR_ISSUERS_MAX,
)


class Role(StrEnum):
    """What a node is doing about leadership."""

    FOLLOWER = "follower"
    HEARING = "hearing"  # designated, waits for a first word from a peer
    CATCHING_UP = "catching_up"  # designated, lacks what a peer has
    TAKING_OVER = "taking_over"  # about to lead, what says so is not durable yet
    LEADING = "leading"


@dataclass(frozen=True, slots=True)
class Lack:
    """What a designated node waits for before it leads: the log of an issuer up to `wanted`, of which `peer` has told."""

    issuer: Issuer
    held: Stamp
    wanted: Stamp
    peer: NodeId


class Leadership:
    """One node's part in leading."""

    def __init__(self, board: Board, members: Members) -> None:
        self.board = board
        self.members = members
        self.role = Role.FOLLOWER
        self.writer: LeaderWriter | None = None
        self._taking_over: LeaderWriter | None = None
        self._clock = HybridClock()
        self._deposed: LeaderWriter | None = None
        self._closer: IssuerCloser | None = None
        self._target: VersionVector = EMPTY_VECTOR
        self._shown_by: dict[Issuer, NodeId] = {}
        self._has_heard = False
        self._is_waiting = False  # for the timer `open`: after a full disk, or too many starts
        self._has_paused = False
        self._promotion: Promote | None = None
        self._is_full_told = False

    @property
    def issuer(self) -> Issuer | None:
        """Return the issuer under which this node leads, or led and may still add to; None when it can add nothing."""
        writer = self._issuing
        return writer.issuer if writer is not None else None

    @property
    def issued(self) -> tuple[Issuer, Stamp] | None:
        """Return that issuer, and the last stamp that was given out under it: nobody can truly show more."""
        writer = self._issuing
        return (writer.issuer, writer.issued) if writer is not None else None

    @property
    def _issuing(self) -> LeaderWriter | None:
        if self.writer is None and self._deposed is not None and self._deposed.may_add:
            return self._deposed
        return self.writer

    @property
    def waiting(self) -> str:
        """Say what a restored node waits for, as the end of a sentence; "" for any other."""
        if self.role is not Role.HEARING or self._has_heard or not self.board.restored:
            return ""
        return ", waiting for a peer that has the cluster's data, since its data directory was made by restore"

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
        elif not event.override and abs(self.board.peers_skew_ms() or 0) > self.board.settings.promote_skew_ms_max:
            # Stamps and expiries of all that it writes would be as far off, for ever.
            self._reply(event, refused("bad_request", self._skewed()))
        else:
            self._promotion = event
            self._prepare()

    def _skewed(self) -> str:
        skew_ms, limit_ms = self.board.peers_skew_ms() or 0, self.board.settings.promote_skew_ms_max
        where = "behind" if skew_ms > 0 else "ahead of"
        return (
            f"this node's wall clock is {abs(skew_ms)} ms {where} those of its peers, {limit_ms} ms are the limit: set it right, or "
            "promote with an override"
        )

    def close_issuer(self, event: CloseIssuer) -> None:
        """Close an issuer because an operator says that its node is gone for ever."""
        if self._closer is None:
            self._refuse(event, "no_leader", f"this node is {self.role}; only the leader can close an issuer")
        elif self.board.is_stopping:
            self._refuse(event, "bad_request", "this node is stopping")
        else:
            self._closer.close(event)

    def lacks(self) -> tuple[Lack, ...]:
        """Return what this node waits for while it is catching up."""
        if self.role is not Role.CATCHING_UP:
            return ()
        held = self.board.vector
        return tuple(
            Lack(
                version_issuer(top),
                held.reach(version_term(top), version_issuer(top)),
                version_stamp(top),
                self._shown_by[version_issuer(top)],
            )
            for top in self._target.tops()
            if not held.covers(top)
        )

    def on_digest(self, peer: NodeId, digest: Digest) -> None:
        """Learn of leadership from a peer; one of two designations gives way."""
        self._clock.observe(digest.vector.latest_stamp())
        theirs = digest.designation
        ours = self._taking_over.designation if self._taking_over is not None else self.board.designation
        if theirs is not None and (ours is None or theirs.order() > ours.order()):
            self._follow(theirs)
        # A new node's vector says nothing: it is no witness of what there is, and has nothing to catch up with either.
        if digest.complete and self.role in (Role.HEARING, Role.CATCHING_UP):
            self._has_heard = True
            self._aim_at(peer, digest)
            self.on_vector()
        if self._closer is not None:
            self._closer.on_digest()

    def on_vector(self) -> None:
        """Start to lead once everything that was heard of is here; begin a new log when somebody has closed the one that is being written."""
        if self.writer is not None and self._is_closed_by_others(self.writer.issuer):
            self._begin_anew(self.writer)
        if self.role not in (Role.HEARING, Role.CATCHING_UP) or not self._has_heard:
            return
        if self._is_waiting or self.board.is_stopping:
            return
        if self.board.complete and self.board.vector.covers_vector(self._target):
            if self._deposed is not None and self._deposed.may_add:
                # Or its issuer would be closed below its true end. When its group adds something, the vector moves and this is
                # asked again; else the timer asks.
                self.board.set_timer("open", self.board.settings.digest_idle_ms)
            elif self._has_paused or not self._has_led_too_often():
                self._lead()
        elif self.role is Role.HEARING:
            self.role = Role.CATCHING_UP
            self.board.notice("leader_catching_up", "warning", behind=repr(self._target))

    def _is_closed_by_others(self, issuer: Issuer) -> bool:
        row = self.board.issuers.get(issuer)
        return row is not None and row.closed is not None

    def _begin_anew(self, writer: LeaderWriter) -> None:
        """Lead on under another issuer: an operator vouched, at another leader, that this one is gone for ever, and a fence may pass its log [I8]."""
        self.board.notice("issuer_closed_by_others", "warning", issuer=writer.issuer.hex())
        writer.close("the leader begins a new log; nothing was applied")
        self._deposed, self.writer, self._closer = writer, None, None
        self.board.leads = False
        self._prepare()

    def _has_led_too_often(self) -> bool:
        """Tell whether this node has begun so many issuers lately that it has to wait; if so, it looks again later, once."""
        board = self.board
        # Where a log ends stands for where it began: a node has one after the other, so all but the first of these began lately, too.
        # A clock that was ahead makes older ones count as well; that costs a wait, not more.
        since_ms = board.now.wall_ms - ISSUERS_LATELY_MS
        own = [row.issuer for row in board.issuers.values() if row.node == board.me.node]
        tops = [board.vector.top_of(issuer) for issuer in own]
        lately = sum(top is not None and stamp_wall_ms(version_stamp(top)) > since_ms for top in tops)
        if lately <= ISSUERS_LATELY_MAX or self._promotion is not None:  # an operator's word is no crash loop
            return False
        self._has_paused = self._is_waiting = True
        board.set_timer("open", ISSUERS_PAUSE_MS)
        board.notice("leader_pauses", "warning", issuers=lately, within_ms=ISSUERS_LATELY_MS, pause_ms=ISSUERS_PAUSE_MS)
        return True

    def on_nobody_heard(self) -> None:
        """No complete peer was reachable in time: the own store counts, unless it is that of a backup [I2]."""
        if self.role is not Role.HEARING or self._has_heard:
            return
        if not self.board.restored:
            self._has_heard = True
            self.on_vector()
            return
        self.board.notice("leader_waits_restored", "warning")
        if self._promotion is not None:
            self._give_up_promotion(
                "the data directory was made by restore, and no peer that has the cluster's data was reachable: others may "
                "have newer writes. Override it if there are none"
            )

    def on_retry(self, what: str) -> None:
        """Do now what had to wait, or found the disk full: the first group of a leader, a closed issuer, a designation heard of."""
        if what == "open":
            self._is_waiting = False
            self.on_vector()
        elif what == "settle":
            self._settle()
        elif self._closer is not None:
            self._closer.on_timer()

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
        self._is_waiting = self._has_paused = False
        self._target = EMPTY_VECTOR
        self._shown_by = {}
        is_override = self._promotion is not None and self._promotion.override
        if is_override or (self.members.is_alone() and not self.board.restored):
            self._has_heard = True
        for peer, digest in self.board.digests():
            if digest.complete:
                self._has_heard = True
                if not is_override:
                    self._aim_at(peer, digest)
        if not self._has_heard:
            self.board.set_timer("hear", self.board.settings.first_contact_ms)
        self.on_vector()

    def _aim_at(self, peer: NodeId, digest: Digest) -> None:
        for top in digest.vector.tops():
            if not self._target.covers(top):
                self._shown_by[version_issuer(top)] = peer
        self._target = self._target.join(digest.vector)

    def _lead(self) -> None:
        board = self.board
        if len(board.accepted) >= VECTOR_ISSUERS_MAX - ISSUERS_KEPT_FREE:
            self._refuse_to_lead()
            return
        issuer = Issuer(board.random.randbytes(ISSUER_BYTES))  # never used before: one issuer, one log [I2]
        for seen in (board.vector, board.accepted, board.above, self._target):
            self._clock.observe(seen.latest_stamp())
        # A restored disk may have forgotten a fence. What it issues at a term of its own is above whatever the old one has passed [I8].
        if self._promotion is None and not board.restored:
            assert board.designation is not None, "without a promotion only the designated node leads"
            self._take_over(LeaderWriter(board, self._clock, board.designation, issuer), ())
            return
        heard = [digest.designation.term for _, digest in board.digests() if digest.designation is not None]
        own = board.designation.term if board.designation is not None else 0
        term = 1 + max([own, *heard])
        if term > TERM_MAX and self._promotion is not None:
            self._give_up_promotion(f"term {TERM_MAX} was given already, and there is none after it")
            return
        term = min(term, TERM_MAX)
        designation = Designation(term, issuer, board.me.node)
        leader = system_rows.encode_leader(designation.node, designation.term)
        rows = (Put(SYSTEM_NAMESPACE, system_rows.LEADER_KEY, leader),)
        self._take_over(LeaderWriter(board, self._clock, designation, issuer), rows)

    def _refuse_to_lead(self) -> None:
        """One issuer more and some store or message could not be read again: stay as it is, and look again later."""
        if not self._is_full_told:
            self._is_full_told = True
            self.board.notice(
                "too_many_issuers", "error", issuers=len(self.board.accepted), issuers_max=VECTOR_ISSUERS_MAX
            )
        if self._promotion is not None:
            self._give_up_promotion("the cluster's version vector has no room for another leader")

    def _give_up_promotion(self, message: str, code: str = "bad_request") -> None:
        """Refuse it and go on as before: a node that is designated anyway takes up leadership at its old term."""
        self.role = Role.FOLLOWER
        self._refuse_promotion(code, message)
        self.start()

    def _take_over(self, writer: LeaderWriter, rows: tuple[Operation, ...]) -> None:
        """Persist the designation with the first log entries of the issuer; until then nothing of it is told."""
        self.role = Role.TAKING_OVER
        self._taking_over = writer

        def done() -> None:
            if self._taking_over is writer:  # else a higher designation was heard of meanwhile
                self._taking_over = None
                self.board.designation = writer.designation
                self.board.drop_timer("settle")  # it went along
                self._open(writer)
                promotion, self._promotion = self._promotion, None
                if promotion is not None:
                    self._reply(promotion, Outcome(Ending.ACKED))

        def failed(reason: str) -> None:
            if self._taking_over is not writer:
                return
            self._taking_over = None
            if self._promotion is not None:
                self._give_up_promotion(f"the new designation could not be stored: {reason}", "disk_full")
            else:
                self.role = Role.HEARING
                self._is_waiting = True
                self.board.set_timer("open", self.board.settings.digest_idle_ms)

        writer.begin_term((*rows, *opening_rows(self.board, writer)), done, failed)

    def _open(self, writer: LeaderWriter) -> None:
        self.writer = writer
        self.role = Role.LEADING
        self.board.leads = True
        self.board.clock_ms()  # from here on it is the cluster's
        self._closer = IssuerCloser(self.board, self.members, writer)
        self.board.notice("leading", term=writer.designation.term, issuer=writer.issuer.hex())
        if self.board.restored:
            self.board.forget_restored()
        issuers = len(self.board.vector)
        if issuers >= ISSUERS_WARNED_OF:
            self.board.notice("many_issuers", "warning", issuers=issuers, issuers_max=VECTOR_ISSUERS_MAX)
        self._closer.on_digest()

    def _follow(self, designation: Designation) -> None:
        board = self.board
        board.designation = designation
        if self._taking_over is not None:
            # Its group may still become durable: `leads` tells of it until it has ended, or it could be closed too low [I8].
            self._taking_over.close("another designation was heard of; nothing was applied")
            self._deposed, self._taking_over = self._taking_over, None
        self._settle()
        is_mine = designation.node == board.me.node
        if is_mine and self.role in (Role.HEARING, Role.CATCHING_UP):
            return
        if self.role is not Role.FOLLOWER:
            board.notice("stepped_down", "warning", term=designation.term, leader=designation.node.hex())
        self.role = Role.FOLLOWER
        board.drop_timer("hear")
        if self.writer is not None:
            self.writer.close("another designation was heard of; nothing was applied")
            self._deposed, self.writer, self._closer = self.writer, None, None
            board.leads = False
        if is_mine:
            self._prepare()  # given to an earlier life of this node, which this disk has forgotten
        else:
            self._refuse_promotion("bad_request", f"the node {designation.node.hex()} leads at a higher term")

    def _settle(self) -> None:
        """Write down the designation that was heard of, until the disk takes it."""

        def failed(_: str) -> None:
            self.board.set_timer("settle", self.board.settings.digest_idle_ms)

        self.board.drop_timer("settle")
        if self._taking_over is None:
            self.board.persist(Settle(designation=self.board.designation), failed=failed)
        else:
            failed("")  # a newer one is on its way to the disk; it must not be put back by an older one

    def _refuse_promotion(self, code: str, message: str) -> None:
        promotion, self._promotion = self._promotion, None
        if promotion is not None:
            self._refuse(promotion, code, message)

    def _refuse(self, event: Promote | CloseIssuer, code: str, message: str) -> None:
        self._reply(event, refused(code, message))

    def _reply(self, event: Promote | CloseIssuer, outcome: Outcome) -> None:
        self.board.emit(Reply(event.request, outcome))
