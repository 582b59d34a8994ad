"""A write's way taken apart, on marks written by hand."""

import pytest

from kvp2p.limits import WRITE_DEADLINE_MS
from scripts.benchmarks.hops import (
    MS,
    TO_A_PEER,
    TO_THE_CLIENT,
    NodeMarks,
    Trace,
    digest_gaps_ms,
    hops_ms,
    stored_everywhere_ms,
)

ISSUER = "aa" * 8
VERSION = "00000001" + f"{7:016x}" + ISSUER
NODE_IDS = {"n1": "01" * 16, "n2": "02" * 16, "n3": "03" * 16}
# Each hop of the write takes one ms more than the one before it: 1, 2, … 8.
SENT, GATEWAY, TAKEN, FORWARDED, FORMED, SYNCED, ANSWERED, REPLIED, ACKED = (
    at * MS for at in (0, 1, 3, 6, 10, 15, 21, 28, 36)
)
Marks = dict[str, list[tuple[str | int, ...]]]


def marks_of_a_write() -> Marks:
    """Return the marks of one write through n2, led by n1, with what comes before, beside and after it."""
    stamp, earlier, later = (f"{position:016x}" for position in (7, 6, 9))
    return {
        "n1": [
            ("forward", FORWARDED - MS, NODE_IDS["n3"], 5),  # another node's write of the same number
            ("forward", FORWARDED, NODE_IDS["n2"], 5),
            ("stored", 8 * MS, ISSUER, earlier, 7 * MS),
            ("stored", SYNCED, ISSUER, stamp, FORMED),
            ("stored", 90 * MS, ISSUER, later, 80 * MS),
            ("digest", 1, NODE_IDS["n2"], 0),
        ],
        "n2": [
            ("write", TAKEN, 5, GATEWAY + WRITE_DEADLINE_MS * MS),
            ("outcome", ANSWERED, 5),
            ("reply", REPLIED, 5, VERSION),
            ("reply", 70 * MS, 9, VERSION),  # of a reader that waited for the same version
        ],
        "n3": [
            ("frame", 9 * MS, ISSUER, earlier),
            ("frame", SYNCED + 2 * MS, ISSUER, later),  # of several positions at once
            ("frame", SYNCED + 30 * MS, ISSUER, stamp),  # again, by a pull
            ("stored", SYNCED + 5 * MS, ISSUER, later, SYNCED + 3 * MS),
            ("stored", 16 * MS, "bb" * 8, later, 15 * MS),
        ],
    }


def hops_of(marks: Marks, *, seen_ns: int) -> dict[str, list[float]]:
    trace = Trace("n2", VERSION, SENT, ACKED, {"n1": ACKED + MS, "n3": seen_ns})
    node_marks = {name: NodeMarks(found) for name, found in marks.items()}
    return hops_ms([trace], node_marks, "n1", NODE_IDS)


def test_every_hop_of_a_write_is_found_and_they_add_up_to_what_its_client_waited() -> None:
    hops = hops_of(marks_of_a_write(), seen_ns=ACKED + 4 * MS)
    assert [hops[name] for name in TO_THE_CLIENT] == [[float(ms)] for ms in range(1, 9)]
    assert sum(hops[name][0] for name in TO_THE_CLIENT) == (ACKED - SENT) / MS
    # The read counts from the acknowledgement: the peer had the write before that.
    assert [hops[name] for name in TO_A_PEER] == [[2.0], [3.0], [4.0]]


def test_a_read_of_a_write_that_was_stored_later_counts_from_there() -> None:
    marks = marks_of_a_write()
    marks["n3"][3] = ("stored", ACKED + 10 * MS, ISSUER, f"{9:016x}", SYNCED + 3 * MS)
    assert hops_of(marks, seen_ns=ACKED + 11 * MS)[TO_A_PEER[2]] == [1.0]


@pytest.mark.parametrize(("node", "index"), [("n1", 1), ("n2", 0), ("n2", 1)])
def test_a_write_of_which_a_mark_is_missing_counts_in_no_hop(node: str, index: int) -> None:
    marks = marks_of_a_write()
    del marks[node][index]
    assert not any(hops_of(marks, seen_ns=ACKED).values())
    assert not any(hops_of({**marks, "n1": []}, seen_ns=ACKED).values())
    assert not any(hops_of({**marks, "n2": []}, seen_ns=ACKED).values())


def test_a_peer_that_has_no_mark_of_a_write_leaves_the_way_to_the_client_whole() -> None:
    hops = hops_of({**marks_of_a_write(), "n3": []}, seen_ns=ACKED)
    assert all(hops[name] for name in TO_THE_CLIENT)
    assert not any(hops[name] for name in TO_A_PEER)


def test_a_write_is_stored_everywhere_when_the_last_node_has_it() -> None:
    marks = marks_of_a_write()
    marks["n2"].append(("stored", SYNCED + 40 * MS, ISSUER, f"{8:016x}", SYNCED))  # together with later ones
    node_marks = {name: NodeMarks(found) for name, found in marks.items()}
    trace = Trace("n2", VERSION, SENT, ACKED)
    assert stored_everywhere_ms([trace], node_marks) == [(SYNCED + 40 * MS - SENT) / MS]
    assert stored_everywhere_ms([trace], {**node_marks, "n4": NodeMarks([])}) == []


def test_gaps_are_between_digests_of_one_node_at_another() -> None:
    digests = [("digest", at * MS, peer, 0) for at, peer in ((1, "a"), (2, "b"), (251, "a"), (292, "b"), (501, "a"))]
    assert digest_gaps_ms([digests, [("frame", 3 * MS, ISSUER, ""), ("digest", 9 * MS, "a", 0)]]) == [
        250.0,
        290.0,
        250.0,
    ]
