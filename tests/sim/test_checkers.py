"""Each checker against a good history and against bad ones written by hand."""

from dataclasses import replace
from typing import Any

import pytest

from kvp2p.sim.checkers import (
    CHECKERS,
    VIOLATIONS_MAX,
    Checker,
    check,
    check_chunks,
    check_convergence,
    check_expiry_is_not_late,
    check_issuers_are_closed,
    check_no_acknowledged_write_lost,
    check_no_alarm,
    check_no_resurrection,
    check_nothing_invented,
    check_outcomes_are_honest,
    check_positions_issued_once,
    check_purged_to_the_last_row,
)
from kvp2p.sim.history import (
    Asked,
    Ended,
    Invoked,
    Issued,
    Record,
    Seen,
    StandingIssuer,
    StandingPosition,
    StandingRow,
    StoreState,
    Told,
    from_line,
    to_line,
)

NAMESPACE = "aa" * 16
KEY = "6b31"
ISSUER, LATER = "11" * 8, "22" * 8
RED, BLUE = "c1" * 12, "c2" * 12
NEVER = "00" * 20


def version(stamp: int, term: int = 1) -> str:
    return f"{term:08x}{stamp:016x}{ISSUER}"


def put(content: str, key: str = KEY) -> Asked:
    return Asked("put", NAMESPACE, key, content)


def delete(key: str = KEY) -> Asked:
    return Asked("delete", NAMESPACE, key, "")


def drop() -> Asked:
    return Asked("drop", NAMESPACE, "", "")


def invoked(write: int, *operations: Asked) -> Invoked:
    return Invoked(write * 10, write, 1, "n1", operations)


def acked(write: int, *stamps: int) -> Ended:
    return Ended(write * 10 + 5, write, "acked", "", tuple(map(version, stamps)), visible=True, covered=True)


def ended(write: int, ending: str) -> Ended:
    return Ended(write * 10 + 5, write, ending, "", (), visible=True, covered=False)


def row(content: str, stamp: int, key: str = KEY) -> StandingRow:
    return StandingRow(NAMESPACE, key, version(stamp), content, is_tombstone=not content)


def position(stamp: int, key: str = KEY) -> StandingPosition:
    return StandingPosition(ISSUER, stamp, NAMESPACE, key)


def state(node: str, *rows: StandingRow, log: tuple[StandingPosition, ...] = ()) -> StoreState:
    issuers = (StandingIssuer(ISSUER, "n1", None),)
    of_all = (NEVER, (), "ab" * 16, "ab" * 16, (NAMESPACE,), rows, log, issuers)
    return StoreState(node, True, ((ISSUER, 9),), *of_all, clock_ms=1, leads=node == "n1")


def closed_at(stamp: int | None, vector: int = 9) -> list[Record]:
    """A history whose leader began anew under another issuer, and a store that says where the earlier one ended."""
    issuers = (StandingIssuer(ISSUER, "n1", stamp), StandingIssuer(LATER, "n1", None))
    final = replace(state("n1"), vector=((ISSUER, vector), (LATER, 9)), issuers=issuers)
    return [Issued(1, "n1", ISSUER, 1, put(RED)), Issued(2, "n1", LATER, 10, put(RED)), final]


def seen(content: str, stamp: int, node: str = "n1", disk: int = 0) -> Seen:
    return Seen(stamp, node, disk, NAMESPACE, KEY, version(stamp), content)


def both(*rows: StandingRow) -> list[Record]:
    return [state("n1", *rows), state("n2", *rows)]


STAMP = 1_000_000 << 16
EXPIRES_MS = 1_060_000


def purged(*rows: StandingRow) -> StoreState:
    return replace(state("n1", *rows), is_purged=True, clock_ms=EXPIRES_MS)


def mortal_row() -> StandingRow:
    return replace(row(RED, STAMP), expires_at_s=900)


TWO_ISSUERS = (StandingIssuer(ISSUER, "n1", 5), StandingIssuer(LATER, "n1", None))

MORTAL = replace(put(RED), expires_in_s=60)
ONE_MORTAL: list[Record] = [invoked(1, MORTAL), Issued(1, "n1", ISSUER, STAMP, MORTAL, 1_000_000), acked(1, STAMP)]

