"""Anti-entropy: gaps, pulls and who is asked for them; the walk that gives a node everything."""

from __future__ import annotations

import pytest

from kvp2p.core import anti_entropy
from kvp2p.core.batches import FrameBatch, WalkBatch
from kvp2p.core.messages import Frame, Pull, PullEnd, RowKey, WalkPart, WalkRequest
from kvp2p.core.operations import Ending
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, Stamp
from kvp2p.limits import PULLS_MAX
from tests.core.harness import (
    SETTINGS,
    Cluster,
    Node,
    all_rows,
    apply,
    digest_of,
    frame_of,
    issuer_of,
    node_id,
    put,
    value_at,
    value_row,
    vector,
)

X = issuer_of("x")


def alone(*, complete: bool = True) -> Node:
    return Cluster().add("a", complete=complete)


def end(upto: int, *, trimmed: bool = False, issuer: str = "x") -> PullEnd:
    return PullEnd(issuer_of(issuer), Stamp(upto), trimmed)


def pulls(node: Node, *peers: str) -> list[tuple[str, int]]:
    """List whom the node has asked for X, and from where on."""
    return [(peer, pull.after) for peer in peers for pull in node.sent_to(peer, Pull) if pull.issuer == X]


def part(
    walk: int,
    key: bytes | None,
    after: bytes | None = None,
    *,
    last: bool = False,
    has: VersionVector = EMPTY_VECTOR,
) -> WalkPart:
    """Make a part with one row, or with none."""
    rows = () if key is None else ((SYSTEM_NAMESPACE, key, value_row(1)),)
    row_after: RowKey | None = None if after is None else (SYSTEM_NAMESPACE, after)
    return WalkPart(walk, row_after, None if last or key is None else (SYSTEM_NAMESPACE, key), rows, has)


# --- frames and pulls


def test_a_lost_frame_is_pulled_when_the_next_one_shows_the_gap() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b")
    cluster.link("a", "b")
    cluster.lost = (Frame,)
    a.write(put(b"lost"))
    cluster.settle()
    cluster.lost = ()
    a.write(put(b"k"))
    cluster.settle()
    assert value_at(b.store, b"lost") == b"value"
    cluster.assert_equal()


def test_the_last_lost_frame_is_pulled_when_a_digest_tells_of_it() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b")
    cluster.link("a", "b")
    cluster.lost = (Frame,)
    a.write(put(b"lost"))
    cluster.settle()
    cluster.lost = ()
    cluster.pass_ms(SETTINGS.digest_busy_ms + SETTINGS.pull_grace_ms + 1)
    assert value_at(b.store, b"lost") == b"value"
    cluster.assert_equal()


def test_survivors_become_equal_without_a_leader() -> None:
    cluster = Cluster()
    a, b, c = cluster.add("a", leads=True), cluster.add("b"), cluster.add("c")
    cluster.link("a", "b")
    for n in range(3):
        a.write(put(b"%d" % n))
    cluster.settle()
    cluster.cut("a", "b")
    cluster.link("b", "c")
    assert all_rows(c.store) == all_rows(b.store)
    assert value_at(c.store, b"2") == b"value"


def test_the_first_digest_of_a_link_is_pulled_at_once_and_later_ones_after_a_grace() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=1)))
    assert pulls(a, "z") == [("z", 0)]
    a.hears("z", frame_of(0, 1))
    a.hears("z", end(1))
    a.hears("z", digest_of(vector(x=2)))
    a.hears("z", digest_of(vector(x=3)))
    assert pulls(a, "z") == [("z", 0)]
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert pulls(a, "z") == [("z", 0), ("z", 1)]
    a.hears("z", frame_of(1, 2))
    a.hears("z", end(2))
    assert pulls(a, "z") == [("z", 0), ("z", 1), ("z", 2)], "there was progress, so it goes on"


def test_what_arrives_in_its_grace_is_not_pulled() -> None:
    a = alone()
    a.meets("z", digest_of())
    a.hears("z", digest_of(vector(x=1)))
    a.hears("z", frame_of(0, 1))
    a.hears("z", frame_of(0, 1))
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert pulls(a, "z") == []


