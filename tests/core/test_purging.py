"""Purging: when the leader lets go of tombstones and expired rows, whom it waits for, and whom not [I8]."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvp2p.core import purging
from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.events import Stop
from kvp2p.core.messages import Digest, Frame, Purge
from kvp2p.core.operations import Delete, Ending, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.system_rows import CANDIDATES_KEY, IssuerRow, encode_candidates, encode_issuer
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, VERSION_ZERO, Stamp
from tests.core.harness import (
    EPOCH_MS,
    Cluster,
    Node,
    all_rows,
    chunked_row,
    designated,
    digest_of,
    frame_of,
    frame_with,
    issuer_of,
    node_id,
    put,
    value_at,
    vector,
    version,
)

SETTINGS = ReplicaSettings(purge_interval_ms=1_000, purge_after_ms=2_000, purge_skew_ms=500)
INTERVAL_MS = SETTINGS.purge_interval_ms
OLD_MS = SETTINGS.purge_after_ms + 2 * INTERVAL_MS
X, Y = issuer_of("x"), issuer_of("y")


def delete(key: bytes) -> Delete:
    return Delete(SYSTEM_NAMESPACE, key)


def candidates(*names: str) -> Put:
    return Put(SYSTEM_NAMESPACE, CANDIDATES_KEY, encode_candidates(tuple(map(node_id, names))))


def graves(node: Node) -> int:
    with node.store.read() as txn:
        return txn.tombstones


def fence(node: Node) -> bytes:
    return node.machine.board.vector.fence


def trio() -> tuple[Cluster, Node, Node, Node]:
    """Make a leader, a candidate and an ordinary replica."""
    cluster = Cluster()
    a, b, c = (cluster.add(name, leads=name == "a", settings=SETTINGS) for name in "abc")
    for one, other in ("ab", "ac", "bc"):
        cluster.link(one, other)
    a.write(candidates("a", "b"))
    cluster.settle()
    return cluster, a, b, c


def alone(*names: str) -> Node:
    """Make a leader; the other candidates are played by the test."""
    a = Cluster().add("a", leads=True, settings=SETTINGS)
    a.write(candidates("a", *names))
    return a


def seen_by(a: Node) -> Digest:
    """Return the digest of a peer that has all that `a` has, and knows that it leads."""
    board = a.machine.board
    return digest_of(board.vector, designation=board.designation, clock_ms=board.clock_ms())


def purges(a: Node, peer: str = "b") -> list[Purge]:
    return [frame.purge for frame in a.sent_to(peer, Frame) if frame.purge is not None]


def batches(a: Node) -> list[str]:
    """Return the kinds of batches that are on their way to the disk."""
    return [type(persist.batch).__name__ for persist in a.disk]


# --- when


def test_a_tombstone_goes_everywhere_when_it_is_old_and_all_candidates_have_it() -> None:
    cluster, a, _, _ = trio()
    a.write(put(b"key"))
    a.write(delete(b"key"))
    cluster.settle()
    assert graves(a) == 1
    cluster.pass_ms(SETTINGS.purge_after_ms - 1)
    assert graves(a) == 1, "it is not old enough"
    cluster.pass_ms(OLD_MS)
    for node in cluster.nodes.values():
        assert graves(node) == 0
        assert fence(node) != VERSION_ZERO
        with node.store.read() as txn:
            rows = list(txn.all_rows())
            assert len(rows) == sum(totals.live for _, totals in txn.all_totals()), "nothing but what lives"
    cluster.assert_equal()


def test_a_value_that_has_expired_goes_when_the_candidates_clocks_say_so_with_a_margin() -> None:
    cluster, a, _, _ = trio()
    a.write(Put(SYSTEM_NAMESPACE, b"key", b"v", expires_in=60))
    cluster.settle()
    cluster.pass_ms(60_000 + SETTINGS.purge_skew_ms)
    assert value_at(a.store, b"key") == b"v", "hidden by readers, but not gone"
    cluster.pass_ms(SETTINGS.digest_idle_ms + 2 * INTERVAL_MS)
    for node in cluster.nodes.values():
        with node.store.read() as txn:
            assert txn.row(SYSTEM_NAMESPACE, b"key") is None
            assert list(txn.expiring()) == []
    cluster.assert_equal()


def test_the_least_of_the_candidates_clocks_decides_what_has_expired() -> None:
    a = alone("b")
    a.write(Put(SYSTEM_NAMESPACE, b"key", b"v", expires_in=60))
    a.cluster.pass_ms(70_000)
    late = replace(seen_by(a), clock_ms=EPOCH_MS + 60_000 + SETTINGS.purge_skew_ms - 1)
    a.meets("b", late)
    a.cluster.pass_ms(INTERVAL_MS)
    assert value_at(a.store, b"key") == b"v"
    a.hears("b", replace(late, clock_ms=late.clock_ms + 1_000))
    a.cluster.pass_ms(INTERVAL_MS)
    assert value_at(a.store, b"key") is None


def test_without_anything_to_remove_the_leader_writes_no_purge() -> None:
    cluster, a, _, _ = trio()
    a.write(put(b"key"), Put(SYSTEM_NAMESPACE, b"later", b"v", expires_in=600))
    cluster.pass_ms(OLD_MS)
    a.hold_disk()
    cluster.pass_ms(3 * INTERVAL_MS)
    assert "PurgeBatch" not in batches(a)


def test_a_clock_that_shows_the_year_1970_purges_nothing() -> None:
    cluster = Cluster()
    early = cluster.add("e", settings=replace(SETTINGS, purge_after_ms=3_600_000))
    early.wall_offset_ms = -EPOCH_MS
    early.start()
    early.promote(override=True)
    cluster.pass_ms(SETTINGS.first_contact_ms)
    early.write(delete(b"key"))
    cluster.pass_ms(OLD_MS)
    assert graves(early) == 1


def test_more_than_one_purge_removes_goes_at_once_and_not_an_interval_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else more than so many deletes an interval would pile up for ever."""
    monkeypatch.setattr(purging, "PURGE_ROWS_MAX", 2)
    cluster, a, _, _ = trio()
    for number in range(9):
        a.write(delete(b"key%d" % number))
    cluster.settle()
    cluster.pass_ms(SETTINGS.purge_after_ms)
    while graves(a) == 9:
        cluster.pass_ms(10)
    cluster.pass_ms(4 * 2 * SETTINGS.digest_busy_ms)
    assert graves(a) == 0
    assert [len(purges(a, name)) for name in "bc"] == [5, 5]
    cluster.assert_equal()
    notices = a.notices.count("purged")
    cluster.pass_ms(10 * INTERVAL_MS)
    assert a.notices.count("purged") == notices


