"""Large writes at the leader: staged, complete, and only then a write like any other; dropped whole when their time or link ends."""

from __future__ import annotations

from random import Random

import pytest

from kvp2p.core import large_writes
from kvp2p.core.batches import ChunkBatch, WriteGroup
from kvp2p.core.entry import chunk_id
from kvp2p.core.events import Stop
from kvp2p.core.messages import ChunkMissing, ChunkPart, ChunkPull, Forward, ForwardOutcome
from kvp2p.core.operations import Ending, Operation
from kvp2p.ids import SYSTEM_NAMESPACE, NamespaceId
from kvp2p.limits import CHUNK_PULLS_MAX, WRITE_CHUNK_PULLS_MAX
from tests.core.harness import (
    CHUNK_BYTES,
    MS,
    SETTINGS,
    SPACE,
    Cluster,
    Node,
    chunked_row,
    chunks_in,
    chunks_of_value,
    designated,
    digest_of,
    frame_with,
    large_put,
    put,
    shown_value,
    staged_in,
)

VALUE = bytes(range(256)) + b"some more of it"
IDS = [chunk_id(content) for content in chunks_of_value(VALUE)]


def leading() -> Node:
    a = Cluster().add("a", leads=True)
    a.make_space()
    return a


def refusal(node: Node, request: int) -> tuple[str, str]:
    outcome = node.replies[request]
    assert outcome.ending is Ending.REFUSED
    return outcome.code, outcome.message


def forward(node: Node, request: int, *operations: Operation, left_ms: int = 5_000) -> None:
    node.hears("b", Forward(request, node.cluster.mono_ns + left_ms * MS, operations))