def test_a_pull_that_brings_nothing_is_not_repeated_at_once() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=1)))
    a.hears("z", frame_of(0, 1, issuer="w"))
    a.hears("z", digest_of(vector(w=1, x=1)))
    a.hears("y", end(0))
    a.hears("z", end(0, issuer="y"))
    a.hears("z", end(0))
    assert pulls(a, "z") == [("z", 0)]
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert pulls(a, "z") == [("z", 0), ("z", 0)]


def test_a_silent_peer_is_left_for_another() -> None:
    a = alone()
    a.meets("y")
    a.meets("z", digest_of(vector(x=5)))
    a.hears("y", digest_of(vector(x=5)))
    assert pulls(a, "y", "z") == [("z", 0)]
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms - 1)
    a.hears("z", frame_of(0, 1))
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms - 1)
    assert pulls(a, "y", "z") == [("z", 0)], "each frame is a sign of life"
    a.cluster.pass_ms(1)
    assert pulls(a, "y", "z") == [("y", 1), ("z", 0)]
    a.loses("z")
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms)
    assert pulls(a, "y") == [("y", 1), ("y", 1)], "there is nobody else"


def test_a_pull_goes_elsewhere_when_its_link_ends() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=5)))
    a.meets("y", digest_of(vector(x=5)))
    a.loses("z")
    assert pulls(a, "y") == [("y", 0)]
    a.loses("y")
    a.meets("w", digest_of(vector(x=5), complete=False))
    assert pulls(a, "w") == [], "it has not everything itself"


def test_pulls_are_bounded_and_the_next_begins_where_one_ends() -> None:
    a = alone()
    a.meets("z", digest_of(vector(p=1, q=1, r=1, s=1, t=1, u=1)))
    assert len(a.sent_to("z", Pull)) == PULLS_MAX
    a.hears("z", frame_of(0, 1, issuer="p"))
    a.hears("z", end(1, issuer="p"))
    assert a.sent_to("z", Pull)[-1].issuer == issuer_of("t")
    a.hears("z", digest_of(vector(p=1, q=1, r=1, s=1, t=1, u=1, v=1)))
    a.hears("z", frame_of(0, 1, issuer="q"))
    a.hears("z", end(1, issuer="q"))
    assert len(a.sent_to("z", Pull)) == PULLS_MAX + 1, "what is in its grace waits for the end of that"
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert len(a.sent_to("z", Pull)) == PULLS_MAX + 2


def test_frames_beyond_what_the_disk_takes_are_pulled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anti_entropy, "PERSIST_BYTES_IN_FLIGHT_MAX", 80)
    a = alone()
    a.meets("z", digest_of())
    a.hold_disk()
    a.hears("z", frame_of(0, 1))
    a.hears("z", frame_of(1, 2))
    a.hears("z", digest_of(vector(x=2)))
    assert len(a.disk) == 1
    a.release_disk()
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert pulls(a, "z") == [("z", 1)]


def test_what_is_in_flight_behind_a_failed_batch_is_asked_for_again() -> None:
    """Under steady traffic something is always in flight: the gap must not wait for a quiet moment."""
    a = alone()
    a.meets("z", digest_of())
    a.hold_disk()
    a.hears("z", frame_of(0, 1))
    a.hears("z", frame_of(1, 2))
    a.fail()
    a.hears("z", frame_of(2, 3))
    assert pulls(a, "z") == [("z", 0)]
    a.release_disk()
    assert all_rows(a.store) == []
    a.hears("z", frame_of(0, 1, 2, 3))
    assert a.machine.board.vector == vector(x=3)


def test_a_full_disk_is_tried_now_and_then_not_on_and_on() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=2)))
    a.hold_disk()
    for _ in range(2):
        a.hears("z", frame_of(0, 1, 2))
        a.fail()
    asked = len(a.sent_to("z", Pull))
    a.hears("z", frame_of(0, 1, 2))
    a.hears("z", end(0))
    assert not a.disk, "what comes while the disk is full is dropped"
    a.cluster.pass_ms(SETTINGS.digest_idle_ms - 100)
    assert len(a.sent_to("z", Pull)) == asked
    a.cluster.pass_ms(200)
    assert len(a.sent_to("z", Pull)) == asked + 1
    a.release_disk()
    a.hears("z", frame_of(0, 1, 2))
    assert a.machine.board.vector == vector(x=2)


