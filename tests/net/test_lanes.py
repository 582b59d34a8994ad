"""The queues of a link: order, joining, limits and credit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.core.messages import LANE_OF, Lane, Pull, PullEnd
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import Issuer, Stamp
from kvp2p.limits import (
    CONTROL_QUEUE_BYTES_MAX,
    DATA_CREDIT_BYTES_MAX,
    DATA_QUEUE_BYTES_MAX,
    MESH_MESSAGE_BYTES_MAX,
)
from kvp2p.net.lanes import CREDIT_STEP_BYTES, QUEUE_BYTES_MAX, ReceiveLanes, SendLanes, lane_of
from kvp2p.wire.link_messages import Credit, Ping
from kvp2p.wire.mesh import ELEMENT_BYTES_MAX

CONTROL = Pull(Issuer(b"i" * 8), Stamp(1), 1)
DATA = PullEnd(Issuer(b"i" * 8), Stamp(1), trimmed=False)


def test_lanes_are_those_of_the_core_and_link_messages_are_control() -> None:
    assert {lane_of(CONTROL), lane_of(Ping(1))} == {Lane.CONTROL}
    assert lane_of(DATA) is LANE_OF[PullEnd] is Lane.DATA


def test_control_goes_before_data_before_chunks() -> None:
    lanes = SendLanes()
    for lane in (Lane.CHUNKS, Lane.DATA, Lane.CONTROL, Lane.CHUNKS, Lane.DATA, Lane.CONTROL):
        assert lanes.push(lane, b"\x01")
    assert [lanes.next_payload() for _ in range(4)] == [
        (Lane.CONTROL, 2, b"\x82\x01\x01"),
        (Lane.DATA, 2, b"\x82\x01\x01"),
        (Lane.CHUNKS, 2, b"\x82\x01\x01"),
        None,
    ]


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
    assert [lanes.pop() for _ in range(4)] == [CONTROL, DATA, DATA, None]


def test_credit_goes_back_in_steps_once_whole_payloads_are_taken() -> None:
    lanes = ReceiveLanes()
    half = CREDIT_STEP_BYTES // 2
    lanes.push(Lane.DATA, [DATA, DATA], half)
    lanes.push(Lane.DATA, [DATA, DATA], half)
    for _ in range(3):
        lanes.pop()
        assert lanes.credit_due() == []
    lanes.pop()
    assert lanes.credit_due() == [Credit(Lane.DATA, 2 * half)]
    assert lanes.credit_due() == []


def test_a_peer_beyond_its_credit_is_refused() -> None:
    lanes = ReceiveLanes()
    lanes.push(Lane.DATA, [DATA], DATA_CREDIT_BYTES_MAX)
    lanes.pop()  # handed out, but the credit has not gone back yet
    with pytest.raises(RemoteProtocolError, match="data wait"):
        lanes.push(Lane.DATA, [DATA], 1)
    assert lanes.credit_due() == [Credit(Lane.DATA, DATA_CREDIT_BYTES_MAX)]


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
            while receiver.pop() is not None:
                for credit in receiver.credit_due():
                    sender.give_back(credit)
        assert sender.waiting_bytes(Lane.DATA) == 0
