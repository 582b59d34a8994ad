"""The bytes on the unix socket: chunks of messages, cut anywhere."""

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.core.operations import DeleteNamespace
from kvp2p.errors import LocalProtocolError, RemoteProtocolError
from kvp2p.ids import NamespaceId
from kvp2p.limits import CLOCK_OFFSET_MS_MAX, LOCAL_MESSAGE_BYTES_MAX
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import Hello, LocalMessage, Query, QueryAnswer, Readiness, Report
from tests.wire.strategies import local_messages

WRITE = [[3, bytes(16)]]


def chunk(value: object) -> bytes:
    body = cbor2.dumps(value)
    return len(body).to_bytes(4, "big") + body


@given(st.lists(local_messages, max_size=6), st.integers(1, 64))
def test_messages_come_back_however_the_stream_is_cut(sent: list[LocalMessage], piece_bytes: int) -> None:
    stream = encode_local(sent)
    decoder = LocalDecoder()
    received: list[LocalMessage] = []
    for at in range(0, len(stream), piece_bytes):
        received += decoder.feed(stream[at : at + piece_bytes])
    assert received == sent
    assert encode_local(received) == stream


@given(st.lists(local_messages, min_size=1, max_size=4), st.data())
def test_a_damaged_stream_is_refused_or_says_something_else(sent: list[LocalMessage], data: st.DataObject) -> None:
    stream = bytearray(encode_local(sent))
    stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    decoder = LocalDecoder()
    try:
        received = decoder.feed(bytes(stream))
    except RemoteProtocolError:
        return
    whole = encode_local(received)
    assert not whole or stream[4 : len(whole)] == whole[4:]


def test_several_chunks_in_one_piece_are_all_taken() -> None:
    first, second = Hello("gateway", 7), Query(1, "status")
    assert LocalDecoder().feed(encode_local([first]) + encode_local([second])) == [first, second]


def test_messages_beyond_one_chunk_travel_in_several() -> None:
    sent = [QueryAnswer(number, bytes(300_000)) for number in range(7)]
    stream = encode_local(sent)
    assert int.from_bytes(stream[:4], "big") <= LOCAL_MESSAGE_BYTES_MAX
    assert LocalDecoder().feed(stream) == sent


def test_no_message_is_no_bytes() -> None:
    assert encode_local([]) == b""


def test_a_chunk_over_the_limit_is_refused_at_its_length() -> None:
    decoder = LocalDecoder()
    assert decoder.feed(b"\x00\x10\x00") == []
    with pytest.raises(RemoteProtocolError, match="1048577 bytes; 1048576 are the limit"):
        decoder.feed(b"\x01")


WRONG: dict[str, tuple[Any, str]] = {
    "no array": (1, "a chunk must be an array"),
    "no message": ([], "a chunk must be an array of 1"),
    "unknown tag": ([[99, 1]], "unknown kind"),
    "tag True": ([[True, "gateway", 1]], "unknown kind"),
    "tag that cannot be looked up": ([[[], 1]], "unknown kind"),
    "role as bytes": ([[1, b"gateway", 1]], "role must be"),
    "process id of 33 bits": ([[1, "gateway", 1 << 32]], "process_id must be"),
    "write of nothing": ([[2, 1, 1, []]], "operations must be"),
    "write whose deadline is no number": ([[2, 1, True, WRITE]], "deadline_ns must be"),
    "version too short": ([[3, 1, bytes(19), 1]], "version must be 20 bytes"),
    "wait whose deadline is no number": ([[3, 1, bytes(20), "1"]], "deadline_ns must be"),
    "counter without its value": ([[4, ["a"]]], "pairs"),
    "counter without a name": ([[4, ["", 1]]], "name must be"),
    "counter below zero": ([[4, ["a", b""]]], "value must be"),
    "query of a long word": ([[5, 1, "w" * 65]], "what must be"),
    "outcome cut": ([[6, 1, [0, "", ""]]], "an Outcome must be"),
    "answer as text": ([[7, 1, "{}"]], "body must be"),
    "readiness as number": ([[8, 1, "", 0]], "ready must be"),
    "readiness with a clock past all clocks": ([[8, True, "", 1 << 63]], "clock_ahead_ms must be"),
    "chunk of half an id": ([[9, 1, 1, bytes(16), b"c"]], "chunk must be 32 bytes"),
    "chunk of nothing": ([[9, 1, 1, bytes(32), b""]], "content must be 1 to 262144"),
    "chunk of too much": ([[9, 1, 1, bytes(32), bytes(262_145)]], "content must be 1 to 262144"),
    "upload without a number": ([[10, None]], "upload must be"),
    "offset without a sign": ([[20, 1, 0, 5]], "behind must be"),
    "offset behind by nothing": ([[20, 1, True, 0]], "milliseconds must be a number from 1"),
    "offset of more than a year": ([[20, 1, False, CLOCK_OFFSET_MS_MAX + 1]], "milliseconds must be a number from 0"),
}


@pytest.mark.parametrize(("value", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_refused_by_name(value: object, told: str) -> None:
    with pytest.raises(RemoteProtocolError, match=told):
        LocalDecoder().feed(chunk(value))


OURS: dict[str, tuple[LocalMessage, str]] = {
    "counter below zero": (Report((("a", -1),)), "value must be"),
    "answer over a chunk": (QueryAnswer(1, bytes(LOCAL_MESSAGE_BYTES_MAX)), "1048571 are the limit"),
}


@pytest.mark.parametrize(("message", "told"), OURS.values(), ids=OURS.keys())
def test_what_nobody_would_take_is_our_own_error(message: LocalMessage, told: str) -> None:
    with pytest.raises(LocalProtocolError, match=told):
        encode_local([message])


def test_a_reason_for_people_is_cut_to_what_a_process_takes() -> None:
    assert LocalDecoder().feed(encode_local([Readiness(False, "x" * 2_000)])) == [Readiness(False, "x" * 1_024)]


def test_operations_are_those_of_the_mesh() -> None:
    (message,) = LocalDecoder().feed(chunk([[2, 1, 1, WRITE]]))
    assert message.operations == (DeleteNamespace(NamespaceId(bytes(16))),)  # type: ignore[union-attr]
