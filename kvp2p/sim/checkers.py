"""The claims of DESIGN §9 as functions over a recorded history and the final states.

Decides: whether a run kept C1, C2, C3, C5, C7 and C11, and the parts of I2, I3, I4, I7, I8 and I10 that a history shows.
Keeps true: a checker knows nothing but records (`history.py`); the same functions judge the simulator and runs of real processes.
In and out: records in, violations out; an empty list means that this history shows no violation, never that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvp2p.ids import SYSTEM_NAMESPACE
from kvp2p.sim.history import Ended, Invoked, Issued, Record, Seen, StoreState, Told

SYSTEM = SYSTEM_NAMESPACE.hex()
VIOLATIONS_MAX = 20  # of one claim; the first tells most
LATE_MS_MAX = 1_000  # C7
PURGED_WITHIN_MS = 60_000  # at rest; longer than the greatest interval between two Purges that a run draws

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Violation:
    """A claim that a history contradicts."""

    claim: str
    text: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.text}"


@dataclass(frozen=True, slots=True)
class _Acked:
    """The acknowledged write of a key with the greatest version."""

    version: str
    write: int
    is_delete: bool
    expires_ms: int | None  # by the leader's clock; None for never

    def has_expired(self, clock_ms: int) -> bool:
        """Tell whether nothing need be left of it."""
        return self.expires_ms is not None and self.expires_ms <= clock_ms


Checker = Callable[[Sequence[Record]], Iterator[Violation]]


def check(history: Sequence[Record]) -> list[Violation]:
    """Apply every checker; the first violations of each claim come back."""
    found = []
    for checker in CHECKERS:
        for count, violation in enumerate(checker(history)):
            if count >= VIOLATIONS_MAX:
                break
            found.append(violation)
    return found


def _states(history: Sequence[Record]) -> list[StoreState]:
    return [record for record in history if isinstance(record, StoreState)]


def check_convergence(history: Sequence[Record]) -> Iterator[Violation]:
    """C1: after faults stop all nodes are equal: vectors, H, key by key, and their logs where they have one [I7]."""
    states = _states(history)
    for state in states:
        if not state.complete:
            yield Violation("C1", f"{state.node} never became complete")
        if state.state_hash != state.recount:
            yield Violation("C1", f"{state.node} keeps H {state.state_hash}, its rows say {state.recount}")
    for first, other in pairwise(states):
        yield from _compare(first, other)


def _compare(first: StoreState, other: StoreState) -> Iterator[Violation]:
    pair = f"{first.node} and {other.node}"
    if (first.vector, first.fence) != (other.vector, other.fence):
        yield Violation("C1", f"vectors of {pair} differ: {first.vector} and {other.vector}")
    if first.state_hash != other.state_hash:
        yield Violation("C1", f"H of {pair} differ: {first.state_hash} and {other.state_hash}")
    if first.namespaces != other.namespaces:
        yield Violation("C1", f"the namespaces that live at {pair} differ")
    ours = {(row.namespace, row.key): row for row in first.rows}
    theirs = {(row.namespace, row.key): row for row in other.rows}
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield Violation(
                "C1", f"{_show(key)} differs: {ours.get(key)} at {first.node}, {theirs.get(key)} at {other.node}"
            )
    yield from _compare_logs(first, other)


def _compare_logs(first: StoreState, other: StoreState) -> Iterator[Violation]:
    floors: dict[str, int] = {}
    for issuer, stamp in (*first.floor, *other.floor):
        floors[issuer] = max(stamp, floors.get(issuer, 0))
    logs = [
        {
            (position.issuer, position.stamp): (position.namespace, position.key)
            for position in state.log
            if position.stamp > floors.get(position.issuer, 0)
        }
        for state in (first, other)
    ]
    for place in sorted(logs[0].keys() | logs[1].keys()):
        here, there = logs[0].get(place), logs[1].get(place)
        if here != there:
            where = f"{place[0]} {place[1]:x}"
            yield Violation(
                "C1", f"position {where} is {here} in the log of {first.node}, {there} in that of {other.node}"
            )


def check_no_acknowledged_write_lost(history: Sequence[Record]) -> Iterator[Violation]:
    """C2: at the end every key stands, on every node, at the greatest version that was acknowledged for it, or a greater one."""
    acked = _greatest_acked(history)
    dropped = _namespaces_dropped(history)
    maybe_gone = _keys_maybe_gone(history)
    clock_ms = max((state.clock_ms for state in _states(history)), default=0)
    for state in _states(history):
        standing = {(row.namespace, row.key): row.version for row in state.rows}
        live = set(state.namespaces)
        for key, greatest in acked.items():
            if key[0] in dropped and key[0] not in live:
                continue  # the namespace's tombstone beats every entry [I7], and may be purged by now [I8]
            version = standing.get(key)
            may_be_gone = greatest.is_delete or key in maybe_gone or greatest.has_expired(clock_ms)
            is_purged = version is None and may_be_gone
            if not is_purged and (version is None or version < greatest.version):
                yield Violation(
                    "C2",
                    f"{_show(key)} at {state.node} stands at {version}; write {greatest.write} was acknowledged "
                    f"as {greatest.version}",
                )
        for namespace, write in _acked_drops(history).items():
            if namespace in live:
                yield Violation("C2", f"namespace {namespace[:8]} lives at {state.node}; write {write} deleted it")


def check_no_resurrection(history: Sequence[Record]) -> Iterator[Violation]:
    """C3: a deleted key does not come back: not at the end, and at no disk after its tombstone was seen there."""
    acked = _greatest_acked(history)
    for state in _states(history):
        for row in state.rows:
            greatest = acked.get((row.namespace, row.key))
            if greatest is None or not greatest.is_delete or row.is_tombstone:
                continue
            if row.version < greatest.version:
                yield Violation(
                    "C3",
                    f"{_show((row.namespace, row.key))} is back at {state.node} with {row.version}; write "
                    f"{greatest.write} deleted it as {greatest.version}",
                )
    tombstones: dict[tuple[str, int, Key], Seen] = {}
    for record in history:
        if not isinstance(record, Seen) or record.version is None:
            continue
        place = (record.node, record.disk, (record.namespace, record.key))
        before = tombstones.get(place)
        if not record.content:
            if before is None or str(before.version) < record.version:
                tombstones[place] = record
        elif before is not None and record.version < str(before.version):
            yield Violation(
                "C3",
                f"{_show(place[2])} was deleted at {record.node} as {before.version} and is back at "
                f"{record.at_ns / 1e9:.3f} s with {record.version}",
            )


def check_purged_to_the_last_row(history: Sequence[Record]) -> Iterator[Violation]:
    """I8: when all is at rest and old enough, a store holds what lives and nothing besides: no tombstone, no expired row, no entry of an index."""
    for state in _states(history):
        if not state.is_purged:
            continue
        for row in state.rows:
            if row.is_tombstone:
                yield Violation("I8", f"the tombstone of {_show((row.namespace, row.key))} is left at {state.node}")
            elif 0 < row.expires_at_s * 1_000 <= state.clock_ms - PURGED_WITHIN_MS:
                yield Violation("I8", f"{_show((row.namespace, row.key))} has expired and is left at {state.node}")
        if len(state.issuers) > 1:
            yield Violation("I8", f"{len(state.issuers)} issuers are left at {state.node}")
        if state.graves:
            yield Violation("I8", f"{state.graves} tombstones are left at {state.node}")
        expiring = sum(row.expires_at_s > 0 for row in state.rows)
        if state.expiring != expiring:
            yield Violation(
                "I8",
                f"{state.expiring} rows stand in the index of expiries of {state.node}, and {expiring} rows expire",
            )


def check_expiry_is_not_late(history: Sequence[Record]) -> Iterator[Violation]:
    """C7: at rest no node believes the leader's clock, by which it hides, to be over a second behind what that is.

    One ahead is judged where it hides a value [I7]: it may go by a former leader's clock, since what was hidden stays so.
    """
    states = _states(history)
    leads_ms = max((state.clock_ms for state in states if state.leads), default=0)
    if states and not leads_ms:
        yield Violation("C7", "nobody leads at rest: no clock says what has expired")
    for state in states:
        if state.clock_ms < leads_ms - LATE_MS_MAX:
            yield Violation("C7", f"{state.node} would hide values {leads_ms - state.clock_ms} ms late")


def check_nothing_invented(history: Sequence[Record]) -> Iterator[Violation]:
    """C5: every value seen or standing was asked for, for that very key, by a write that was not refused [I10]."""
    refused = {record.write for record in history if isinstance(record, Ended) and record.ending == "refused"}
    asked: dict[tuple[str, str, str], bool] = {}  # -> was it refused every time
    for record in history:
        if isinstance(record, Invoked):
            for operation in record.operations:
                place = (operation.namespace, operation.key, operation.content)
                asked[place] = asked.get(place, True) and record.write in refused
    for node, namespace, key, content in _contents(history):
        was_refused = asked.get((namespace, key, content))
        if was_refused is None:
            yield Violation("C5", f"{_show((namespace, key))} at {node} has a content that nobody wrote: {content}")
        elif was_refused:
            yield Violation(
                "C5", f"{_show((namespace, key))} at {node} has a content whose write was refused: {content}"
            )


def _contents(history: Sequence[Record]) -> Iterator[tuple[str, str, str, str]]:
    """Yield node, namespace, key and content of all that was seen or stands; system rows are made by the machines."""
    for record in history:
        if isinstance(record, Seen):
            if record.content and record.namespace != SYSTEM:
                yield record.node, record.namespace, record.key, record.content
        elif isinstance(record, StoreState):
            for row in record.rows:
                if row.content and row.namespace != SYSTEM:
                    yield record.node, row.namespace, row.key, row.content


def check_positions_issued_once(history: Sequence[Record]) -> Iterator[Violation]:
    """C11: no position is issued twice with different content, and no issuer by two nodes [I2]."""
    issued: dict[tuple[str, int], Issued] = {}
    nodes: dict[str, str] = {}
    for record in history:
        if not isinstance(record, Issued):
            continue
        before = issued.setdefault((record.issuer, record.stamp), record)
        if before.operation != record.operation:
            yield Violation(
                "C11",
                f"position {record.issuer} {record.stamp:x} was issued for {before.operation} at {before.at_ns / 1e9:.3f} s "
                f"and for {record.operation} at {record.at_ns / 1e9:.3f} s",
            )
        if nodes.setdefault(record.issuer, record.node) != record.node:
            yield Violation("C11", f"issuer {record.issuer} was used by {nodes[record.issuer]} and {record.node}")


def check_issuers_are_closed(history: Sequence[Record]) -> Iterator[Violation]:
    """I8: when all is at rest, every issuer but the current leader's is closed everywhere, not before the last position it added."""
    leaders = [record.issuer for record in history if isinstance(record, Issued)]
    if not leaders:
        return
    last: dict[str, int] = {}
    for record in history:
        if isinstance(record, Ended) and record.ending == "acked":
            for version in record.versions:
                last[version[24:]] = max(int(version[8:24], 16), last.get(version[24:], 0))
    for state in _states(history):
        ends = {row.issuer: row.closed for row in state.issuers}
        for issuer, stamp in state.vector:
            end = ends.get(issuer)
            top = max(stamp, last.get(issuer, 0))
            if issuer == leaders[-1]:
                if end is not None:
                    yield Violation("I8", f"{state.node} has the current issuer {issuer} closed at {end:x}")
            elif end is None:
                yield Violation("I8", f"{state.node} has the issuer {issuer} open, and nobody leads under it")
            elif end < top:
                yield Violation("I8", f"{state.node} has the issuer {issuer} closed at {end:x}; it went on to {top:x}")


