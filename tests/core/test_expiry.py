"""Expiry at the leader: which times are taken, whose clock counts, and what conditions see [I7]."""

from __future__ import annotations

import pytest

from kvp2p.core.batches import StampedWrite, WriteGroup
from kvp2p.core.entry import ChunkList, chunk_id, encode_chunk_list, row_expires_at, row_version
from kvp2p.core.operations import Condition, CreateNamespace, Delete, Ending, Operation, Outcome, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.ids import SYSTEM_NAMESPACE, Stamp, Version
from kvp2p.limits import TTL_SECONDS_MIN
from kvp2p.store.memory import MemoryStore
from tests.core.harness import (
    ACCOUNT,
    EPOCH_MS,
    SPACE,
    Cluster,
    Node,
    all_rows,
    apply,
    issuer_of,
    new_store,
    put,
    value_at,
)

NOW_S = EPOCH_MS // 1_000
HOUR_MS = 3_600_000
KEY = b"key"


class Leader:
    """A leader's store, and its clock."""

    def __init__(self) -> None:
        self.store: MemoryStore = new_store()
        self.stamp = 0
        self.wall_ms = EPOCH_MS

    def write(self, *operations: Operation) -> Outcome:
        group = WriteGroup(1, issuer_of("x"), (StampedWrite(Stamp(self.stamp + 1), operations),), self.wall_ms)
        self.stamp += len(operations)
        return apply(self.store, group).outcomes[0]

    def put(self, *, expires_in: int = 0, expires_at: int = 0, condition: Condition = Condition.ALWAYS) -> Outcome:
        put = Put(SYSTEM_NAMESPACE, KEY, b"v", None, expires_at, condition, expires_in=expires_in)
        return self.write(put)

    def expires_at(self) -> int:
        with self.store.read() as txn:
            row = txn.row(SYSTEM_NAMESPACE, KEY)
        assert row is not None
        return row_expires_at(row)


# --- which times are taken


def test_a_lifetime_counts_from_the_leaders_clock_and_is_rounded_up() -> None:
    """A value never lives shorter than was asked for."""
    leader = Leader()
    for more_ms, expires_at in ((0, NOW_S + 60), (1, NOW_S + 61), (999, NOW_S + 61), (1_000, NOW_S + 61)):
        leader.wall_ms = EPOCH_MS + more_ms
        assert leader.put(expires_in=60).ending is Ending.ACKED
        assert leader.expires_at() == expires_at


def test_a_lifetime_shorter_than_a_minute_is_refused() -> None:
    leader = Leader()
    for seconds in (1, TTL_SECONDS_MIN - 1, -5):
        outcome = leader.put(expires_in=seconds)
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "bad_expiry")
        assert f"in {seconds} s: at least 60 s ahead are needed" in outcome.message
    assert all_rows(leader.store) == []


def test_a_time_nearer_than_a_minute_by_the_leaders_clock_is_refused() -> None:
    leader = Leader()
    for at in (1, NOW_S - 1, NOW_S, NOW_S + TTL_SECONDS_MIN - 1):
        outcome = leader.put(expires_at=at)
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "bad_expiry")
        assert f"at {at}: at least 60 s ahead are needed, it is {NOW_S} now" in outcome.message
    assert all_rows(leader.store) == []
    assert leader.put(expires_at=NOW_S + TTL_SECONDS_MIN).ending is Ending.ACKED
    assert leader.expires_at() == NOW_S + TTL_SECONDS_MIN


def test_a_lifetime_counts_when_a_time_is_given_too() -> None:
    leader = Leader()
    assert leader.put(expires_in=100, expires_at=NOW_S + 5_000).ending is Ending.ACKED
    assert leader.expires_at() == NOW_S + 100
    assert leader.put(expires_in=100, expires_at=1).ending is Ending.ACKED, "whatever that time is"


def test_a_value_without_either_never_expires() -> None:
    leader = Leader()
    leader.put(expires_in=60)
    assert leader.put().ending is Ending.ACKED
    assert leader.expires_at() == 0
    with leader.store.read() as txn:
        assert list(txn.expiring()) == []


def test_of_a_write_with_one_bad_time_nothing_is_applied() -> None:
    leader = Leader()
    good, bad = put(b"good"), Put(SYSTEM_NAMESPACE, b"bad", b"v", expires_in=59)
    assert leader.write(good, bad).code == "bad_expiry"
    assert all_rows(leader.store) == []