GOOD: list[Record] = [
    invoked(1, put(RED)),
    Issued(11, "n1", ISSUER, 1, put(RED)),
    acked(1, 1),
    seen(RED, 1),
    invoked(2, delete()),
    Issued(21, "n1", ISSUER, 2, delete()),
    acked(2, 2),
    seen("", 2),
    invoked(3, put(BLUE), put(RED, key="6b32")),
    Issued(31, "n1", ISSUER, 3, put(BLUE)),
    Issued(31, "n1", ISSUER, 4, put(RED, key="6b32")),
    acked(3, 3, 4),
    seen(BLUE, 3),
    invoked(4, put("c3" * 12)),
    ended(4, "refused"),
    state("n1", row(BLUE, 3), row(RED, 4, "6b32"), log=(position(3), position(4, "6b32"))),
    state("n2", row(BLUE, 3), row(RED, 4, "6b32"), log=(position(3), position(4, "6b32"))),
]

ONE_PUT: list[Record] = [invoked(1, put(RED)), acked(1, 5)]
PUT_AND_DELETE: list[Record] = [*ONE_PUT, invoked(2, delete()), acked(2, 6)]
PUT_AND_DROP: list[Record] = [*ONE_PUT, invoked(2, drop()), acked(2, 6)]

CHUNK = "dd" * 32


def with_chunks(**changes: Any) -> StoreState:
    """A store with a row in one chunk, unless changed."""
    return replace(
        state("n1", row(RED, 5)), **{"chunks": ((CHUNK, 1, True),), "chunks_named": ((CHUNK, 1),), **changes}
    )