def check_outcomes_are_honest(history: Sequence[Record]) -> Iterator[Violation]:
    """I10, I3: every write ends once; an acknowledgement told as visible is durable at the node that tells it."""
    open_writes: dict[int, Invoked] = {}
    for record in history:
        if isinstance(record, Invoked):
            open_writes[record.write] = record
        elif isinstance(record, Ended):
            if open_writes.pop(record.write, None) is None:
                yield Violation("I10", f"write {record.write} ended twice")
            if record.ending == "acked" and record.visible and not record.covered:
                yield Violation("I3", f"write {record.write} was told visible by a node that does not have it")
    for write in open_writes.values():
        yield Violation("I10", f"write {write.write}, asked of {write.node} at {write.at_ns / 1e9:.3f} s, never ended")


def check_chunks(history: Sequence[Record]) -> Iterator[Violation]:
    """I3, I4: at rest a store has the chunks that its rows name, counted right, and no other; none is staged, no row lacks any."""
    for state in _states(history):
        if state.staged:
            yield Violation("I4", f"{state.node} keeps {state.staged} chunks for writes that have ended")
        if state.pending:
            yield Violation("I3", f"{state.node} has {state.pending} rows that lack chunks")
        counted = {chunk: count for chunk, count, _ in state.chunks}
        named = dict(state.chunks_named)
        for chunk in sorted(counted.keys() | named.keys()):
            if counted.get(chunk, 0) != named.get(chunk, 0):
                what = (
                    f"counts {counted.get(chunk, 0)} rows that name chunk {chunk[:16]}, and has {named.get(chunk, 0)}"
                )
                yield Violation("I4", f"{state.node} {what}")
        for chunk, _, is_sound in state.chunks:
            if not is_sound:
                yield Violation("I4", f"{state.node} does not have chunk {chunk[:16]} as it should be")


