"""A write's way taken apart: from what the client saw and the marks of the nodes (`kvp2p/node/spans.py`), the ms of each hop.

Decides: where one hop ends and the next begins. Each boundary is the moment at which a machine handles an event, so the time in a queue
counts for the hop that leads there. Nothing of it is in the messages: a write is followed by the number of its forward from the
node that took it to the leader, and from there on by its version. The deadline that a gateway gives to a write tells when it did.
Keeps true: the hops of the first part add up to what the client waited; a write of which a mark is missing counts in none of them.
In and out: pure; all times are readings of the one CLOCK_MONOTONIC of a machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvp2p.limits import WRITE_DEADLINE_MS

MS = 1_000_000

TO_THE_CLIENT = (
    "client → gateway",
    "gateway → node (unix socket)",
    "node → leader (mesh)",
    "leader: queue, until the group is formed",
    "leader: apply and sync",
    "leader → node (mesh), the answer",
    "node: held until the write is here",
    "node → gateway → client",
)
TO_A_PEER = (
    "leader → peer (mesh), the frame",
    "peer: apply and sync",
    "peer's gateway answers a read of it",
)


@dataclass(frozen=True, slots=True)
class Trace:
    """One write as its client saw it: node by name, version in hex, when it was seen at which other node."""

    via: str
    version: str
    sent_ns: int
    acked_ns: int
    seen_ns: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Log:
    """Marks of one kind, of one issuer, by position: each with the position that it reached first."""

    uptos: list[str] = field(default_factory=list)
    marks: list[Sequence[str | int]] = field(default_factory=list)

    def add(self, upto: str, mark: Sequence[str | int]) -> None:
        if not self.uptos or upto > self.uptos[-1]:  # what comes again, by a pull, brought nothing new
            self.uptos.append(upto)
            self.marks.append(mark)

    def first_at(self, stamp: str) -> Sequence[str | int] | None:
        """Return the first mark that covers a position."""
        index = bisect_left(self.uptos, stamp)
        return self.marks[index] if index < len(self.marks) else None


class NodeMarks:
    """The marks of one node, ready for questions."""

    def __init__(self, marks: Iterable[Sequence[str | int]]) -> None:
        self.writes: dict[str | int, tuple[int, int]] = {}  # request: handled, deadline
        self.outcomes: dict[str | int, int] = {}
        self.replies: dict[str | int, tuple[str | int, int]] = {}  # version: request, told
        self.forwards: dict[tuple[str | int, str | int], int] = {}  # (peer, request)
        self._logs: dict[tuple[str, str], _Log] = {}
        for mark in marks:
            self._add(mark)

    def _add(self, mark: Sequence[str | int]) -> None:
        kind, at_ns = mark[0], int(mark[1])
        match kind:
            case "write":
                self.writes[mark[2]] = (at_ns, int(mark[3]))
            case "outcome":
                self.outcomes[mark[2]] = at_ns
            case "reply":
                self.replies.setdefault(mark[3], (mark[2], at_ns))  # a later one is a reader's that waited for it
            case "forward":
                self.forwards[mark[2], mark[3]] = at_ns
            case "frame" | "stored":
                self._logs.setdefault((str(kind), str(mark[2])), _Log()).add(str(mark[3]), mark)
            case _:
                pass

    def first(self, kind: str, version: str) -> Sequence[str | int] | None:
        """Return the first `frame` or `stored` that covers a version."""
        log = self._logs.get((kind, version[24:]))
        return log.first_at(version[8:24]) if log is not None else None


def hops_ms(
    traces: Iterable[Trace], marks: Mapping[str, NodeMarks], leader: str, node_ids: Mapping[str, str]
) -> dict[str, list[float]]:
    """Return the ms of each hop: one number a write on the way to its client, one a write and peer on the way to the peers."""
    hops: dict[str, list[float]] = {name: [] for name in TO_THE_CLIENT + TO_A_PEER}
    for trace in traces:
        way = _way_to_the_client(trace, marks[trace.via], marks[leader], node_ids[trace.via])
        if way is None:
            continue
        _add_ways(hops, TO_THE_CLIENT, way)
        synced_ns = way[5]
        for name, node in marks.items():
            if name not in {leader, trace.via} and name in trace.seen_ns:
                frame, stored = node.first("frame", trace.version), node.first("stored", trace.version)
                if frame is not None and stored is not None:
                    stored_ns = int(stored[1])
                    _add_ways(hops, TO_A_PEER[:2], [synced_ns, int(frame[1]), stored_ns])
                    # The read leaves when the write is acknowledged, so before that nobody could have seen it.
                    _add_ways(hops, TO_A_PEER[2:], [max(stored_ns, trace.acked_ns), trace.seen_ns[name]])
    return hops


def stored_everywhere_ms(traces: Iterable[Trace], marks: Mapping[str, NodeMarks]) -> list[float]:
    """Return the ms from a write's sending until the last node has it on disk, for each write of which all nodes have a mark."""
    found = []
    for trace in traces:
        stored = [node.first("stored", trace.version) for node in marks.values()]
        if None not in stored:
            found.append((max(int(mark[1]) for mark in stored if mark is not None) - trace.sent_ns) / MS)
    return found


def digest_gaps_ms(marks: Iterable[Iterable[Sequence[str | int]]]) -> list[float]:
    """Return the ms between any two successive digests that one node had from another."""
    gaps = []
    for of_node in marks:
        latest: dict[str | int, int] = {}
        for mark in of_node:
            if mark[0] == "digest":
                at_ns, peer = int(mark[1]), mark[2]
                if peer in latest:
                    gaps.append((at_ns - latest[peer]) / MS)
                latest[peer] = at_ns
    return gaps


def _way_to_the_client(trace: Trace, via: NodeMarks, leader: NodeMarks, via_id: str) -> list[int] | None:
    request, replied_ns = via.replies.get(trace.version, (None, 0))
    stored = leader.first("stored", trace.version)
    if request is None or stored is None:
        return None
    written, outcome_ns = via.writes.get(request), via.outcomes.get(request)
    forward_ns = leader.forwards.get((via_id, request))
    if written is None or outcome_ns is None or forward_ns is None:
        return None
    taken_ns, deadline_ns = written
    gateway_ns = deadline_ns - WRITE_DEADLINE_MS * MS
    synced_ns, formed_ns = int(stored[1]), int(stored[4])
    way = [trace.sent_ns, gateway_ns, taken_ns, forward_ns, formed_ns, synced_ns, outcome_ns, replied_ns]
    return [*way, trace.acked_ns]


def _add_ways(hops: dict[str, list[float]], names: Sequence[str], way: Sequence[int]) -> None:
    for name, begin_ns, end_ns in zip(names, way[:-1], way[1:], strict=True):
        hops[name].append((end_ns - begin_ns) / MS)
