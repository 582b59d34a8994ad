"""Uploads: chunks that local clients send are durable when told so, are shared by content, and go when nobody keeps them."""

from __future__ import annotations

import pytest

from kvp2p.core import chunk_intake, staging, uploads
from kvp2p.core.batches import ChunkBatch
from kvp2p.core.entry import ChunkId, chunk_id
from kvp2p.core.events import Stop
from kvp2p.core.operations import Ending
from kvp2p.limits import CHUNK_BYTES, CHUNK_BYTES_TO_DISK_MAX, CHUNKS_PER_VALUE_MAX
from tests.core.harness import SETTINGS, Cluster, Node, chunks_in, staged_in


def released(node: Node) -> list[int]:
    """List the sizes of the batches on their way to the disk that only release."""
    return [len(one.batch.release) for one in node.disk if isinstance(one.batch, ChunkBatch) and one.batch.release]


def test_a_chunk_is_acknowledged_when_it_is_durable_and_goes_with_its_upload() -> None:
    a = Cluster().add("a", leads=True)
    a.hold_disk()
    request = a.stage(1, b"content")
    assert a.replies == {}
    a.release_disk()
    assert a.replies[request].ending == Ending.ACKED
    assert chunks_in(a.store) == [chunk_id(b"content")]
    a.end_upload(1)
    assert chunks_in(a.store) == staged_in(a.store) == []
    a.end_upload(1)


def test_a_chunk_that_two_uploads_share_stays_until_both_have_ended() -> None:
    a = Cluster().add("a", leads=True)
    a.stage(1, b"content")
    a.stage(1, b"content")
    a.stage(2, b"content")
    a.end_upload(1)
    assert chunks_in(a.store) == [chunk_id(b"content")]
    a.end_upload(2)
    assert chunks_in(a.store) == []


def test_a_chunk_that_is_kept_anew_while_it_is_released_stays() -> None:
    a = Cluster().add("a", leads=True)
    a.stage(1, b"content")
    a.stage(2, b"other")
    a.hold_disk()
    a.end_upload(1)
    a.end_upload(2)  # waits for the batch that releases the first
    a.stage(3, b"content")
    a.stage(3, b"other")
    a.release_disk()
    assert set(chunks_in(a.store)) == {chunk_id(b"content"), chunk_id(b"other")}
    a.end_upload(3)
    assert chunks_in(a.store) == []


def test_a_content_that_is_not_what_its_id_says_is_refused() -> None:
    a = Cluster().add("a", leads=True)
    assert a.replies[a.stage(1, b"content", ChunkId(b"i" * 32))].code == "bad_request"
    assert chunks_in(a.store) == []
    a.end_upload(1)
    assert staged_in(a.store) == []


def test_a_full_disk_refuses_chunks_and_still_releases_others() -> None:
    a = Cluster().add("a", leads=True)
    a.stage(1, b"content")
    a.hold_disk()
    request = a.stage(1, b"more")
    a.fail()
    assert a.replies[request].code == "disk_full"
    a.end_upload(1)
    (persist,) = a.disk
    assert persist.batch.may_use_reserve
    a.fail()  # not even that fits
    a.cluster.pass_ms(SETTINGS.digest_idle_ms)
    a.release_disk()
    assert chunks_in(a.store) == staged_in(a.store) == []


def test_what_an_earlier_life_had_staged_is_released_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STAGED_RELEASED_MAX", 2)
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    for n in range(5):
        a.stage(1, b"%d" % n)
    again = cluster.add("a", store=a.store)
    assert chunks_in(again.store) == staged_in(again.store) == []

    b = cluster.add("b")
    for n in range(5):
        b.stage(1, b"%d" % n)
    b.hold_disk()
    b.start()
    assert released(b) == [2]
    kept = b.stage(9, b"0"), b.stage(9, b"4")
    b.release_disk()
    assert all(b.replies[request].ending == Ending.ACKED for request in kept)
    assert set(staged_in(b.store)) == {chunk_id(b"0"), chunk_id(b"4")}
    assert set(chunks_in(b.store)) == {chunk_id(b"0"), chunk_id(b"4")}


def test_contents_wait_while_enough_are_on_their_way_to_the_disk() -> None:
    a = Cluster().add("a", leads=True)
    a.hold_disk()
    fit = CHUNK_BYTES_TO_DISK_MAX // CHUNK_BYTES
    requests = [a.stage(1, bytes([n]) * CHUNK_BYTES) for n in range(fit + 2)]
    assert len(a.disk) == fit
    a.finish()
    assert len(a.disk) == fit
    assert list(a.replies) == requests[:1]
    a.release_disk()
    assert [a.replies[request].ending for request in requests] == [Ending.ACKED] * (fit + 2)


def test_what_still_waits_of_an_upload_that_has_ended_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_intake, "CHUNK_BYTES_TO_DISK_MAX", 10)
    a = Cluster().add("a", leads=True)
    a.hold_disk()
    first, second, third = a.stage(1, b"first ten!"), a.stage(1, b"second"), a.stage(2, b"third")
    a.end_upload(1)
    begun_anew = a.stage(1, b"anew")
    a.release_disk()
    assert a.replies[first].ending == a.replies[third].ending == a.replies[begun_anew].ending == Ending.ACKED
    assert a.replies[second].code == "bad_request"
    assert set(chunks_in(a.store)) == {chunk_id(b"third"), chunk_id(b"anew")}


def test_uploads_their_chunks_and_their_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "UPLOADS_MAX", 1)
    monkeypatch.setattr(uploads, "UPLOAD_BYTES_WAITING_MAX", 20)
    a = Cluster().add("a", leads=True)
    for n in range(CHUNKS_PER_VALUE_MAX):
        assert a.replies[a.stage(1, b"%d" % n)].ending == Ending.ACKED
    assert a.replies[a.stage(1, b"one more")].code == "bad_request"
    assert a.replies[a.stage(1, b"0")].ending == Ending.ACKED
    assert a.replies[a.stage(2, b"of another")].code == "overloaded"
    a.hold_disk()
    monkeypatch.setattr(chunk_intake, "CHUNK_BYTES_TO_DISK_MAX", 1)
    a.stage(1, b"5")
    waiting = a.stage(1, b"50")
    assert a.replies[a.stage(1, b"x" * 19, chunk_id(b"50"))].code == "overloaded"
    monkeypatch.setattr(chunk_intake, "CHUNK_BYTES_TO_DISK_MAX", 100)
    a.release_disk()
    assert a.replies[waiting].ending == Ending.ACKED
    assert len(a.machine.large_values.uploads) == 1


def test_a_node_that_stops_takes_no_chunks() -> None:
    a = Cluster().add("a", leads=True)
    a.handle(Stop())
    assert a.replies[a.stage(1, b"content")].code == "no_leader"
