"""The queues of a link: order, joining, limits and credit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.core.entry import ChunkId
from kvp2p.core.messages import LANE_OF, ChunkPart, Lane, Pull, PullEnd
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import Issuer, Stamp
from kvp2p.limits import (
    CHUNK_BYTES,
    CHUNK_PART_BYTES,
    CHUNK_PAYLOAD_BYTES_MAX,
    CONTROL_QUEUE_BYTES_MAX,
    CREDIT_STEPS,
    DATA_CREDIT_BYTES_MAX,
    DATA_QUEUE_BYTES_MAX,
    MESH_MESSAGE_BYTES_MAX,
    SHARED_PAYLOAD_BYTES_MAX,
)
from kvp2p.net.lanes import CREDIT_BYTES_MAX, QUEUE_BYTES_MAX, ReceiveLanes, SendLanes, lane_of
from kvp2p.wire.link_messages import Credit, Ping
from kvp2p.wire.mesh import ELEMENT_BYTES_MAX, encode_message

CONTROL = Pull(1, Issuer(b"i" * 8), Stamp(1), 1)
DATA = PullEnd(Issuer(b"i" * 8), Stamp(1), trimmed=False)


def test_lanes_are_those_of_the_core_and_link_messages_are_control() -> None:
    assert {lane_of(CONTROL), lane_of(Ping(1))} == {Lane.CONTROL}
    assert lane_of(DATA) is LANE_OF[PullEnd] is Lane.DATA


def test_control_goes_before_data_before_chunks() -> None:
    lanes = SendLanes()
    for lane in (Lane.CHUNKS, Lane.DATA, Lane.CONTROL, Lane.CHUNKS, Lane.DATA, Lane.CONTROL):
        assert lanes.push(lane, bytes([lane]))
    assert [lanes.next_payload() for _ in range(3)] == [
        (Lane.DATA, 4, b"\x84\x00\x00\x01\x01"),
        (Lane.CHUNKS, 2, b"\x82\x02\x02"),
        None,
    ]


def test_a_big_message_does_not_go_along_with_control() -> None:
    lanes = SendLanes()
    assert lanes.push(Lane.DATA, bytes(SHARED_PAYLOAD_BYTES_MAX))
    assert lanes.push(Lane.CONTROL, b"\x01")
    assert lanes.next_payload() == (Lane.CONTROL, 1, b"\x81\x01")
    following = lanes.next_payload()
    assert following is not None
    assert following[:2] == (Lane.DATA, 1)


def test_data_that_goes_along_with_control_needs_credit_for_the_whole_payload() -> None:
    lanes = SendLanes()
    while lanes.in_flight_bytes(Lane.DATA) <= DATA_CREDIT_BYTES_MAX - 250_000:
        lanes.push(Lane.DATA, bytes(200_000))
        lanes.next_payload()
    left = DATA_CREDIT_BYTES_MAX - lanes.in_flight_bytes(Lane.DATA)
    lanes.push(Lane.DATA, bytes(left - 1_000))
    lanes.next_payload()
    lanes.push(Lane.DATA, bytes(900))
    lanes.push(Lane.CONTROL, bytes(200))
    following = lanes.next_payload()
    assert following is not None
    assert following[:2] == (Lane.CONTROL, 1)


def test_a_payload_of_the_chunk_lane_holds_one_full_part_or_several_small_ones() -> None:
    part = encode_message(
        ChunkPart(ChunkId(bytes(32)), CHUNK_BYTES - CHUNK_PART_BYTES, CHUNK_BYTES, bytes(CHUNK_PART_BYTES))
    )
    lanes = SendLanes()
    for element in (part, part, *[bytes(20_000)] * 4):
        assert lanes.push(Lane.CHUNKS, element)
    counts = []
    while (following := lanes.next_payload()) is not None:
        assert len(following[2]) <= CHUNK_PAYLOAD_BYTES_MAX
        counts.append(following[1])
    assert counts == [1, 1, 3, 1]


@given(st.lists(st.integers(1, ELEMENT_BYTES_MAX), max_size=30))
def test_payloads_stay_under_the_limit_and_lose_nothing(sizes: list[int]) -> None:
    lanes = SendLanes()
    accepted = [size for size in sizes if lanes.push(Lane.DATA, bytes(size))]
    sent = 0
    while (following := lanes.next_payload()) is not None:
        lane, count, payload = following
        assert lane is Lane.DATA
        assert len(payload) <= MESH_MESSAGE_BYTES_MAX
        assert lanes.in_flight_bytes(Lane.DATA) <= DATA_CREDIT_BYTES_MAX
        sent += count
        lanes.give_back(Credit(Lane.DATA, len(payload)))
    assert sent == len(accepted)
    assert lanes.waiting_bytes(Lane.DATA) == 0


@pytest.mark.parametrize("lane", list(Lane))
def test_a_full_lane_takes_nothing_more(lane: Lane) -> None:
    lanes = SendLanes()
    assert lanes.push(lane, bytes(200_000))
    while lanes.push(lane, b"tiny"):
        assert lanes.waiting_bytes(lane) <= QUEUE_BYTES_MAX[lane]
    assert not lanes.push(lane, b"tiny")


def test_data_stops_when_the_credit_is_spent_and_control_goes_on() -> None:
    lanes = SendLanes()
    for _ in range(DATA_QUEUE_BYTES_MAX // 210_000):
        assert lanes.push(Lane.DATA, bytes(200_000))
    while lanes.next_payload() is not None:
        assert lanes.in_flight_bytes(Lane.DATA) <= DATA_CREDIT_BYTES_MAX
    assert lanes.in_flight_bytes(Lane.DATA) > DATA_CREDIT_BYTES_MAX - 210_000
    assert lanes.push(Lane.CHUNKS, b"\x02")
    assert lanes.next_payload() == (Lane.CHUNKS, 1, b"\x81\x02")
    assert lanes.push(Lane.CONTROL, b"\x01")
    assert lanes.next_payload() == (Lane.CONTROL, 1, b"\x81\x01")
    lanes.give_back(Credit(Lane.DATA, 200_000))
    assert lanes.next_payload() is not None


def test_credit_for_what_was_never_sent_is_refused() -> None:
    lanes = SendLanes()
    lanes.push(Lane.DATA, bytes(100))
    lanes.next_payload()
    with pytest.raises(RemoteProtocolError, match="took 104 bytes in, of 101"):
        lanes.give_back(Credit(Lane.DATA, 104))


def test_a_receiver_hands_out_control_first_and_keeps_order() -> None:
    lanes = ReceiveLanes()
    lanes.push(Lane.DATA, [DATA, DATA], 100)
    lanes.push(Lane.CONTROL, [CONTROL], 10)
    lanes.push(Lane.CONTROL, [], 10)
    assert [lanes.take() for _ in range(2)] == [[CONTROL, DATA, DATA], []]


def test_credit_goes_back_in_steps_once_the_consumer_asks_for_more() -> None:
    lanes = ReceiveLanes()
    half = DATA_CREDIT_BYTES_MAX // CREDIT_STEPS // 2
    for _ in range(2):
        lanes.push(Lane.DATA, [DATA, DATA], half)
        assert lanes.take() == [DATA, DATA]
        assert lanes.credit_due() == []
    assert lanes.take() == []
    assert lanes.credit_due() == [Credit(Lane.DATA, 2 * half)]
    assert lanes.credit_due() == []


@pytest.mark.parametrize("lane", [Lane.DATA, Lane.CHUNKS])
def test_a_peer_beyond_its_credit_is_refused(lane: Lane) -> None:
    lanes = ReceiveLanes()
    lanes.push(lane, [DATA], CREDIT_BYTES_MAX[lane])
    lanes.take()  # handed out
    lanes.take()  # and taken in, but the credit has not gone back yet
    with pytest.raises(RemoteProtocolError, match=f"{lane.name.lower()} wait"):
        lanes.push(lane, [DATA], 1)
    assert lanes.credit_due() == [Credit(lane, CREDIT_BYTES_MAX[lane])]


def test_the_window_of_chunks_is_narrow_and_comes_back_in_steps() -> None:
    sender, receiver = SendLanes(), ReceiveLanes()
    for _ in range(20):
        assert sender.push(Lane.CHUNKS, bytes(CHUNK_PART_BYTES))
    sent = 0
    while (following := sender.next_payload()) is not None:
        receiver.push(Lane.CHUNKS, [DATA], len(following[2]))
        sent += 1
    assert sent == CREDIT_BYTES_MAX[Lane.CHUNKS] // CHUNK_PART_BYTES - 1
    receiver.take()
    receiver.take()
    (credit,) = receiver.credit_due()
    sender.give_back(credit)
    assert sender.next_payload() is not None


def test_control_in_the_hands_of_a_consumer_still_counts() -> None:
    lanes = ReceiveLanes()
    lanes.push(Lane.CONTROL, [CONTROL], CONTROL_QUEUE_BYTES_MAX // 2)
    lanes.take()
    with pytest.raises(RemoteProtocolError, match="control wait"):
        lanes.push(Lane.CONTROL, [CONTROL], CONTROL_QUEUE_BYTES_MAX // 2)
    lanes = ReceiveLanes()
    for _ in range(4):
        lanes.push(Lane.CONTROL, [CONTROL], CONTROL_QUEUE_BYTES_MAX // 4)
        assert lanes.take() == [CONTROL]


def test_control_that_nobody_takes_is_refused_at_its_limit() -> None:
    lanes = ReceiveLanes()
    with pytest.raises(RemoteProtocolError, match="control wait"):
        for _ in range(CONTROL_QUEUE_BYTES_MAX):
            lanes.push(Lane.CONTROL, [CONTROL], 20)


@given(st.lists(st.integers(1, ELEMENT_BYTES_MAX), max_size=60))
def test_sender_and_receiver_never_stall_while_the_consumer_takes(sizes: list[int]) -> None:
    sender, receiver = SendLanes(), ReceiveLanes()
    for size in sizes:
        assert sender.push(Lane.DATA, bytes(size))
        while (following := sender.next_payload()) is not None:
            receiver.push(Lane.DATA, [DATA] * following[1], len(following[2]))
            for _ in range(2):  # hands out, then learns that it is taken in
                receiver.take()
            for credit in receiver.credit_due():
                sender.give_back(credit)
        assert sender.waiting_bytes(Lane.DATA) == 0