# Each bad history: the checker that must find it, what its violation says, and the history.
BAD: list[tuple[Checker, str, list[Record]]] = [
    (check_convergence, "never became complete", [replace(state("n1"), complete=False)]),
    (check_convergence, "its rows say", [replace(state("n1"), recount="00" * 16)]),
    (check_convergence, "vectors of n1 and n2 differ", [state("n1"), replace(state("n2"), vector=((ISSUER, 8),))]),
    (check_convergence, "vectors of n1 and n2 differ", [state("n1"), replace(state("n2"), fence=version(1))]),
    (
        check_convergence,
        "H of n1 and n2 differ",
        [state("n1"), replace(state("n2"), state_hash="00" * 16, recount="00" * 16)],
    ),
    (check_convergence, "namespaces that live", [state("n1"), replace(state("n2"), namespaces=())]),
    (check_convergence, "None at n2", [state("n1", row(RED, 1)), state("n2")]),
    (check_convergence, "differs", [state("n1", row(RED, 1)), state("n2", row(BLUE, 1))]),
    (check_convergence, "differs", [state("n1"), state("n2"), state("n3", row(RED, 1))]),
    (check_convergence, "in the log of", [state("n1", log=(position(1),)), state("n2")]),
    (
        check_convergence,
        "in the log of",
        [state("n1", log=(position(1),)), state("n2", log=(position(1, "6b32"),))],
    ),
    (check_no_acknowledged_write_lost, "stands at None", [*ONE_PUT, *both()]),
    (check_no_acknowledged_write_lost, "stands at 00000001", [*ONE_PUT, *both(row(BLUE, 4))]),
    (check_no_acknowledged_write_lost, "at n2", [*ONE_PUT, state("n1", row(RED, 5)), state("n2")]),
    (check_no_acknowledged_write_lost, "stands at 00000001", [*PUT_AND_DELETE, *both(row(RED, 5))]),
    (check_no_acknowledged_write_lost, "lives at", [*PUT_AND_DROP, *both(row(RED, 5))]),
    (
        check_no_acknowledged_write_lost,  # nobody asked for the namespace to go
        "stands at None",
        [*ONE_PUT, replace(state("n1"), namespaces=())],
    ),
    (check_no_resurrection, "is back at n1 with", [*PUT_AND_DELETE, *both(row(RED, 5))]),
    (check_no_resurrection, "is back at", [seen("", 2), seen(RED, 1)]),
    (check_no_acknowledged_write_lost, "stands at None", [*ONE_MORTAL, replace(state("n1"), clock_ms=EXPIRES_MS - 1)]),
    (
        check_no_acknowledged_write_lost,  # nobody made it durable: its expiry is not known
        "stands at None",
        [invoked(1, MORTAL), acked(1, STAMP), replace(state("n1"), clock_ms=EXPIRES_MS)],
    ),
    (
        check_no_acknowledged_write_lost,  # an acknowledged write without an end came last
        "stands at None",
        [*ONE_MORTAL, invoked(2, put(BLUE)), acked(2, STAMP + 1), replace(state("n1"), clock_ms=EXPIRES_MS)],
    ),
    (check_purged_to_the_last_row, "tombstone of key", [purged(row("", 5))]),
    (check_purged_to_the_last_row, "1 tombstones are left", [replace(purged(), graves=1)]),
    (check_purged_to_the_last_row, "has expired and is left", [replace(purged(mortal_row()), expiring=1)]),
    (check_purged_to_the_last_row, "1 rows stand in the index", [replace(purged(), expiring=1)]),
    (check_purged_to_the_last_row, "2 issuers are left", [replace(purged(), issuers=TWO_ISSUERS)]),
    (check_expiry_is_not_late, "nobody leads", [state("n2")]),
    (
        check_expiry_is_not_late,
        "n2 would hide values 1001 ms late",
        [replace(state("n1"), clock_ms=EXPIRES_MS), replace(state("n2"), clock_ms=EXPIRES_MS - 1_001)],
    ),
    (check_nothing_invented, "nobody wrote", [*ONE_PUT, *both(row(BLUE, 5))]),
    (check_nothing_invented, "nobody wrote", [seen(RED, 1)]),
    (check_nothing_invented, "nobody wrote", [invoked(1, put(RED, key="6b32")), seen(RED, 1)]),  # of another key
    (check_nothing_invented, "was refused", [invoked(1, put(RED)), ended(1, "refused"), seen(RED, 1)]),
    (
        check_positions_issued_once,
        "and for",
        [Issued(1, "n1", ISSUER, 7, put(RED)), Issued(2, "n1", ISSUER, 7, put(BLUE))],
    ),
    (
        check_positions_issued_once,
        "was used by n1 and n2",
        [Issued(1, "n1", ISSUER, 7, put(RED)), Issued(2, "n2", ISSUER, 8, put(BLUE))],
    ),
    (check_issuers_are_closed, "has the issuer 1111111111111111 open", closed_at(None)),
    (check_issuers_are_closed, "closed at 8; it went on to 9", closed_at(8)),
    (check_issuers_are_closed, "closed at 4; it went on to 5", [*ONE_PUT, *closed_at(4, vector=3)]),
    (
        check_issuers_are_closed,
        "has the current issuer",
        [
            Issued(1, "n1", ISSUER, 1, put(RED)),
            replace(state("n1"), issuers=(StandingIssuer(ISSUER, "n1", 9),)),
        ],
    ),
    (
        check_issuers_are_closed,
        "open, and nobody leads",
        [Issued(1, "n1", LATER, 1, put(RED)), replace(state("n1"), issuers=())],
    ),
    (check_outcomes_are_honest, "never ended", [invoked(1, put(RED))]),
    (check_outcomes_are_honest, "ended twice", [*ONE_PUT, ended(1, "unknown")]),
    (check_outcomes_are_honest, "does not have it", [invoked(1, put(RED)), replace(acked(1, 1), covered=False)]),
    (check_chunks, "keeps 2 chunks for writes that have ended", [with_chunks(staged=2)]),
    (check_chunks, "has 1 rows that lack chunks", [with_chunks(pending=1)]),
    (check_chunks, "counts 2 rows that name chunk dddd", [with_chunks(chunks=((CHUNK, 2, True),))]),
    (check_chunks, "counts 0 rows that name chunk dddd", [with_chunks(chunks=())]),
    (check_chunks, "and has 0", [with_chunks(chunks_named=())]),
    (check_chunks, "does not have chunk dddd", [with_chunks(chunks=((CHUNK, 1, False),))]),
    (check_no_alarm, "diverged", [Told(1, "n1", "I7", "diverged")]),
]