def test_a_large_value_of_a_client_of_the_leader_is_stored_and_its_chunks_stay_with_its_row() -> None:
    a = leading()
    request = a.write_large(b"k", VALUE)
    assert a.replies[request].ending == Ending.ACKED
    a.end_upload(request)
    assert staged_in(a.store) == []
    assert len(chunks_in(a.store)) == -(-len(VALUE) // CHUNK_BYTES)
    assert shown_value(a.store, b"k") == VALUE
    a.write(put(b"k", b"small", SPACE))
    assert chunks_in(a.store) == []
    assert shown_value(a.store, b"k") == b"small"


def test_it_costs_its_staging_batch_and_no_more() -> None:
    a = leading()
    value = Random(1).randbytes(250)
    for content in chunks_of_value(value):
        a.stage(1, content)
    a.hold_disk()
    request = a.write(large_put(b"k", value))
    assert [type(persist.batch) for persist in a.disk] == [ChunkBatch]
    a.finish()
    assert [type(persist.batch) for persist in a.disk] == [WriteGroup]
    a.finish()
    assert a.replies[request].ending == Ending.ACKED


def test_its_chunks_outlive_the_upload_and_rows_that_named_them_while_it_waits() -> None:
    a = leading()
    upload = a.write_large(b"k", VALUE)
    a.hold_disk()
    request = a.write(large_put(b"l", VALUE))
    a.finish()
    a.end_upload(upload)
    a.write(put(b"k", b"small", SPACE))
    a.release_disk()
    assert a.replies[request].ending == Ending.ACKED
    assert shown_value(a.store, b"l") == VALUE
    assert len(chunks_in(a.store)) == 3
    assert staged_in(a.store) == []


def test_chunks_of_a_refused_write_go() -> None:
    a = leading()
    upload = a.next_request + 3
    for content in chunks_of_value(VALUE):
        a.stage(upload, content)
    request = a.write(large_put(b"k", VALUE, NamespaceId(b"no such space !!")))
    assert a.replies[request].code == "namespace_not_found"
    a.end_upload(upload)
    assert chunks_in(a.store) == staged_in(a.store) == []


def test_a_write_of_chunks_that_its_own_node_does_not_have_is_refused() -> None:
    a = leading()
    why = "3 chunks of the write were not uploaded to this node; nothing was applied"
    assert refusal(a, a.write(large_put(b"k", VALUE))) == ("bad_request", why)
    assert chunks_in(a.store) == staged_in(a.store) == []


def test_a_large_value_does_not_go_into_the_system_namespace() -> None:
    a = leading()
    request = a.write_large(b"k", VALUE, SYSTEM_NAMESPACE)
    why = "a value of the system namespace is never in chunks; nothing was applied"
    assert refusal(a, request) == ("bad_request", why)


def test_a_full_disk_refuses_it_before_it_is_tried() -> None:
    a = leading()
    a.hold_disk()
    request = a.write(large_put(b"k", VALUE))
    a.fail()
    assert refusal(a, request) == ("disk_full", "the leader could not store the write: disk full")
    a.release_disk()
    assert staged_in(a.store) == []


@pytest.mark.parametrize("ended_while", ["staging", "waiting in the queue"])
def test_a_large_write_past_its_deadline_is_refused(ended_while: str) -> None:
    a = leading()
    upload = a.write_large(b"k", VALUE)
    a.hold_disk()
    request = a.write(large_put(b"l", VALUE), deadline_ms=100)
    if ended_while == "waiting in the queue":
        a.write(put(b"other"))
        a.finish()
        a.cluster.mono_ns += 101 * MS
        a.finish()
    else:
        a.cluster.pass_ms(101)
    code, why = refusal(a, request)
    assert code == "deadline_passed"
    assert why.startswith(
        "the write's chunks were not at the leader by its deadline; nothing was applied"
        if ended_while == "staging"
        else "the write waited past its deadline; nothing was applied"
    )
    a.end_upload(upload)
    a.write(put(b"k", b"small", SPACE))
    a.release_disk()
    assert shown_value(a.store, b"l") is None
    assert chunks_in(a.store) == staged_in(a.store) == []


@pytest.mark.parametrize("is_staged", [True, False])
def test_a_leader_that_stops_refuses_large_writes_that_wait(is_staged: bool) -> None:
    a = leading()
    upload = a.write_large(b"k", VALUE)
    a.hold_disk()
    request = a.write(large_put(b"l", VALUE))
    if is_staged:
        a.write(put(b"other"))
        a.finish()
    a.handle(Stop())
    assert refusal(a, request) == ("no_leader", "the leader is stopping; nothing was applied")
    late = a.write(large_put(b"m", VALUE))
    assert refusal(a, late) == ("no_leader", "this node has stopped leading; nothing was applied")
    a.release_disk()
    a.end_upload(upload)
    assert staged_in(a.store) == []


def test_a_leader_that_steps_down_refuses_large_writes_that_wait() -> None:
    a = leading()
    a.write_large(b"k", VALUE)
    a.meets("b", digest_of())
    a.hold_disk()
    request = a.write(large_put(b"l", VALUE))
    a.hears("b", digest_of(designation=designated("b", term=9)))
    assert refusal(a, request) == ("no_leader", "another designation was heard of; nothing was applied")
    a.release_disk()
    assert shown_value(a.store, b"l") is None


def test_large_writes_and_their_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_writes, "LARGE_WRITES_MAX", 1)
    monkeypatch.setattr(large_writes, "CHUNKS_PER_WRITE_MAX", 3)
    a = leading()
    a.write_large(b"k", VALUE)
    a.hold_disk()
    request = a.write(large_put(b"l", VALUE))
    why = "too many large values are on their way to the leader; nothing was applied"
    assert refusal(a, a.write(large_put(b"m", VALUE))) == ("overloaded", why)
    why = "the values of one write have at most 3 chunks, not 4; nothing was applied"
    assert refusal(a, a.write(large_put(b"m", VALUE), large_put(b"n", b"another"))) == ("bad_request", why)
    a.release_disk()
    assert a.replies[request].ending == Ending.ACKED
    assert a.replies[a.write(large_put(b"m", VALUE))].ending == Ending.ACKED


def test_a_closed_link_drops_its_large_writes_and_gets_no_old_answers() -> None:
    a = leading()
    upload = a.write_large(b"k", VALUE)
    a.meets("b", digest_of())
    a.hold_disk()
    forward(a, 1, large_put(b"l", VALUE))
    forward(a, 2, large_put(b"m", VALUE))
    a.write(put(b"other"))
    a.finish()
    a.loses("b")
    a.meets("b", digest_of())
    a.release_disk()
    a.end_upload(upload)
    assert a.sent_to("b", ForwardOutcome) == []
    assert shown_value(a.store, b"l") is shown_value(a.store, b"m") is None
    assert staged_in(a.store) == []
    forward(a, 1, large_put(b"l", VALUE))
    assert a.sent_to("b", ForwardOutcome)[0].outcome.ending == Ending.ACKED


# --- writes that other nodes took in


