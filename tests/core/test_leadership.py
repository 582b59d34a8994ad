"""Leadership: hearing, catching up, taking over, stepping down; what each start draws anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvp2p.core import leadership, system_rows
from kvp2p.core.batches import Settle, WriteGroup
from kvp2p.core.events import Stop
from kvp2p.core.leadership import Lack
from kvp2p.core.messages import Designation, Digest, Forward, ForwardOutcome, Frame
from kvp2p.core.operations import Ending
from kvp2p.core.vector import VersionVector
from kvp2p.ids import Issuer, Stamp, make_version, version_stamp, version_term
from kvp2p.limits import TERM_MAX, VECTOR_ISSUERS_MAX
from tests.core.harness import (
    EPOCH_MS,
    SETTINGS,
    Cluster,
    Node,
    designated,
    digest_of,
    frame_of,
    issuer_of,
    issuer_rows,
    node_id,
    put,
    value_at,
    vector,
)


def leader_with_follower() -> tuple[Cluster, Node, Node]:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b", knows="a")
    cluster.link("a", "b")
    return cluster, a, b


def make_candidate(leader: Node, name: str) -> None:
    leader.write(put(system_rows.CANDIDATES_KEY, system_rows.encode_candidates((node_id(name),))))
    leader.cluster.settle()


def test_a_designated_node_that_is_alone_leads_at_once() -> None:
    a = Cluster().add("a", leads=True)
    assert a.role == "leading"
    assert a.replies[a.write(put(b"k"))].ending == Ending.ACKED


def test_a_designated_node_hears_a_peer_before_it_leads() -> None:
    a = Cluster().add("a", leads=True, knows="b")
    assert a.role == "hearing"
    refused = a.replies[a.write(put(b"k"))]
    assert (refused.code, "hearing" in refused.message) == ("no_leader", True)
    a.meets("b", digest_of())
    assert a.role == "leading"


def test_with_no_peer_in_time_the_own_store_counts() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    cluster.pass_ms(SETTINGS.first_contact_ms - 1)
    assert a.role == "hearing"
    cluster.pass_ms(1)
    assert a.role == "leading"


def test_an_incomplete_peer_does_not_count_as_heard_but_does_not_block_either() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    a.meets("c", digest_of(vector(x=9), complete=False))
    assert a.role == "hearing"
    cluster.pass_ms(SETTINGS.first_contact_ms - 1)
    assert a.role == "hearing"
    cluster.pass_ms(1)
    assert a.role == "leading", "what an incomplete peer showed is not waited for"


def test_a_complete_peer_is_heard_after_an_incomplete_one() -> None:
    a = Cluster().add("a", leads=True, knows="b")
    a.meets("c", digest_of(complete=False))
    a.meets("b", digest_of(vector(x=1)))
    assert a.role == "catching_up"
    a.hears("c", digest_of(vector(x=9), complete=False))
    a.hears("b", frame_of(0, 1))
    assert a.role == "leading"


def test_a_promotion_does_not_take_an_incomplete_peer_for_heard() -> None:
    cluster, a, b = leader_with_follower()
    make_candidate(a, "b")
    cluster.cut("a", "b")
    b.meets("c", digest_of(complete=False))
    request = b.promote()
    assert (b.role, request in b.replies) == ("hearing", False)
    cluster.pass_ms(SETTINGS.first_contact_ms)
    assert (b.role, b.replies[request].ending) == ("leading", Ending.ACKED)


def test_a_leader_behind_a_digest_catches_up_before_it_leads() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    a.meets("b", digest_of(vector(x=2)))
    assert a.role == "catching_up"
    cluster.pass_ms(SETTINGS.first_contact_ms + 1)
    assert a.role == "catching_up"
    a.hears("b", frame_of(0, 1))
    assert a.role == "catching_up"
    a.hears("b", frame_of(1, 2))
    assert a.role == "leading"
    assert a.sent_to("b", Digest)[-1].leads == a.machine.leadership.issuer


def test_a_leader_that_is_catching_up_tells_what_it_lacks_and_who_showed_it() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="bc")
    assert a.machine.leadership.lacks() == ()
    a.meets("b", digest_of(vector(x=2, y=1)))
    a.meets("c", digest_of(vector(x=2, y=3)))
    a.hears("b", frame_of(0, 1))
    a.loses("c")
    assert a.machine.leadership.lacks() == (
        Lack(issuer_of("x"), Stamp(1), Stamp(2), node_id("b")),
        Lack(issuer_of("y"), Stamp(0), Stamp(3), node_id("c")),
    )
    a.hears("b", frame_of(1, 2))
    assert [lack.issuer for lack in a.machine.leadership.lacks()] == [issuer_of("y")]
    a.hears("b", frame_of(0, 3, issuer="y"))
    assert (a.role, a.machine.leadership.lacks()) == ("leading", ())


def test_a_target_that_was_heard_of_stays_when_time_runs_out() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    a.meets("b", digest_of(vector(x=2)))
    a.loses("b")
    cluster.pass_ms(10 * SETTINGS.first_contact_ms)
    assert a.role == "catching_up"


def test_a_restart_draws_a_new_issuer_and_stamps_go_on() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    first = a.replies[a.write(put(b"k"))].version
    issuer = a.machine.leadership.issuer
    a.wall_offset_ms = -1_000_000
    a.start()
    second = a.replies[a.write(put(b"k"))].version
    assert a.machine.leadership.issuer not in (None, issuer)
    assert first is not None
    assert second is not None
    assert second > first
    assert version_stamp(second) == version_stamp(first) + 3, "two positions before it say which issuers are open"


def test_a_leaders_stamps_exceed_every_stamp_that_it_heard_of() -> None:
    a = Cluster().add("a", leads=True)
    ahead = (EPOCH_MS + 1_000_000) << 16
    a.meets("b", digest_of(vector(x=ahead)))
    written = a.replies[a.write(put(b"k"))].version
    assert written is not None
    assert version_stamp(written) == ahead + 1


def test_a_leader_rolled_back_to_before_it_had_peers_issues_above_what_they_show_from_then_on() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    lonely = a.store.snapshot()
    forgotten = a.machine.leadership.issuer
    b = cluster.add("b", knows="a")
    cluster.link("a", "b")
    a.write(put(b"k", b"forgotten"))
    cluster.settle()
    shown = b.machine.board.vector.latest_stamp()
    cluster.cut("a", "b")
    a.store, a.wall_offset_ms = lonely, -3_600_000
    a.start()
    assert a.role == "leading", "it knows of nobody to hear"
    a.write(put(b"l", b"of the time set back"))
    cluster.link("a", "b")
    assert a.role == "leading", "what a peer has more is pulled; writes go on"
    written = a.replies[a.write(put(b"k", b"newer"))].version
    cluster.settle()
    assert written is not None
    assert version_stamp(written) > shown
    cluster.assert_equal()
    assert (value_at(b.store, b"k"), value_at(b.store, b"l")) == (b"newer", b"of the time set back")
    cluster.pass_ms(2 * SETTINGS.digest_idle_ms)
    assert forgotten is not None
    ended = issuer_rows(b.store)[forgotten].closed
    assert ended == dict(a.machine.board.vector.items()).get(forgotten, 0), "where its peers say that it ended"


def test_of_two_designations_the_lower_steps_down() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    a.hold_disk()
    a.meets("b", digest_of(designation=designated("b", 1, "a")))
    assert a.role == "leading", "it is lower"
    persisting, waiting = a.write(put(b"k")), a.write(put(b"l"))
    a.hears("b", digest_of(designation=designated("b", 1, "e")))
    assert a.role == "follower"
    assert a.notices[-1] == "stepped_down"
    assert a.replies[waiting].code == "no_leader"
    assert a.sent_to("b", Digest)[-1].leads is not None, "what is on its way to the disk may still be added"
    a.release_disk()
    assert a.replies[persisting].ending == Ending.ACKED, "it was durable, and survives where nobody overwrote it"
    assert a.sent_to("b", Frame)
    cluster.pass_ms(SETTINGS.digest_busy_ms)
    assert a.sent_to("b", Digest)[-1].leads is None
    with a.store.read() as txn:
        assert txn.designation == designated("b", 1, "e")
    forwarded = a.write(put(b"k"))
    assert a.sent_to("b", Forward)[-1].request == forwarded


def test_a_follower_learns_who_leads() -> None:
    cluster, _, b = leader_with_follower()
    assert b.machine.board.designation == designated("a")
    cluster.cut("a", "b")
    assert b.replies[b.write(put(b"k"))].code == "no_leader"
    lonely = cluster.add("c")
    assert "no leader is known" in lonely.replies[lonely.write(put(b"k"))].message


# --- too many issuers


def with_issuers(count: int, *, knows: str | None = None) -> Node:
    """A designated node whose vector has `count` issuers."""
    a = Cluster().add("a", leads=True)
    with a.store.write() as txn:
        txn.set_vector(
            VersionVector(make_version(0, Stamp(1), Issuer(n.to_bytes(8, "big"))) for n in range(1, count + 1))
        )
    a.start(seeds=() if knows is None else (f"ws://{knows}",))
    return a


def test_a_node_leads_as_long_as_there_is_room_for_its_issuer() -> None:
    a = with_issuers(VECTOR_ISSUERS_MAX - 65)
    assert a.role == "leading"
    assert a.replies[a.write(put(b"k"))].ending == Ending.ACKED
    assert VersionVector.decode(a.machine.board.vector.encode()) == a.machine.board.vector


def test_a_node_whose_vector_is_nearly_full_does_not_lead_and_says_so_once() -> None:
    a = with_issuers(VECTOR_ISSUERS_MAX - 64)
    assert a.role == "hearing"
    assert a.replies[a.write(put(b"k"))].code == "no_leader"
    a.meets("b", digest_of())
    a.hears("b", digest_of())
    assert a.role == "hearing"
    assert a.notices.count("too_many_issuers") == 1


def test_a_node_that_did_not_lead_for_lack_of_room_tries_again_at_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    a = with_issuers(VECTOR_ISSUERS_MAX - 64, knows="b")
    a.meets("b", digest_of())
    assert a.role == "hearing"
    monkeypatch.setattr(leadership, "ISSUERS_KEPT_FREE", 63)
    a.hears("b", digest_of())
    assert a.role == "leading"


@pytest.mark.parametrize("leads", [True, False])
def test_a_promotion_is_refused_when_there_is_no_room_for_its_issuer(leads: bool) -> None:
    a = with_issuers(VECTOR_ISSUERS_MAX - 64)
    if not leads:
        a.meets("b", digest_of(designation=designated("b", 2)))
    request = a.promote(override=True)
    assert (a.replies[request].ending, a.replies[request].code) == (Ending.REFUSED, "bad_request")
    assert a.role == ("hearing" if leads else "follower")


# --- promotions


@pytest.mark.parametrize("heard", [True, False])
def test_a_promotion_after_the_last_term_there_is_is_refused(heard: bool) -> None:
    a = Cluster().add("a", leads=not heard)
    if heard:
        a.meets("b", digest_of(designation=designated("b", TERM_MAX)))
    else:
        with a.store.write() as txn:
            txn.set_designation(designated("a", TERM_MAX))
        a.start(seeds=("ws://b",))
    outcome = a.replies[a.promote(override=True)]
    assert (outcome.ending, outcome.code) == (Ending.REFUSED, "bad_request")
    assert str(TERM_MAX) in outcome.message
    assert a.role == ("follower" if heard else "hearing")
    if not heard:
        a.meets("b", digest_of())
        written = a.replies[a.write(put(b"k"))].version
        assert written is not None
        assert version_term(written) == TERM_MAX, "it goes on at its own"


def test_a_promotion_is_durable_before_it_is_told() -> None:
    cluster, a, b = leader_with_follower()
    make_candidate(a, "b")
    b.hold_disk()
    told = len(b.sent)
    request = b.promote()
    (persist,) = b.disk
    assert isinstance(persist.batch, WriteGroup)
    assert b.role == "taking_over"
    assert (request in b.replies, b.sent[told:]) == (False, [])
    assert b.machine.board.designation == designated("a"), "nothing of it is known yet"
    b.finish()
    assert (b.role, b.replies[request].ending) == ("leading", Ending.ACKED)
    cluster.settle()
    assert a.role == "follower"
    b.release_disk()
    written = b.replies[b.write(put(b"k"))].version
    cluster.settle()
    assert written is not None
    assert version_term(written) == 2
    assert value_at(a.store, b"k") == b"value"
    assert value_at(a.store, system_rows.LEADER_KEY) == system_rows.encode_leader(b.id, 2)
    cluster.assert_equal()
    assert b.replies[b.promote()].ending == Ending.ACKED, "it leads already"


def test_a_promotion_that_finds_the_disk_full_is_refused_and_changes_nothing() -> None:
    cluster, a, b = leader_with_follower()
    make_candidate(a, "b")
    b.hold_disk()
    request = b.promote()
    b.fail()
    assert (b.role, b.replies[request].code) == ("follower", "disk_full")
    b.is_disk_held = False
    written = b.write(put(b"k"))
    cluster.settle()
    assert b.replies[written].ending == Ending.ACKED, "the leader is the old one"
    assert a.role == "leading"


def test_a_designated_node_whose_promotion_fails_goes_on_as_it_was() -> None:
    a = Cluster().add("a", leads=True, knows="b")
    a.hold_disk()
    request = a.promote(override=True)
    assert a.role == "taking_over"
    a.fail()
    assert (a.role, a.replies[request].code) == ("hearing", "disk_full")
    a.release_disk()
    a.meets("b", digest_of())
    assert a.role == "leading"


def test_a_promotion_waits_until_a_peer_was_heard() -> None:
    cluster = Cluster()
    a = cluster.add("a", knows="b")
    row = put(system_rows.CANDIDATES_KEY, system_rows.encode_candidates((a.id,)))
    other = Cluster().add("b", leads=True)
    other.meets("a", digest_of())
    other.write(row)
    (frame,) = other.sent_to("a", Frame)
    a.meets("b")
    a.hears("b", replace(frame, after=Stamp(0)))
    request = a.promote()
    assert a.role == "hearing"
    second = a.promote()
    assert "under way" in a.replies[second].message
    a.hears("b", digest_of(vector(x=1), designation=designated("z", 4)))
    assert a.role == "follower", "a higher designation than its own was heard of"
    assert a.replies[request].ending == Ending.REFUSED
    a.hears("b", frame_of(0, 1))
    again = a.promote()
    assert a.replies[again].ending == Ending.ACKED
    assert a.machine.board.designation is not None
    assert a.machine.board.designation.term == 5


def test_an_override_waits_for_nobody() -> None:
    a = Cluster().add("a", knows="b")
    assert "candidate" in a.replies[a.promote()].message
    a.meets("b", digest_of(vector(x=9)))
    assert a.replies[a.promote(override=True)].ending == Ending.ACKED
    assert a.role == "leading"


def test_a_node_without_the_clusters_data_is_not_promoted() -> None:
    a = Cluster().add("a", complete=False)
    assert "has not received" in a.replies[a.promote(override=True)].message


def test_a_node_that_stops_is_not_promoted() -> None:
    a = Cluster().add("a", leads=True, knows="b")
    a.handle(Stop())
    assert "stopping" in a.replies[a.promote(override=True)].message


def test_a_promotion_that_waits_when_the_node_stops_is_refused() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    a.write(put(system_rows.CANDIDATES_KEY, system_rows.encode_candidates((a.id,))))
    with a.store.write() as txn:
        txn.set_designation(designated("b"))
    a.start(seeds=("ws://b",))
    request = a.promote()
    a.handle(Stop())
    assert (a.role, "stopping" in a.replies[request].message) == ("follower", True)


def test_a_promotion_that_is_on_its_way_to_the_disk_ends_though_the_node_stops() -> None:
    a = Cluster().add("a")
    a.hold_disk()
    request = a.promote(override=True)
    a.handle(Stop())
    assert request not in a.replies
    a.release_disk()
    assert a.replies[request].ending == Ending.ACKED
    assert a.replies[a.write(put(b"k"))].code == "no_leader"


@pytest.mark.parametrize("ends", ["durable", "full"])
def test_a_higher_designation_ends_a_taking_over(ends: str) -> None:
    a = Cluster().add("a")
    a.meets("b", digest_of())
    a.hold_disk()
    request = a.promote(override=True)
    a.hears("b", digest_of(designation=Designation(1, issuer_of("\0"), node_id("b"))))
    assert a.role == "taking_over", "ours is the higher one, though it is not told yet"
    a.hears("b", digest_of(designation=designated("b", 7)))
    assert (a.role, a.replies[request].ending) == ("follower", Ending.REFUSED)
    if ends == "full":
        a.fail()
    a.release_disk()
    assert a.role == "follower"
    with a.store.read() as txn:
        assert txn.designation == designated("b", 7)


def test_a_node_takes_up_a_designation_that_its_disk_has_forgotten() -> None:
    a = Cluster().add("a", leads=True)
    issuer = a.machine.leadership.issuer
    a.meets("b", digest_of(vector(x=1), designation=designated("a", 3)))
    assert a.role == "catching_up"
    a.hears("b", digest_of(vector(x=1), designation=designated("a", 4)))
    assert a.role == "catching_up"
    a.hears("b", frame_of(0, 1))
    assert a.role == "leading"
    assert a.machine.leadership.issuer != issuer
    written = a.replies[a.write(put(b"k"))].version
    assert written is not None
    assert version_term(written) == 4


def test_settled_designations_are_written_down() -> None:
    a = Cluster().add("a")
    a.hold_disk()
    a.meets("b", digest_of(designation=designated("b")))
    assert a.disk[-1].batch == Settle(designation=designated("b"))


def stored_designation(node: Node) -> Designation | None:
    with node.store.read() as txn:
        return txn.designation


def test_a_designation_that_found_the_disk_full_is_written_down_later() -> None:
    cluster = Cluster()
    a = cluster.add("a")
    a.hold_disk()
    a.meets("b", digest_of(designation=designated("b")))
    a.fail()
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert [persist.batch for persist in a.disk] == [Settle(designation=designated("b"))]
    a.fail()
    a.hears("b", digest_of(designation=designated("c", 2)))
    a.release_disk()
    cluster.pass_ms(2 * SETTINGS.digest_idle_ms)
    assert stored_designation(a) == designated("c", 2)
    assert not a.disk


@pytest.mark.parametrize("ends", ["durable", "full"])
def test_an_older_designation_is_not_written_over_the_one_that_is_on_its_way(ends: str) -> None:
    cluster = Cluster()
    a = cluster.add("a")
    a.hold_disk()
    a.meets("b", digest_of(designation=designated("b")))
    a.fail()
    a.promote(override=True)
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert [type(persist.batch) for persist in a.disk] == [WriteGroup]
    if ends == "full":
        a.fail()
    a.release_disk()
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert stored_designation(a) == (a.machine.board.designation if ends == "durable" else designated("b"))


def test_a_forward_to_a_node_that_does_not_lead_is_refused() -> None:
    a = Cluster().add("a")
    a.meets("b", digest_of())
    a.hears("b", Forward(1, a.cluster.mono_ns + 100_000_000, (put(b"k"),)))
    (answer,) = a.sent_to("b", ForwardOutcome)
    assert answer.outcome.code == "no_leader"
    assert Stamp(0) == a.machine.board.vector.latest_stamp()
