"""The replica machine as a whole: roster, readiness, divergence, lag and skew, digests, sweeps, stale timers."""

from __future__ import annotations

import pytest

from kvp2p.core import roster
from kvp2p.core.batches import FrameBatch, NamespaceSweep
from kvp2p.core.entry import join_rows
from kvp2p.core.events import Connect, TimerFired
from kvp2p.core.messages import LANE_OF, Digest, Lane, Member, PullEnd, Roster
from kvp2p.core.operations import CreateNamespace, DeleteNamespace, Put
from kvp2p.ids import Stamp
from tests.core.harness import (
    ACCOUNT,
    EPOCH_MS,
    SETTINGS,
    SPACE,
    Cluster,
    Node,
    apply,
    designated,
    digest_of,
    frame_of,
    issuer_of,
    member,
    new_store,
    node_id,
    put,
    value_row,
    vector,
)


def rows(node: Node) -> list[tuple[str, int]]:
    return [(row.name, row.incarnation) for row in node.machine.members.all()]


# --- the roster


def test_a_node_dials_members_and_seeds() -> None:
    cluster = Cluster()
    a = cluster.add("a", knows="bc")
    a.start(seeds=("ws://seed",))
    assert a.connects == [
        Connect(node_id("b"), "ws://b"),
        Connect(node_id("c"), "ws://c"),
        Connect(None, "ws://seed"),
    ]


def test_members_are_passed_on_until_everybody_knows_everybody() -> None:
    cluster = Cluster()
    a, b, c = (cluster.add(name) for name in "abc")
    cluster.link("a", "b")
    cluster.link("b", "c")
    assert rows(a) == rows(b) == rows(c) == [("a", 1), ("b", 1), ("c", 1)]
    assert Connect(c.id, "ws://c") in a.connects
    with a.store.read() as txn:
        assert len(txn.members) == 3


def test_the_greater_incarnation_stays() -> None:
    a = Cluster().add("a")
    a.meets("b")
    a.hears("b", Roster((member("b", 3),)))
    a.hears("b", Roster((member("b", 2),)))
    assert rows(a) == [("a", 1), ("b", 3)]
    dialled = len(a.connects)
    a.hears("b", Roster((member("b", 4),)))
    assert len(a.connects) == dialled, "it is where it was"
    a.hears("b", Roster((Member(node_id("b"), 5, "b", "ws://elsewhere", "", ""),)))
    assert a.connects[-1] == Connect(node_id("b"), "ws://elsewhere")


def test_a_node_goes_past_an_earlier_life_of_its_own() -> None:
    a = Cluster().add("a")
    a.meets("b")
    a.hears("b", Roster((member("a", 1),)))
    assert rows(a) == [("a", 1)]
    a.hears("b", Roster((member("a", 7),)))
    assert rows(a) == [("a", 8)]
    assert a.sent_to("b", Roster)[-1].members[0].incarnation == 8


def test_the_roster_is_bounded_and_namesakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MEMBERS_MAX", 2)
    a = Cluster().add("a")
    a.meets("b")
    namesake = Member(node_id("b"), 1, "a", "", "", "")
    a.hears("b", Roster((namesake, member("c"))))
    assert rows(a) == [("a", 1), ("a", 1)]
    assert ("two_members_with_one_name" in a.notices, "roster_full" in a.notices) == (True, True)


def test_members_that_found_the_disk_full_are_written_down_later() -> None:
    cluster = Cluster()
    a = cluster.add("a")
    a.meets("b")
    a.hold_disk()
    a.hears("b", Roster((member("b"),)))
    a.fail()
    a.release_disk()
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    with a.store.read() as txn:
        assert {one.name for one in txn.members} == {"a", "b"}


# --- readiness


def test_a_node_alone_is_ready_at_once() -> None:
    assert Cluster().add("a").machine.readiness.is_ready


def test_a_node_is_ready_when_it_has_what_its_peers_showed_at_first_contact() -> None:
    a = Cluster().add("a", knows="b")
    a.meets("b", digest_of(vector(x=1)))
    assert not a.machine.readiness.is_ready
    a.hears("b", frame_of(0, 1))
    assert a.machine.readiness.is_ready
    a.hears("b", digest_of(vector(x=2)))
    a.loses("b")
    assert a.machine.readiness.is_ready, "once is enough"


