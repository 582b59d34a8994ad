"""The write path: group commit at the leader, forwards that are sent once, and holds until the own disk has the write."""

from __future__ import annotations

import pytest

from kvp2p.core import holds, writing
from kvp2p.core.batches import WriteGroup
from kvp2p.core.events import SendFailed, Stop, Write
from kvp2p.core.messages import Forward, ForwardOutcome, Frame
from kvp2p.core.operations import Ending, Outcome
from kvp2p.ids import VERSION_ZERO
from kvp2p.limits import GROUP_OPS_MAX, OPS_PER_WRITE_MAX, WRITE_BYTES_MAX
from tests.core.harness import (
    MS,
    SETTINGS,
    SPACE,
    Cluster,
    Node,
    designated,
    digest_of,
    frame_of,
    node_id,
    put,
    value_at,
    vector,
    version,
)


def leading() -> Node:
    return Cluster().add("a", leads=True)


def following() -> Node:
    """A follower of the leader z, whom the test plays."""
    a = Cluster().add("a")
    a.meets("z", digest_of(designation=designated("z")))
    return a


def acked(stamp: int) -> Outcome:
    return Outcome(Ending.ACKED, version=version(stamp))


# --- the leader


def test_writes_that_arrive_during_a_sync_share_the_next_group() -> None:
    a = leading()
    a.hold_disk()
    requests = [a.write(put(b"%d" % n)) for n in range(4)]
    assert len(a.disk) == 1
    assert a.replies == {}
    a.finish()
    assert list(a.replies) == requests[:1], "told only when durable"
    (persist,) = a.disk
    assert isinstance(persist.batch, WriteGroup)
    assert len(persist.batch.writes) == 3
    a.finish()
    assert list(a.replies) == requests
    assert all(outcome.ending == Ending.ACKED for outcome in a.replies.values())


