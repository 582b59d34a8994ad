"""What a lane of chunks keeps, and lets go of."""

from kvp2p.core.entry import ChunkId
from kvp2p.core.operations import Outcome
from kvp2p.limits import LOCAL_STAGES_IN_FLIGHT_MAX, LOCAL_STAGES_MAX
from kvp2p.runtime.chunk_lane import ChunkLane
from kvp2p.runtime.requests import Request
from kvp2p.wire.local_messages import EndUpload, StageChunk

NAME = ChunkId(b"c" * 32)


def chunk(number: int, upload: int, outcomes: list[Outcome]) -> Request:
    return Request(StageChunk(number, upload, NAME, b"content"), 10, 0, 7, outcomes.append)


def lane_with(*chunks: tuple[int, int]) -> tuple[ChunkLane, list[Outcome]]:
    """Return a lane with chunks (number, upload) that wait."""
    lane, outcomes = ChunkLane(), list[Outcome]()
    for number, upload in chunks:
        lane.open(upload)
        assert lane.push(chunk(number, upload, outcomes), upload)
    return lane, outcomes


def taken(lane: ChunkLane, now_ns: int = 0) -> list[int]:
    """Return the numbers of all chunks that may leave."""
    numbers = []
    while messages := lane.take_chunk(now_ns):
        (message,) = messages
        assert isinstance(message, StageChunk)
        numbers.append(message.request)
    return numbers


def test_chunks_leave_in_the_order_in_which_they_came() -> None:
    lane, _ = lane_with((3, 1), (1, 2), (2, 1))
    assert taken(lane) == [3, 1, 2]
    assert not lane.has_next
    assert [request.number for request in lane.waiting] == [3, 1, 2]


def test_ended_upload_leaves_nothing_of_it_in_the_queue() -> None:
    lane, outcomes = lane_with((1, 1), (2, 2), (3, 1))
    assert lane.end(1)
    assert lane.take_ended() == [EndUpload(1)]
    assert list(lane._queue) == [2], (
        "also while nothing is taken: an end that leaves the chunks there would keep their bytes"
    )
    assert taken(lane) == [2]
    assert [request.number for request in lane.waiting] == [2]
    assert not outcomes, "nobody waits for them"


def test_chunk_that_ends_before_it_is_sent_leaves_the_queue() -> None:
    lane, _ = lane_with((1, 1), (2, 1))
    request = lane.pop(1)
    assert request is not None
    assert request.number == 1
    assert lane.pop(1) is None
    assert list(lane._queue) == [2]
    assert taken(lane) == [2]


def test_chunk_past_its_deadline_never_leaves_and_waits_for_the_sweep() -> None:
    lane, _ = lane_with((1, 1), (2, 1))
    assert taken(lane, now_ns=11) == []
    assert not lane.has_next
    assert [request.number for request in lane.waiting] == [1, 2]
    assert lane.pop(1) is not None
    assert lane.end(1)
    assert not lane.waiting
    assert lane._sent == 0


def test_place_of_a_sent_chunk_is_free_when_it_has_ended_and_not_before() -> None:
    numbers = range(LOCAL_STAGES_IN_FLIGHT_MAX + 2)
    lane, outcomes = lane_with(*((number, number % 2) for number in numbers))
    assert taken(lane) == [*numbers][:-2]
    assert not lane.has_next
    assert lane.end(0)
    assert lane.take_ended() == [EndUpload(0)]
    assert not lane.has_next, "the node still has them"
    ended = lane.pop(0)
    assert ended is not None
    ended.end_unanswered("its connection ended")
    assert not outcomes, "nobody waits for it"
    assert taken(lane) == [numbers[-1]]


def test_lane_is_bounded_and_forgets_everything_with_its_connection() -> None:
    lane, outcomes = lane_with(*((number, 1) for number in range(LOCAL_STAGES_MAX)))
    assert not lane.push(chunk(LOCAL_STAGES_MAX, 1, outcomes), 1)
    assert not lane.push(chunk(LOCAL_STAGES_MAX, 2, outcomes), 2)
    assert [one.code for one in outcomes] == ["overloaded", "node_unavailable"]
    assert len(taken(lane)) == LOCAL_STAGES_IN_FLIGHT_MAX
    assert [request.number for request in lane.clear()] == [*range(LOCAL_STAGES_MAX)]
    assert not lane.waiting
    assert not lane.has_next
    assert not lane.is_open(1)
    assert not lane.end(1), "the node knows"
    assert lane._sent == 0
