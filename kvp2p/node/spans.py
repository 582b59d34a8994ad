"""Where a write's time goes: marks of what the machine of this node did, and when, for who asks for them.

Decides: which steps of a write leave a mark.
Keeps true: nothing is noted, and nothing costs anything, while nobody asks: the first question puts a watch round the machine, and it is
taken away SPANS_SECONDS after the last. I9, at most SPAN_MARKS_MAX marks are kept; how many were lost is told.
In and out: events into the machine and effects out of it; the document `spans` of the unix socket, `{"marks": [...], "lost": n}`, which holds what
came since the question before. All processes of a machine read one CLOCK_MONOTONIC, so marks of several nodes go together. Times are its
nanoseconds; an event's is taken before the machine sees it, an effect's after that. Stamps are 16 hex digits, which sort as they count.

    ["write", at, request, deadline]       a local process handed a write in; its deadline tells when it was made
    ["forward", at, peer, request]         a peer's write came: `request` is the number that the peer gave it
    ["stored", at, issuer, upto, handed]   a group or frame up to a position is durable; it was handed to the store at `handed`
    ["outcome", at, request]               the leader's answer came
    ["reply", at, request, version]        an acknowledgement leaves for the local process
    ["frame", at, issuer, upto]            a frame came from a peer
    ["digest", at, peer, age_ms]           a digest came, so long after it was made (by the wall clocks of both: one machine only)
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, cast

from kvp2p.core.batches import FrameBatch, WriteGroup
from kvp2p.core.events import Effect, Event, Persist, Persisted, PersistFailed, Received, Reply, Write
from kvp2p.core.messages import Digest, Forward, ForwardOutcome, Frame
from kvp2p.core.replica import ReplicaMachine
from kvp2p.ids import Issuer, Now, Stamp, version_stamp
from kvp2p.limits import SPAN_MARKS_MAX
from kvp2p.runtime.driver import ReplicaDriver

SPANS_SECONDS = 5  # who wants marks asks several times a second

_Mark = tuple[str, int, *tuple[str | int, ...]]


class Spans:
    """The marks of one node."""

    def __init__(self, driver: ReplicaDriver) -> None:
        self._driver = driver
        self._marks: deque[_Mark] = deque(maxlen=SPAN_MARKS_MAX)
        self._noted = 0  # since the last question
        self._handed: dict[int, tuple[Issuer, int]] = {}  # what is at the store: by ticket, whose log, since when
        self._watched: ReplicaMachine | None = None
        self._until_ns = 0

    def take(self) -> dict[str, Any]:
        """Return the marks since the last question, and let more be noted for a while."""
        self._until_ns = time.monotonic_ns() + SPANS_SECONDS * 10**9
        if self._watched is None:
            self._watched = self._driver.machine
            self._driver.machine = cast("ReplicaMachine", _Watch(self._watched, self))
        document = {"marks": list(self._marks), "lost": self._noted - len(self._marks)}
        self._marks.clear()
        self._noted = 0
        return document

    def note(self, event: Event, effects: list[Effect], began_ns: int) -> None:
        """Note what one event and its effects tell of writes."""
        self._note_event(event, began_ns)
        now_ns = time.monotonic_ns()
        for effect in effects:
            match effect:
                case Persist(ticket=ticket, batch=WriteGroup(issuer=issuer) | FrameBatch(frame=Frame(issuer=issuer))):
                    self._handed[ticket] = (issuer, now_ns)
                case Reply(request=request, outcome=outcome) if outcome.version is not None:
                    self._add("reply", now_ns, request, outcome.version.hex())
                case _:
                    pass
        if now_ns > self._until_ns:
            self._stop()

    def _note_event(self, event: Event, at_ns: int) -> None:
        match event:
            case Write(request=request, deadline_ns=deadline_ns):
                self._add("write", at_ns, request, deadline_ns)
            case Received(peer=peer, message=Forward(request=request)):
                self._add("forward", at_ns, peer.hex(), request)
            case Received(message=ForwardOutcome(request=request)):
                self._add("outcome", at_ns, request)
            case Received(message=Frame(issuer=issuer, upto=upto)):
                self._add("frame", at_ns, issuer.hex(), f"{upto:016x}")
            case Received(peer=peer, message=Digest(wall_ms=wall_ms)):
                self._add("digest", at_ns, peer.hex(), self._driver.clock.now_ms() - wall_ms)
            case Persisted(ticket=ticket, result=result):
                handed = self._handed.pop(ticket, None)
                if handed is not None:
                    issuer, handed_ns = handed
                    top = result.vector.top_of(issuer)
                    upto = Stamp(0) if top is None else version_stamp(top)
                    self._add("stored", at_ns, issuer.hex(), f"{upto:016x}", handed_ns)
            case PersistFailed(ticket=ticket):
                self._handed.pop(ticket, None)
            case _:
                pass

    def _add(self, kind: str, at_ns: int, *facts: str | int) -> None:
        self._noted += 1
        self._marks.append((kind, at_ns, *facts))

    def _stop(self) -> None:
        assert self._watched is not None, "only a watch notes"
        self._driver.machine, self._watched = self._watched, None
        self._marks.clear()
        self._handed.clear()
        self._noted = 0


class _Watch:
    """Stands in for the machine: shows each event and its effects to the spans, and is the machine in all else."""

    def __init__(self, machine: ReplicaMachine, spans: Spans) -> None:
        self._machine = machine
        self._spans = spans

    def handle(self, event: Event, now: Now) -> list[Effect]:
        began_ns = time.monotonic_ns()
        effects = self._machine.handle(event, now)
        self._spans.note(event, effects, began_ns)
        return effects

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)
