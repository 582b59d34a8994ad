"""Chunk pulls: what rows lack comes a few chunks at a time, from the leader first, from others when it must, and never twice."""

from __future__ import annotations

from random import Random

import pytest

from kvp2p.core import chunk_pulls, chunk_rows
from kvp2p.core.batches import ChunkBatch
from kvp2p.core.entry import ChunkId, ChunkList, Kind, chunk_id, encode_chunk_list, encode_row
from kvp2p.core.messages import ChunkMissing, ChunkPart, ChunkPull, Digest, ForwardOutcome, Frame
from kvp2p.core.operations import Ending, Outcome, Put
from kvp2p.core.serve import serve
from kvp2p.limits import CHUNK_BYTES as CHUNK_BYTES_MAX
from kvp2p.limits import CHUNK_PAUSE_MS_MAX, CHUNK_PULLS_BUSY_MAX, CHUNK_PULLS_MAX
from tests.core.harness import (
    MS,
    PART_BYTES,
    SETTINGS,
    SPACE,
    Cluster,
    Node,
    apply,
    chunked_row,
    chunks_in,
    chunks_of_value,
    designated,
    digest_of,
    frame_of,
    frame_with,
    large_put,
    new_store,
    put,
    shown_value,
    vector,
    version,
)

VALUE = Random(1).randbytes(250)
LARGE = Random(2).randbytes(950)
HUGE = Random(3).randbytes(2_000)
IDS = tuple(chunk_id(content) for content in chunks_of_value(VALUE))
LARGE_IDS = tuple(chunk_id(content) for content in chunks_of_value(LARGE))


def following(*peers: str) -> Node:
    """A follower of the leader z, whom the test plays, with other complete peers."""
    a = Cluster().add("a")
    a.meets("z", digest_of(designation=designated("z")))
    for peer in peers:
        a.meets(peer, digest_of())
    return a


def lacking(value: bytes, *peers: str) -> Node:
    a = following(*peers)
    a.hears("z", frame_with(0, 1, key=b"k", row=chunked_row(1, value)))
    return a


def asked(a: Node, peer: str = "z") -> list[ChunkId]:
    return [pull.chunk for pull in a.sent_to(peer, ChunkPull)]


def answer(a: Node, peer: str, content: bytes, offset: int = 0, upto: int | None = None) -> None:
    """Send parts of a chunk as a peer does that has it."""
    chunk = chunk_id(content)
    for at in range(offset, len(content) if upto is None else upto, PART_BYTES):
        a.hears(peer, ChunkPart(chunk, at, len(content), content[at : at + PART_BYTES]))


def test_a_large_value_reaches_every_replica() -> None:
    cluster = Cluster()
    a, b, c = cluster.add("a", leads=True), cluster.add("b"), cluster.add("c")
    cluster.link("a", "b")
    cluster.link("a", "c")
    cluster.link("b", "c")
    a.make_space()
    cluster.settle()
    request = a.write_large(b"k", LARGE)
    cluster.settle()
    a.end_upload(request)
    for node in (a, b, c):
        assert shown_value(node.store, b"k") == LARGE
        assert set(chunks_in(node.store)) == set(LARGE_IDS)
        assert node.machine.board.pending.versions == ()
    assert b.machine.large_values.pulls.pulled == 10
    assert b.machine.large_values.pulls.received_bytes == len(LARGE)
    cluster.assert_equal()
    a.write(put(b"k", b"small", SPACE))
    cluster.settle()
    assert [chunks_in(node.store) for node in (a, b, c)] == [[], [], []]


def test_a_few_chunks_are_pulled_at_a_time_each_until_the_disk_has_it() -> None:
    a = lacking(LARGE)
    assert asked(a) == list(LARGE_IDS[:CHUNK_PULLS_MAX])
    a.hold_disk()
    first, *rest = chunks_of_value(LARGE)
    answer(a, "z", first)
    assert len(asked(a)) == CHUNK_PULLS_MAX
    a.finish()
    assert asked(a)[CHUNK_PULLS_MAX:] == [LARGE_IDS[CHUNK_PULLS_MAX]]
    a.release_disk()
    for content in rest:
        answer(a, "z", content)
    assert shown_value(a.store, b"k") == LARGE
    assert len(asked(a)) == 10


