"""Verdicts on a run: pure functions from its history to violations, each a line that begins with the claim it breaks.

Decides: which seconds are judged by the rate of acknowledgements.

* rate: in every whole second in which the leader was ready throughout and no cut was in force or just healed, at least 95 % of what
  was offered was acknowledged; in every whole second of a cut, at least 95 % of what was offered through nodes on the leader's side;
* C2: on every node each key stands at the greatest version that was acknowledged for it, or a greater one;
* C5: the value is one that was written to that key; under an acknowledged version it is that write's, and it is never a refused one's;
* C11: no version was acknowledged twice;
* C1: all nodes are equal, by vector and state hash within 5 s of the end or the last heal, and key by key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from scripts.survival.history import Cut, History, Write

EQUAL_SECONDS_MAX = 5.0
ACKED_SHARE_MIN = 0.95
# After a heal links that had been given up are dialled again and what was held back arrives; as long as equality may take.
SETTLE_SECONDS = EQUAL_SECONDS_MAX
# Of a cut before its first judged second: what was under way through the links that it cut ends within that.
CUT_BEGUN_SECONDS = 1.0
SIDE_WRITES_MIN = 40  # fewer writes through the leader's side in a second say nothing about 95 %


def windows(history: History) -> dict[int, int]:
    """Return, for each whole second with a ready leader and whole links throughout, how many of its writes were acknowledged."""
    counted = {
        second: 0
        for second in _seconds_with_leader(history)
        if not any(cut.asked_s < second + 1 and cut.healed_s + SETTLE_SECONDS > second for cut in history.cuts)
    }
    for write in history.writes:
        if write.outcome == "acked" and int(write.due_s) in counted:
            counted[int(write.due_s)] += 1
    return counted


def sides(history: History) -> dict[int, tuple[int, int]]:
    """Return, for each whole second of a cut with a ready leader throughout, what was acknowledged and what was offered through
    those nodes of its side that were not killed or starting then.
    """
    nodes: dict[int, set[str]] = {}
    for second in _seconds_with_leader(history):
        for cut in history.cuts:
            if cut.cut_s + CUT_BEGUN_SECONDS <= second and second + 1 <= cut.heal_s:
                nodes[second] = set(cut.side_of(history.leader)) - _down_in(history, second)
    counted = {second: [0, 0] for second in nodes}
    for write in history.writes:
        second = int(write.due_s)
        if write.node in nodes.get(second, ()):
            counted[second][0] += write.outcome == "acked"
            counted[second][1] += 1
    return {second: (acked, offered) for second, (acked, offered) in counted.items() if offered >= SIDE_WRITES_MIN}


def _seconds_with_leader(history: History) -> list[int]:
    return [second for second in range(int(history.seconds)) if history.leader not in _down_in(history, second)]


def _down_in(history: History, second: int) -> set[str]:
    return {kill.node for kill in history.kills if kill.killed_s < second + 1 and kill.ready_s > second}


def judge(history: History) -> list[str]:
    """Return every violation as a line; an empty list when the run kept all it is about and exercised it."""
    violations = list(history.told)
    for judged in (_rate_too_low, lost, invented, _version_twice, _unequal, _nothing_exercised):
        violations.extend(judged(history))
    return violations


def _rate_too_low(history: History) -> Iterator[str]:
    least = ACKED_SHARE_MIN * history.rate
    for second, acked in windows(history).items():
        if acked < least:
            yield f"rate: {acked} writes acknowledged in second {second}, at least {least:.0f} with a leader"
    for second, (acked, offered) in sides(history).items():
        if acked < ACKED_SHARE_MIN * offered:
            yield f"rate: {acked} of {offered} writes on the leader's side of a cut acknowledged in second {second}"


def lost(history: History) -> Iterator[str]:
    """Find acknowledged writes that a node does not have."""
    greatest: dict[str, Write] = {}
    for write in history.writes:
        if write.outcome == "acked" and (write.key not in greatest or greatest[write.key].version < write.version):
            greatest[write.key] = write
    for node, rows in history.standing.items():
        for key, write in greatest.items():
            standing = rows.get(key)
            if standing is None or standing[1] < write.version:
                found = "nothing" if standing is None else standing[1]
                yield f"C2: {key} at {node} stands at {found}; write {write.number} was acknowledged as {write.version}"


def invented(history: History) -> Iterator[str]:
    """Find values that nobody wrote so."""
    by_version = {(write.key, write.version): write for write in history.writes if write.outcome == "acked"}
    by_value = {(write.key, write.value): write for write in history.writes}
    for node, rows in history.standing.items():
        for key, (value, version) in rows.items():
            acked = by_version.get((key, version))
            written = by_value.get((key, value))
            if acked is not None and acked.value != value:
                yield f"C5: {key} at {node} has under {version} another value than write {acked.number} gave it"
            elif written is None:
                yield f"C5: {key} at {node} has a value that nobody wrote to it: {value[:40]!r}"
            elif written.outcome == "refused":
                yield f"C5: {key} at {node} has the value of write {written.number}, which was refused ({written.code})"
            elif written.outcome == "acked" and written.version != version:
                yield f"C5: {key} at {node} has write {written.number} under {version}, acknowledged as {written.version}"


def _version_twice(history: History) -> Iterator[str]:
    counts = Counter(write.version for write in history.writes if write.outcome == "acked")
    for version, count in counts.items():
        if count > 1:
            yield f"C11: version {version} was acknowledged {count} times"


def _unequal(history: History) -> Iterator[str]:
    if history.equal_after_s is None:
        yield f"C1: vectors or state hashes still differ {EQUAL_SECONDS_MAX:.0f} s after the end"
    names = list(history.standing)
    for node in names[1:]:
        ours, theirs = history.standing[names[0]], history.standing[node]
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                yield f"C1: {key} differs between {names[0]} and {node}"


def _nothing_exercised(history: History) -> Iterator[str]:
    acked = sum(write.outcome == "acked" for write in history.writes)
    leader_kills = sum(kill.node == history.leader and kill.killed_s < history.seconds for kill in history.kills)
    # A quarter: on a busy machine a killed leader may be away for half of a short run.
    if acked < history.rate * history.seconds / 4:
        yield f"exercised too little: {acked} writes acknowledged of {history.rate * history.seconds:.0f} offered"
    if leader_kills < history.leader_kills_wanted:
        yield f"exercised too little: the leader was killed {leader_kills} times, not {history.leader_kills_wanted}"
    if len(windows(history)) + len(sides(history)) < 2:
        yield "exercised too little: the leader was ready throughout fewer than 2 whole seconds"
    if not history.standing:
        yield "exercised too little: no node was read"
    if len(history.cuts) < history.cuts_wanted:
        yield f"exercised too little: the mesh was cut {len(history.cuts)} times, not {history.cuts_wanted}"
    # Not each: the other side of a cut may be a node that was killed meanwhile.
    if history.cuts and not any(_was_felt(history, cut) for cut in history.cuts):
        yield "exercised too little: no write felt a cut"


def _was_felt(history: History, cut: Cut) -> bool:
    """Tell whether a write failed, or took until after the cut, because its node was cut off the leader."""
    side = cut.side_of(history.leader)
    return any(
        write.node not in side
        and cut.asked_s < write.ended_s
        and write.due_s < cut.heal_s
        and (write.outcome != "acked" or write.ended_s > cut.heal_s)
        for write in history.writes
    )
