"""Issuers: which of them can add nothing more, and where they ended.

Decides: when the leader closes an issuer, and at which stamp.
Keeps true: I8 needs to know of every issuer what it could still add. An issuer is closed when nobody can add to it any more: its node
says so (it has seen this leader's designation, and no group of it is on its way to a disk), or begins to lead anew, or an operator
vouches for it. One whose node has forgotten how it ended, or is not known, is closed when every member was heard. Closing is never undone. A row is written by the leader alone, in its own log, and so reaches every node like any other.
In and out: the board's issuer rows and the peers' digests in; groups of the leader's own writer out.

Where an issuer ended is what its closer knows: it closes at its own vector's stamp, when no complete peer shows more. A position above
that can exist only on a disk that is out of reach, because the one that issued it was rolled back, or is gone for ever. When such a
position turns up it is joined like any other [I1], and the leader then closes the issuer once more, at the greater stamp. Whoever raises
a fence must know that for an issuer that an operator closed there is nobody's word but his.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvp2p.core.board import Board
from kvp2p.core.events import CloseIssuer, Reply
from kvp2p.core.operations import Ending, Operation, Outcome, Put, refused
from kvp2p.core.roster import Members
from kvp2p.core.system_rows import IssuerRow, encode_issuer
from kvp2p.core.writing import LeaderWriter
from kvp2p.ids import SYSTEM_NAMESPACE, VERSION_ZERO, Issuer, NodeId, Stamp, version_stamp, version_term


def opening_rows(board: Board, writer: LeaderWriter) -> tuple[Operation, ...]:
    """Return the first entries of a new issuer: its own row, and those of this node's earlier ones, closed.

    Known: the processes that issued under those have ended, or it was this one and its last group has ended (`Leadership.on_vector`
    waits for that), so nothing is added to them; and this node has caught up with every complete peer that it heard. Not known:
    whether this disk was rolled back and a peer that was not heard has more (see above). A disk that `kvp2p restore` made was: its issuers become
    nobody's, and are closed when every member was heard.
    """
    me = board.me.node
    ended = [
        row for row in board.issuers.values() if row.node == me and row.closed is None and row.issuer != writer.issuer
    ]
    if board.restored:
        rows = [replace(row, node=None) for row in ended]
    else:
        rows = [replace(row, closed=_last(board, row)) for row in ended]
    return _puts([IssuerRow(writer.issuer, me, writer.designation.term, None), *rows])


class IssuerCloser:
    """Closes issuers on behalf of one leader; exists while it leads."""

    def __init__(self, board: Board, members: Members, writer: LeaderWriter) -> None:
        self.board = board
        self.members = members
        self.writer = writer
        self._is_writing = False
        self._is_waiting = False  # after a full disk
        self._written: dict[
            Issuer, Stamp | None
        ] = {}  # what was tried once; it stands unless a leader of a higher term wrote, too

    def on_digest(self) -> None:
        """Close what can add nothing more, as far as the peers' digests tell."""
        if self._is_writing or self._is_waiting or self.board.is_stopping:
            return
        due = [replace(row, closed=_last(self.board, row)) for row in self.board.issuers.values() if self._is_due(row)]
        if not due:
            return
        self._is_writing = True

        def done() -> None:
            self._is_writing = False
            self._written.update((row.issuer, row.closed) for row in due)

        def failed(_: str) -> None:
            self._is_writing = False
            self._is_waiting = True
            self.board.set_timer("close", self.board.settings.digest_idle_ms)

        self._write(due, done, failed)

    def on_timer(self) -> None:
        """Try again what found the disk full."""
        self._is_waiting = False
        self.on_digest()

    def close(self, event: CloseIssuer) -> None:
        """Close the issuer of a node that is gone for ever, at this node's own stamp, because an operator says so."""
        row = self.board.issuers.get(event.issuer)
        top = self.board.vector.top_of(event.issuer)
        stamp = Stamp(0) if top is None else version_stamp(top)
        refusal = self._refusal(event.issuer, row)
        if refusal is not None:
            self.board.emit(Reply(event.request, refused("bad_request", refusal)))
        elif row is not None and row.closed is not None and row.closed >= stamp:
            self.board.emit(Reply(event.request, Outcome(Ending.ACKED)))
        else:
            # One from before issuers had rows has none: nobody knows its node any more, its term stands in the vector.
            assert row is not None or top is not None, "an issuer that is not known is refused"
            known = row if row is not None else IssuerRow(event.issuer, None, version_term(top or VERSION_ZERO), None)

            def failed(reason: str) -> None:
                message = f"the leader could not store that the issuer is closed: {reason}"
                self.board.emit(Reply(event.request, refused("disk_full", message)))

            self._write(
                [replace(known, closed=stamp)],
                lambda: self.board.emit(Reply(event.request, Outcome(Ending.ACKED))),
                failed,
            )

    def _refusal(self, issuer: Issuer, row: IssuerRow | None) -> str | None:
        if row is None and self.board.vector.top_of(issuer) is None:
            return f"no issuer {issuer.hex()} is known here"
        if row is not None and row.term > self.writer.designation.term:
            return f"the issuer {issuer.hex()} is of the later term {row.term}; this leader is being deposed"
        using = [node for node, digest in self.board.digests() if digest.leads == issuer]
        if issuer == self.writer.issuer:
            using = [self.board.me.node]
        return f"the node {using[0].hex()} leads under the issuer {issuer.hex()} now" if using else None

    def _is_due(self, row: IssuerRow) -> bool:
        stamp = _last(self.board, row)
        if row.issuer == self.writer.issuer or row.term > self.writer.designation.term:
            return False
        if self._written.get(row.issuer) == stamp:
            return False
        if row.closed is not None:
            if stamp <= row.closed:
                return False
        elif row.node is None:
            if not self._has_heard_everybody():
                return False
        elif row.node != self.board.me.node and not self._has_given_way(row.node):
            return False
        return all(
            not digest.complete or self.board.vector.covers_vector(digest.vector.only(row.issuer))
            for _, digest in self.board.digests()
        )

    def _has_heard_everybody(self) -> bool:
        """Tell whether every member is linked and complete: then nobody can have what none of them shows."""
        complete = {node for node, digest in self.board.digests() if digest.complete}
        return all(member.node in complete for member in self.members.others())

    def _has_given_way(self, node: NodeId | None) -> bool:
        """Tell whether a node says that it knows of this leader, and can add nothing under any issuer."""
        return any(
            peer == node and digest.complete and digest.leads is None and digest.designation == self.writer.designation
            for peer, digest in self.board.digests()
        )

    def _write(self, rows: list[IssuerRow], done: Callable[[], None], failed: Callable[[str], None]) -> None:
        for seen in (self.board.vector, self.board.above):
            self.writer.clock.observe(seen.latest_stamp())  # or the new row might lose against the one that stands [I2]

        def on_done() -> None:
            for row in rows:
                self.board.notice("issuer_closed", issuer=row.issuer.hex(), at=f"{row.closed or 0:016x}")
            done()

        self.writer.add_rows(_puts(rows), on_done, failed)


def _last(board: Board, row: IssuerRow) -> Stamp:
    """Return the last position of an issuer that is known here, 0 for none. One whose entry the fence has dropped was closed before."""
    top = board.vector.top_of(row.issuer)
    return (row.closed or Stamp(0)) if top is None else version_stamp(top)


def _puts(rows: list[IssuerRow]) -> tuple[Operation, ...]:
    return tuple(Put(SYSTEM_NAMESPACE, *encode_issuer(row)) for row in rows)