def test_a_restarted_node_asks_only_for_what_is_still_missing() -> None:
    a = lacking(VALUE)
    first, second, third = chunks_of_value(VALUE)
    answer(a, "z", second)
    answer(a, "z", first, upto=PART_BYTES)
    a.start()
    a.meets("z", digest_of(vector(x=1), designation=designated("z")))
    a.sent = [(peer, message) for peer, message in a.sent if isinstance(message, ChunkPull | Digest)]
    assert asked(a) == [IDS[0], IDS[2]]
    answer(a, "z", first)
    answer(a, "z", third)
    assert shown_value(a.store, b"k") == VALUE


def test_pulls_of_a_superseded_value_are_cancelled_and_late_parts_dropped() -> None:
    a = lacking(VALUE)
    first = chunks_of_value(VALUE)[0]
    answer(a, "z", first, upto=PART_BYTES)
    a.hears("z", frame_with(1, 2, key=b"k", row=chunked_row(2, LARGE)))
    assert asked(a) == [*IDS, *LARGE_IDS[:5]], "one more would be too many questions open at one peer"
    for content in chunks_of_value(VALUE):
        answer(a, "z", content, offset=PART_BYTES if content is first else 0)
    assert chunks_in(a.store) == []
    assert asked(a)[8:] == [LARGE_IDS[5]]
    answer(a, "z", chunks_of_value(LARGE)[0])
    assert chunks_in(a.store) == [LARGE_IDS[0]]


def test_another_peer_is_asked_when_one_does_not_have_a_chunk_and_it_again_only_after_a_while() -> None:
    a = lacking(b"content", "y")
    chunk = chunk_id(b"content")
    assert (asked(a), asked(a, "y")) == ([chunk], [])
    a.hears("z", ChunkMissing(chunk))
    a.hears("z", ChunkMissing(chunk))
    assert (asked(a), asked(a, "y")) == ([chunk], [chunk])
    a.hears("y", ChunkMissing(chunk))
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms - 1)
    assert len(asked(a)) == 1
    a.cluster.pass_ms(1)
    assert len(asked(a)) == 2
    answer(a, "z", b"content")
    assert shown_value(a.store, b"k") == b"content"


def test_a_node_that_nobody_can_help_asks_a_peer_that_comes() -> None:
    a = lacking(b"content")
    a.hears("z", ChunkMissing(chunk_id(b"content")))
    a.meets("x", digest_of(complete=False))
    a.meets("y", digest_of())
    assert asked(a, "x") == []
    assert asked(a, "y") == [chunk_id(b"content")]


def test_a_chunk_goes_on_at_another_peer_from_where_it_is_when_a_link_ends() -> None:
    a = lacking(VALUE[:100], "y")
    answer(a, "z", VALUE[:100], upto=2 * PART_BYTES)
    a.loses("z")
    (pull,) = a.sent_to("y", ChunkPull)
    assert (pull.chunk, pull.offset, pull.part_bytes) == (IDS[0], 2 * PART_BYTES, PART_BYTES)
    answer(a, "y", VALUE[:100], offset=2 * PART_BYTES)
    assert shown_value(a.store, b"k") == VALUE[:100]


def test_a_chunk_that_nobody_has_any_more_is_asked_for_when_somebody_comes() -> None:
    a = lacking(VALUE[:100])
    answer(a, "z", VALUE[:100], upto=PART_BYTES)
    a.loses("z")
    a.meets("y", digest_of())
    assert [pull.offset for pull in a.sent_to("y", ChunkPull)] == [0]


def test_a_silent_peer_is_joined_by_another_and_whoever_is_first_counts() -> None:
    a = lacking(VALUE[:100], "y")
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms - 1)
    answer(a, "z", VALUE[:100], upto=PART_BYTES)
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms - 1)
    assert asked(a, "y") == []
    a.cluster.pass_ms(1)
    assert [pull.offset for pull in a.sent_to("y", ChunkPull)] == [PART_BYTES]
    a.cluster.pass_ms(2 * SETTINGS.pull_timeout_ms)
    assert len(asked(a)) + len(asked(a, "y")) == 2, "each is asked once: it answers or its link ends"
    answer(a, "z", VALUE[:100], offset=PART_BYTES, upto=2 * PART_BYTES)
    a.hears("y", ChunkPart(IDS[0], 70, 100, VALUE[70:100]))
    assert shown_value(a.store, b"k") == VALUE[:100]
    answer(a, "z", VALUE[:100], offset=2 * PART_BYTES)


