"""The trace of a run: one line an event, and one digest over all of them.

Decides: how events are told in one line.
Keeps true: two runs that did the same have the same digest; lines are bounded (only the last ones are kept, unless all are wanted).
In and out: events and messages in, text out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from kvp2p.core import batches, events, messages, operations
from kvp2p.sim.schedule import SECOND

LINES_KEPT_MAX = 400


class Trace:
    """Keeps the last lines, all of them when asked to, and a digest over every line."""

    __slots__ = ("_digest", "_undigested", "lines", "printer")

    def __init__(self, printer: Callable[[str], None] | None = None) -> None:
        self.lines: deque[str] = deque(maxlen=LINES_KEPT_MAX)
        self.printer = printer
        self._digest = blake2b(digest_size=16)
        self._undigested: list[str] = []

    def add(self, at_ns: int, text: str) -> None:
        """Add one line."""
        line = f"{at_ns / SECOND:11.6f} {text}"
        self.lines.append(line)
        self._undigested.append(line)
        if len(self._undigested) >= LINES_KEPT_MAX:  # at once, which is several times faster than one by one
            self._take_in()
        if self.printer is not None:
            self.printer(line)

    def digest(self) -> str:
        """Return 32 hex digits that stand for all lines so far."""
        self._take_in()
        return self._digest.hexdigest()

    def _take_in(self) -> None:
        self._digest.update("".join(self._undigested).encode())
        self._undigested.clear()


def show_message(message: messages.Message) -> str:
    """Tell a message in a few words; issuers by their first four hex digits."""
    show = _MESSAGES.get(type(message))
    return show(message) if show is not None else type(message).__name__


def show_event(event: events.Event) -> str:
    """Tell an event in a few words."""
    show = _EVENTS.get(type(event))
    return show(event) if show is not None else type(event).__name__


def show_batch(batch: batches.Batch) -> str:
    """Tell a batch in a few words."""
    match batch:
        case batches.WriteGroup(issuer=issuer, writes=writes, term=term):
            return f"WriteGroup term {term} {issuer.hex()[:4]} {len(writes)} writes"
        case batches.FrameBatch(frame=frame):
            return f"FrameBatch {show_message(frame)}"
        case batches.WalkBatch(part=part, end=end):
            return f"WalkBatch {show_message(part)}{' end ' + repr(end) if end is not None else ''}"
        case batches.Settle(designation=designation, restored=restored):
            mark = "" if restored is None else f" restored {restored}"
            return f"Settle {show_designation(designation)}{mark}"
        case batches.ChunkBatch(stage=stage, contents=contents, release=release):
            return f"ChunkBatch stage {_show_chunks(stage)} contents {_show_chunks([one for one, _ in contents])} release {_show_chunks(release)}"
        case _:
            return type(batch).__name__


def _show_chunks(chunks: Sequence[bytes]) -> str:
    return " ".join(chunk.hex()[:4] for chunk in chunks) or "-"


def show_outcome(outcome: operations.Outcome) -> str:
    """Tell an outcome in a few words."""
    version = "" if outcome.version is None else f" {outcome.version.hex()[6:24]}"
    return f"{outcome.ending.name}{version} {outcome.code}{'' if outcome.visible else ' pending'}"


def show_designation(designation: messages.Designation | None) -> str:
    """Tell a designation in a few words."""
    if designation is None:
        return "no leader"
    return f"term {designation.term} {designation.tie.hex()[:4]} to {designation.node.hex()[:4]}"


def _show_frame(frame: messages.Frame) -> str:
    return (
        f"Frame {frame.issuer.hex()[:4]} ({frame.after:x}, {frame.upto:x}] {len(frame.positions)} of {len(frame.rows)}"
    )


def _show_digest(digest: messages.Digest) -> str:
    leads = "" if digest.leads is None else f" leads as {digest.leads.hex()[:4]}"
    above = "" if digest.comparable else " with rows above"
    return f"Digest {digest.vector!r} H {digest.state_hash.hex()[:6]}{above}{leads}, {show_designation(digest.designation)}"


_MESSAGES: dict[type, Callable[[Any], str]] = {
    messages.Frame: _show_frame,
    messages.Digest: _show_digest,
    messages.Pull: lambda pull: f"Pull {pull.issuer.hex()[:4]} after {pull.after:x}",
    messages.PullEnd: lambda end: f"PullEnd {end.issuer.hex()[:4]} {end.upto:x}{' trimmed' if end.trimmed else ''}",
    messages.WalkRequest: lambda walk: f"WalkRequest {walk.walk} after {walk.after and walk.after[1][:24]!r}",
    messages.WalkPart: lambda part: (
        f"WalkPart {part.walk} {len(part.rows)} rows {part.vector!r}{'' if part.upto else ' last'}"
    ),
    messages.Forward: lambda forward: f"Forward {forward.request} ({len(forward.operations)} operations)",
    messages.ForwardOutcome: lambda answer: f"ForwardOutcome {answer.request} {show_outcome(answer.outcome)}",
    messages.ChunkPull: lambda pull: f"ChunkPull {pull.chunk.hex()[:4]} from {pull.offset}",
    messages.ChunkPart: lambda part: (
        f"ChunkPart {part.chunk.hex()[:4]} {part.offset} + {len(part.data)} of {part.total_bytes}"
    ),
    messages.ChunkMissing: lambda missing: f"ChunkMissing {missing.chunk.hex()[:4]}",
    messages.Roster: lambda roster: f"Roster of {len(roster.members)}",
}

_EVENTS: dict[type, Callable[[Any], str]] = {
    events.Start: lambda start: f"Start {start.store.vector!r}, {show_designation(start.store.designation)}",
    events.PeerUp: lambda up: f"PeerUp {up.peer.hex()[:4]}",
    events.PeerDown: lambda down: f"PeerDown {down.peer.hex()[:4]} {down.reason}",
    events.Received: lambda received: f"{received.peer.hex()[:4]}: {show_message(received.message)}",
    events.SendFailed: lambda failed: f"SendFailed {failed.peer.hex()[:4]} {show_message(failed.message)}",
    events.TimerFired: lambda timer: f"TimerFired {timer.token}",
    events.Write: lambda write: f"Write {write.request} ({len(write.operations)} operations)",
    events.StageChunk: lambda stage: f"StageChunk {stage.request} of upload {stage.upload} {stage.chunk.hex()[:4]}",
    events.EndUpload: lambda end: f"EndUpload {end.upload}",
    events.Await: lambda wait: f"Await {wait.request} {wait.version.hex()[6:24]}",
    events.Persisted: lambda done: f"Persisted {done.ticket} {done.result.vector!r}",
    events.PersistFailed: lambda failed: f"PersistFailed {failed.ticket}",
    events.CloseIssuer: lambda close: f"CloseIssuer {close.request} {close.issuer.hex()[:4]}",
    events.Promote: lambda promote: f"Promote {promote.request}{' override' if promote.override else ''}",
}