def test_what_a_peer_shows_after_first_contact_is_not_waited_for() -> None:
    a = Cluster().add("a", knows="b")
    a.meets("b", digest_of(vector(x=1)))
    a.hears("b", digest_of(vector(x=2)))
    a.loses("b")
    a.meets("b", digest_of(vector(x=3)))
    a.meets("c", digest_of(vector(x=1)))
    assert not a.machine.readiness.is_ready
    a.hears("c", frame_of(0, 1))
    assert a.machine.readiness.is_ready


def test_the_first_digest_of_every_peer_is_waited_for() -> None:
    a = Cluster().add("a", knows="b")
    a.meets("b", digest_of(vector(x=1)))
    a.meets("c", digest_of(vector(x=2)))
    a.hears("b", frame_of(0, 1))
    assert not a.machine.readiness.is_ready
    a.hears("c", frame_of(1, 2))
    assert a.machine.readiness.is_ready


def test_with_no_peer_in_time_the_own_store_is_ready() -> None:
    cluster = Cluster()
    a, b, c = cluster.add("a", knows="z"), cluster.add("b", knows="z"), cluster.add("c", knows="z", complete=False)
    b.meets("z", digest_of(vector(x=1)))
    cluster.pass_ms(SETTINGS.first_contact_ms)
    assert [node.machine.readiness.is_ready for node in (a, b, c)] == [True, False, False]


def test_a_difference_of_state_hashes_is_told_once_and_keeps_a_node_unready() -> None:
    a = Cluster().add("a", knows="b")
    a.meets("b", digest_of(state_hash=5))
    a.hears("b", digest_of(state_hash=5))
    assert a.notices.count("diverged") == 1
    assert a.machine.readiness.is_diverged
    assert not a.machine.readiness.is_ready
    a.hears("b", digest_of(state_hash=6, comparable=False))
    assert a.machine.readiness.is_diverged, "nothing can be compared"
    a.hears("b", digest_of())
    assert a.machine.readiness.is_ready


# --- lag and skew


def test_lag_counts_from_when_something_is_missing() -> None:
    cluster = Cluster()
    a = cluster.add("a")
    readiness = a.machine.readiness
    a.meets("z", digest_of(designation=designated("z")))
    assert readiness.lag_ms() == 0
    a.hears("z", digest_of(vector(x=1), designation=designated("z")))
    cluster.pass_ms(100)
    a.hears("z", digest_of(vector(x=2), designation=designated("z")))
    assert readiness.lag_ms() == 100
    a.hears("z", frame_of(0, 1, 2))
    a.hears("z", digest_of(vector(x=2), designation=designated("z"), wall_ms=EPOCH_MS + 100))
    assert readiness.lag_ms() == 0
    a.loses("z")
    cluster.pass_ms(50)
    a.handle(TimerFired(10_000))
    assert readiness.lag_ms() == 50, "from the leader's last word"


def test_a_leader_has_no_lag_and_a_node_without_one_lags_since_its_start() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b")
    cluster.pass_ms(SETTINGS.digest_busy_ms)
    assert (a.machine.readiness.lag_ms(), b.machine.readiness.lag_ms()) == (0, SETTINGS.digest_busy_ms)


def test_a_skewed_clock_is_told_when_it_begins_and_when_it_ends() -> None:
    a = Cluster().add("a")
    assert a.machine.readiness.skew_ms is None
    behind = digest_of(designation=designated("z"), wall_ms=EPOCH_MS - 5_000)
    a.meets("z", behind)
    a.hears("z", behind)
    assert a.notices.count("clock_skewed") == 1
    a.hears("z", digest_of(designation=designated("z"), wall_ms=EPOCH_MS - 3))
    assert a.notices.count("clock_skew_over") == 1
    assert a.machine.readiness.skew_ms == -3, "the sample that waited least on its way"


HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("peers_ms", "leaders_skew_ms"),
    [
        ([], None),
        ([HOUR_MS], HOUR_MS),
        ([-HOUR_MS], -HOUR_MS),
        ([0, HOUR_MS], 0),
        ([-HOUR_MS, 0], 0),
        ([HOUR_MS, HOUR_MS + 1], HOUR_MS),
        ([-HOUR_MS, -HOUR_MS - 1], -HOUR_MS),
        ([0, 0, HOUR_MS], 0),
        ([0, 1, HOUR_MS, HOUR_MS], 1),
    ],
)
def test_a_leader_believes_its_own_clock_to_be_off_only_when_most_say_so(
    peers_ms: list[int], leaders_skew_ms: int | None
) -> None:
    a = Cluster().add("a", leads=True)
    for name, skew_ms in zip("wxyz", peers_ms, strict=False):
        a.meets(name, digest_of(wall_ms=EPOCH_MS + skew_ms))
    assert a.machine.readiness.skew_ms == leaders_skew_ms
    skew_ms = leaders_skew_ms or 0
    assert a.notices.count("clock_skewed") - a.notices.count("clock_skew_over") == (abs(skew_ms) > 1_000)


# --- digests


def test_digests_go_out_often_while_anything_changes_and_seldom_when_idle() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    a.meets("b", digest_of())
    cluster.pass_ms(60_000)
    a.sent.clear()
    cluster.pass_ms(10 * SETTINGS.digest_idle_ms)
    assert len(a.sent_to("b", Digest)) == 10
    a.sent.clear()
    a.write(put(b"k"))
    a.write(put(b"l"))
    cluster.pass_ms(SETTINGS.busy_ms - 1)
    assert len(a.sent_to("b", Digest)) == (SETTINGS.busy_ms - 1) // SETTINGS.digest_busy_ms
    assert a.sent_to("b", Digest)[-1].vector == a.machine.board.vector


def test_a_stale_timer_is_ignored() -> None:
    a = Cluster().add("a")
    a.handle(TimerFired(10_000))
    assert a.sent == []


def test_nothing_is_heard_from_a_peer_without_a_link() -> None:
    a = Cluster().add("a")
    a.hears("b", frame_of(0, 1))
    a.loses("b")
    assert a.machine.board.vector == vector()


# --- deleted namespaces


def test_the_rows_of_a_deleted_namespace_are_freed_in_slices_and_tried_again_after_a_failure() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    a.write(CreateNamespace(SPACE, ACCOUNT, "t"))
    a.write(*[Put(SPACE, b"%d" % n, b"v") for n in range(600)])
    a.hold_disk()
    a.write(DeleteNamespace(SPACE))
    a.finish()
    assert [type(persist.batch) for persist in a.disk] == [NamespaceSweep]
    a.fail()
    a.release_disk()
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    with a.store.read() as txn:
        assert next(txn.rows(SPACE), None) is None


def test_a_sweep_goes_on_after_a_restart_and_is_not_doubled() -> None:
    store = new_store()
    cluster = Cluster()
    a = cluster.add("a", leads=True, store=store)
    with store.write() as txn:
        txn.set_designation(designated("a"))
    a.start()
    a.write(CreateNamespace(SPACE, ACCOUNT, "t"))
    a.write(Put(SPACE, b"k", b"v"))
    a.hold_disk()
    a.write(DeleteNamespace(SPACE))
    a.finish()
    a.start()
    assert [type(persist.batch) for persist in a.disk].count(NamespaceSweep) == 1
    late = frame_of(0, 1, issuer="y")
    a.meets("b", digest_of())
    a.hears("b", late)
    a.release_disk()
    with store.read() as read:
        assert next(read.rows(SPACE), None) is None


def test_two_sweeps_of_one_namespace_do_not_run_at_once() -> None:
    a = Cluster().add("a", leads=True)
    a.write(CreateNamespace(SPACE, ACCOUNT, "t"))
    a.hold_disk()
    a.write(DeleteNamespace(SPACE), DeleteNamespace(SPACE))
    a.finish()
    assert [type(persist.batch) for persist in a.disk].count(NamespaceSweep) == 1
    a.release_disk()


# --- small contracts


def test_control_goes_before_data() -> None:
    assert LANE_OF[Digest] is Lane.CONTROL
    assert LANE_OF[PullEnd] is Lane.DATA, "behind the frames that it ends"


def test_equal_versions_join_by_bytes() -> None:
    one, other = value_row(1, b"1"), value_row(1, b"2")
    assert join_rows(one, other) == join_rows(other, one) == max(one, other)
    assert dict(apply(new_store(), FrameBatch(frame_of(0, 1))).vector.items()).get(issuer_of("x"), 0) == Stamp(1)
