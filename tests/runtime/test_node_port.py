"""The unix socket to the node: what a write ends as when the node answers, is gone, restarts, or stays silent."""

import gc
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from kvp2p import limits
from kvp2p.core.operations import Ending, Outcome, Put, refused
from kvp2p.errors import NodeUnavailable
from kvp2p.ids import NamespaceId, Version
from kvp2p.runtime import node_port
from kvp2p.runtime.node_port import NodePort
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import (
    AwaitVersion,
    Hello,
    LocalMessage,
    LocalOutcome,
    Query,
    QueryAnswer,
    Readiness,
    Report,
    SubmitWrite,
)

NAMESPACE = NamespaceId(b"n" * 16)
VERSION = Version(b"\x01" * 20)
ACKED = Outcome(Ending.ACKED, version=VERSION)

Answer = Callable[[LocalMessage], LocalMessage | None]


class FakeNode:
    """Listens on a unix socket, keeps what it received, answers by a function; can be killed and started again."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.received: list[LocalMessage] = []
        self.sends = 0  # as the length prefixes tell
        self.streams: list[trio.abc.Stream] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(self.path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [trio.SocketListener(listener)])
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                self.path.unlink()

    async def _serve(self, stream: trio.abc.Stream) -> None:
        decoder = LocalDecoder()
        self.streams.append(stream)
        async with stream:
            await stream.send_all(encode_local([Readiness(True, "")]))
            try:
                while data := await stream.receive_some(65_536):
                    self.sends += count_chunks(bytes(data))
                    for message in decoder.feed(bytes(data)):
                        self.received.append(message)
                        answer = self.answer(message)
                        if answer is not None:
                            await stream.send_all(encode_local([answer]))
            except trio.BrokenResourceError:
                return

    def of_type(self, kind: type[LocalMessage]) -> list[LocalMessage]:
        return [message for message in self.received if isinstance(message, kind)]


def count_chunks(data: bytes) -> int:
    """Count the chunks of a piece of the stream in which none is cut."""
    count = 0
    while data:
        data = data[4 + int.from_bytes(data[:4], "big") :]
        count += 1
    return count


async def until(condition: Callable[[], bool]) -> None:
    """Poll, within the deadline of the test."""
    while not condition():  # noqa: ASYNC110  what is waited for is in another object's hands
        await trio.sleep(0.01)


def acknowledge(message: LocalMessage) -> LocalMessage | None:
    match message:
        case SubmitWrite(number) | AwaitVersion(number):
            return LocalOutcome(number, ACKED)
        case Query(number, what):
            return QueryAnswer(number, b'{"asked":"%s"}' % what.encode())
    return None


def stay_silent(_: LocalMessage) -> None:
    return None


def a_put(key: bytes = b"k", value: bytes = b"v") -> tuple[Put, ...]:
    return (Put(NAMESPACE, key, value),)


@asynccontextmanager
async def running_port(path: Path) -> AsyncIterator[NodePort]:
    port = NodePort(str(path), "gateway")
    async with trio.open_nursery() as nursery:
        await nursery.start(port.run)
        yield port
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(node: FakeNode) -> AsyncIterator[NodePort]:
    """Give a port that has reached a node."""
    async with node.serving(), running_port(node.path) as port:
        await port.wait_connected()
        yield port


async def test_writes_waits_questions_and_reports_reach_the_node_and_are_answered(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with connected(node) as port:
        began_ns = time.monotonic_ns() - 1_000_000_000  # it may come out early by a stop of this process, never late
        assert await port.submit(a_put(), 5_000) == ACKED
        assert await port.await_version(VERSION, 500) == ACKED
        assert await port.query("status") == b'{"asked":"status"}'
        assert port.readiness == Readiness(True, "")
        port.report({'requests_total{method="GET"}': 7})
        await until(lambda: bool(node.of_type(Report)))
    hello, write, wait, *_ = node.received
    assert isinstance(hello, Hello)
    assert hello.role == "gateway"
    assert isinstance(write, SubmitWrite)
    assert write.operations == a_put()
    assert began_ns < write.deadline_ns - 5_000 * 1_000_000 < time.monotonic_ns()
    assert isinstance(wait, AwaitVersion)
    assert wait.version == VERSION
    assert began_ns < wait.deadline_ns - 500 * 1_000_000 < time.monotonic_ns()
    assert node.of_type(Report) == [Report((('requests_total{method="GET"}', 7),))]


async def test_without_a_node_a_write_is_refused_and_nothing_is_ever_sent(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with running_port(node.path) as port:
        outcome = await port.submit(a_put(), 5_000)
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "node_unavailable")
        assert (await port.await_version(VERSION, 100)).code == "node_unavailable"
        with pytest.raises(NodeUnavailable):
            await port.query("status")
        assert not port.readiness.ready
        async with node.serving():
            await port.wait_connected()
            await port.query("status")
            assert node.of_type(SubmitWrite) == []


async def test_a_write_that_was_sent_is_unknown_when_the_node_dies_and_is_never_sent_again(
    short_tmp_path: Path,
) -> None:
    first = FakeNode(short_tmp_path / "node.sock", stay_silent)
    second = FakeNode(short_tmp_path / "node.sock", acknowledge)
    outcomes: list[Outcome] = []
    async with running_port(first.path) as port:
        async with first.serving():
            await port.wait_connected()
            port.submit_nowait(a_put(b"lost"), 5_000, outcomes.append)
            await until(lambda: bool(first.of_type(SubmitWrite)))
            assert outcomes == []
        await until(lambda: not port.connected)
        assert [one.ending for one in outcomes] == [Ending.UNKNOWN]
        assert port.readiness.ready  # what the store was complete about, it stays complete about
        async with second.serving():
            await port.wait_connected()
            assert await port.submit(a_put(b"after"), 5_000) == ACKED
    assert [write.operations for write in second.of_type(SubmitWrite) if isinstance(write, SubmitWrite)] == [
        a_put(b"after")
    ]


async def test_what_is_queued_together_leaves_in_order_and_all_of_it_is_answered(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    outcomes: list[Outcome] = []
    keys = [b"%d" % number for number in range(300)]
    async with connected(node) as port:
        for key in keys:
            port.submit_nowait(a_put(key, b"x" * 10_000), 5_000, outcomes.append)
        await until(lambda: len(outcomes) == len(keys))
    assert outcomes == [ACKED] * len(keys)
    writes = [write for write in node.received if isinstance(write, SubmitWrite)]
    assert [write.operations[0].key for write in writes if isinstance(write.operations[0], Put)] == keys


async def test_a_queue_that_is_full_refuses_as_overloaded(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    outcomes: list[Outcome] = []
    async with connected(node) as port:
        value = b"x" * limits.ROW_VALUE_BYTES_MAX
        # Those that leave at once are not in the queue any more: what the kernel takes, and one that it takes in part.
        taken_max = math.ceil(limits.LOCAL_QUEUE_BYTES_MAX / len(value)) + 8
        for _ in range(taken_max):
            port.submit_nowait(a_put(b"k", value), 5_000, outcomes.append)
        assert outcomes
        assert {(one.ending, one.code) for one in outcomes} == {(Ending.REFUSED, "overloaded")}


async def test_waiting_readers_take_no_room_from_writes(short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_port, "LOCAL_WAITS_MAX", 3)

    def answer_writes(message: LocalMessage) -> LocalMessage | None:
        return acknowledge(message) if isinstance(message, SubmitWrite) else None

    node = FakeNode(short_tmp_path / "node.sock", answer_writes)
    async with node.serving(), running_port(node.path) as port, trio.open_nursery() as nursery:
        await port.wait_connected()
        for _ in range(3):
            nursery.start_soon(port.await_version, VERSION, 60_000)
        await until(lambda: len(node.of_type(AwaitVersion)) == 3)
        assert (await port.await_version(VERSION, 60_000)).code == "overloaded"
        monkeypatch.setattr(node_port, "FORWARDS_IN_FLIGHT_MAX", 1)
        assert await port.submit(a_put(), 5_000) == ACKED
        port.submit_nowait(a_put(), 5_000, lambda _: None)
        assert (await port.submit(a_put(), 5_000)).code == "overloaded"
        nursery.cancel_scope.cancel()


async def test_a_wait_without_an_answer_is_refused_and_not_unknown(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_port, "WAIT_GRACE_MS", 50)
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    async with connected(node) as port:
        outcome = await port.await_version(VERSION, 50)
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "node_unavailable")


async def test_a_write_on_its_way_does_not_keep_its_value(short_tmp_path: Path) -> None:
    freed: list[int] = []

    class Value(bytes):
        def __del__(self) -> None:
            freed.append(len(self))

    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    async with connected(node) as port:
        port.submit_nowait(a_put(b"k", Value(b"x")), 5_000, lambda _: None)
        await until(lambda: bool(node.of_type(SubmitWrite)))
        gc.collect()
        assert freed == [1]


async def test_how_long_a_node_has_been_gone_is_told(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with running_port(node.path) as port:
        async with node.serving():
            await port.wait_connected()
            assert port.lost_ms() == 0
        await until(lambda: port.lost_ms() >= 30)
        async with node.serving():
            await port.wait_connected()
            assert port.lost_ms() == 0


async def test_a_sent_write_without_an_answer_is_unknown_after_deadline_and_grace(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvp2p.runtime.node_port.ANSWER_GRACE_MS", 150)
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    async with connected(node) as port:
        start = trio.current_time()
        outcome = await port.submit(a_put(), 100)
        assert outcome.ending is Ending.UNKNOWN
        assert 0.25 <= trio.current_time() - start < 2
        assert port.connected


async def test_a_write_that_follows_an_overdue_one_ends_at_its_own_deadline(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvp2p.runtime.node_port.ANSWER_GRACE_MS", 50)
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    ended: list[Outcome] = []
    following = [a_put(b"second")]
    async with connected(node) as port:

        def go_on() -> None:  # as a connection does with the next write of its pipeline
            if len(ended) == 1 and following:
                port.submit_nowait(following.pop(), 50, ended.append)

        port.on_ended = go_on
        port.submit_nowait(a_put(b"first"), 50, ended.append)
        await until(lambda: len(ended) == 2)
    assert [outcome.ending for outcome in ended] == [Ending.UNKNOWN, Ending.UNKNOWN]


async def test_a_write_that_the_node_does_not_take_is_refused_at_its_deadline_and_never_leaves(
    short_tmp_path: Path,
) -> None:
    path = short_tmp_path / "node.sock"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    sent: list[Outcome] = []
    async with running_port(path) as port:
        accepted, _ = await listener.accept()  # and reads nothing: the kernel's buffer fills, then the queue
        await port.wait_connected()
        filler = a_put(b"filler", b"x" * limits.ROW_VALUE_BYTES_MAX)
        for _ in range(16):
            port.submit_nowait(filler, 60_000, sent.append)
        outcome = await port.submit(a_put(b"late"), 200)
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "deadline_passed")
        decoder = LocalDecoder()
        keys: list[bytes] = []
        while len(keys) < 16:
            writes = [one for one in decoder.feed(await accepted.recv(1 << 20)) if isinstance(one, SubmitWrite)]
            keys += [one.key for write in writes for one in write.operations if isinstance(one, Put)]
        assert set(keys) == {b"filler"}
        accepted.close()
    listener.close()


class CountTaskSteps(trio.abc.Instrument):
    """Counts what wakes up."""

    def __init__(self) -> None:
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def test_an_idle_port_does_not_wake_up(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with connected(node) as port:
        await port.submit(a_put(), 60_000)
        await trio.testing.wait_all_tasks_blocked()
        counter = CountTaskSteps()
        trio.lowlevel.add_instrument(counter)
        await trio.sleep(0.35)
        trio.lowlevel.remove_instrument(counter)
        assert counter.steps == 1, "only this test has woken up"


async def test_a_write_whose_time_is_up_is_refused_and_never_leaves(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with connected(node) as port:
        outcome = await port.submit(a_put(b"late"), -1)
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "deadline_passed")
        assert await port.submit(a_put(b"next"), 5_000) == ACKED
    writes = [write for write in node.received if isinstance(write, SubmitWrite)]
    assert [write.operations for write in writes] == [a_put(b"next")]


async def test_a_write_too_large_for_the_node_is_refused_here(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with connected(node) as port:
        outcome = await port.submit(2 * a_put(b"k", b"x" * limits.ROW_VALUE_BYTES_MAX), 5_000)
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "bad_request")
        assert port.connected


async def test_counters_are_sent_when_they_changed_and_to_each_new_node(short_tmp_path: Path) -> None:
    first = FakeNode(short_tmp_path / "node.sock", acknowledge)
    second = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with running_port(first.path) as port:
        async with first.serving():
            await port.wait_connected()
            for count in (1, 1, 2, 2):
                port.report({"requests_total": count})
                await port.query("status")
        await until(lambda: not port.connected)
        async with second.serving():
            await port.wait_connected()
            port.report({"requests_total": 2})
            await port.query("status")
    assert first.of_type(Report) == [Report((("requests_total", 1),)), Report((("requests_total", 2),))]
    assert second.of_type(Report) == [Report((("requests_total", 2),))]


async def test_outcomes_that_come_together_are_acted_on_together(short_tmp_path: Path) -> None:
    held: list[LocalMessage] = []

    def answer_the_last(message: LocalMessage) -> LocalMessage | None:
        held.append(message)
        return None

    node = FakeNode(short_tmp_path / "node.sock", answer_the_last)
    outcomes: list[Outcome] = []
    ended: list[int] = []
    async with node.serving(), running_port(node.path) as port:
        await until(lambda: port.readiness.ready)
        port.on_ended = lambda: ended.append(len(outcomes))
        for number in range(24):
            port.submit_nowait(a_put(b"%d" % number), 5_000, outcomes.append)
        await until(lambda: len(node.of_type(SubmitWrite)) == 24)
        answers = [LocalOutcome(one.request, ACKED) for one in held if isinstance(one, SubmitWrite)]
        await node.streams[0].send_all(encode_local(answers))
        await until(lambda: bool(outcomes))
    assert ended[0] == len(outcomes) == 24


async def test_writes_of_one_turn_share_a_send(short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_port, "SHARING_NS", 10**9)  # whatever this machine takes for a write
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    async with connected(node) as port:
        await until(lambda: bool(node.received))
        for number in range(80):
            port.submit_nowait(a_put(b"%d" % number), 5_000, lambda _: None)
        await until(lambda: len(node.of_type(SubmitWrite)) == 80)
    assert node.sends == 3, "the hello, the first, which knew of no other, and all others"


async def test_a_cancelled_write_that_has_not_left_never_leaves(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    async with connected(node) as port:
        with trio.CancelScope() as scope:
            scope.cancel()
            await port.submit(a_put(b"abandoned"), 5_000)
        assert scope.cancelled_caught
        assert await port.submit(a_put(b"next"), 5_000) == ACKED
    writes = [write for write in node.received if isinstance(write, SubmitWrite)]
    assert [write.operations for write in writes] == [a_put(b"next")]


async def test_a_write_cancelled_while_the_node_does_not_read_never_leaves(short_tmp_path: Path) -> None:
    path = short_tmp_path / "node.sock"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    async with running_port(path) as port:
        accepted, _ = await listener.accept()  # and reads nothing: the kernel's buffer fills, then the queue
        await port.wait_connected()
        for _ in range(8):
            port.submit_nowait(a_put(b"filler", b"x" * limits.ROW_VALUE_BYTES_MAX), 60_000, lambda _: None)
        with trio.move_on_after(0.05) as scope:
            await port.submit(a_put(b"abandoned"), 60_000)
        assert scope.cancelled_caught
        port.submit_nowait(a_put(b"last"), 60_000, lambda _: None)
        decoder = LocalDecoder()
        keys: list[bytes] = []
        while b"last" not in keys:
            writes = [one for one in decoder.feed(await accepted.recv(1 << 20)) if isinstance(one, SubmitWrite)]
            keys += [one.key for write in writes for one in write.operations if isinstance(one, Put)]
        assert keys == [b"filler"] * 8 + [b"last"]
        accepted.close()
    listener.close()


async def test_a_node_that_sends_nonsense_is_left_and_dialled_again(short_tmp_path: Path) -> None:
    answers = iter([b"\x00\x00\x00\x02\xff\xff", None, None])

    node = FakeNode(short_tmp_path / "node.sock", acknowledge)
    original = node._serve

    async def serve(stream: trio.abc.Stream) -> None:
        nonsense = next(answers)
        if nonsense is None:
            await original(stream)
        else:
            async with stream:
                await stream.send_all(nonsense)
                await stream.receive_some(1)

    node._serve = serve  # type: ignore[method-assign]
    async with node.serving(), running_port(node.path) as port:
        await until(lambda: port.readiness.ready)
        assert await port.submit(a_put(), 5_000) == ACKED


async def test_refusals_of_the_node_reach_the_caller_unchanged(short_tmp_path: Path) -> None:
    refusal = refused("precondition_failed", "another version stands there", VERSION)

    def refuse(message: LocalMessage) -> LocalMessage | None:
        return LocalOutcome(message.request, refusal) if isinstance(message, SubmitWrite) else None

    node = FakeNode(short_tmp_path / "node.sock", refuse)
    async with connected(node) as port:
        assert await port.submit(a_put(), 5_000) == refusal