def test_a_purge_that_finds_the_disk_full_is_tried_again() -> None:
    a = alone()
    a.write(delete(b"key"))
    a.cluster.pass_ms(SETTINGS.purge_after_ms - INTERVAL_MS)
    a.hold_disk()
    a.cluster.pass_ms(2 * INTERVAL_MS)
    while a.disk:
        a.fail()
    a.release_disk()
    assert graves(a) == 1
    a.cluster.pass_ms(2 * INTERVAL_MS)
    assert graves(a) == 0


def test_while_one_purge_is_on_its_way_to_the_disk_there_is_no_other() -> None:
    a = alone()
    a.write(delete(b"key"))
    a.cluster.pass_ms(SETTINGS.purge_after_ms - INTERVAL_MS)
    a.hold_disk()
    a.cluster.pass_ms(5 * INTERVAL_MS)
    assert batches(a).count("PurgeBatch") == 1
    a.release_disk()
    assert graves(a) == 0


def test_a_leader_that_is_stopping_purges_nothing() -> None:
    a = alone()
    a.write(delete(b"key"))
    a.handle(Stop())
    a.cluster.pass_ms(OLD_MS)
    assert graves(a) == 1


def test_a_purge_by_a_leader_that_is_being_deposed_still_counts() -> None:
    """It is a position of its log like any other, and its issuer is not closed before it has ended."""
    cluster, a, b, _ = trio()
    a.write(delete(b"key"))
    cluster.settle()
    cluster.pass_ms(SETTINGS.purge_after_ms + INTERVAL_MS // 2)
    a.hold_disk()
    cluster.pass_ms(INTERVAL_MS)
    b.promote()
    cluster.settle()
    assert a.role == "follower"
    assert a.machine.leadership.issuer is not None
    a.release_disk()
    cluster.pass_ms(OLD_MS)
    assert [graves(node) for node in cluster.nodes.values()] == [0, 0, 0]
    cluster.assert_equal()


# --- whom the leader waits for


def test_a_candidate_that_is_gone_blocks_purging_and_nothing_else() -> None:
    cluster, a, b, c = trio()
    cluster.cut("a", "b")
    cluster.cut("b", "c")
    written = a.write(delete(b"key"))
    cluster.settle()
    cluster.pass_ms(10 * OLD_MS)
    assert a.replies[written].ending is Ending.ACKED
    assert [graves(node) for node in (a, c)] == [1, 1]
    assert a.machine.purger.blocked_by == b.id
    assert a.replies[a.write(put(b"other"))].ending is Ending.ACKED
    cluster.settle()
    assert value_at(c.store, b"other") == b"value"
    cluster.link("a", "b")
    cluster.link("b", "c")
    cluster.pass_ms(OLD_MS)
    assert a.machine.purger.blocked_by is None
    assert [graves(node) for node in (a, b, c)] == [0, 0, 0]
    cluster.assert_equal()


def test_an_ordinary_replica_never_holds_a_purge_back() -> None:
    cluster, a, b, c = trio()
    a.write(put(b"key"))
    cluster.settle()
    cluster.cut("a", "c")
    cluster.cut("b", "c")
    a.write(delete(b"key"))
    cluster.settle()
    cluster.pass_ms(OLD_MS)
    assert [graves(node) for node in (a, b)] == [0, 0]
    assert value_at(c.store, b"key") == b"value", "it was away"
    cluster.link("a", "c")
    cluster.link("b", "c")
    cluster.pass_ms(OLD_MS)
    assert value_at(c.store, b"key") is None
    assert "walk_received" in c.notices, "its positions are below the fence"
    cluster.assert_equal()


def test_an_ordinary_replica_that_shows_issuers_of_long_ago_does_not_hold_a_purge_back() -> None:
    """It has no room, say, and shows for ever what all others have purged: an issuer that ended, and whose row is gone."""
    a = alone()
    a.write(delete(b"key"))
    a.cluster.pass_ms(OLD_MS)
    first = fence(a)
    assert first != VERSION_ZERO
    a.meets("z", digest_of(vector(x=5), designation=a.machine.board.designation))
    a.write(delete(b"key"))
    a.cluster.pass_ms(OLD_MS)
    assert graves(a) == 0
    assert fence(a) > first


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("has not seen this designation", {"designation": designated("b")}),
        ("leads something", {"leads": issuer_of("b")}),
        ("has not received the data yet", {"complete": False}),
        ("has another fence", {"vector": EMPTY_VECTOR}),
        ("knows no clock of the leader", {"clock_ms": 0}),
    ],
)
def test_a_candidate_does_not_count_that(what: str, changes: dict[str, object]) -> None:
    a = alone("b")
    a.write(delete(b"first"))
    a.meets("b", seen_by(a))
    a.cluster.pass_ms(INTERVAL_MS)
    a.hears("b", seen_by(a))
    a.cluster.pass_ms(OLD_MS)
    assert (graves(a), fence(a) != VERSION_ZERO) == (0, True)
    a.write(delete(b"second"))
    a.hears("b", replace(seen_by(a), **changes))  # type: ignore[arg-type]
    a.cluster.pass_ms(OLD_MS)
    assert (graves(a), a.machine.purger.blocked_by) == (1, node_id("b")), what
    a.hears("b", seen_by(a))
    a.cluster.pass_ms(INTERVAL_MS)
    assert graves(a) == 0
    a.hears("b", seen_by(a))  # it has applied the Purge, too
    assert a.machine.purger.blocked_by is None