def test_a_new_node_with_a_full_disk_walks_now_and_then_not_on_and_on() -> None:
    a = alone(complete=False)
    a.meets("z", digest_of(vector(x=2)))
    a.hold_disk()
    a.hears("z", part(1, b"k"))
    a.fail()
    a.hears("z", part(2, b"k"))
    a.hears("z", part(2, b"l", after=b"k"))
    a.fail()
    a.fail()
    asked = len(a.sent_to("z", WalkRequest))
    a.hears("z", digest_of(vector(x=3)))
    assert len(a.sent_to("z", WalkRequest)) == asked
    a.cluster.pass_ms(SETTINGS.digest_idle_ms + 100)
    assert a.sent_to("z", WalkRequest)[asked:] == [WalkRequest(3, None)]


# --- logs that are trimmed


def test_a_trimmed_log_is_pulled_from_another_peer() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=5)))
    a.meets("y", digest_of(vector(x=5)))
    a.hears("z", end(0, trimmed=True))
    assert pulls(a, "z", "y") == [("z", 0), ("y", 0)]
    a.hears("y", frame_of(0, 1))
    a.hears("y", end(1, trimmed=True))
    assert pulls(a, "z", "y") == [("z", 0), ("z", 1), ("y", 0)], "past where it failed it may serve again"


def test_a_gap_is_not_pulled_from_the_peer_that_could_not_serve_it() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=5)))
    a.hears("z", end(0, trimmed=True))
    assert len(a.sent_to("z", WalkRequest)) == 1
    a.loses("z")
    a.meets("z", digest_of(vector(x=5), floor=vector(x=5)))
    assert pulls(a, "z") == [("z", 0)]
    assert len(a.sent_to("z", WalkRequest)) == 2


def test_a_trimmed_log_everywhere_leads_to_a_walk_and_then_to_pulls() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b", complete=False)
    a.write(put(b"k"))
    cluster.link("a", "b")
    assert b.machine.board.complete
    cluster.cut("a", "b")
    c = cluster.add("c")
    cluster.link("b", "c")
    assert c.sent_to("b", WalkRequest)
    assert not c.sent_to("b", Pull)
    assert all_rows(c.store) == all_rows(a.store)
    cluster.link("a", "c")
    a.write(put(b"l"))
    cluster.settle()
    assert value_at(c.store, b"l") == b"value"


def test_frames_arrive_during_a_walk_and_gaps_wait_for_its_end() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=5, y=2), floor=vector(x=5)))
    assert a.sent_to("z", WalkRequest) == [WalkRequest(1, None)]
    asked = len(a.sent_to("z", Pull))
    a.hears("z", frame_of(1, 2, issuer="w"))
    assert len(a.sent_to("z", Pull)) == asked
    a.hears("z", digest_of(vector(x=5, y=2, w=2), floor=vector(x=5)))
    a.hears("z", part(1, b"k", last=True, has=vector(x=5)))
    assert a.machine.board.vector.covers_vector(vector(x=5))
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert {pull.issuer for pull in a.sent_to("z", Pull)} == {issuer_of("y"), issuer_of("w")}


# --- walks


def test_an_incomplete_node_walks_and_takes_no_frames_before() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    for n in range(3):
        a.write(put(b"%d" % n, bytes(100_000)))
    b = cluster.add("b", complete=False, knows="a")
    cluster.link("a", "b")
    assert len(b.sent_to("a", WalkRequest)) == 2
    assert b.sent_to("a", Pull) == []
    cluster.assert_equal()
    assert "ready" in b.notices


def test_an_incomplete_node_drops_frames_and_asks_only_who_is_complete() -> None:
    a = alone(complete=False)
    a.meets("z", digest_of(complete=False))
    assert a.sent_to("z", WalkRequest) == []
    a.hears("z", frame_of(0, 1))
    assert all_rows(a.store) == []
    a.hears("z", digest_of(vector(x=1)))
    a.hears("z", digest_of(vector(x=1)))
    assert a.sent_to("z", WalkRequest) == [WalkRequest(1, None)]


