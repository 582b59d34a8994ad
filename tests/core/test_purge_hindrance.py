"""Which candidate keeps a leader from purging, and why; without other candidates none does [I8]."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvp2p.core.batches import FrameBatch
from kvp2p.core.messages import Digest
from kvp2p.core.operations import Delete
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.system_rows import CANDIDATES_KEY, encode_candidates
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE
from tests.core.harness import (
    EPOCH_MS,
    Cluster,
    Node,
    apply,
    chunked_row,
    designated,
    digest_of,
    frame_with,
    issuer_of,
    new_store,
    node_id,
    put,
    version,
)

QUICK = ReplicaSettings(purge_after_ms=500, purge_interval_ms=200)
KEYS = [b"key%d" % number for number in range(3)]


def leader_after_deletes(*candidates: str) -> Node:
    """Return a leader that has deleted some keys a while ago, and what may lead besides."""
    a = Cluster().add("a", store=new_store(designation=designated("a")), settings=QUICK)
    a.write(put(CANDIDATES_KEY, encode_candidates(tuple(map(node_id, ("a", *candidates))))))
    a.write(*map(put, KEYS))
    a.write(*(Delete(SYSTEM_NAMESPACE, key) for key in KEYS))
    a.cluster.pass_ms(2_000)
    return a


def tombstones(node: Node) -> int:
    with node.store.read() as txn:
        assert node.machine.board.garbage.tombstones == txn.tombstones
        return txn.tombstones


def good_digest(node: Node) -> Digest:
    """Return what a candidate tells that has everything."""
    board = node.machine.board
    return digest_of(board.vector, designation=board.designation, clock_ms=EPOCH_MS)


def test_leader_that_is_the_only_candidate_purges_without_anybody() -> None:
    a = leader_after_deletes()
    assert (tombstones(a), a.machine.purger.purges) == (0, 1)
    assert a.machine.purger.blocked_by is None


def test_candidate_that_is_gone_blocks_purging_until_it_is_back() -> None:
    a = leader_after_deletes("b")
    purger = a.machine.purger
    assert (tombstones(a), purger.purges) == (len(KEYS), 0)
    assert (purger.blocked_by, purger.hindrance(node_id("b"))) == (node_id("b"), "it is not reachable")
    a.meets("b", good_digest(a))
    assert purger.blocked_by is None
    a.cluster.pass_ms(2 * QUICK.purge_interval_ms)
    assert (tombstones(a), purger.purges) == (0, 1)
    assert purger.hindrance(node_id("b")) == "it has not applied the last purge"
    a.hears("b", good_digest(a))
    assert purger.blocked_by is None
    a.loses("b")
    assert purger.blocked_by == node_id("b")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"complete": False}, "it has not received everything yet"),
        ({"designation": None}, "it has not taken in who leads"),
        ({"leads": issuer_of("b")}, "it has not taken in who leads"),
        ({"vector": VersionVector((), version(1))}, "it has not applied the last purge"),
        ({"clock_ms": 0}, "it does not know the leader's clock"),
    ],
)
def test_candidate_that_cannot_be_counted_on_blocks_purging_and_the_reason_is_told(
    told: dict[str, object], why: str
) -> None:
    a = leader_after_deletes("b")
    a.meets("b", replace(good_digest(a), **told))  # type: ignore[arg-type]
    a.cluster.pass_ms(2 * QUICK.purge_interval_ms)
    assert tombstones(a) == len(KEYS)
    assert (a.machine.purger.blocked_by, a.machine.purger.hindrance(node_id("b"))) == (node_id("b"), why)


def test_node_that_does_not_lead_is_not_blocked() -> None:
    b = Cluster().add("b", store=new_store("b", designation=designated("a")), settings=QUICK)
    assert b.machine.purger.blocked_by is None


def test_leader_with_rows_that_no_log_tells_of_is_named_itself() -> None:
    store = new_store(designation=designated("a"))
    with store.write() as txn:
        txn.set_above(VersionVector((version(1, "z"),)))
    a = Cluster().add("a", store=store, settings=QUICK)
    a.write(*map(put, KEYS))
    a.write(*(Delete(SYSTEM_NAMESPACE, key) for key in KEYS))
    a.cluster.pass_ms(2_000)
    assert tombstones(a) == len(KEYS)
    me = a.machine.board.me.node
    assert a.machine.purger.blocked_by == me
    assert "nobody shows their log" in a.machine.purger.hindrance(me)


def test_candidate_that_lacks_chunks_is_named_once_the_fence_waits_for_them() -> None:
    a = leader_after_deletes()
    a.write(put(CANDIDATES_KEY, encode_candidates((node_id("a"), node_id("b")))))
    before = a.machine.board.vector
    a.write(put(b"large"), Delete(SYSTEM_NAMESPACE, b"small"))
    purger, b = a.machine.purger, node_id("b")

    def b_says(whole: VersionVector | None) -> None:
        a.hears("b", replace(good_digest(a), whole=whole))

    a.meets("b")
    b_says(before)
    assert purger.hindrance(b) == "", "it is just pulling them"
    a.cluster.pass_ms(2_000)
    b_says(before)
    assert (purger.blocked_by, purger.hindrance(b)) == (b, "it lacks chunks of large values, or does not tell of which")
    a.write(put(b"k"))
    b_says(EMPTY_VECTOR)
    assert purger.blocked_by == b, "or does not say of which"
    assert tombstones(a) == 1
    b_says(None)
    assert purger.blocked_by is None
    a.cluster.pass_ms(2 * QUICK.purge_interval_ms)
    assert tombstones(a) == 0


def test_candidate_that_is_merely_behind_is_not_said_to_lack_chunks() -> None:
    a = leader_after_deletes()
    a.write(put(CANDIDATES_KEY, encode_candidates((node_id("a"), node_id("b")))))
    before = good_digest(a)
    a.write(put(b"new"), Delete(SYSTEM_NAMESPACE, b"new"))
    a.meets("b")
    a.cluster.pass_ms(2_000)
    a.hears("b", replace(before, whole=before.vector))
    assert tombstones(a) == 1
    assert a.machine.purger.hindrance(node_id("b")) == ""


def test_leader_that_lacks_chunks_is_named_itself_while_it_leads() -> None:
    store = new_store(designation=designated("a"))
    apply(store, FrameBatch(frame_with(0, 1, key=b"large", row=chunked_row(1, b"value"))))
    a = Cluster().add("a", store=store, settings=QUICK)
    a.write(put(b"k"), Delete(SYSTEM_NAMESPACE, b"k"))
    purger, me = a.machine.purger, a.id
    a.cluster.pass_ms(2_000)
    assert tombstones(a) == 1
    assert (purger.blocked_by, purger.hindrance(me)) == (
        me,
        "it lacks chunks of large values, or does not tell of which",
    )
    a.meets("b", digest_of(designation=designated("b", term=2)))
    assert purger.hindrance(me) == ""