def test_what_a_candidate_does_not_have_stays() -> None:
    a = alone("b")
    a.write(delete(b"first"))
    has_first = seen_by(a)
    a.cluster.pass_ms(1)
    a.write(delete(b"second"))
    a.meets("b", has_first)
    a.cluster.pass_ms(OLD_MS)
    assert [key for _, key, _ in all_rows(a.store) if key in (b"first", b"second")] == [b"second"]


def test_what_a_candidate_has_without_its_chunks_stays() -> None:
    a = alone("b")
    a.write(delete(b"first"))
    whole = a.machine.board.vector
    a.cluster.pass_ms(1)
    a.write(delete(b"second"))
    a.meets("b", replace(seen_by(a), whole=whole))
    a.cluster.pass_ms(OLD_MS)
    assert [key for _, key, _ in all_rows(a.store) if key in (b"first", b"second")] == [b"second"]


# --- how far the fence goes


def with_issuer(closed: int | None) -> Node:
    """Make a leader that has the log of x, an issuer of the node b, up to position 5."""
    a, at = alone(), 5
    key, text = encode_issuer(IssuerRow(X, node_id("b"), 1, None if closed is None else Stamp(closed)))
    row = (SYSTEM_NAMESPACE, key, encode_row(Kind.VALUE, text, None, 0, version(at)))
    a.meets("z", digest_of(vector(x=at)))
    a.hears("z", Frame(1, X, Stamp(0), Stamp(at), ((Stamp(at), 0),), (row,)))
    a.loses("z")
    return a