def test_parts_that_were_not_asked_for_are_ignored() -> None:
    a = alone(complete=False)
    a.hears("z", part(1, b"k"))
    a.meets("z", digest_of(vector(x=1)))
    a.meets("y", digest_of())
    a.hears("z", part(2, b"k"))
    a.hears("y", part(1, b"k"))
    a.hears("z", part(1, b"k", after=b"j"))
    assert all_rows(a.store) == []
    a.hears("z", part(1, b"k"))
    a.hears("z", part(1, b"j", after=b"k"))
    assert [key for _, key, _ in all_rows(a.store)] == [b"k"], "a walk only goes forward"


def test_a_peer_that_goes_away_ends_the_walk() -> None:
    a = alone(complete=False)
    a.meets("z", digest_of(vector(x=1)))
    a.hears("z", part(1, b"k"))
    a.meets("y", digest_of(vector(x=1)))
    a.loses("z")
    assert "walk_abandoned" in a.notices
    assert a.machine.board.vector == EMPTY_VECTOR
    assert a.sent_to("y", WalkRequest) == [WalkRequest(2, None)], "from the start [I6]"
    a.loses("y")
    a.meets("z", digest_of(vector(x=1)))
    assert a.sent_to("z", WalkRequest)[-1] == WalkRequest(3, None)


def test_a_silent_peer_ends_the_walk() -> None:
    a = alone(complete=False)
    a.meets("z", digest_of(vector(x=1)))
    a.cluster.pass_ms(SETTINGS.walk_timeout_ms)
    assert a.sent_to("z", WalkRequest) == [WalkRequest(1, None), WalkRequest(2, None)]


def test_each_silent_peer_is_waited_for_twice_as_long_up_to_a_limit_and_a_walk_that_ends_makes_it_short_again() -> None:
    a = alone(complete=False)
    a.meets("z", digest_of(vector(x=1)))
    for walks, patience in enumerate((1, 2, 4, 8, 16, 32, 64, 64), 1):
        a.cluster.pass_ms(patience * SETTINGS.walk_timeout_ms - 1)
        assert len(a.sent_to("z", WalkRequest)) == walks
        a.cluster.pass_ms(1)
        assert a.sent_to("z", WalkRequest)[-1] == WalkRequest(walks + 1, None)
    a.hears("z", part(9, b"k", last=True, has=vector(x=1)))
    assert a.machine.board.complete
    a.hears("z", digest_of(vector(x=9), floor=vector(x=9)))
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert a.sent_to("z", WalkRequest)[-1] == WalkRequest(10, None)
    a.cluster.pass_ms(SETTINGS.walk_timeout_ms + SETTINGS.pull_grace_ms)
    assert a.sent_to("z", WalkRequest)[-1] == WalkRequest(11, None)


def test_a_walk_of_a_complete_node_that_ends_early_is_asked_for_again_after_a_grace() -> None:
    a = alone()
    a.meets("z", digest_of(vector(x=5), floor=vector(x=5)))
    a.meets("y", digest_of(vector(x=5), floor=vector(x=5)))
    a.loses("z")
    assert a.sent_to("y", WalkRequest) == []
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)
    assert a.sent_to("y", WalkRequest) == [WalkRequest(2, None)]


def test_a_slow_own_disk_slows_the_walk_and_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anti_entropy, "PERSIST_BYTES_IN_FLIGHT_MAX", 80)
    a = alone(complete=False)
    a.meets("z", digest_of(vector(x=1)))
    a.hold_disk()
    a.hears("z", part(1, b"k"))
    a.cluster.pass_ms(2 * SETTINGS.walk_timeout_ms)
    assert len(a.sent_to("z", WalkRequest)) == 1
    assert "walk_abandoned" not in a.notices
    a.release_disk()
    assert a.sent_to("z", WalkRequest)[-1] == WalkRequest(1, (SYSTEM_NAMESPACE, b"k"))


