"""Taking over: what is told and waited for while groups of an earlier, or a lost, leadership are on their way to the disk."""

from __future__ import annotations

import pytest

from kvp2p.core.batches import Settle, WriteGroup
from kvp2p.core.messages import Digest
from kvp2p.core.operations import Put
from kvp2p.core.system_rows import IssuerRow, encode_issuer
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer
from tests.core.harness import SETTINGS, Cluster, Node, designated, digest_of, issuer_rows, put


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
    before = a.machine.board.vector.stamp_of(issuer)
    a.finish()
    assert a.role == "taking_over"
    ended = a.machine.board.vector.stamp_of(issuer)
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
    assert issuer_rows(a.store)[issuer].closed == a.machine.board.vector.stamp_of(issuer)


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
    assert rows[persist.batch.issuer].closed == a.machine.board.vector.stamp_of(persist.batch.issuer)
