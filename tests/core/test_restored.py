"""A store that was made of a backup: it does not lead by itself, and is a store like any other once it has caught up [I2]."""

from __future__ import annotations

import pytest

from kvp2p.core.apply import mark_restored
from kvp2p.core.batches import Settle
from kvp2p.core.operations import Ending
from tests.core.harness import (
    SETTINGS,
    Cluster,
    Node,
    apply,
    designated,
    digest_of,
    frame_of,
    new_store,
    node_id,
    put,
    vector,
)


def restored(*, knows: str = "", leads: bool = True) -> Node:
    """Start a node on what a backup had; it is the designated leader unless it is told otherwise."""
    store = new_store("a", designation=designated("a") if leads else designated("b"))
    with store.write() as txn:
        mark_restored(txn)
    return Cluster().add("a", store=store, knows=knows)


def is_marked(node: Node) -> bool:
    with node.store.read() as txn:
        return txn.restored


def test_a_store_that_is_put_back_forgets_the_clock_of_the_copy_and_is_marked_unless_it_leads_alone() -> None:
    store = new_store("a")
    for leads_alone in (False, True, False):
        apply(store, Settle(clock_offset_ms=-1_234, restored=leads_alone))
        with store.write() as txn:
            mark_restored(txn, leads_alone=leads_alone)
        with store.read() as txn:
            assert (txn.restored, txn.clock_offset_ms) == (not leads_alone, 0)


@pytest.mark.parametrize("knows", ["", "b"])
def test_a_restored_leader_waits_for_a_peer_however_long_it_takes(knows: str) -> None:
    a = restored(knows=knows)
    assert a.role == "hearing"
    a.cluster.pass_ms(SETTINGS.first_contact_ms)
    assert a.notices.count("leader_waits_restored") == 1
    a.meets("c", digest_of(complete=False))
    a.cluster.pass_ms(20 * SETTINGS.first_contact_ms)
    assert (a.role, is_marked(a)) == ("hearing", True)
    refusal = a.replies[a.write(put(b"k"))]
    assert (refusal.code, "made by restore" in refusal.message) == ("no_leader", True)
    a.start()
    a.cluster.pass_ms(SETTINGS.first_contact_ms)
    assert a.role == "hearing", "a restart changes nothing"


def test_a_restored_leader_catches_up_with_a_peer_before_it_leads_and_is_marked_no_more() -> None:
    a = restored(knows="b")
    a.cluster.pass_ms(10 * SETTINGS.first_contact_ms)
    a.meets("b", digest_of(vector(x=2)))
    assert (a.role, a.machine.leadership.waiting, is_marked(a)) == ("catching_up", "", True)
    a.hears("b", frame_of(0, 1, 2))
    assert (a.role, is_marked(a)) == ("leading", False)
    designation = a.machine.board.designation
    assert designation is not None
    assert designation.term == 2, "above whatever a fence that it has forgotten has passed [I8]"
    a.start()
    a.cluster.pass_ms(SETTINGS.first_contact_ms)
    assert a.role == "leading", "from now on its own store counts"


def test_a_restored_leader_that_lacks_nothing_leads_as_soon_as_it_hears_a_peer() -> None:
    a = restored(knows="b")
    a.meets("b", digest_of())
    assert (a.role, is_marked(a), a.machine.board.restored) == ("leading", False, False)


def test_a_restored_leader_leads_alone_when_an_operator_says_so() -> None:
    a = restored(knows="b")
    refused = a.promote()
    a.cluster.pass_ms(SETTINGS.first_contact_ms)
    assert (a.replies[refused].code, a.role) == ("bad_request", "hearing")
    assert "not a candidate" in a.replies[refused].message
    request = a.promote(override=True)
    assert (a.replies[request].ending, a.role, is_marked(a)) == (Ending.ACKED, "leading", False)


def test_a_restored_candidate_is_not_promoted_by_its_own_store() -> None:
    a = restored(knows="b", leads=False)
    a.machine.board.candidates = (node_id("a"),)
    request = a.promote()
    assert a.role == "hearing"
    a.cluster.pass_ms(SETTINGS.first_contact_ms)
    assert a.role == "follower"
    assert (a.replies[request].ending, "Override it" in a.replies[request].message) == (Ending.REFUSED, True)
    a.meets("b", digest_of(vector(x=1), designation=designated("b")))
    a.loses("b")
    assert is_marked(a), "it lacks something"
    a.meets("b", digest_of(vector(x=1), designation=designated("b")))
    a.hears("b", frame_of(0, 1))
    a.hears("b", digest_of(vector(x=1), designation=designated("b")))
    assert not is_marked(a)
    a.loses("b")
    request = a.promote()
    a.cluster.pass_ms(SETTINGS.first_contact_ms)
    assert (a.replies[request].ending, a.role) == (Ending.ACKED, "leading")


def test_the_mark_is_taken_off_when_the_disk_has_room_for_that() -> None:
    a = restored(knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    assert [type(persist.batch).__name__ for persist in a.disk] == ["WriteGroup"]
    a.finish()
    assert [type(persist.batch).__name__ for persist in a.disk] == ["Settle"]
    a.fail()
    a.release_disk()
    assert is_marked(a)
    a.cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert not is_marked(a)