def test_the_last_part_waits_until_every_part_before_it_is_durable() -> None:
    """Were it stored after one had failed, the vector would vouch for rows that are not there."""
    a = alone(complete=False)
    a.meets("z", digest_of(vector(x=1)))
    a.hold_disk()
    a.hears("z", part(1, b"k", has=vector(x=1)))
    a.hears("z", part(1, b"l", after=b"k", last=True, has=vector(x=1)))
    assert len(a.disk) == 1
    a.cluster.pass_ms(SETTINGS.walk_timeout_ms)
    a.fail()
    assert not a.machine.board.complete
    assert not [persist for persist in a.disk if isinstance(persist.batch, WalkBatch)]
    assert a.sent_to("z", WalkRequest)[-1] == WalkRequest(2, None)
    a.release_disk()
    a.hears("z", part(2, b"k", has=vector(x=1)))
    a.hears("z", part(2, b"l", after=b"k", last=True, has=vector(x=1)))
    assert a.machine.board.complete
    assert len(all_rows(a.store)) == 2


def test_a_walk_whose_last_part_fails_starts_over_with_the_next_digest() -> None:
    a = alone(complete=False)
    a.meets("z", digest_of(vector(x=1)))
    a.hold_disk()
    a.hears("z", part(1, None, has=vector(x=1)))
    a.hears("z", digest_of(vector(x=1)))
    assert len(a.sent_to("z", WalkRequest)) == 1, "the end is on its way to the disk"
    a.fail()
    a.hears("z", digest_of(vector(x=1)))
    assert a.sent_to("z", WalkRequest)[-1] == WalkRequest(2, None)


def test_the_vector_of_a_first_part_counts_though_it_is_empty() -> None:
    a = alone(complete=False)
    a.meets("z", digest_of())
    a.hears("z", part(1, b"k", has=EMPTY_VECTOR))
    a.hears("z", part(1, b"l", after=b"k", last=True, has=vector(x=9)))
    assert a.machine.board.complete
    assert a.machine.board.vector == EMPTY_VECTOR


def test_a_walk_gives_a_new_node_writes_that_go_on_meanwhile() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b", complete=False)
    a.write(put(b"k"))
    b.hold_disk()
    cluster.link("a", "b")
    request = a.write(put(b"l"))
    cluster.settle()
    assert a.replies[request].ending == Ending.ACKED
    b.release_disk()
    cluster.settle()
    cluster.pass_ms(SETTINGS.digest_idle_ms + SETTINGS.pull_grace_ms)
    cluster.assert_equal()
    assert node_id("b") in a.machine.board.peers


@pytest.mark.parametrize("says", ["digest", "gap"])
def test_who_is_heard_while_the_last_part_goes_to_the_disk_causes_no_second_walk(says: str) -> None:
    """The vector rises with that batch: what the walk has brought seems to be missing until then."""
    a = Cluster().add("a")
    apply(a.store, FrameBatch(frame_of(0, 1)))
    a.start()
    a.meets("z", digest_of(vector(x=9), floor=vector(x=9)))
    assert a.sent_to("z", WalkRequest) == [WalkRequest(1, None)]
    a.hold_disk()
    a.hears("z", WalkPart(1, None, None, (), vector(x=9)))
    a.meets("y", digest_of(vector(x=9), floor=vector(x=9)))
    if says == "gap":
        a.hears("y", frame_of(8, 9))
    assert (a.sent_to("y", WalkRequest), a.sent_to("y", Pull)) == ([], [])
    a.release_disk()
    assert a.machine.board.vector == vector(x=9)
    a.cluster.pass_ms(2 * SETTINGS.pull_grace_ms)
    assert (a.sent_to("y", WalkRequest), a.sent_to("z", WalkRequest)) == ([], [WalkRequest(1, None)])


def test_what_a_walk_did_not_bring_is_pulled_when_its_last_part_is_stored() -> None:
    a = Cluster().add("a")
    apply(a.store, FrameBatch(frame_of(0, 1)))
    a.start()
    a.meets("z", digest_of(vector(x=9), floor=vector(x=9)))
    a.hold_disk()
    a.hears("z", WalkPart(1, None, None, (), vector(x=9)))
    a.meets("y", digest_of(vector(x=12), floor=vector(x=9)))
    assert a.sent_to("y", Pull) == []
    a.release_disk()
    assert [(pull.issuer, pull.after) for pull in a.sent_to("y", Pull)] == [(issuer_of("x"), 9)]