def test_an_answer_that_leaves_a_hole_is_asked_for_again() -> None:
    a = lacking(VALUE[:100], "y")
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms)
    answer(a, "z", VALUE[:100], upto=2 * PART_BYTES)
    a.hears("y", ChunkPart(IDS[0], 90, 100, VALUE[90:100]))
    assert len(asked(a, "y")) == 1, "the other one is still to answer"
    a.loses("z")
    assert [pull.offset for pull in a.sent_to("y", ChunkPull)] == [0, 2 * PART_BYTES]


def test_parts_that_were_not_asked_for_change_nothing() -> None:
    a = lacking(VALUE, "y")
    answer(a, "y", VALUE[:100])
    answer(a, "z", b"something else")
    assert chunks_in(a.store) == []
    assert a.machine.large_values.pulls.pulled == 0


def test_a_content_that_is_not_what_its_id_says_is_told_and_asked_of_another() -> None:
    a = lacking(b"content", "y")
    chunk = chunk_id(b"content")
    a.hears("z", ChunkPart(chunk, 0, 7, b"c0ntent"))
    assert "chunk_refused" in a.notices
    assert a.machine.large_values.pulls.refused == 1
    assert asked(a, "y") == [chunk]
    answer(a, "y", b"content")
    assert shown_value(a.store, b"k") == b"content"


def test_senders_that_contradict_each_other_are_both_left_for_a_while() -> None:
    a = lacking(VALUE[:100], "y", "x")
    a.cluster.pass_ms(SETTINGS.pull_timeout_ms)
    second = "y" if asked(a, "y") else "x"
    third = "x" if second == "y" else "y"
    answer(a, second, VALUE[:100], upto=PART_BYTES)
    a.hears("z", ChunkPart(IDS[0], PART_BYTES, 99, VALUE[40:80]))
    assert a.machine.large_values.pulls.refused == 1
    assert asked(a, third) == [IDS[0]]
    answer(a, second, VALUE[:100], offset=PART_BYTES)
    assert chunks_in(a.store) == [], "of one that is left alone nothing is taken"
    answer(a, third, VALUE[:100])
    assert shown_value(a.store, b"k") == VALUE[:100]


def test_a_full_disk_stops_pulls_for_a_while() -> None:
    a = lacking(LARGE)
    a.hold_disk()
    for content in chunks_of_value(LARGE)[:2]:
        answer(a, "z", content)
    a.fail()
    a.fail()
    assert len(asked(a)) == CHUNK_PULLS_MAX
    a.release_disk()
    a.cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert asked(a)[CHUNK_PULLS_MAX:] == list(LARGE_IDS[:2])


def test_while_other_entries_come_fewer_chunks_are_pulled_and_their_places_rest() -> None:
    a = lacking(HUGE)
    contents = chunks_of_value(HUGE)
    assert len(asked(a)) == CHUNK_PULLS_MAX
    a.cluster.mono_ns += 20 * MS
    a.hears("z", frame_of(1, 2))
    for content in contents[:CHUNK_PULLS_MAX]:
        answer(a, "z", content)
    a.cluster.pass_ms(19)
    assert len(asked(a)) == CHUNK_PULLS_MAX, "as long as these took"
    a.cluster.pass_ms(1)
    assert len(asked(a)) == CHUNK_PULLS_MAX + CHUNK_PULLS_BUSY_MAX
    a.cluster.mono_ns += 4_000 * MS
    a.hears("z", frame_of(2, 3))
    answer(a, "z", contents[CHUNK_PULLS_MAX])
    assert len(asked(a)) == CHUNK_PULLS_MAX + CHUNK_PULLS_BUSY_MAX
    a.cluster.pass_ms(CHUNK_PAUSE_MS_MAX)
    assert len(asked(a)) == CHUNK_PULLS_MAX + CHUNK_PULLS_BUSY_MAX + 1, "not for ever"
    answer(a, "z", contents[CHUNK_PULLS_MAX + CHUNK_PULLS_BUSY_MAX])
    assert len(asked(a)) == 2 * CHUNK_PULLS_MAX + 2, "and at full speed when nothing else comes"