# Histories that come close to a violation and are none.
HARMLESS: list[list[Record]] = [
    # An unknown write may be applied, and its version may be greater than what was acknowledged.
    [*ONE_PUT, invoked(2, put(BLUE)), ended(2, "unknown"), seen(BLUE, 6), *both(row(BLUE, 6))],
    [*ONE_PUT, invoked(2, put(BLUE)), ended(2, "lost"), *both(row(BLUE, 6))],
    # A delete that was purged leaves nothing; one that was overwritten leaves the newer value.
    [*PUT_AND_DELETE, *both()],
    [*PUT_AND_DELETE, *both(row("", 6))],
    [*PUT_AND_DELETE, invoked(3, put(BLUE)), acked(3, 7), seen("", 6), seen(BLUE, 7), *both(row(BLUE, 7))],
    # What has expired may be gone, and so may what an unknown delete, or an unknown write that expires, may have put an end to.
    [*ONE_MORTAL, replace(state("n1"), clock_ms=EXPIRES_MS)],
    [*ONE_PUT, invoked(2, delete()), ended(2, "unknown"), *both()],
    [*ONE_PUT, invoked(2, replace(put(BLUE), expires_in_s=60)), ended(2, "lost"), *both()],
    [replace(state("n1"), clock_ms=EXPIRES_MS), replace(state("n2"), clock_ms=EXPIRES_MS - 1_000)],
    [replace(state("n2"), clock_ms=EXPIRES_MS), replace(state("n1"), clock_ms=EXPIRES_MS - 9_000)],
    # A store that was left alone long enough holds what lives; one that was not may hold more.
    [*ONE_PUT, replace(purged(row(RED, 5)))],
    [*PUT_AND_DELETE, replace(state("n1", row("", 6)), graves=1)],
    # The namespace's deletion takes its keys along.
    [*PUT_AND_DROP, *(replace(one, namespaces=()) for one in (state("n1"), state("n2")))],
    # A replica that lags, or whose disk was put back to an older copy, may still show what is deleted elsewhere.
    [*PUT_AND_DELETE, seen("", 6), seen(RED, 5, node="n2"), *both(row("", 6))],
    [*PUT_AND_DELETE, seen("", 6), seen(RED, 5, disk=1), *both(row("", 6))],
    # What came by a walk has no log below its floor.
    [state("n1", log=(position(1), position(9))), replace(state("n2", log=(position(9),)), floor=((ISSUER, 8),))],
    # An earlier life's issuer is closed where it ended, or behind that.
    closed_at(9),
    closed_at(11),
    # Chunks that rows name are there.
    [*ONE_PUT, with_chunks()],
    # The hold ran out: acknowledged, told as pending.
    [invoked(1, put(RED)), replace(acked(1, 5), visible=False, covered=False), *both(row(RED, 5))],
]


def test_a_good_history_has_no_violation() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(("checker", "text", "history"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_checker_finds_the_fault_of_a_bad_history(checker: Checker, text: str, history: list[Record]) -> None:
    violations = list(checker(history))
    assert violations, "the checker overlooks it"
    assert any(text in str(violation) for violation in violations), violations
    assert set(map(str, violations)) <= set(map(str, check(history)))


@pytest.mark.parametrize("history", HARMLESS)
def test_checkers_let_a_harmless_history_pass(history: list[Record]) -> None:
    assert check(history) == []


def test_every_checker_has_a_bad_history() -> None:
    assert {checker for checker, _, _ in BAD} == set(CHECKERS)


def test_a_claim_violated_a_thousand_times_is_told_a_few_times() -> None:
    history: list[Record] = [invoked(write, put(RED)) for write in range(1_000)]
    assert len(check(history)) == VIOLATIONS_MAX


def test_every_record_survives_being_written_as_a_line() -> None:
    records = [*GOOD, Told(1, "n1", "I7", "diverged"), *(record for _, _, history in BAD for record in history)]
    assert [from_line(to_line(record)) for record in records] == records


@pytest.mark.parametrize(
    "line",
    ["", "[]", "null", '{"record":"Nothing"}', '{"record":"Told"}', '{"record":"Told","at_ns":1,"node":"n1","x":2}'],
)
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"record|Expecting|has"):
        from_line(line)