def test_a_leader_pulls_the_chunks_of_a_forwarded_write_from_the_node_that_took_it() -> None:
    a = leading()
    a.meets("b", digest_of())
    a.meets("c", digest_of())
    forward(a, 1, large_put(b"k", VALUE))
    assert [pull.chunk for pull in a.sent_to("b", ChunkPull)] == IDS[:2], "two at a time from each peer"
    for content in chunks_of_value(VALUE):
        assert a.sent_to("b", ForwardOutcome) == []
        send_chunk(a, "b", content)
    assert a.sent_to("b", ForwardOutcome)[0].outcome.ending == Ending.ACKED
    assert a.sent_to("c", ChunkPull) == []
    assert shown_value(a.store, b"k") == VALUE
    assert staged_in(a.store) == []


def test_chunks_of_writes_give_no_place_of_rows_a_rest() -> None:
    a = leading()
    a.meets("b", digest_of())
    forward(a, 1, large_put(b"k", VALUE))
    a.write(put(b"other"))
    a.cluster.mono_ns += 20 * MS
    contents = chunks_of_value(Random(1).randbytes(2 * CHUNK_PULLS_MAX * CHUNK_BYTES))
    row = chunked_row(1, b"".join(contents))
    a.hears("b", frame_with(0, 1, key=b"large", row=row))
    send_chunk(a, "b", VALUE[:CHUNK_BYTES])
    send_chunk(a, "b", contents[0])
    asked = [pull.chunk for pull in a.sent_to("b", ChunkPull)]
    assert [chunk for chunk in asked if chunk not in IDS] == list(map(chunk_id, contents[: CHUNK_PULLS_MAX + 1]))


def test_only_what_is_missing_is_pulled() -> None:
    a = leading()
    a.meets("b", digest_of())
    a.write_large(b"k", VALUE[:200])
    forward(a, 1, large_put(b"l", VALUE))
    assert [pull.chunk for pull in a.sent_to("b", ChunkPull)] == IDS[2:]


def test_a_write_that_has_ended_before_its_batch_failed_is_told_once() -> None:
    a = leading()
    a.meets("b", digest_of())
    a.hold_disk()
    forward(a, 1, large_put(b"k", VALUE))
    a.loses("b")
    a.fail()
    a.release_disk()
    assert a.sent_to("b", ForwardOutcome) == []
    assert staged_in(a.store) == []


def test_small_values_in_a_large_write_are_stored_with_it() -> None:
    a = leading()
    upload = a.write_large(b"k", VALUE)
    a.end_upload(upload)
    request = a.write(large_put(b"l", VALUE), put(b"m", b"small", SPACE))
    assert a.replies[request].ending == Ending.ACKED
    assert (shown_value(a.store, b"l"), shown_value(a.store, b"m")) == (VALUE, b"small")


def test_two_writes_that_name_one_chunk_wait_for_one_pull() -> None:
    a = leading()
    a.meets("b", digest_of())
    a.meets("c", digest_of())
    forward(a, 1, large_put(b"k", VALUE[:100]))
    a.hears("c", Forward(1, a.cluster.mono_ns + 100 * MS, (large_put(b"l", VALUE[:100]),)))
    assert (len(a.sent_to("b", ChunkPull)), len(a.sent_to("c", ChunkPull))) == (1, 0)
    a.cluster.pass_ms(100)
    assert a.sent_to("c", ForwardOutcome)[0].outcome.code == "deadline_passed"
    a.hears("c", Forward(2, a.cluster.mono_ns + 1_000 * MS, (large_put(b"l", VALUE[:100]),)))
    send_chunk(a, "b", VALUE[:100])
    assert a.sent_to("b", ForwardOutcome)[0].outcome.ending == Ending.ACKED
    assert a.sent_to("c", ForwardOutcome)[1].outcome.ending == Ending.ACKED


def test_a_pull_for_two_writes_goes_on_at_the_other_node_when_one_goes_away() -> None:
    a = leading()
    a.meets("b", digest_of())
    a.meets("c", digest_of())
    forward(a, 1, large_put(b"k", VALUE[:100]))
    a.hears("c", Forward(1, a.cluster.mono_ns + 100 * MS, (large_put(b"l", VALUE[:100]),)))
    a.loses("b")
    assert len(a.sent_to("c", ChunkPull)) == 1
    send_chunk(a, "c", VALUE[:100])
    assert shown_value(a.store, b"l") == VALUE[:100]
    assert shown_value(a.store, b"k") is None