def test_a_steady_stream_of_small_writes_does_not_keep_a_large_value_away() -> None:
    a = lacking(HUGE)
    contents = {chunk_id(content): content for content in chunks_of_value(HUGE)}
    took_ms = 10
    asked_at = [(0, chunk) for chunk in asked(a)]
    ms = answered = 0
    while shown_value(a.store, b"k") is None:
        ms += 1
        a.hears("z", frame_of(ms, ms + 1))
        a.cluster.pass_ms(1)
        while answered < len(asked_at) and asked_at[answered][0] + took_ms <= ms:
            answer(a, "z", contents[asked_at[answered][1]])
            answered += 1
        asked_at += [(ms, chunk) for chunk in asked(a)[len(asked_at) :]]
        assert ms < 1_000
    others = len(contents) - CHUNK_PULLS_MAX
    assert ms == took_ms + 2 * took_ms * others // CHUNK_PULLS_BUSY_MAX, "half of the time goes by with rests"


def test_chunks_that_are_not_told_any_more_are_not_cancelled_while_many_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (chunk_rows, chunk_pulls):
        monkeypatch.setattr(module, "CHUNKS_WANTED_FIRST_MAX", 2)
    monkeypatch.setattr(chunk_rows, "CHUNKS_WANTED_MAX", 2)
    a = lacking(VALUE)
    assert asked(a) == list(IDS[:2])
    a.hears("z", frame_with(0, 1, key=b"l", row=chunked_row(1, LARGE, "b"), issuer="b"))
    assert a.machine.board.pending.wanted == LARGE_IDS[:2]
    answer(a, "z", chunks_of_value(VALUE)[0])
    assert chunks_in(a.store) == [IDS[0]]
    assert asked(a) == [*IDS[:2], *LARGE_IDS[:2]]