def test_a_write_of_chunks_that_the_leader_does_not_have_is_refused_whatever_its_time() -> None:
    leader = Leader()
    leader.write(CreateNamespace(SPACE, ACCOUNT, "space"))
    body = encode_chunk_list(ChunkList(1, 1, (chunk_id(b"c"),)))
    for seconds in (0, 100):
        outcome = leader.write(Put(SPACE, KEY, body, expires_in=seconds, is_chunked=True))
        why = "the write names 1 chunks that the leader does not have; nothing was applied"
        assert (outcome.code, outcome.message) == ("bad_request", why)


# --- what conditions see


def expired() -> tuple[Leader, Version]:
    """Make a leader with a value that expires after a minute; a minute has passed."""
    leader = Leader()
    written = leader.put(expires_in=60).version
    assert written is not None
    leader.wall_ms += 60_000
    return leader, written


def test_a_key_whose_value_has_expired_can_be_created() -> None:
    leader, written = expired()
    leader.wall_ms -= 1
    outcome = leader.put(condition=Condition.ABSENT)
    assert (outcome.code, outcome.version) == ("precondition_failed", written), "it is there for a millisecond more"
    leader.wall_ms += 1
    assert leader.put(condition=Condition.ABSENT).ending is Ending.ACKED


@pytest.mark.parametrize("condition", [Condition.PRESENT, Condition.VERSION_IS])
def test_a_condition_that_needs_a_value_does_not_hold_for_one_that_has_expired(condition: Condition) -> None:
    leader, written = expired()
    if_version = written if condition is Condition.VERSION_IS else None
    for operation in (
        Put(SYSTEM_NAMESPACE, KEY, b"new", None, 0, condition, if_version),
        Delete(SYSTEM_NAMESPACE, KEY, condition, if_version),
    ):
        outcome = leader.write(operation)
        assert (outcome.code, outcome.version) == ("precondition_failed", None)
        assert outcome.message.endswith("the key does not exist")
    leader.wall_ms -= 1
    assert leader.write(Delete(SYSTEM_NAMESPACE, KEY, condition, if_version)).ending is Ending.ACKED


def test_an_expired_value_stays_until_something_removes_it_and_a_delete_beats_it() -> None:
    leader, written = expired()
    with leader.store.read() as txn:
        row = txn.row(SYSTEM_NAMESPACE, KEY)
        assert row is not None
        assert row_version(row) == written
    assert leader.write(Delete(SYSTEM_NAMESPACE, KEY)).ending is Ending.ACKED
    with leader.store.read() as txn:
        assert list(txn.expiring()) == []
        assert txn.tombstones == 1


# --- whose clock


def pair() -> tuple[Cluster, Node, Node]:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b")
    cluster.link("a", "b")
    return cluster, a, b


def stored_expiry(node: Node) -> int:
    with node.store.read() as txn:
        row = txn.row(SYSTEM_NAMESPACE, KEY)
    return 0 if row is None else row_expires_at(row)


def test_the_leaders_clock_decides_wherever_a_write_comes_from() -> None:
    cluster, a, b = pair()
    b.wall_offset_ms = HOUR_MS
    request = b.write(Put(SYSTEM_NAMESPACE, KEY, b"v", expires_in=60))
    cluster.settle()
    assert b.replies[request].ending is Ending.ACKED
    assert stored_expiry(a) == stored_expiry(b) == NOW_S + 60
    too_near = b.write(Put(SYSTEM_NAMESPACE, KEY, b"v", expires_at=NOW_S + 59))
    cluster.settle()
    assert b.replies[too_near].code == "bad_expiry"


def test_a_leader_whose_wall_clock_was_set_back_goes_on_from_where_it_was() -> None:
    cluster, a, _ = pair()
    a.write(Put(SYSTEM_NAMESPACE, KEY, b"v", expires_in=60))
    cluster.pass_ms(60_000)
    a.wall_offset_ms = -HOUR_MS
    assert a.replies[a.write(Put(SYSTEM_NAMESPACE, KEY, b"v", condition=Condition.ABSENT))].ending is Ending.ACKED, (
        "what has expired does not come back"
    )
    a.write(Put(SYSTEM_NAMESPACE, KEY, b"v", expires_in=60))
    assert stored_expiry(a) == NOW_S + 120