def check_no_alarm(history: Sequence[Record]) -> Iterator[Violation]:
    """No node contradicted a claim by itself: H differs at equal vectors [I7], a reader was told too early [I3]."""
    for record in history:
        if isinstance(record, Told):
            yield Violation(record.claim, f"{record.node} at {record.at_ns / 1e9:.3f} s: {record.text}")


def _greatest_acked(history: Sequence[Record]) -> dict[Key, _Acked]:
    invoked = {record.write: record for record in history if isinstance(record, Invoked)}
    clocks = {(one.issuer, one.stamp): one.clock_ms for one in history if isinstance(one, Issued)}
    greatest: dict[Key, _Acked] = {}
    for record in history:
        if not isinstance(record, Ended) or record.ending != "acked":
            continue
        for operation, version in zip(invoked[record.write].operations, record.versions, strict=True):
            if operation.kind in ("put", "delete"):
                key = (operation.namespace, operation.key)
                before = greatest.get(key)
                if before is None or before.version < version:
                    expires_ms = None
                    if operation.expires_in_s:
                        clock_ms = clocks.get((version[24:], int(version[8:24], 16)))
                        # Acknowledged, and made durable by nobody: nothing excuses that it is gone.
                        expires_ms = None if clock_ms is None else clock_ms + operation.expires_in_s * 1_000
                    greatest[key] = _Acked(version, record.write, operation.kind == "delete", expires_ms)
    return greatest


