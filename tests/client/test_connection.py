"""One connection: the order of requests and answers, and what its end means for each request [I10]."""

import random

import pytest
import trio
import trio.testing

from kvp2p.client import Connection, ConnectionConfig, NotSent, Request, Response, ResponseInvalid, Unanswered
from kvp2p.client.connection import _Exchange, large_s
from kvp2p.limits import (
    HTTP_ROOM_WAIT_SECONDS,
    HTTP_TURN_WAIT_SECONDS,
    INLINE_VALUE_BYTES_MAX,
    VALUE_BYTES_MAX,
    WRITE_LARGE_MS_PER_MIB,
)
from tests.client.fake_server import Caller, Seen, answer, fake_server, saying

HUGE = bytes(30_000_000)  # more than the two kernel buffers of a loopback connection hold


def status_of(result: object) -> int:
    assert isinstance(result, Response), result
    return result.status


async def echo(caller: Caller) -> None:
    """Answer each request with its target, in pieces of random size."""
    source = random.Random(7)
    while requests := await caller.read():
        said = answer(200, requests[0].line.split(b" ")[1])
        while said:
            size = source.randrange(1, 60)
            await caller.say(said[:size])
            said = said[size:]


async def say_nothing(caller: Caller) -> None:
    await trio.sleep(5)


async def test_answers_come_back_to_their_callers_when_many_tasks_share_a_connection() -> None:
    got: dict[bytes, bytes] = {}

    async def ask(connection: Connection, target: bytes) -> None:
        got[target] = (await connection.request(b"GET", target)).body

    async with fake_server(echo) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url, config=ConnectionConfig(pipeline_depth_max=5))
        async with trio.open_nursery() as askers:
            for number in range(60):
                askers.start_soon(ask, connection, b"/%d" % number)
        assert connection.unanswered == 0
        connection.close()
    assert got == {b"/%d" % number: b"/%d" % number for number in range(60)}


async def test_requests_leave_in_the_order_of_the_calls() -> None:
    seen: list[Seen] = []

    async def listen(caller: Caller) -> None:
        seen.extend(await caller.read(10))
        await caller.say(answer(200) * 10)
        await caller.read()

    async with fake_server(listen) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url, "secret")
        results = await connection.request_many([Request(b"GET", b"/%d" % number) for number in range(10)])
        connection.close()
    assert [request.line for request in seen] == [b"GET /%d HTTP/1.1" % number for number in range(10)]
    assert seen[0].headers == {b"host": url.removeprefix("http://").encode(), b"authorization": b"Bearer secret"}
    assert [status_of(result) for result in results] == [200] * 10


async def test_no_more_than_the_depth_is_ever_unanswered() -> None:
    async with trio.open_nursery() as nursery:
        unanswered_max = 0

        async def hold(caller: Caller) -> None:
            nonlocal unanswered_max
            for _ in range(4):
                await caller.read(3)
                with trio.move_on_after(0.05):  # nothing more may come before an answer
                    unanswered_max += len(await caller.read())
                await caller.say(answer(200) * 3)
            await caller.read()

        async with fake_server(hold) as url:
            connection = await Connection.open(nursery, url, config=ConnectionConfig(pipeline_depth_max=3))
            results = await connection.request_many([Request(b"GET", b"/")] * 12)
            connection.close()
    assert [status_of(result) for result in results] == [200] * 12
    assert unanswered_max == 0


async def test_headers_and_bodies_arrive_as_given() -> None:
    seen: list[Seen] = []
    async with fake_server(saying(*[answer(200)] * 4, seen=seen)) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        await connection.request(b"PUT", b"/v1/n/../a//b", ((b"If-Match", b'"v"'),), b"value")
        await connection.request(b"PUT", b"/empty")
        await connection.request(b"DELETE", b"/key", ((b"X", b"y"),))
        await connection.request(b"POST", b"/bulk/get", (), b"{}")
        connection.close()
    host = (b"host", url.removeprefix("http://").encode())
    assert [(request.line, request.headers, request.body) for request in seen] == [
        (b"PUT /v1/n/../a//b HTTP/1.1", dict([host, (b"if-match", b'"v"'), (b"content-length", b"5")]), b"value"),
        (b"PUT /empty HTTP/1.1", dict([host, (b"content-length", b"0")]), b""),
        (b"DELETE /key HTTP/1.1", dict([host, (b"x", b"y")]), b""),
        (b"POST /bulk/get HTTP/1.1", dict([host, (b"content-length", b"2")]), b"{}"),
    ]