def test_a_group_has_a_bounded_number_of_operations() -> None:
    a = leading()
    a.hold_disk()
    a.write(put(b"first"))
    many = tuple(put(b"%d" % n, b"") for n in range(GROUP_OPS_MAX // 2 + 1))
    a.write(*many)
    a.write(*many)
    a.finish()
    assert [len(persist.batch.writes) for persist in a.disk if isinstance(persist.batch, WriteGroup)] == [1]
    a.release_disk()
    assert len(a.replies) == 3


def test_frames_are_told_to_complete_peers_when_the_group_is_durable() -> None:
    a = leading()
    a.meets("b", digest_of())
    a.meets("c", digest_of(complete=False))
    a.meets("d")
    a.hold_disk()
    a.write(put(b"k"))
    assert a.sent_to("b", Frame) == []
    a.release_disk()
    assert len(a.sent_to("b", Frame)) == 1
    assert a.sent_to("c", Frame) == a.sent_to("d", Frame) == []


def test_a_write_that_waited_past_its_deadline_is_refused() -> None:
    a = leading()
    a.hold_disk()
    a.write(put(b"k"))
    late, in_time = a.write(put(b"l"), deadline_ms=10), a.write(put(b"m"), deadline_ms=1_000)
    a.cluster.mono_ns += 10 * MS
    a.release_disk()
    assert a.replies[late].code == "deadline_passed"
    assert a.replies[in_time].ending == Ending.ACKED
    assert value_at(a.store, b"l") is None


def test_a_group_of_nothing_but_late_writes_is_not_persisted() -> None:
    a = leading()
    a.hold_disk()
    a.write(put(b"k"))
    a.write(put(b"l"), deadline_ms=10)
    a.cluster.mono_ns += 10 * MS
    a.finish()
    assert not a.disk


@pytest.mark.parametrize("limit", ["WRITE_QUEUE_MAX", "WRITE_QUEUE_BYTES_MAX"])
def test_a_full_queue_refuses(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(writing, limit, 1 if limit == "WRITE_QUEUE_MAX" else 80)
    a = leading()
    a.hold_disk()
    a.write(put(b"k"))
    queued, refused = a.write(put(b"l")), a.write(put(b"m"))
    assert a.replies[refused].code == "overloaded"
    a.release_disk()
    assert a.replies[queued].ending == Ending.ACKED


def test_writes_that_meet_a_full_disk_are_refused_and_later_ones_tried() -> None:
    a = leading()
    a.hold_disk()
    full, later = a.write(put(b"k")), a.write(put(b"l"))
    a.fail()
    assert a.replies[full].code == "disk_full"
    assert "disk_full" in a.notices
    a.release_disk()
    assert a.replies[later].ending == Ending.ACKED
    assert value_at(a.store, b"k") is None


def test_a_group_of_refused_writes_is_told_to_no_peer() -> None:
    a = leading()
    a.meets("b", digest_of())
    assert a.replies[a.write(put(b"k", namespace=SPACE))].code == "namespace_not_found"
    assert a.sent_to("b", Frame) == []


def test_a_closed_link_drops_its_waiting_writes_and_gets_no_old_answers() -> None:
    """A peer that restarted counts its requests anew: an answer of the old link would be taken for another write's."""
    a = leading()
    a.meets("b", digest_of())
    a.hold_disk()
    a.hears("b", Forward(1, a.cluster.mono_ns + 1_000 * MS, (put(b"k"),)))
    a.hears("b", Forward(2, a.cluster.mono_ns + 1_000 * MS, (put(b"l"),)))
    mine = a.write(put(b"m"))
    a.loses("b")
    a.meets("b", digest_of())
    a.release_disk()
    assert a.sent_to("b", ForwardOutcome) == []
    assert value_at(a.store, b"k") == b"value"
    assert value_at(a.store, b"l") is None
    assert a.replies[mine].ending == Ending.ACKED
    a.hears("b", Forward(1, a.cluster.mono_ns + 1_000 * MS, (put(b"n"),)))
    (answer,) = a.sent_to("b", ForwardOutcome)
    assert answer.outcome.ending == Ending.ACKED


def test_a_malformed_write_is_refused_wherever_it_comes_from() -> None:
    a = leading()
    a.meets("b", digest_of())
    assert a.replies[a.write()].code == "bad_request"
    assert a.replies[a.write(*[put(b"k", b"")] * (OPS_PER_WRITE_MAX + 1))].code == "bad_request"
    assert a.replies[a.write(put(b"k", bytes(WRITE_BYTES_MAX)))].code == "bad_request"
    a.hears("b", Forward(1, a.cluster.mono_ns + 1_000 * MS, ()))
    assert a.sent_to("b", ForwardOutcome)[0].outcome.code == "bad_request"


def test_a_leader_that_stops_refuses_what_waits_and_ends_what_it_persists() -> None:
    a = leading()
    a.hold_disk()
    persisting, waiting = a.write(put(b"k")), a.write(put(b"l"))
    a.handle(Stop())
    assert a.replies[waiting].code == "no_leader"
    assert a.replies[a.write(put(b"m"))].code == "no_leader"
    a.release_disk()
    assert a.replies[persisting].ending == Ending.ACKED


# --- the forwarder


def test_a_forwarded_write_is_replied_when_the_own_disk_has_it() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b")
    cluster.link("a", "b")
    b.hold_disk()
    request = b.write(put(b"k"))
    cluster.settle()
    assert value_at(a.store, b"k") == b"value"
    assert request not in b.replies
    b.release_disk()
    assert b.replies[request].ending == Ending.ACKED
    assert b.replies[request].visible
    assert value_at(b.store, b"k") == b"value"


def test_an_acknowledgement_is_pending_when_the_hold_runs_out() -> None:
    a = following()
    request = a.write(put(b"k"))
    a.hears("z", ForwardOutcome(request, acked(1)))
    a.cluster.pass_ms(SETTINGS.hold_ms - 1)
    assert request not in a.replies
    a.cluster.pass_ms(2)
    assert (a.replies[request].ending, a.replies[request].visible) == (Ending.ACKED, False)
    a.hears("z", frame_of(0, 1))


def test_refusals_are_passed_on_at_once() -> None:
    a = following()
    request = a.write(put(b"k"))
    a.hears("z", ForwardOutcome(request, Outcome(Ending.REFUSED, "precondition_failed")))
    assert a.replies[request].code == "precondition_failed"


def test_a_forward_ends_unknown_with_its_link() -> None:
    a = following()
    a.meets("y", digest_of())
    request = a.write(put(b"k"))
    a.hears("y", ForwardOutcome(request, acked(1)))
    a.loses("y")
    assert request not in a.replies, "another peer has no say in it"
    a.loses("z")
    assert a.replies[request].ending == Ending.UNKNOWN
    a.loses("z")
    a.hears("z", ForwardOutcome(request, acked(1)))


def test_a_forward_ends_unknown_with_its_deadline() -> None:
    a = following()
    request = a.write(put(b"k"), deadline_ms=100)
    answered = a.write(put(b"l"), deadline_ms=100)
    later = a.write(put(b"l"), deadline_ms=200)
    a.hears("z", ForwardOutcome(answered, Outcome(Ending.REFUSED, "overloaded")))
    a.cluster.pass_ms(100)
    assert a.replies[request].ending == Ending.UNKNOWN
    assert later not in a.replies
    a.hears("z", ForwardOutcome(request, acked(1)))
    a.cluster.pass_ms(100)
    assert a.replies[later].ending == Ending.UNKNOWN
    assert len(a.sent_to("z", Forward)) == 3, "nobody resends"


def test_forwards_that_were_answered_wake_nobody_at_their_deadlines() -> None:
    a = following()
    answered = [a.write(put(b"k"), deadline_ms=100 + n) for n in range(50)]
    last = a.write(put(b"k"), deadline_ms=300)
    for request in answered[1:]:
        a.hears("z", ForwardOutcome(request, Outcome(Ending.REFUSED, "overloaded")))
    a.cluster.pass_ms(100)
    assert a.replies[answered[0]].ending == Ending.UNKNOWN
    before = a.machine.board._next_token
    a.cluster.pass_ms(150)
    assert a.machine.board._next_token - before < 10, "not one timer for each of the 49"
    a.cluster.pass_ms(50)
    assert a.replies[last].ending == Ending.UNKNOWN


def test_a_forward_that_found_no_room_was_not_sent() -> None:
    a = following()
    request = a.write(put(b"k"))
    (forward,) = a.sent_to("z", Forward)
    a.handle(SendFailed(node_id("z"), forward))
    assert a.replies[request].code == "overloaded"
    a.handle(SendFailed(node_id("z"), forward))


def test_forwards_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FORWARDS_IN_FLIGHT_MAX", 1)
    a = following()
    a.write(put(b"k"))
    assert a.replies[a.write(put(b"l"))].code == "overloaded"


def test_a_node_that_stops_forwards_nothing() -> None:
    a = following()
    a.handle(Stop())
    assert a.replies[a.write(put(b"k"))].code == "no_leader"


def test_a_write_past_its_deadline_is_refused_and_not_sent() -> None:
    a = following()
    for request, left_ns in ((77, 0), (78, -5 * MS)):
        a.handle(Write(request, (put(b"k"),), a.cluster.mono_ns + left_ns))
        assert (a.replies[request].ending, a.replies[request].code) == (Ending.REFUSED, "deadline_passed")
    assert a.sent_to("z", Forward) == []
    a.handle(Write(80, (put(b"k"),), a.cluster.mono_ns + 1))
    assert [forward.deadline_ns for forward in a.sent_to("z", Forward)] == [a.cluster.mono_ns + 1]


# --- readers that wait


def test_a_reader_waits_for_a_version() -> None:
    a = following()
    first, second, other = a.wait_for(version(1)), a.wait_for(version(2)), a.wait_for(version(1, "y"))
    a.hears("z", frame_of(0, 1))
    assert list(a.replies) == [first]
    a.hears("z", frame_of(1, 2))
    assert a.replies[second] == acked(2)
    a.cluster.pass_ms(5_000)
    assert a.replies[other].code == "not_caught_up"
    assert a.replies[a.wait_for(VERSION_ZERO)].ending == Ending.ACKED, "nothing is before the first version"


def test_waiting_readers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "HOLDS_MAX", 1)
    a = following()
    a.wait_for(version(1))
    assert a.replies[a.wait_for(version(1))].code == "not_caught_up"
    assert len(a.machine.holds) == 1


def test_versions_that_never_come_are_forgotten() -> None:
    a = following()
    kept = a.wait_for(version(1, "x"), deadline_ms=60_000)
    for n in range(100):
        a.wait_for(version(5, "x" if n % 2 else "y"), deadline_ms=10)
    a.cluster.pass_ms(200)
    assert sum(len(heap) for heap in a.machine.holds._readers.values()) < 70
    a.hears("z", frame_of(0, 1, 5))
    assert a.replies[kept].ending == Ending.ACKED
    assert a.machine.board.vector == vector(x=5)