def test_a_value_whose_chunks_nobody_has_keeps_no_later_one_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chunk_rows, chunk_pulls):
        monkeypatch.setattr(module, "CHUNKS_WANTED_FIRST_MAX", len(LARGE_IDS) // 2)
    monkeypatch.setattr(chunk_rows, "CHUNKS_WANTED_MAX", len(LARGE_IDS))
    a = lacking(LARGE)
    contents = {chunk_id(content): content for content in chunks_of_value(VALUE)}
    a.hears("z", frame_with(1, 2, key=b"l", row=chunked_row(2, VALUE)))
    answered = 0
    for _ in range(2 * len(IDS)):
        while answered < len(asked(a)):
            chunk = asked(a)[answered]
            answered += 1
            if chunk in contents:
                answer(a, "z", contents[chunk])
            else:
                a.hears("z", ChunkMissing(chunk))
        a.cluster.pass_ms(SETTINGS.pull_timeout_ms)
    assert shown_value(a.store, b"l") == VALUE
    assert shown_value(a.store, b"k") is None


# --- what waits for whole


def test_readers_wait_until_all_chunks_up_to_their_version_are_here() -> None:
    a = lacking(VALUE)
    a.hears("z", frame_with(1, 2, key=b"l", row=chunked_row(2, VALUE[:100])))
    first, second, third = chunks_of_value(VALUE)
    early, late = a.wait_for(version(1)), a.wait_for(version(2))
    answer(a, "z", first)
    assert shown_value(a.store, b"l") == VALUE[:100]
    assert a.replies == {}
    answer(a, "z", second)
    answer(a, "z", third)
    assert a.replies[early].ending == a.replies[late].ending == Ending.ACKED


def test_a_new_node_is_ready_when_its_values_are_whole() -> None:
    a = Cluster().add("a", knows="z")
    a.meets("z", digest_of(vector(x=1), designation=designated("z")))
    a.hears("z", frame_with(0, 1, key=b"k", row=chunked_row(1, VALUE)))
    assert not a.machine.readiness.is_ready
    for content in chunks_of_value(VALUE):
        assert not a.machine.readiness.is_ready
        assert a.machine.readiness.lacks_chunks
        answer(a, "z", content)
    assert a.machine.readiness.is_ready
    assert not a.machine.readiness.lacks_chunks


# --- serving


def test_a_chunk_is_served_in_parts_from_an_offset_on() -> None:
    store = new_store()
    apply(store, ChunkBatch(stage=IDS, contents=((IDS[0], VALUE[:100]),)))
    with store.read() as txn:
        parts = list(serve(txn, ChunkPull(IDS[0], 10, 40)))
        assert parts == [
            ChunkPart(IDS[0], 10, 100, VALUE[10:50]),
            ChunkPart(IDS[0], 50, 100, VALUE[50:90]),
            ChunkPart(IDS[0], 90, 100, VALUE[90:100]),
        ]
        for pull in (ChunkPull(IDS[0], 100, 40), ChunkPull(IDS[1], 0, 40)):
            assert list(serve(txn, pull)) == [ChunkMissing(pull.chunk)]


def test_a_frame_of_a_large_value_is_small_and_its_writer_is_told_as_soon_as_its_own_node_has_it() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b")
    cluster.link("a", "b")
    a.make_space()
    cluster.settle()
    request = b.write_large(b"k", LARGE)
    cluster.settle()
    assert b.replies[request].visible
    assert b.replies[request].ending == Ending.ACKED
    assert shown_value(b.store, b"k") == LARGE
    assert b.machine.large_values.pulls.pulled == 0, "it had staged them all"
    assert a.machine.large_values.pulls.pulled == 10
    assert sum(len(row) for frame in a.sent_to("b", Frame) for _, _, row in frame.rows) < 1_000
    b.end_upload(request)
    assert set(chunks_in(b.store)) == set(LARGE_IDS)


def acked(stamp: int) -> Outcome:
    return Outcome(Ending.ACKED, version=version(stamp))


def test_a_writer_waits_for_its_own_rows_only() -> None:
    a = lacking(LARGE)
    small = a.write(put(b"small"))
    large = a.write(large_put(b"l", VALUE[:100]), put(b"with it"))
    a.hears("z", frame_of(1, 2))
    a.hears("z", ForwardOutcome(small, acked(2)))
    assert a.replies[small].visible, "somebody's large value is no concern of it"
    a.hears("z", ForwardOutcome(large, acked(4)))
    a.hears("z", frame_with(2, 3, key=b"l", row=chunked_row(3, VALUE[:100])))
    a.hears("z", frame_of(3, 4))
    assert large not in a.replies
    for content in chunks_of_value(LARGE)[:5]:
        answer(a, "z", content)
    assert large not in a.replies
    for content in [*chunks_of_value(LARGE)[5:], VALUE[:100]]:
        answer(a, "z", content)
    assert a.replies[large].visible


def test_the_hold_of_a_large_write_is_longer_and_ends() -> None:
    a = following()
    value_bytes = 3 * 1024 * 1024
    body = encode_chunk_list(ChunkList(value_bytes, CHUNK_BYTES_MAX, IDS * 4))
    request = a.write(Put(SPACE, b"k", body, is_chunked=True))
    a.hears("z", ForwardOutcome(request, acked(1)))
    a.hears("z", frame_with(0, 1, key=b"k", row=encode_row(Kind.CHUNKED, body, None, 0, version(1))))
    a.cluster.pass_ms(SETTINGS.hold_ms + 3 * SETTINGS.hold_ms_per_mib - 1)
    assert request not in a.replies
    a.cluster.pass_ms(2)
    assert (a.replies[request].ending, a.replies[request].visible) == (Ending.ACKED, False)


def test_nobody_is_told_of_anything_while_not_all_that_lacks_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_rows, "PENDING_TOLD_MAX", 1)
    a = lacking(VALUE[:100])
    a.hears("z", frame_with(1, 2, key=b"l", row=chunked_row(2, VALUE[100:200])))
    request = a.write(put(b"small"))
    a.hears("z", frame_of(2, 3))
    a.hears("z", ForwardOutcome(request, acked(3)))
    assert request not in a.replies
    answer(a, "z", VALUE[:100])
    assert a.replies[request].visible