async def test_big_bodies_travel_both_ways_at_once() -> None:
    async def mirror(caller: Caller) -> None:
        while requests := await caller.read():
            await caller.say(answer(200, requests[0].body))

    body = random.Random(1).randbytes(3_000_000)
    async with fake_server(mirror) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        await connection.request(
            b"GET", b"/"
        )  # now the writer is idle: the caller starts the next send, the writer ends it
        results = await connection.request_many([Request(b"PUT", b"/", (), body)] * 3)
        connection.close()
    for result in results:
        assert isinstance(result, Response)
        assert result.body == body


async def test_head_travels_alone_between_pipelined_requests() -> None:
    seen_together: list[int] = []

    async def listen(caller: Caller) -> None:
        for expected, said in ((2, answer(200, b"x") * 2), (1, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")):
            requests = await caller.read(expected)
            with trio.move_on_after(0.05):
                requests += await caller.read()
            seen_together.append(len(requests))
            await caller.say(said)
        seen_together.append(len(await caller.read(2)))
        await caller.say(answer(200, b"y") * 2)
        await caller.read()

    get, head = Request(b"GET", b"/"), Request(b"HEAD", b"/")
    async with fake_server(listen) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        results = await connection.request_many([get, get, head, get, get])
        connection.close()
    assert seen_together == [2, 1, 2]
    assert [result.body for result in results if isinstance(result, Response)] == [b"x", b"x", b"", b"y", b"y"]


async def test_answers_before_the_cut_count_and_the_rest_is_unanswered() -> None:
    async def cut(caller: Caller) -> None:
        await caller.read(4)
        await caller.say(answer(200) + answer(201) + answer(200, b"whole")[:-1])

    async with fake_server(cut) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        results = await connection.request_many([Request(b"PUT", b"/")] * 4)
        assert [status_of(result) for result in results[:2]] == [200, 201]
        for result in results[2:]:
            assert isinstance(result, Unanswered)
            assert (result.sent, result.applied, result.retryable) == (True, "unknown", False)
        assert connection.is_closed
        with pytest.raises(NotSent, match="the server closed the connection"):
            await connection.request(b"PUT", b"/")


async def test_a_reset_leaves_what_was_sent_unanswered() -> None:
    async def reset(caller: Caller) -> None:
        await caller.read()
        await caller.reset()

    async with fake_server(reset) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        with pytest.raises(Unanswered, match="connection failed"):
            await connection.request(b"PUT", b"/", (), b"x")


async def test_a_request_behind_a_stuck_one_was_not_sent() -> None:
    async def stuck(caller: Caller) -> None:
        await caller.stream.receive_some(1)
        await trio.sleep(0.1)
        await caller.reset()

    async with fake_server(stuck) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        first, second = await connection.request_many([Request(b"PUT", b"/1", (), HUGE), Request(b"PUT", b"/2")])
        assert isinstance(first, Unanswered)
        assert isinstance(second, NotSent), "no byte of it had left: its offset lies behind all that was sent"
        assert (second.sent, second.applied, second.retryable) == (False, "no", True)


async def test_a_request_that_still_waits_for_the_writer_was_not_sent() -> None:
    outcomes: dict[bytes, type[Exception]] = {}

    async def put(connection: Connection, target: bytes, body: bytes) -> None:
        try:
            await connection.request(b"PUT", target, (), body)
        except (NotSent, Unanswered) as lost:
            outcomes[target] = type(lost)

    async with fake_server(say_nothing) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        nursery.start_soon(put, connection, b"/1", HUGE)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(put, connection, b"/2", b"")
        await trio.testing.wait_all_tasks_blocked()
        assert connection.unanswered == 2
        connection.close()
        connection.close()
    assert outcomes == {b"/1": Unanswered, b"/2": NotSent}


async def test_a_silent_server_is_given_up() -> None:
    config = ConnectionConfig(answer_timeout_ms=100)
    async with fake_server(say_nothing) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url, config=config)
        await trio.sleep(0.15)
        assert not connection.is_closed, "idle is not silent"
        with trio.fail_after(2), pytest.raises(Unanswered, match="no answer in 100 ms"):
            await connection.request(b"PUT", b"/")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "invalid response"),
        (answer(200) + answer(200), r"an answer \(200\) to no request"),
    ],
)
async def test_a_server_that_breaks_the_protocol_loses_the_connection(said: bytes, complaint: str) -> None:
    async with fake_server(saying(said)) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        with pytest.raises((ResponseInvalid, NotSent), match=complaint):
            for _ in range(2):
                await connection.request(b"GET", b"/")
        assert connection.is_closed


