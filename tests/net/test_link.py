"""Links over memory: lanes, credit, limits, heartbeat and every way to end."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from kvp2p.core.messages import Forward, Frame, Lane, Message, Pull, PullEnd, Roster
from kvp2p.core.operations import DeleteNamespace, Put
from kvp2p.errors import LinkClosed, LocalProtocolError
from kvp2p.ids import Issuer, NamespaceId, NodeId, Stamp
from kvp2p.limits import CONTROL_QUEUE_BYTES_MAX, DATA_CREDIT_BYTES_MAX, DATA_QUEUE_BYTES_MAX, LINK_PROGRESS_BYTES_MIN
from kvp2p.net.link import SEND_WAITS_ABOVE_BYTES, Encoder, Link
from kvp2p.net.settings import MeshSettings
from kvp2p.net.transport import CODE_NORMAL, CODE_PROTOCOL_ERROR
from kvp2p.wire.link_messages import Credit, Ping, Pong
from kvp2p.wire.mesh import encode_message, pack, unpack_link
from tests.net.pipes import Consumer, MemoryPipe, pipe_pair

PEER = NodeId(b"p" * 16)
NAMESPACE = NamespaceId(b"n" * 16)
ISSUER = Issuer(b"issuer00")
CONTROL = Pull(1, ISSUER, Stamp(1), 1)
SETTINGS = MeshSettings()
SLOW_PINGS = MeshSettings(ping_interval_ms=1_000_000, link_timeout_ms=2_000_000)


def in_ms(milliseconds: int) -> int:
    return time.monotonic_ns() + milliseconds * 1_000_000


def big(number: int, deadline_ns: int | None = None) -> Forward:
    return Forward(number, deadline_ns or in_ms(60_000), (Put(NAMESPACE, b"k", bytes(190_000)),))


@asynccontextmanager
async def links(settings: MeshSettings = SLOW_PINGS) -> AsyncIterator[tuple[Link, Link, MemoryPipe, MemoryPipe]]:
    mine, theirs = pipe_pair()
    a, b = Link(PEER, mine, settings), Link(PEER, theirs, settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        yield a, b, mine, theirs
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def link_and_stranger(settings: MeshSettings = SLOW_PINGS) -> AsyncIterator[tuple[Link, MemoryPipe, MemoryPipe]]:
    """A link whose other end is in the hands of the test."""
    mine, theirs = pipe_pair()
    link = Link(PEER, mine, settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        yield link, mine, theirs
        nursery.cancel_scope.cancel()


def in_mock_time(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test whose waits take no time."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_messages_of_a_lane_arrive_in_order_and_are_counted() -> None:
    async with links() as (a, b, _, _):
        consumer = Consumer(b)
        await trio.testing.wait_all_tasks_blocked()  # the first ping has left
        sent: list[Message] = [PullEnd(ISSUER, Stamp(at), trimmed=False) for at in range(1, 200)]
        for message in sent:
            assert a.try_send(message)
        assert [await consumer.receive() for _ in sent] == sent
        assert a.traffic[Lane.DATA].sent_messages == b.traffic[Lane.DATA].received_messages == 199
        assert a.traffic[Lane.DATA].sent_bytes == b.traffic[Lane.DATA].received_bytes > 199 * 10


async def test_what_waits_together_leaves_as_one_payload() -> None:
    async with links() as (a, b, mine, _):
        await trio.testing.wait_all_tasks_blocked()
        before = len(mine.sent)
        for at in range(1, 200):
            a.try_send(PullEnd(ISSUER, Stamp(at), trimmed=False))
        await b.receive()
        assert len(mine.sent) == before + 1


async def test_control_messages_share_the_payload_of_the_data_behind_them() -> None:
    async with links() as (a, b, mine, _):
        await trio.testing.wait_all_tasks_blocked()
        before = len(mine.sent)
        data = PullEnd(ISSUER, Stamp(1), trimmed=False)
        assert a.try_send(data)
        assert a.try_send(CONTROL)
        assert await b.receive() == [CONTROL, data]
        assert unpack_link(mine.sent[before]) == [CONTROL, data]
        assert len(mine.sent) == before + 1
        assert a.traffic[Lane.DATA].sent_messages == b.traffic[Lane.DATA].received_messages == 2


async def test_a_control_message_waits_for_one_big_message_at_most() -> None:
    async with links() as (a, b, mine, _):
        consumer = Consumer(b)
        await trio.testing.wait_all_tasks_blocked()
        mine.hold()
        is_queued = [a.try_send(big(number)) for number in range(25)]
        assert is_queued.count(True) == DATA_QUEUE_BYTES_MAX // 190_500
        await trio.testing.wait_all_tasks_blocked()
        before = len(mine.sent)  # the first big message is inside the socket
        assert a.try_send(CONTROL)
        mine.may_send.set()
        await trio.testing.wait_all_tasks_blocked()
        assert unpack_link(mine.sent[before]) == [CONTROL]
        assert await consumer.receive() == CONTROL


async def test_a_forward_whose_time_runs_out_in_its_lane_is_never_sent() -> None:
    async with links() as (a, b, mine, _):
        consumer = Consumer(b)
        await trio.testing.wait_all_tasks_blocked()
        mine.hold()
        assert a.try_send(big(0))  # inside the socket
        await trio.testing.wait_all_tasks_blocked()
        assert a.try_send(big(1, in_ms(10)))
        assert a.try_send(Forward(2, in_ms(30_000), (DeleteNamespace(NAMESPACE),)))
        assert a.try_send(big(3))
        time.sleep(0.02)  # noqa: ASYNC251  the lanes' clock is the machine's, not trio's
        mine.may_send.set()
        received = [await consumer.receive() for _ in range(3)]
    assert [message.request for message in received if isinstance(message, Forward)] == [0, 2, 3]


async def test_room_that_expired_forwards_leave_is_given_to_who_waits_for_it() -> None:
    async with links() as (a, b, mine, _):
        consumer = Consumer(b)
        await trio.testing.wait_all_tasks_blocked()
        mine.hold()
        assert a.try_send(CONTROL)  # inside the socket
        await trio.testing.wait_all_tasks_blocked()
        while a.try_send(big(1, in_ms(0))):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, big(2))
            await trio.testing.wait_all_tasks_blocked()
            mine.may_send.set()
            assert await consumer.receive() == CONTROL
            message = await consumer.receive()
            assert isinstance(message, Forward)
            assert message.request == 2


async def test_credit_stops_a_sender_whose_receiver_does_not_take() -> None:
    async with links() as (a, b, mine, _):
        consumer = Consumer(b)
        sent = 0
        while a.try_send(big(sent)):
            sent += 1
            await trio.testing.wait_all_tasks_blocked()
        in_flight = sum(map(len, mine.sent))
        assert DATA_CREDIT_BYTES_MAX - 400_000 < in_flight <= DATA_CREDIT_BYTES_MAX + 1_000
        assert a.traffic[Lane.DATA].dropped_messages == 1
        assert a.try_send(CONTROL)  # another lane is not concerned
        await trio.testing.wait_all_tasks_blocked()
        assert await consumer.receive() == CONTROL
        for number in range(sent):
            message = await consumer.receive()
            assert isinstance(message, Forward)
            assert message.request == number
        assert a.reason is b.reason is None


async def test_send_waits_until_the_lane_is_short_and_leaves_room_for_others() -> None:
    async with links() as (a, b, _, _):
        consumer = Consumer(b)
        sent = 0

        async def serve() -> None:
            nonlocal sent
            for number in range(40):
                await a.send(big(number))
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked()
            assert sent * 190_000 < DATA_CREDIT_BYTES_MAX + SEND_WAITS_ABOVE_BYTES + 400_000
            assert a.try_send(big(99))
            received = [await consumer.receive() for _ in range(41)]
        assert sent == 40
        assert {message.request for message in received if isinstance(message, Forward)} == {*range(40), 99}


async def test_send_ends_with_the_link() -> None:
    async with links() as (a, _, _, _):
        while a.try_send(big(1)):
            pass
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(LinkClosed, match="enough"):
                    await a.send(big(2))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            a.close("enough")
        assert not a.try_send(CONTROL)
        with pytest.raises(LinkClosed, match="enough"):
            await a.send(CONTROL)


async def test_a_full_control_lane_ends_the_link() -> None:
    async with links() as (a, _, mine, _):
        mine.hold()
        queued = 0
        while a.try_send(CONTROL):
            queued += 1
            assert queued < CONTROL_QUEUE_BYTES_MAX // 100
        assert a.reason == "the peer takes control messages too slowly"
        assert a.traffic[Lane.CONTROL].dropped_messages == 1


async def test_pings_that_cannot_be_answered_end_the_link() -> None:
    async with link_and_stranger() as (link, mine, theirs):
        mine.hold()
        pings = pack([encode_message(Ping(1))] * 1_000)
        for _ in range(CONTROL_QUEUE_BYTES_MAX // 100_000 + 2):
            await theirs.send(pings)
        await link.ended.wait()
        assert link.reason == "the peer takes control messages too slowly"


async def test_nothing_comes_out_after_the_end() -> None:
    async with links() as (a, b, _, _):
        a.try_send(CONTROL)
        await trio.testing.wait_all_tasks_blocked()
        b.close("enough")
        with pytest.raises(LinkClosed, match="enough"):
            await b.receive()


async def test_a_waiting_consumer_is_told_of_the_end() -> None:
    async with links() as (a, b, _, _), trio.open_nursery() as nursery:

        async def consume() -> None:
            with pytest.raises(LinkClosed, match="connection was lost"):
                await b.receive()

        nursery.start_soon(consume)
        await trio.testing.wait_all_tasks_blocked()
        a.close("enough")
        await b.ended.wait()
        assert b.reason == "the connection was lost"


async def test_the_first_reason_stays() -> None:
    async with link_and_stranger() as (link, mine, _):
        link.close("first")
        link.close("second")
        await trio.testing.wait_all_tasks_blocked()
        assert mine.closed_with == (CODE_NORMAL, "first")


DATA = encode_message(PullEnd(ISSUER, Stamp(1), trimmed=False))
BAD_PAYLOADS = {
    "garbage": (b"\xff\x00garbage", "not allowed"),
    "no message": (b"\x80", "a payload must be"),
    "control behind data": (pack([DATA, encode_message(CONTROL)]), "mixes lanes"),
    "link message behind data": (pack([DATA, encode_message(Ping(1))]), "mixes lanes"),
    "credit that was never spent": (pack([encode_message(Credit(Lane.DATA, 1))]), "took 1 bytes in, of 0"),
    "message of nobody": (b"\x81\x82\x18\x63\x01", "unknown kind"),
}


@pytest.mark.parametrize(("payload", "told"), BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
async def test_a_bad_payload_ends_the_link_and_none_of_it_is_taken(payload: bytes, told: str) -> None:
    async with link_and_stranger() as (link, mine, theirs):
        await theirs.send(payload)
        await link.ended.wait()
        assert link.reason is not None
        assert link.reason.startswith("protocol error: ")
        assert told in link.reason
        with pytest.raises(LinkClosed):
            await link.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert mine.closed_with == (CODE_PROTOCOL_ERROR, link.reason)


async def test_a_sender_beyond_its_credit_ends_the_link() -> None:
    async with link_and_stranger() as (link, _, theirs):
        for number in range(DATA_CREDIT_BYTES_MAX // 190_000 + 1):
            await theirs.send(pack([encode_message(big(number))]))
        await link.ended.wait()
        assert link.reason is not None
        assert "data wait to be taken in" in link.reason


async def test_a_message_that_no_peer_would_take_is_our_own_error() -> None:
    async with links() as (a, _, _, _):
        with pytest.raises(LocalProtocolError):
            a.try_send(Pull(1, ISSUER, Stamp(1), 0))
        assert a.reason is None


def test_a_message_for_several_peers_is_encoded_once() -> None:
    encoder = Encoder()
    frame, same = Frame(1, ISSUER, Stamp(1), Stamp(2), (), ()), Frame(1, ISSUER, Stamp(1), Stamp(2), (), ())
    assert encoder.encode(frame) is encoder.encode(frame)
    assert encoder.encode(frame) is not encoder.encode(same)
    assert encoder.encode(Roster(())) == encode_message(Roster(()))


def test_a_silent_peer_is_dead_after_the_timeout() -> None:
    async def main() -> None:
        begin = trio.current_time()
        async with link_and_stranger(SETTINGS) as (link, mine, theirs):
            await theirs.send(pack([encode_message(Pong(77, 1))]))  # nobody asked; still a sign of life
            await link.ended.wait()
            assert trio.current_time() - begin == pytest.approx(5.0, abs=0.01)
            assert link.reason == "nothing was heard of the peer for 5 s"
            assert [unpack_link(payload) for payload in mine.sent] == [[Ping(number)] for number in range(1, 6)]

    in_mock_time(main)


def test_peer_whose_large_message_is_on_its_way_is_not_silent_as_long_as_much_of_it_comes() -> None:
    async def main() -> None:
        begin = trio.current_time()
        async with link_and_stranger(SETTINGS) as (link, mine, theirs):
            mine.received_bytes = 1_000_000  # what came before its last whole message is no sign of life
            await theirs.send(pack([encode_message(Pong(1, 1))]))
            for bytes_in_a_period in (LINK_PROGRESS_BYTES_MIN, LINK_PROGRESS_BYTES_MIN, LINK_PROGRESS_BYTES_MIN - 1):
                assert link.reason is None
                await trio.sleep(2.5)
                mine.received_bytes += bytes_in_a_period
                await trio.sleep(2.5)
            await link.ended.wait()
            assert trio.current_time() - begin == pytest.approx(15.0, abs=0.1)
            assert link.reason == "nothing was heard of the peer for 5 s"

    in_mock_time(main)


def test_pings_keep_idle_links_alive_and_measure_the_round_trip() -> None:
    async def main() -> None:
        async with links(SETTINGS) as (a, b, _, _):
            await trio.sleep(600)
            assert a.reason is b.reason is None
            assert a.rtt_ms == pytest.approx(0.0)
            assert a.traffic[Lane.CONTROL].sent_messages == pytest.approx(1_200, abs=5)

    in_mock_time(main)


async def test_a_deadline_is_told_by_the_clock_of_the_receiver_and_not_before_that_is_known() -> None:
    far_ahead_ns = time.monotonic_ns() + (1 << 60)  # the peer's clock
    async with link_and_stranger() as (link, _, theirs):
        await theirs.send(
            pack([encode_message(Forward(1, far_ahead_ns + 5_000_000_000, (DeleteNamespace(NAMESPACE),)))])
        )
        taken: list[list[Message]] = []

        async def take() -> None:
            taken.append(await link.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            assert taken == []
            asked_ns = time.monotonic_ns()
            await theirs.send(pack([encode_message(Pong(1, far_ahead_ns))]))
        (forward,) = taken[0]
        assert isinstance(forward, Forward)
        assert asked_ns + 4_000_000_000 < forward.deadline_ns < asked_ns + 5_000_000_000


def test_a_peer_that_never_answers_a_ping_is_left() -> None:
    async def main() -> None:
        async with link_and_stranger(SETTINGS) as (link, _, theirs):
            for number in range(1, 5):
                await theirs.send(pack([encode_message(Ping(number))]))
                await trio.sleep(1)
            assert link.reason is None
            await theirs.send(pack([encode_message(Ping(5))]))
            await trio.sleep(2)
            assert link.reason == "the peer answered no ping for 5 s"

    in_mock_time(main)


def test_a_peer_that_sends_but_answers_only_its_first_ping_is_alive() -> None:
    async def main() -> None:
        async with link_and_stranger(SETTINGS) as (link, _, theirs):
            await trio.sleep(0.5)
            await theirs.send(pack([encode_message(Pong(1, 1))]))
            for number in range(40):
                await theirs.send(pack([encode_message(Ping(number))]))
                await trio.sleep(1)
            assert link.reason is None
            assert link.rtt_ms == pytest.approx(500.0)
            assert len(link._pings) <= 16

    in_mock_time(main)


def test_a_process_that_stood_still_does_not_blame_its_peer() -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with link_and_stranger(SETTINGS) as (link, _, theirs):
            await trio.testing.wait_all_tasks_blocked()
            await theirs.send(pack([encode_message(Pong(1, 1))]))
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(60)  # SIGSTOP, then SIGCONT
            await trio.testing.wait_all_tasks_blocked()
            assert link.reason is None
            clock.autojump_threshold = 0
            await link.ended.wait()
            assert link.reason == "nothing was heard of the peer for 5 s"

    trio.run(main, clock=clock)


async def test_a_cancelled_link_closes_its_connection() -> None:
    async with link_and_stranger() as (link, mine, _):
        await trio.testing.wait_all_tasks_blocked()
    assert link.reason == "this node is stopping"
    assert mine.closed_with == (CODE_NORMAL, "this node is stopping")


async def test_operations_survive_the_trip() -> None:
    async with links() as (a, b, _, _):
        consumer = Consumer(b)
        sent = Forward(1, in_ms(1_000), (DeleteNamespace(NAMESPACE),))
        a.try_send(sent)
        received = await consumer.receive()
        assert isinstance(received, Forward)
        assert (received.request, received.operations) == (1, sent.operations)
        assert sent.deadline_ns - 500_000_000 < received.deadline_ns <= sent.deadline_ns, "early, never late [I10]"


async def test_the_last_word_of_the_handshake_goes_before_everything_else() -> None:
    mine, theirs = pipe_pair()
    link = Link(PEER, mine, SLOW_PINGS, last_word=b"\x81\x03")
    link.try_send(CONTROL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        assert await theirs.receive() == b"\x81\x03"
        assert CONTROL in unpack_link(await theirs.receive())
        nursery.cancel_scope.cancel()


async def test_a_peer_lost_before_the_last_word_ends_the_link() -> None:
    mine, theirs = pipe_pair()
    await theirs.close()
    link = Link(PEER, mine, SLOW_PINGS, last_word=b"\x81\x03")
    await link.run()
    assert mine.closed_with == (CODE_NORMAL, "the connection was lost")