def test_a_new_leader_with_a_clock_an_hour_behind_does_not_bring_back_what_has_expired() -> None:
    cluster, a, b = pair()
    b.wall_offset_ms = -HOUR_MS
    a.write(Put(SYSTEM_NAMESPACE, KEY, b"v", expires_in=60))
    cluster.pass_ms(61_000)
    b.promote(override=True)
    cluster.settle()
    assert b.role == "leading"
    assert b.replies[b.write(Put(SYSTEM_NAMESPACE, KEY, b"v", condition=Condition.ABSENT))].ending is Ending.ACKED


# --- a leader's clock that is wrong


def test_a_node_whose_clock_is_off_is_promoted_by_an_override_only() -> None:
    settings = ReplicaSettings(promote_skew_ms_max=60_000)
    cluster = Cluster()
    a, b, c = (cluster.add(name, leads=name == "a", settings=settings) for name in "abc")
    for one, other in ("ab", "ac", "bc"):
        cluster.link(one, other)
    a.write(put(b"candidates", b'{"nodes":["%s"]}' % b.id.hex().encode()))
    cluster.settle()
    for offset_ms, where in ((24 * HOUR_MS, "ahead of"), (-24 * HOUR_MS, "behind")):
        b.wall_offset_ms = offset_ms
        cluster.pass_ms(5_000)
        refused = b.replies[b.promote()]
        assert (refused.ending, refused.code) == (Ending.REFUSED, "bad_request")
        assert f"ms {where} those of its peers, 60000 ms are the limit" in refused.message
        assert b.role == "follower"
    b.wall_offset_ms = 50_000
    cluster.pass_ms(5_000)
    accepted = b.promote()
    cluster.settle()
    assert b.replies[accepted].ending is Ending.ACKED, "within the limit"
    c.wall_offset_ms = 24 * HOUR_MS
    cluster.pass_ms(5_000)
    assert c.replies[c.promote()].ending is Ending.REFUSED, "nor is it a candidate"
    overridden = c.promote(override=True)
    cluster.settle()
    assert c.replies[overridden].ending is Ending.ACKED
    assert c.role == "leading"


def test_a_leader_a_day_ahead_is_told_everywhere_and_its_stamps_stay_ahead() -> None:
    cluster = Cluster()
    a, b, c = (cluster.add(name, leads=name == "a") for name in "abc")
    for one, other in ("ab", "ac", "bc"):
        cluster.link(one, other)
    a.wall_offset_ms = 24 * HOUR_MS
    a.write(put(KEY, b"a day ahead"))
    cluster.pass_ms(5_000)
    for node in (a, b, c):
        assert "clock_skewed" in node.notices
    assert "stamps_ahead" in b.notices
    ahead = a.machine.board.vector.latest_stamp()
    assert a.machine.readiness.skew_ms == -24 * HOUR_MS, "the median of its peers' clocks"
    a.wall_offset_ms = 0
    a.write(put(KEY, b"set right"))
    cluster.settle()
    assert a.machine.board.vector.latest_stamp() > ahead
    assert value_at(c.store, KEY) == b"set right"
    cluster.pass_ms(60_000)
    for node in (a, b, c):
        assert "clock_skew_over" in node.notices
    b.promote(override=True)
    cluster.settle()
    b.write(put(KEY, b"of the next leader"))
    cluster.settle()
    assert value_at(a.store, KEY) == b"of the next leader"
    assert b.machine.board.vector.latest_stamp() > ahead


def test_one_peer_whose_clock_is_off_does_not_count_for_the_leader() -> None:
    cluster = Cluster()
    nodes = [cluster.add(name, leads=name == "a") for name in "abcd"]
    for one, other in ("ab", "ac", "ad"):
        cluster.link(one, other)
    nodes[3].wall_offset_ms = 24 * HOUR_MS
    cluster.pass_ms(5_000)
    assert "clock_skewed" not in nodes[0].notices
    assert "clock_skewed" in nodes[3].notices
    assert nodes[0].machine.readiness.skew_ms == 0


def test_a_leader_alone_knows_no_skew() -> None:
    a = Cluster().add("a", leads=True)
    assert a.machine.readiness.skew_ms is None