async def test_an_invalid_response_leaves_the_sent_requests_unknown() -> None:
    async with fake_server(saying(b"nonsense\r\n")) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        with pytest.raises(ResponseInvalid) as caught:
            await connection.request(b"PUT", b"/")
    assert (caught.value.sent, caught.value.applied, caught.value.blame) == (True, "unknown", "peer")


async def test_a_server_that_announces_the_end_is_not_asked_again() -> None:
    async with fake_server(saying(answer(200, b"", b"Connection: close"))) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        assert status_of(await connection.request(b"GET", b"/")) == 200
        with pytest.raises(NotSent, match="announced that it closes"):
            await connection.request(b"GET", b"/")


async def test_a_withdrawn_request_never_leaves_and_a_sent_one_keeps_its_place() -> None:
    seen: list[Seen] = []
    go_on = trio.Event()

    async def slow(caller: Caller) -> None:
        seen.extend(await caller.read())
        await go_on.wait()
        await caller.say(answer(200, b"first"))
        seen.extend(await caller.read())
        await caller.say(answer(200, b"third"))
        await caller.read()

    async with fake_server(slow) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url, config=ConnectionConfig(pipeline_depth_max=1))
        with trio.CancelScope() as scope:
            nursery.start_soon(connection.request, b"PUT", b"/kept")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await connection.request(b"PUT", b"/withdrawn")
        assert scope.cancelled_caught
        assert connection.unanswered == 1
        go_on.set()
        assert (await connection.request(b"GET", b"/third")).body == b"third"
        connection.close()
    assert [request.line for request in seen] == [b"PUT /kept HTTP/1.1", b"GET /third HTTP/1.1"]


async def test_the_answer_to_a_cancelled_request_goes_to_nobody_else() -> None:
    go_on = trio.Event()

    async def slow(caller: Caller) -> None:
        await caller.read()
        await go_on.wait()
        await caller.say(answer(200, b"late"))
        await caller.read()
        await caller.say(answer(200, b"mine"))
        await caller.read()

    async with fake_server(slow) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        with trio.move_on_after(0.05) as scope:
            await connection.request(b"PUT", b"/1")
        assert scope.cancelled_caught
        go_on.set()
        assert (await connection.request(b"GET", b"/2")).body == b"mine"
        connection.close()


async def test_the_end_of_the_nursery_ends_the_connection() -> None:
    async with fake_server(echo) as url:
        async with trio.open_nursery() as nursery:
            connection = await Connection.open(nursery, url)
            await connection.request(b"GET", b"/")
            nursery.cancel_scope.cancel()
        with pytest.raises(NotSent, match="shutting down"):
            await connection.request(b"GET", b"/")


async def test_a_connection_closed_before_its_tasks_ran_ends_quietly() -> None:
    async with fake_server(echo) as url:
        async with trio.open_nursery() as nursery:
            connection = await Connection.open(nursery, url)
            connection.close()
        [result] = await connection.request_many([Request(b"GET", b"/")])
        assert isinstance(result, NotSent)
        assert await connection.request_many([]) == []


@pytest.mark.parametrize(
    ("target", "headers"),
    [(b"/a b", ()), (b"/a\r\nX: y", ()), (b"/", ((b"X", b"a\r\nb"),)), (b"/", ((b"X\n", b"a"),))],
)
async def test_what_would_break_the_framing_is_never_sent(
    target: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    seen: list[Seen] = []
    async with fake_server(saying(answer(200), seen=seen)) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        with pytest.raises(ValueError, match="holds no"):
            await connection.request(b"GET", target, headers)
        await connection.request(b"GET", b"/fine")
        connection.close()
    assert [request.line for request in seen] == [b"GET /fine HTTP/1.1"]


async def test_nobody_listening_is_not_sent() -> None:
    async with fake_server(echo) as url:
        pass
    async with trio.open_nursery() as nursery:
        with pytest.raises(NotSent, match="no connection to"):
            await Connection.open(nursery, url)


async def test_a_connect_that_hangs_is_not_sent() -> None:
    # A listener whose backlog is full leaves further connects waiting.
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            with pytest.raises(NotSent, match="in 200 ms"):
                for _ in range(8):
                    await Connection.open(nursery, url, config=ConnectionConfig(connect_timeout_ms=200))
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["127.0.0.1:8787", "https://127.0.0.1:1", "http://127.0.0.1:1/v1", "http://"])
async def test_an_address_that_is_no_data_address_is_refused(url: str) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(ValueError, match="a data address looks like"):
            await Connection.open(nursery, url)


