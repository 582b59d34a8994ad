"""Trimming: what every node forgets of its log, by age and by number, and what it keeps for a candidate that is there."""

from __future__ import annotations

import pytest

from kvp2p.core import purging
from kvp2p.core.batches import BatchResult, FrameBatch, LogTrim
from kvp2p.core.entry import is_tombstone
from kvp2p.core.messages import Frame, Message, Pull, PullEnd
from kvp2p.core.operations import Delete, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.system_rows import CANDIDATES_KEY, encode_candidates
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer, Stamp
from kvp2p.limits import PULL_BYTES_MAX
from kvp2p.store.memory import MemoryStore
from tests.core.harness import (
    Cluster,
    Node,
    all_rows,
    answer,
    apply,
    digest_of,
    frame_of,
    issuer_of,
    new_store,
    node_id,
    put,
    value_at,
    vector,
)
from tests.core.purges import below, filled, give, purge_of

X, Y = issuer_of("x"), issuer_of("y")
SETTINGS = ReplicaSettings(purge_interval_ms=1_000, log_age_ms=5_000)


def trim(
    store: MemoryStore,
    keep: VersionVector = VersionVector(),  # noqa: B008  immutable
    *,
    older_than: int = 0,
    positions_max: int = 1_000,
    count_max: int = 1_000,
) -> BatchResult:
    return apply(store, LogTrim(keep, Stamp(older_than), positions_max, count_max))


def log_of(store: MemoryStore, issuer: Issuer = X) -> list[int]:
    with store.read() as txn:
        return [stamp for stamp, _ in txn.positions(issuer, Stamp(0))]


def pull(store: MemoryStore, after: int) -> list[Message]:
    return answer(store, Pull(1, X, Stamp(after), PULL_BYTES_MAX))


@pytest.fixture
def two_logs() -> MemoryStore:
    """Give a store with positions 1 to 5 of x and 2, 4, 6 of y."""
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 1, 2, 3, 4, 5)))
    apply(store, FrameBatch(frame_of(0, 2, 4, 6, issuer="y", key=b"of y %d")))
    return store


# --- what a trim forgets


def test_positions_that_are_old_enough_go_and_the_rows_stay(two_logs: MemoryStore) -> None:
    before = all_rows(two_logs)
    result = trim(two_logs, vector(x=5, y=6), older_than=4)
    assert (log_of(two_logs), log_of(two_logs, Y)) == ([4, 5], [4, 6])
    assert (result.trimmed, result.floor) == (4, vector(x=3, y=2))
    assert all_rows(two_logs) == before
    assert result.garbage.log_positions == 4


def test_what_was_trimmed_is_not_served_and_the_rest_is(two_logs: MemoryStore) -> None:
    trim(two_logs, vector(x=5, y=6), older_than=4)
    assert pull(two_logs, 2) == [PullEnd(X, Stamp(2), trimmed=True)]
    frame, end = pull(two_logs, 3)
    assert isinstance(frame, Frame)
    assert (frame.after, frame.upto) == (3, 5)
    assert end == PullEnd(X, Stamp(5), trimmed=False)


def test_no_position_goes_that_is_to_be_kept_for_a_candidate(two_logs: MemoryStore) -> None:
    result = trim(two_logs, vector(x=2), older_than=100, positions_max=1)
    assert (log_of(two_logs), log_of(two_logs, Y)) == ([3, 4, 5], [2, 4, 6])
    assert result.floor == vector(x=2)


def test_of_too_many_positions_the_oldest_go_whatever_their_age(two_logs: MemoryStore) -> None:
    result = trim(two_logs, vector(x=5, y=6), positions_max=3)
    assert (log_of(two_logs), log_of(two_logs, Y)) == ([5], [4, 6])
    assert (result.trimmed, result.floor) == (5, vector(x=4, y=2))


def test_one_trim_forgets_so_many_positions_and_the_next_goes_on(two_logs: MemoryStore) -> None:
    counts = [trim(two_logs, vector(x=5, y=6), older_than=100, count_max=3).trimmed for _ in range(4)]
    assert counts == [3, 3, 2, 0]
    assert (log_of(two_logs), log_of(two_logs, Y)) == ([], [])
    with two_logs.read() as txn:
        assert (txn.log_positions, txn.floor) == (0, vector(x=5, y=6))


def test_positions_that_are_not_served_any_more_are_freed_first() -> None:
    """The fence has passed them: nobody could ask for them, however young they are."""
    store = filled(new_store())
    apply(store, FrameBatch(frame_of(0, 6, issuer="y", key=b"of y %d")))
    give(store, 10, 20, purge_of(below(9), vector(x=10, y=6)))
    assert store_vector(store).top_of(Y) is None, "its log has ended below the fence"
    first = trim(store, EMPTY_VECTOR, count_max=5)
    assert (first.trimmed, log_of(store), log_of(store, Y)) == (5, [6, 7, 8, 9, 10, 20], [6])
    second = trim(store, EMPTY_VECTOR)
    assert (second.trimmed, log_of(store), log_of(store, Y)) == (4, [9, 10, 20], [])
    assert second.floor == first.floor
    assert trim(store, EMPTY_VECTOR).trimmed == 0


def store_vector(store: MemoryStore) -> VersionVector:
    with store.read() as txn:
        return txn.vector


def test_a_trim_without_anything_to_forget_changes_nothing(two_logs: MemoryStore) -> None:
    result = trim(two_logs, vector(x=5, y=6), older_than=1)
    assert (result.trimmed, result.floor, result.garbage.log_positions) == (0, EMPTY_VECTOR, 8)


