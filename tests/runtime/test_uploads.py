"""Chunks on their way to the node: what holds them back, what they hold back, and what becomes of them when the connection ends."""

import time
from pathlib import Path

import pytest
import trio

from kvp2p.core.entry import ChunkId, chunk_id
from kvp2p.core.operations import Ending, Outcome
from kvp2p.limits import CHUNK_BYTES
from kvp2p.runtime import chunk_lane, node_port
from kvp2p.runtime.node_port import NodePort
from kvp2p.runtime.requests import MS
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import EndUpload, LocalMessage, LocalOutcome, Readiness, StageChunk, SubmitWrite
from tests.runtime.test_node_port import ACKED, FakeNode, a_put, connected, running_port, stay_silent, until

CONTENT = b"c" * CHUNK_BYTES
NAME = chunk_id(CONTENT)


def store(message: LocalMessage) -> LocalMessage | None:
    match message:
        case StageChunk(number) | SubmitWrite(number):
            return LocalOutcome(number, ACKED)
    return None


def stage(port: NodePort, upload: int, outcomes: list[Outcome], content: bytes = CONTENT) -> None:
    port.stage_nowait(upload, ChunkId(chunk_id(content)), content, outcomes.append)


async def test_chunks_are_stored_and_the_node_is_told_when_their_upload_ends(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", store)
    outcomes: list[Outcome] = []
    async with connected(node) as port:
        upload = port.open_upload()
        for _ in range(3):
            stage(port, upload, outcomes)
        await until(lambda: len(outcomes) == 3)
        port.submit_nowait(a_put(), 5_000, outcomes.append, upload=upload)
        await until(lambda: len(outcomes) == 4)
        port.end_upload(upload)
        port.end_upload(upload)
        await until(lambda: bool(node.of_type(EndUpload)))
        port.submit_nowait(a_put(), 5_000, outcomes.append, upload=upload)
    assert outcomes[:4] == [ACKED] * 4
    assert (outcomes[4].ending, outcomes[4].code) == (Ending.REFUSED, "node_unavailable")
    numbers = [message.request for message in node.received if isinstance(message, StageChunk)]
    assert node.received[1:-2] == [StageChunk(number, upload, NAME, CONTENT) for number in numbers]
    assert node.received[-1] == EndUpload(upload)


async def test_small_write_overtakes_the_chunks_that_wait(short_tmp_path: Path) -> None:
    path = short_tmp_path / "node.sock"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    outcomes: list[Outcome] = []
    async with running_port(path) as port:
        accepted, _ = await listener.accept()  # and reads nothing yet: the kernel's buffer fills
        await port.wait_connected()
        upload = port.open_upload()
        for _ in range(10):
            stage(port, upload, outcomes)
        port.submit_nowait(a_put(), 5_000, outcomes.append)
        decoder, received = LocalDecoder(), list[LocalMessage]()
        while len(received) < 12:
            received += decoder.feed(await accepted.recv(1 << 16))
        kinds = [type(message) for message in received]
        # Behind what the kernel had taken, which is one chunk or the part of one, and one that was under way.
        assert kinds.index(SubmitWrite) <= 3
        assert kinds.count(StageChunk) == 10
        accepted.close()
    listener.close()


async def test_node_is_given_so_many_chunks_and_more_only_when_some_are_stored(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_lane, "LOCAL_STAGES_IN_FLIGHT_MAX", 3)
    monkeypatch.setattr(node_port, "ANSWER_GRACE_MS", 50)
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    outcomes: list[Outcome] = []
    async with connected(node) as port:
        uploads = [port.open_upload() for _ in range(5)]
        for upload in uploads:
            stage(port, upload, outcomes, b"small")
        assert await port.submit(a_put(), 100) is not None  # long enough for what might leave
        staged = node.of_type(StageChunk)
        assert [one.upload for one in staged if isinstance(one, StageChunk)] == uploads[:3]
        # An upload that ends frees no place before its chunk has been answered, and its chunks that wait never leave.
        port.end_upload(uploads[0])
        port.end_upload(uploads[3])
        await until(lambda: len(node.of_type(EndUpload)) == 2)
        assert len(node.of_type(StageChunk)) == 3
        for one in staged:
            assert isinstance(one, StageChunk)
            await node.streams[0].send_all(encode_local([LocalOutcome(one.request, ACKED)]))
        await until(lambda: len(node.of_type(StageChunk)) == 4)
        last = node.of_type(StageChunk)[-1]
        assert isinstance(last, StageChunk)
        assert last.upload == uploads[4]
    assert outcomes[:2] == [ACKED, ACKED], "the first one's upload had ended: nobody was told"
    assert [one.code for one in outcomes[2:]] == ["node_unavailable"]


async def test_more_chunks_than_may_wait_are_refused(short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_lane, "LOCAL_STAGES_MAX", 2)
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    outcomes: list[Outcome] = []
    async with connected(node) as port:
        upload = port.open_upload()
        for _ in range(3):
            stage(port, upload, outcomes, b"small")
        assert [(one.ending, one.code) for one in outcomes] == [(Ending.REFUSED, "overloaded")]


async def test_upload_is_lost_with_its_connection_and_nothing_of_it_is_sent_over_the_next(short_tmp_path: Path) -> None:
    first = FakeNode(short_tmp_path / "node.sock", stay_silent)
    second = FakeNode(short_tmp_path / "node.sock", store)
    outcomes: list[Outcome] = []
    async with running_port(first.path) as port:
        early = port.open_upload()
        stage(port, early, outcomes)
        assert [(one.ending, one.code) for one in outcomes] == [(Ending.REFUSED, "node_unavailable")]
        async with first.serving():
            await port.wait_connected()
            upload = port.open_upload()
            stage(port, upload, outcomes)
            await until(lambda: bool(first.of_type(StageChunk)))
        await until(lambda: not port.connected)
        async with second.serving():
            await port.wait_connected()
            stage(port, upload, outcomes)
            port.submit_nowait(a_put(), 5_000, outcomes.append, upload=upload)
            port.end_upload(upload)
            fresh = port.open_upload()
            stage(port, fresh, outcomes)
            await until(lambda: len(outcomes) == 5)
        assert [(one.ending, one.code) for one in outcomes[1:4]] == [(Ending.REFUSED, "node_unavailable")] * 3
        assert outcomes[4] == ACKED
    seen = [message for message in second.received if isinstance(message, StageChunk | EndUpload | SubmitWrite)]
    assert [message.upload for message in seen if not isinstance(message, SubmitWrite)] == [fresh]
    assert len(seen) == 1


async def test_chunk_that_is_not_stored_in_time_is_refused_and_not_unknown(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_port, "STAGE_TIMEOUT_MS", 60)
    monkeypatch.setattr(node_port, "WAIT_GRACE_MS", 40)
    monkeypatch.setattr(chunk_lane, "LOCAL_STAGES_IN_FLIGHT_MAX", 1)
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    outcomes: list[Outcome] = []
    async with connected(node) as port:
        upload = port.open_upload()
        stage(port, upload, outcomes, b"sent")
        stage(port, upload, outcomes, b"never sent")
        await until(lambda: len(outcomes) == 2)
        assert [(one.ending, one.code) for one in outcomes] == [
            (Ending.REFUSED, "deadline_passed"),
            (Ending.REFUSED, "node_unavailable"),
        ]
        assert len(node.of_type(StageChunk)) == 1
        assert port.connected


async def test_large_write_has_more_time_and_a_longer_hold(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_port, "ANSWER_GRACE_MS", 10)
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    outcomes: list[Outcome] = []
    async with connected(node) as port:
        began_ns = time.monotonic_ns()
        port.submit_nowait(a_put(), 100, outcomes.append, large_ms=200)
        submitted_ns = time.monotonic_ns()
        await until(lambda: bool(outcomes))
        assert outcomes[0].ending is Ending.UNKNOWN
        (write,) = node.of_type(SubmitWrite)
        assert isinstance(write, SubmitWrite)
        assert began_ns <= write.deadline_ns - 300 * MS <= submitted_ns
        held_ns = time.monotonic_ns() - write.deadline_ns
        assert 210 * MS <= held_ns < 2_000 * MS


async def test_readiness_with_a_clock_is_kept(short_tmp_path: Path) -> None:
    node = FakeNode(short_tmp_path / "node.sock", stay_silent)
    async with connected(node) as port:
        await until(lambda: port.readiness.ready)
        await node.streams[0].send_all(encode_local([Readiness(True, "", 12_345)]))
        await until(lambda: port.readiness.clock_ahead_ms == 12_345)
