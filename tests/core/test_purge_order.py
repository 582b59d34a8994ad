"""The leader's order: which Purge it writes into its log, and that all who apply it end alike [I8]."""

from __future__ import annotations

from kvp2p.core.batches import FrameBatch
from kvp2p.core.vector import VersionVector
from tests.core.harness import all_rows, apply, frame_of, new_store, tombstone_row, value_row, vector, version
from tests.core.purges import below, expiring_row, fenced, filled, frame, order

FLOOR = vector(x=10)
ALL = below(11)  # a fence over all that `filled` has


def test_what_a_leader_orders_removes_the_same_rows_at_every_replica() -> None:
    leader, replica = filled(new_store()), filled(new_store("b"))
    ordered = order(leader, 20, below(8), FLOOR, before_s=150)
    assert ordered.frame is not None
    assert (ordered.frame.after, ordered.frame.upto, ordered.frame.rows) == (10, 20, ())
    assert ordered.vector == fenced(below(8), x=20)
    taken = apply(replica, FrameBatch(ordered.frame))
    assert all_rows(replica) == all_rows(leader)
    assert (taken.vector, taken.floor, taken.state_hash) == (ordered.vector, ordered.floor, ordered.state_hash)


def test_nothing_is_ordered_where_nothing_would_go() -> None:
    store = new_store()
    apply(store, FrameBatch(frame(value_row(1), expiring_row(2, 100), tombstone_row(3))))
    result = order(store, 20, below(3), vector(x=3), before_s=99)
    assert (result.frame, result.vector) == (None, vector(x=3))
    assert order(store, 20, below(3), vector(x=3), before_s=100).frame is not None


def test_no_fence_is_ordered_that_is_not_above_the_one_before() -> None:
    store = filled(new_store())
    assert order(store, 20, below(7), FLOOR).frame is not None
    assert order(store, 21, below(7), FLOOR, before_s=300).frame is None


def test_more_tombstones_than_one_purge_may_remove_go_with_the_next() -> None:
    store = filled(new_store())
    purges = [order(store, 20 + number, ALL, FLOOR, rows_max=2) for number in range(4)]
    fences = [one.frame.purge.fence for one in purges if one.frame is not None and one.frame.purge is not None]
    assert fences == [version(6), version(10), ALL]
    assert [one.rows_changed for one in purges] == [2, 2, 1, 0]
    assert purges[-1].frame is None


def test_more_expired_rows_than_one_purge_may_remove_go_with_the_next() -> None:
    store = new_store()
    apply(store, FrameBatch(frame(*(expiring_row(stamp, 100) for stamp in range(1, 6)))))
    purges = [
        order(
            store, 20 + number, below(6 + number), vector(x=5 if number == 0 else 19 + number), before_s=300, rows_max=2
        )
        for number in range(3)
    ]
    assert [one.rows_changed for one in purges] == [2, 2, 1]
    assert all_rows(store) == []


def test_an_order_is_dropped_when_a_foreign_version_has_come_in_meanwhile() -> None:
    store = filled(new_store())
    apply(store, FrameBatch(frame_of(0, 5, issuer="y", key=b"of y %d")))
    result = order(store, 20, ALL, FLOOR)
    assert (result.frame, result.vector) == (None, vector(x=10, y=5))


def test_the_vector_of_a_leader_that_orders_its_first_position_begins_with_it() -> None:
    store = new_store()
    apply(store, FrameBatch(frame(tombstone_row(3, "y"), first=3, issuer="y")))
    ordered = order(store, 20, below(4), VersionVector([version(3, "y")]))
    assert ordered.frame is not None
    assert (ordered.frame.after, ordered.vector) == (0, fenced(below(4), x=20))