# --- when a node trims


def leader(*names: str, settings: ReplicaSettings = SETTINGS) -> Node:
    a = Cluster().add("a", leads=True, settings=settings)
    a.write(Put(SYSTEM_NAMESPACE, CANDIDATES_KEY, encode_candidates(tuple(map(node_id, ("a", *names))))))
    return a


def positions(node: Node) -> int:
    with node.store.read() as txn:
        return txn.log_positions


def test_a_node_forgets_positions_of_a_certain_age_in_any_role() -> None:
    cluster = Cluster()
    a, b = (cluster.add(name, leads=name == "a", settings=SETTINGS) for name in "ab")
    cluster.link("a", "b")
    a.write(put(b"old"))
    cluster.settle()
    cluster.pass_ms(SETTINGS.log_age_ms - 1)
    assert positions(a) == positions(b) == 2
    a.write(put(b"new"))
    cluster.settle()
    cluster.pass_ms(2 * SETTINGS.purge_interval_ms + SETTINGS.digest_idle_ms)
    assert positions(a) == positions(b) == 1
    assert a.machine.board.floor == b.machine.board.floor
    assert (value_at(b.store, b"old"), value_at(b.store, b"new")) == (b"value", b"value")
    cluster.assert_equal()


def test_a_node_forgets_the_oldest_of_too_many_positions() -> None:
    a = leader(settings=ReplicaSettings(purge_interval_ms=1_000, log_positions_max=4))
    for number in range(20):
        a.write(put(b"key%d" % number))
    a.cluster.pass_ms(1_000)
    assert positions(a) == 4


def test_a_long_log_is_forgotten_in_several_transactions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "LOG_TRIM_MAX", 3)
    a = leader(settings=ReplicaSettings(purge_interval_ms=1_000, log_positions_max=1))
    for number in range(20):
        a.write(put(b"key%d" % number))
    a.cluster.pass_ms(1_000)
    assert positions(a) == 1


def test_one_trim_at_a_time_is_with_a_slow_disk_and_one_that_fails_is_tried_again() -> None:
    a = leader(settings=ReplicaSettings(purge_interval_ms=1_000, log_positions_max=1))
    a.write(put(b"key"))
    a.hold_disk()
    for _ in range(2):
        a.cluster.pass_ms(5_000)
        assert [type(persist.batch) for persist in a.disk] == [LogTrim]
        a.fail()
    a.release_disk()
    a.cluster.pass_ms(1_000)
    assert positions(a) == 1


def test_what_a_linked_candidate_lacks_stays_in_the_log() -> None:
    a = leader("b")
    has = a.machine.board.vector
    a.write(put(b"key"))
    a.meets("b", digest_of(has))
    a.cluster.pass_ms(10 * SETTINGS.log_age_ms)
    assert positions(a) == 1
    a.hears("b", digest_of(a.machine.board.vector))
    a.cluster.pass_ms(SETTINGS.purge_interval_ms)
    assert positions(a) == 0


def test_a_candidate_that_has_not_said_what_it_has_is_waited_for() -> None:
    a = leader("b")
    a.write(put(b"key"))
    a.meets("b")
    before = positions(a)
    a.cluster.pass_ms(10 * SETTINGS.log_age_ms)
    assert positions(a) == before


def test_a_candidate_that_is_gone_or_has_to_walk_anyway_keeps_no_log() -> None:
    for digest in (None, digest_of(complete=False)):
        a = leader("b")
        a.write(put(b"key"))
        if digest is not None:
            a.meets("b", digest)
        a.cluster.pass_ms(2 * SETTINGS.log_age_ms)
        assert positions(a) == 0


def test_an_ordinary_replica_keeps_no_log() -> None:
    a = leader("b")
    a.meets("b", digest_of(a.machine.board.vector))
    a.write(put(b"key"))
    a.hears("b", digest_of(a.machine.board.vector))
    a.meets("z", digest_of())
    a.cluster.pass_ms(2 * SETTINGS.log_age_ms)
    assert positions(a) == 0


def test_without_a_log_nothing_is_asked_of_the_disk() -> None:
    a = leader()
    a.cluster.pass_ms(2 * SETTINGS.log_age_ms)
    assert positions(a) == 0
    a.hold_disk()
    a.cluster.pass_ms(2 * SETTINGS.log_age_ms)
    assert LogTrim not in [type(persist.batch) for persist in a.disk]


def test_a_replica_behind_a_trimmed_log_walks_and_has_no_deleted_key() -> None:
    cluster = Cluster()
    a, b = (cluster.add(name, leads=name == "a", settings=SETTINGS) for name in "ab")
    cluster.link("a", "b")
    a.write(put(b"kept"), put(b"deleted"))
    cluster.settle()
    cluster.cut("a", "b")
    a.write(Delete(SYSTEM_NAMESPACE, b"deleted"))
    a.write(put(b"new"))
    cluster.pass_ms(3 * SETTINGS.log_age_ms)
    assert positions(a) == 0
    assert value_at(b.store, b"deleted") == b"value"
    cluster.link("a", "b")
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert "walk_received" in b.notices
    assert [value_at(b.store, key) for key in (b"kept", b"deleted", b"new")] == [b"value", None, b"value"]
    with b.store.read() as txn:
        row = txn.row(SYSTEM_NAMESPACE, b"deleted")
        assert row is not None
        assert is_tombstone(row), "it is not purged yet"
        assert txn.floor == txn.vector
    cluster.assert_equal()
