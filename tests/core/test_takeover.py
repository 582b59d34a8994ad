"""Taking over: what is told and waited for while groups of an earlier, or a lost, leadership are on their way to the disk."""

from __future__ import annotations

import pytest

from kvp2p.core.batches import WriteGroup
from kvp2p.core.messages import Digest
from tests.core.harness import SETTINGS, Cluster, designated, digest_of, issuer_rows


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
