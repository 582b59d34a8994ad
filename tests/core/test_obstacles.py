"""A Purge that cannot be applied yet: what a replica does to get what it waits for [I8]."""

from __future__ import annotations

from kvp2p.core.batches import FrameBatch, StampedWrite, WriteGroup
from kvp2p.core.messages import Digest, Frame, KeyedRow, Pull, PullEnd, WalkPart, WalkRequest
from kvp2p.core.operations import CreateNamespace, Put
from kvp2p.core.system_rows import namespace_key
from kvp2p.core.vector import VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, VERSION_ZERO, Stamp
from tests.core.harness import (
    ACCOUNT,
    SETTINGS,
    SPACE,
    Cluster,
    Node,
    all_rows,
    apply,
    digest_of,
    frame_of,
    issuer_of,
    tombstone_row,
    value_at,
    value_row,
    vector,
    version,
)
from tests.core.purges import below, fenced, filled, purge_frame, purge_of

X, Y = issuer_of("x"), issuer_of("y")
ALL = below(11)
PURGED = fenced(ALL, x=20)  # the vector of who has applied the Purge at x:20


def replica(*frames: Frame) -> Node:
    """Make a replica with what `filled` writes, and some frames besides."""
    a = Cluster().add("a")
    filled(a.store)
    for frame in frames:
        apply(a.store, FrameBatch(frame))
    a.start()
    return a


def shows(*tops: tuple[int, str], fence: int = 0, floor: VersionVector | None = None) -> Digest:
    has = VersionVector([version(stamp, name) for stamp, name in tops], below(fence) if fence else VERSION_ZERO)
    return digest_of(has, floor=floor if floor is not None else VersionVector((), has.fence))


def grace(a: Node) -> None:
    a.cluster.pass_ms(SETTINGS.pull_grace_ms)


def purge_x(floor: VersionVector) -> Frame:
    return purge_frame(10, 20, purge_of(below(11), floor))


def of_y(after: int, *stamps: int) -> Frame:
    return frame_of(after, *stamps, issuer="y", key=b"of y %d")


def living(a: Node) -> tuple[KeyedRow, ...]:
    """Return the rows of `filled` that are no tombstones."""
    return tuple(row for row in all_rows(a.store) if row[1] in (b"key1", b"key3", b"key5", b"key7", b"key9"))


def test_what_is_under_the_floor_is_pulled_where_a_log_has_it_and_then_the_purge_again() -> None:
    a = replica()
    a.meets("z", shows((10, "x"), (3, "y")))
    a.meets("l", shows((20, "x"), fence=11))
    a.hears("l", purge_x(vector(x=10, y=3)))
    assert a.machine.board.vector == vector(x=19)
    assert [pull for pull in a.sent_to("z", Pull) if pull.issuer == Y] != []
    assert a.sent_to("l", WalkRequest) == []
    a.hears("z", of_y(0, 3))
    a.hears("z", PullEnd(Y, Stamp(3), trimmed=False))
    a.hears("l", PullEnd(X, Stamp(20), trimmed=False))
    grace(a)
    assert [(pull.issuer, pull.after) for pull in a.sent_to("l", Pull)] == [(X, 10), (X, 19)]
    a.hears("l", purge_x(vector(x=10, y=3)))
    assert a.machine.board.vector == PURGED
    assert value_at(a.store, b"of y 3") == b"value"
    assert a.sent_to("l", WalkRequest) == []


def test_what_no_log_has_any_more_is_walked_for() -> None:
    """The issuer ended below the fence: whoever has had all of it does not name it any more."""
    a = replica()
    a.meets("l", shows((20, "x"), fence=11))
    a.hears("l", purge_x(vector(x=10, y=3)))
    assert a.sent_to("l", WalkRequest) == [WalkRequest(1, None)]
    assert "purge_needs_walk" in a.notices
    of_y_3 = (SYSTEM_NAMESPACE, b"of y 3", value_row(3, issuer="y"))
    a.hears("l", WalkPart(1, None, None, (*living(a), of_y_3), PURGED))
    assert a.machine.board.vector == PURGED
    assert [key for _, key, _ in all_rows(a.store)] == [b"key1", b"key3", b"key5", b"key7", b"key9", b"of y 3"]


def test_a_log_that_ended_below_a_peers_fence_is_no_reason_to_walk() -> None:
    """The peer has all of it, and does not name it any more: whether there is more only its Purge can tell, which is on its way."""
    a = replica()
    a.meets("z", shows((10, "x"), (3, "y")))
    a.meets("l", shows((10, "x"), fence=9))
    a.hears("z", of_y(0, 3))
    a.hears("z", PullEnd(Y, Stamp(3), trimmed=False))
    grace(a)
    assert a.sent_to("l", WalkRequest) == []
    assert a.machine.board.vector == vector(x=10, y=3)