def _namespaces_dropped(history: Sequence[Record]) -> set[str]:
    """Return the namespaces that some write, not refused, was to delete."""
    refused = {record.write for record in history if isinstance(record, Ended) and record.ending == "refused"}
    return {
        operation.namespace
        for record in history
        if isinstance(record, Invoked) and record.write not in refused
        for operation in record.operations
        if operation.kind == "drop"
    }


def _keys_maybe_gone(history: Sequence[Record]) -> set[Key]:
    """Return the keys with a delete, or a value that expires, of which nobody knows whether it was applied: it may have come last."""
    told = {record.write for record in history if isinstance(record, Ended) and record.ending in ("acked", "refused")}
    return {
        (operation.namespace, operation.key)
        for record in history
        if isinstance(record, Invoked) and record.write not in told
        for operation in record.operations
        if operation.kind == "delete" or operation.expires_in_s
    }


def _acked_drops(history: Sequence[Record]) -> dict[str, int]:
    acked = {record.write for record in history if isinstance(record, Ended) and record.ending == "acked"}
    return {
        operation.namespace: record.write
        for record in history
        if isinstance(record, Invoked) and record.write in acked
        for operation in record.operations
        if operation.kind == "drop"
    }


def _show(key: Key) -> str:
    return f"key {key[1][:24]} of {key[0][:8]}"


CHECKERS: tuple[Checker, ...] = (
    check_convergence,
    check_no_acknowledged_write_lost,
    check_no_resurrection,
    check_purged_to_the_last_row,
    check_expiry_is_not_late,
    check_nothing_invented,
    check_positions_issued_once,
    check_issuers_are_closed,
    check_outcomes_are_honest,
    check_chunks,
    check_no_alarm,
)