def test_limits_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="pipeline_depth_max must be at least 1, not 0"):
        ConnectionConfig(pipeline_depth_max=0)


async def test_answers_are_given_one_by_one_in_order_and_not_kept() -> None:
    bodies = [bytes([number]) * 200_000 for number in range(20)]
    got: list[tuple[int, bytes]] = []

    async with fake_server(saying(*[answer(200, body) for body in bodies])) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)

        def take(index: int, result: object) -> None:
            assert isinstance(result, Response)
            assert len(got) == index
            got.append((index, result.body[:1]))

        await connection.request_each([Request(b"GET", b"/")] * 20, take)
        await connection.request_each([], take)
        connection.close()
        lost: list[object] = []
        await connection.request_each([Request(b"GET", b"/")] * 2, lambda _, result: lost.append(result))
    assert got == [(number, body[:1]) for number, body in enumerate(bodies)]
    assert [type(one) for one in lost] == [NotSent, NotSent]


async def test_what_a_taker_raises_is_raised_after_the_rest_and_the_connection_goes_on() -> None:
    async with fake_server(saying(*[answer(200, b"%d" % number) for number in range(4)])) as url:
        taken: list[int] = []
        async with trio.open_nursery() as nursery:
            connection = await Connection.open(nursery, url)

            def take(index: int, _: object) -> None:
                taken.append(index)
                raise ValueError(f"at {index}")

            with pytest.raises(ValueError, match="at 0"):
                await connection.request_each([Request(b"GET", b"/")] * 3, take)
            assert taken == [0]
            assert (await connection.request(b"GET", b"/")).body == b"3"
            connection.close()


async def test_server_that_answers_slowly_and_steadily_is_not_given_up() -> None:
    async def drip(caller: Caller) -> None:
        await caller.read()
        said = answer(200, b"0123456789")
        for at in range(len(said)):
            await caller.say(said[at : at + 1])
            await trio.sleep(0.02)
        await caller.read()

    async with fake_server(drip) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url, config=ConnectionConfig(answer_timeout_ms=400))
        began = trio.current_time()
        assert (await connection.request(b"GET", b"/")).body == b"0123456789"
        assert trio.current_time() - began > 0.8
        connection.close()


async def test_large_request_is_given_more_time() -> None:
    async def think(caller: Caller) -> None:
        while requests := await caller.read():
            await trio.sleep(0.4)
            await caller.say(answer(200, b"%d" % len(requests[0].body)))

    async with fake_server(think) as url, trio.open_nursery() as nursery:
        config = ConnectionConfig(answer_timeout_ms=100)
        connection = await Connection.open(nursery, url, config=config)
        assert (await connection.request(b"PUT", b"/", (), bytes(2_000_000))).body == b"2000000"
        with pytest.raises(Unanswered):
            await connection.request(b"PUT", b"/", (), b"small")


async def test_request_that_may_wait_for_others_in_a_gateway_is_given_that_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvp2p.client.connection.LARGE_WAIT_S", 5.0)
    monkeypatch.setattr("kvp2p.client.connection.LARGE_S_PER_MIB", 0.0)

    async def think(caller: Caller) -> None:
        await caller.read()
        await trio.sleep(0.4)
        await caller.say(answer(200, b"done"))

    async with fake_server(think) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url, config=ConnectionConfig(answer_timeout_ms=100))
        assert (await connection.request(b"PUT", b"/", (), bytes(INLINE_VALUE_BYTES_MAX + 1))).body == b"done"
        connection.close()


def test_large_request_is_given_as_long_as_a_gateway_may_take() -> None:
    assert large_s(INLINE_VALUE_BYTES_MAX) == 0
    for value_bytes in (INLINE_VALUE_BYTES_MAX + 1, VALUE_BYTES_MAX):
        waits_s = HTTP_ROOM_WAIT_SECONDS + HTTP_TURN_WAIT_SECONDS
        # The write, and the hold after it.
        assert large_s(value_bytes) == waits_s + 2 * -(-value_bytes // 2**20) * WRITE_LARGE_MS_PER_MIB / 1000


async def test_many_large_requests_are_not_joined_for_one_call() -> None:
    async with fake_server(saying(*[answer(200)] * 4)) as url, trio.open_nursery() as nursery:
        connection = await Connection.open(nursery, url)
        connection._queue.extend(_Exchange(bytes(700_000), is_head=False) for _ in range(4))
        assert [len(connection._take_batch()) for _ in range(2)] == [1_400_000, 1_400_000]
        connection._in_flight.clear()
        connection.close()