def test_the_fence_stays_below_what_an_open_issuer_may_add() -> None:
    a = with_issuer(None)
    a.write(delete(b"key"))
    a.cluster.pass_ms(OLD_MS)
    assert (graves(a), fence(a)) == (1, VERSION_ZERO), "what x adds next could be lower"
    assert a.replies[a.close_issuer(X)].ending is Ending.ACKED
    a.cluster.pass_ms(OLD_MS)
    assert graves(a) == 0
    assert X not in a.machine.board.issuers, "it ended below the fence, and nobody needs its row"


def test_the_fence_stays_below_the_end_of_an_issuer_that_a_candidate_does_not_have() -> None:
    a = with_issuer(5)
    a.write(candidates("a", "b"))
    a.write(delete(b"key"))
    lacks = VersionVector([*(top for top in a.machine.board.vector.tops() if top != version(5)), version(4)])
    a.meets("b", replace(seen_by(a), vector=lacks))
    a.cluster.pass_ms(OLD_MS)
    assert graves(a) == 1
    a.hears("b", seen_by(a))
    a.cluster.pass_ms(INTERVAL_MS)
    assert graves(a) == 0


def test_an_issuer_that_went_on_behind_its_end_bounds_the_fence_until_all_have_that() -> None:
    """An operator vouched for a node that was not so gone."""
    a = with_issuer(3)
    a.write(candidates("a", "b"))
    a.write(delete(b"key"))
    a.machine.leadership._closer = None  # else the leader would close it again at once
    upto_3 = VersionVector([*(top for top in a.machine.board.vector.tops() if top != version(5)), version(3)])
    a.meets("b", replace(seen_by(a), vector=upto_3))
    a.cluster.pass_ms(OLD_MS)
    assert graves(a) == 1
    a.hears("b", seen_by(a))
    a.cluster.pass_ms(INTERVAL_MS)
    assert graves(a) == 0


def test_an_issuer_that_only_a_peer_has_heard_of_bounds_the_fence() -> None:
    """A deposed leader began it, cut off: what it goes on to write is lower than the tombstone."""
    a = alone()
    a.write(delete(b"key"))
    shown = seen_by(a)
    a.meets("z", replace(shown, vector=shown.vector.raised(version(7, "y", term=0))))
    a.machine.anti_entropy._pull_all_after_grace()
    a.cluster.pass_ms(OLD_MS)
    assert graves(a) == 1


def test_what_is_young_bounds_the_fence_whatever_its_term() -> None:
    """The log goes on serving it: a node that was away for less does not have to walk."""
    cluster, a, b, c = trio()
    a.write(delete(b"old"))
    cluster.pass_ms(SETTINGS.purge_after_ms - 200)
    a.write(delete(b"young"))
    cluster.settle()
    b.promote()
    cluster.pass_ms(INTERVAL_MS + 300)
    assert b.role == "leading"
    assert [key for _, key, _ in all_rows(c.store) if key in (b"old", b"young")] == [b"young"]
    cluster.pass_ms(OLD_MS)
    assert graves(c) == 0


def test_a_purge_whose_fence_would_not_rise_is_not_ordered() -> None:
    a = alone("b")
    a.write(delete(b"key"))
    a.cluster.pass_ms(OLD_MS)
    a.meets("b", digest_of(designation=a.machine.board.designation, clock_ms=EPOCH_MS))
    a.hold_disk()
    a.cluster.pass_ms(INTERVAL_MS)
    assert "PurgeBatch" not in batches(a)


# --- what is whole (more of it in test_chunk_rows.py)


def test_a_node_that_lacks_chunks_says_what_it_has_whole() -> None:
    a = Cluster().add("a")
    a.meets("z", digest_of())
    a.hears("z", frame_of(0, 7))
    a.hears("z", frame_with(7, 8, key=b"large", row=chunked_row(8, b"value")))
    a.hears("z", frame_of(8, 10))
    a.meets("b")
    digest = a.sent_to("b", Digest)[-1]
    assert (digest.vector, digest.whole) == (vector(x=10), vector(x=7))