def test_a_peer_that_is_as_far_behind_does_not_keep_a_replica_from_walking() -> None:
    """Both show the issuer that has ended, and neither has its end: each would wait for the other."""
    a = replica(of_y(0, 2))
    a.meets("q", shows((10, "x"), (2, "y")))
    a.meets("l", shows((20, "x"), fence=11))
    a.hears("l", purge_x(vector(x=10, y=3)))
    assert a.sent_to("l", WalkRequest) == [WalkRequest(1, None)]


def test_foreign_versions_are_cleared_up_by_a_walk() -> None:
    a = replica(of_y(0, 3, 5))
    a.meets("q", shows((10, "x"), (5, "y")))
    a.meets("l", shows((20, "x"), fence=11))
    a.hears("l", purge_x(vector(x=10)))
    assert a.machine.board.vector == vector(x=19, y=5)
    assert (a.sent_to("q", WalkRequest), a.sent_to("l", WalkRequest)) == ([], [WalkRequest(1, None)])
    kept = (SYSTEM_NAMESPACE, b"of y 3", value_row(3, issuer="y"))
    a.hears("l", WalkPart(1, None, None, (*living(a), kept), PURGED))
    assert a.machine.board.vector == PURGED
    assert (value_at(a.store, b"of y 3"), value_at(a.store, b"of y 5")) == (b"value", None)


def test_a_walk_is_begun_when_somebody_has_applied_the_purge_and_not_before() -> None:
    a = replica(of_y(0, 5))
    a.meets("q", shows((20, "x"), floor=vector()))
    a.hears("q", purge_x(vector(x=10)))
    assert a.sent_to("q", WalkRequest) == []
    grace(a)
    a.hears("q", shows((20, "x"), fence=11))
    a.hears("q", purge_x(vector(x=10)))
    assert a.sent_to("q", WalkRequest) == [WalkRequest(1, None)]


def test_one_walk_is_enough() -> None:
    a = replica(of_y(0, 5))
    a.meets("l", shows((20, "x"), fence=11))
    for _ in range(3):
        a.hears("l", purge_x(vector(x=10)))
    assert len(a.sent_to("l", WalkRequest)) == 1
    assert a.notices.count("purge_needs_walk") == 1


def test_a_replica_whose_disk_is_full_does_not_walk_for_a_purge() -> None:
    a = replica(of_y(0, 5))
    a.meets("l", shows((20, "x"), fence=11))
    a.hold_disk()
    for issuer in ("v", "w"):
        a.hears("l", frame_of(0, 1, issuer=issuer))
    a.hears("l", purge_x(vector(x=10)))
    a.fail()
    a.fail()
    a.release_disk()
    assert a.machine.board.vector == vector(x=19, y=5), "the Purge met its obstacle"
    assert a.sent_to("l", WalkRequest) == []


def test_a_purge_waits_for_the_sweep_and_is_pulled_again() -> None:
    a = Cluster().add("a")
    for stamp, operation in ((1, CreateNamespace(SPACE, ACCOUNT, "t")), (2, Put(SPACE, b"k", b"v"))):
        apply(a.store, WriteGroup(1, X, (StampedWrite(Stamp(stamp), (operation,)),), 0))
    a.start()
    a.meets("l", shows((20, "x"), fence=4, floor=vector()))
    deleted = (SYSTEM_NAMESPACE, namespace_key(SPACE), tombstone_row(3))
    order = purge_frame(3, 20, purge_of(below(4), vector(x=3)))
    a.hold_disk()
    a.hears("l", Frame(1, X, Stamp(2), Stamp(3), ((Stamp(3), 0),), (deleted,)))
    a.hears("l", order)
    a.finish()
    a.finish()
    assert a.machine.board.vector == vector(x=19)
    a.hears("l", PullEnd(X, Stamp(20), trimmed=False))
    a.release_disk()
    assert a.sent_to("l", WalkRequest) == [], "it lacks nothing"
    grace(a)
    assert a.sent_to("l", Pull)[-1].after == 19
    a.hears("l", order)
    assert a.machine.board.vector == fenced(below(4), x=20)
    with a.store.read() as txn:
        assert list(txn.all_rows()) == []


def test_what_was_in_flight_behind_a_purge_is_a_gap_then() -> None:
    a = replica(of_y(0, 5))
    a.meets("q", shows((22, "x"), floor=vector()))
    a.hold_disk()
    a.hears("q", purge_x(vector(x=10)))
    a.hears("q", frame_of(20, 21, 22))
    assert a.machine.board.accepted == vector(x=22, y=5)
    a.release_disk()
    assert a.machine.board.vector == a.machine.board.accepted == vector(x=19, y=5)
    assert value_at(a.store, b"key22") is None
    a.hears("q", PullEnd(X, Stamp(22), trimmed=False))
    grace(a)
    assert a.sent_to("q", Pull)[-1].after == 19
