"""Taking over: what is told and waited for while groups of an earlier, or a lost, leadership are on their way to the disk."""

from __future__ import annotations

import pytest

from kvp2p.core.batches import Settle, WriteGroup
from kvp2p.core.messages import Digest
from kvp2p.core.operations import Ending, Put
from kvp2p.core.system_rows import IssuerRow, encode_issuer
from kvp2p.core.vector import VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer, Stamp, make_version
from kvp2p.limits import ISSUERS_LATELY_MAX, ISSUERS_LATELY_MS, ISSUERS_PAUSE_MS, ISSUERS_WARNED_OF
from tests.core.harness import SETTINGS, Cluster, Node, designated, digest_of, issuer_rows, new_store, put


@pytest.mark.parametrize("ends", ["durable", "full"])
def test_a_lost_take_over_is_told_until_its_group_has_ended(ends: str) -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    (persist,) = a.disk
    assert isinstance(persist.batch, WriteGroup)
    assert a.role == "taking_over"
    a.hears("b", digest_of(designation=designated("b", 2)))
    assert a.role == "follower"
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    told = a.sent_to("b", Digest)[-1]
    assert told.designation == designated("b", 2)
    assert told.leads == persist.batch.issuer, "positions may still be added under it"
    if ends == "full":
        a.fail()
    a.release_disk()
    assert (persist.batch.issuer in issuer_rows(a.store)) == (ends == "durable")
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert a.sent_to("b", Digest)[-1].leads is None


def deposed_with_a_write_in_flight() -> tuple[Cluster, Node, Issuer]:
    """A node whose last group, under the issuer returned, is on its way to the disk, and which is promoted again."""
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    issuer = a.machine.leadership.issuer
    assert issuer is not None
    a.hold_disk()
    a.write(put(b"k"))
    a.meets("b", digest_of(designation=designated("b", 2)))
    request = a.promote(override=True)
    assert (a.role, request in a.replies) == ("hearing", False)
    assert [type(persist.batch) for persist in a.disk] == [WriteGroup, Settle], "nothing is opened yet"
    return cluster, a, issuer


def test_a_deposed_node_that_is_promoted_closes_its_issuer_where_its_last_group_ended() -> None:
    _, a, issuer = deposed_with_a_write_in_flight()
    before = dict(a.machine.board.vector.items()).get(issuer, 0)
    a.finish()
    assert a.role == "taking_over"
    ended = dict(a.machine.board.vector.items())[issuer]
    assert ended > before
    opening = a.disk[-1].batch
    assert isinstance(opening, WriteGroup)
    assert Put(SYSTEM_NAMESPACE, *encode_issuer(IssuerRow(issuer, a.id, 1, ended))) in opening.writes[0].operations
    a.release_disk()
    assert a.role == "leading"
    assert issuer_rows(a.store)[issuer].closed == ended


def test_a_deposed_node_that_is_promoted_leads_though_its_last_group_found_the_disk_full() -> None:
    cluster, a, issuer = deposed_with_a_write_in_flight()
    a.fail()
    a.release_disk()
    assert a.role == "hearing"
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert a.role == "leading"
    assert issuer_rows(a.store)[issuer].closed == dict(a.machine.board.vector.items()).get(issuer, 0)


def test_a_node_that_is_given_back_what_it_lost_waits_for_the_group_of_its_lost_take_over() -> None:
    a = Cluster().add("a", leads=True, knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    (persist,) = a.disk
    assert isinstance(persist.batch, WriteGroup)
    a.hears("b", digest_of(designation=designated("a", 5)))
    assert (a.role, len(a.disk)) == ("hearing", 2)
    a.release_disk()
    assert a.role == "leading"
    rows = issuer_rows(a.store)
    assert rows[persist.batch.issuer].closed == dict(a.machine.board.vector.items()).get(persist.batch.issuer, 0)


# --- issuers are used up


def begins_to_lead(node: Node) -> bool:
    """Let a node's process end and start again; tell whether it leads at once."""
    node.start()
    return node.role == "leading"


def in_a_crash_loop() -> tuple[Cluster, Node]:
    """A designated node that has just started for the tenth time within a second or so."""
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    for _ in range(ISSUERS_LATELY_MAX):
        cluster.pass_ms(100)
        assert begins_to_lead(a)
    assert "leader_pauses" not in a.notices
    assert not begins_to_lead(a)
    return cluster, a


def test_a_node_that_crashes_too_often_waits_once_before_it_leads() -> None:
    cluster, a = in_a_crash_loop()
    assert (a.role, a.notices.count("leader_pauses")) == ("hearing", 1)
    assert a.replies[a.write(put(b"k"))].code == "no_leader"
    cluster.pass_ms(ISSUERS_PAUSE_MS - 1)
    a.meets("b", digest_of())
    assert a.role == "hearing", "a digest does not end the wait"
    cluster.pass_ms(1)
    assert a.role == "leading"


def test_a_crash_loop_that_goes_on_begins_an_issuer_in_ten_seconds_at_most() -> None:
    cluster, a = in_a_crash_loop()
    for _ in range(3 * ISSUERS_LATELY_MAX):
        count = len(issuer_rows(a.store))
        assert not begins_to_lead(a)
        cluster.pass_ms(100)
        assert not begins_to_lead(a), "what it waited in an earlier life does not count"
        assert len(issuer_rows(a.store)) == count
        cluster.pass_ms(ISSUERS_PAUSE_MS)
        assert a.role == "leading"


def test_a_node_that_has_stopped_crashing_starts_at_once() -> None:
    cluster, a = in_a_crash_loop()
    cluster.pass_ms(ISSUERS_LATELY_MS)
    assert a.role == "leading"
    assert begins_to_lead(a)


def test_a_promotion_does_not_wait_for_the_end_of_a_crash_loop() -> None:
    _, a = in_a_crash_loop()
    request = a.promote(override=True)
    assert (a.role, a.replies[request].ending) == ("leading", Ending.ACKED)


def test_issuers_of_other_nodes_are_no_crash_loop_of_this_one() -> None:
    cluster, _ = in_a_crash_loop()
    b = cluster.add("b", knows="a")
    cluster.link("a", "b")
    cluster.pass_ms(ISSUERS_PAUSE_MS)
    cluster.cut("a", "b")
    assert len(issuer_rows(b.store)) > ISSUERS_LATELY_MAX
    assert b.replies[b.promote(override=True)].ending == Ending.ACKED
    b.start()
    cluster.pass_ms(SETTINGS.first_contact_ms)
    assert (b.role, b.notices.count("leader_pauses")) == ("leading", 0)


@pytest.mark.parametrize(("before", "warns"), [(ISSUERS_WARNED_OF - 2, 0), (ISSUERS_WARNED_OF - 1, 1)])
def test_a_leader_that_starts_when_half_of_the_issuers_are_used_up_says_so_once(before: int, warns: int) -> None:
    store = new_store("a", designation=designated("a"))
    with store.write() as txn:
        txn.set_vector(
            VersionVector(make_version(0, Stamp(1), Issuer(n.to_bytes(8, "big"))) for n in range(1, before + 1))
        )
    cluster = Cluster()
    a = cluster.add("a", store=store)
    cluster.pass_ms(10_000)
    assert a.role == "leading"
    assert a.notices.count("many_issuers") == warns