def test_what_waits_for_chunks_is_dropped_with_its_link_and_its_deadline() -> None:
    a = leading()
    a.meets("b", digest_of())
    forward(a, 1, large_put(b"k", VALUE), left_ms=100)
    a.cluster.pass_ms(100)
    assert a.sent_to("b", ForwardOutcome)[0].outcome.code == "deadline_passed"
    forward(a, 2, large_put(b"l", VALUE))
    a.loses("b")
    a.meets("b", digest_of())
    for content in chunks_of_value(VALUE):
        send_chunk(a, "b", content)
    assert len(a.sent_to("b", ForwardOutcome)) == 1
    assert chunks_in(a.store) == staged_in(a.store) == []
    assert shown_value(a.store, b"k") is shown_value(a.store, b"l") is None


def test_a_leader_that_steps_down_refuses_what_waits_for_chunks() -> None:
    a = leading()
    a.meets("b", digest_of())
    a.meets("c", digest_of())
    forward(a, 1, large_put(b"k", VALUE))
    a.hears("c", digest_of(designation=designated("c", term=9)))
    assert a.sent_to("b", ForwardOutcome)[0].outcome.code == "no_leader"
    assert staged_in(a.store) == []
    send_chunk(a, "b", VALUE[:100])
    assert chunks_in(a.store) == []


@pytest.mark.parametrize("why", ["missing", "wrong", "disk full"])
def test_a_write_whose_chunks_cannot_be_had_is_refused(why: str) -> None:
    a = leading()
    a.meets("b", digest_of())
    forward(a, 1, large_put(b"k", VALUE))
    other = large_put(b"l", VALUE)
    forward(a, 2, other)
    if why == "missing":
        a.hears("b", ChunkMissing(IDS[0]))
    elif why == "wrong":
        a.hears("b", ChunkPart(IDS[0], 0, 2, b"no"))
    else:
        a.hold_disk()
        send_chunk(a, "b", VALUE[:100])
        a.fail()
        a.release_disk()
    told = {
        "missing": ("bad_request", "a chunk of the write is not at the node that took it; nothing was applied"),
        "wrong": ("bad_request", "a chunk of the write is not what its id says; nothing was applied"),
        "disk full": ("disk_full", "the leader's disk is full; nothing was applied"),
    }
    outcomes = [answer.outcome for answer in a.sent_to("b", ForwardOutcome)]
    assert [(outcome.code, outcome.message) for outcome in outcomes] == 2 * [told[why]]
    assert staged_in(a.store) == chunks_in(a.store) == []
    for content in chunks_of_value(VALUE)[1:2]:
        send_chunk(a, "b", content)
    forward(a, 3, large_put(b"k", VALUE))
    for content in chunks_of_value(VALUE):
        send_chunk(a, "b", content)
    assert a.sent_to("b", ForwardOutcome)[2].outcome.ending == Ending.ACKED, "it may try again at once"


def test_the_node_that_took_a_write_is_given_time_until_the_deadline() -> None:
    a = leading()
    a.meets("b", digest_of())
    forward(a, 1, large_put(b"k", VALUE[:100]), left_ms=4 * SETTINGS.pull_timeout_ms)
    a.cluster.pass_ms(3 * SETTINGS.pull_timeout_ms)
    assert len(a.sent_to("b", ChunkPull)) == 1
    send_chunk(a, "b", VALUE[:100])
    assert a.sent_to("b", ForwardOutcome)[0].outcome.ending == Ending.ACKED


def test_questions_open_at_one_peer_are_bounded() -> None:
    a = leading()
    a.meets("b", digest_of())
    for request in range(8):
        value = b"value %d" % request
        forward(a, request, large_put(b"k", value), left_ms=10)
        a.cluster.pass_ms(10)
    forward(a, 9, large_put(b"k", b"last"), left_ms=60_000)
    assert len(a.sent_to("b", ChunkPull)) == CHUNK_PULLS_MAX + WRITE_CHUNK_PULLS_MAX
    send_chunk(a, "b", b"value 0")
    assert a.sent_to("b", ChunkPull)[-1].chunk == chunk_id(b"last")


def send_chunk(a: Node, peer: str, content: bytes) -> None:
    """Answer for a chunk as the node does that has staged it; parts of what was not asked for are dropped."""
    a.hears(peer, ChunkPart(chunk_id(content), 0, len(content), content))
