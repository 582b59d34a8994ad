"""The node's end of the unix socket, over a real socket, driver and store: answers, pushes, counters, and processes that misbehave."""

import json
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from kvp2p.api.metrics import families
from kvp2p.core.clock import LeaderClock
from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.messages import ChunkPart, Digest, Frame, Lane
from kvp2p.core.operations import Ending, Outcome, Put
from kvp2p.core.system_rows import CANDIDATES_KEY, encode_candidates
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    Issuer,
    NodeId,
    Now,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
    version_term,
)
from kvp2p.limits import CHUNK_BYTES, CLOCK_TOLD_MS, VECTOR_ISSUERS_MAX
from kvp2p.net.link import Traffic
from kvp2p.node import local_server
from kvp2p.node.local_server import LocalServer
from kvp2p.node.status import Counters, mesh_counters, own_counters, readiness, status_document
from kvp2p.runtime.driver import MS, ReplicaDriver
from kvp2p.runtime.wall_clock import WallClock
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import (
    AwaitVersion,
    EndUpload,
    Hello,
    LocalMessage,
    LocalOutcome,
    Query,
    QueryAnswer,
    Readiness,
    Report,
    SetClock,
    StageChunk,
    SubmitWrite,
)
from tests.node.rig import (
    NAMESPACE,
    QUICK,
    FakeDialler,
    FakeLink,
    GatedStore,
    a_put,
    chunked_put,
    chunks_kept,
    has_key,
    identity_of,
    in_ms,
    large_value,
    make_namespace,
    make_store,
    member_of,
    running,
    until,
)

NODE = NodeId(b"n" * 16)


class LocalProcess:
    """A gateway's end of the socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = LocalDecoder()
        self._received: list[LocalMessage] = []

    async def send(self, *messages: LocalMessage) -> None:
        await self.stream.send_all(encode_local(messages))

    async def receive(self) -> LocalMessage:
        while not self._received:
            data = await self.stream.receive_some(65_536)
            if not data:
                raise EOFError
            self._received += self._decoder.feed(bytes(data))
        return self._received.pop(0)

    async def outcome(self, message: SubmitWrite | AwaitVersion | StageChunk | SetClock) -> Outcome:
        await self.send(message)
        while isinstance(answer := await self.receive(), Readiness):
            assert isinstance(message, SetClock), "the clock is another, and told before"
        assert isinstance(answer, LocalOutcome)
        assert answer.request == message.request
        return answer.outcome

    async def query(self, what: str) -> dict[str, Any]:
        await self.send(Query(77, what))
        answer = await self.receive()
        assert isinstance(answer, QueryAnswer)
        assert answer.request == 77
        document = json.loads(answer.body)
        assert isinstance(document, dict)
        return document


@dataclass
class Rig:
    path: Path
    driver: ReplicaDriver
    counters: Counters
    server: LocalServer
    gone: list[None] = field(default_factory=list)

    @asynccontextmanager
    async def process(self) -> AsyncIterator[LocalProcess]:
        """Connect; the readiness that every process is told first is taken off."""
        async with await trio.open_unix_socket(str(self.path)) as stream:
            process = LocalProcess(stream)
            assert isinstance(await process.receive(), Readiness)
            yield process


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GatedStore]:
    made = make_store(tmp_path / "store", NODE, leader=NODE)
    yield made
    made.close()


@asynccontextmanager
async def serving(store: GatedStore, path: Path, clock: WallClock | None = None) -> AsyncIterator[Rig]:
    """Run a node that leads alone and has a namespace."""
    driver = ReplicaDriver(store, QUICK, member_of(NODE), (), clock)
    driver.dialler = FakeDialler()
    counters = Counters()
    gone: list[None] = []
    documents: dict[str, Callable[[], dict[str, Any]]] = {
        "status": lambda: status_document(driver, identity_of(NODE), None),
        "metrics": lambda: {**counters.sums(), **own_counters(driver)},
    }
    server = LocalServer(driver, counters, documents, on_process_gone=lambda: gone.append(None))
    driver.on_handled = lambda: server.end_turn(*readiness(driver, None))
    await trio.Path(path).write_bytes(b"left by an earlier life")
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        await make_namespace(driver)
        await nursery.start(server.run, str(path))
        yield Rig(path, driver, counters, server, gone)
        nursery.cancel_scope.cancel()


async def test_a_write_is_answered_with_its_version_and_can_be_awaited(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        await process.send(Hello("gateway", 4_711))
        outcome = await process.outcome(SubmitWrite(1, in_ms(5_000), a_put(b"k", b"told")))
        assert outcome.ending is Ending.ACKED
        version = outcome.version
        assert version is not None
        awaited = await process.outcome(AwaitVersion(2, version, in_ms(1_000)))
        assert (awaited.ending, awaited.version) == (Ending.ACKED, version)
    with store.read() as txn:
        assert txn.vector.covers(version)


async def test_a_node_that_is_not_ready_says_why_a_link_was_refused(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig:
        assert readiness(rig.driver, None, "check this") == (True, "")
        rig.driver.machine.readiness.is_ready = False
        assert readiness(rig.driver, None) == (False, "the node has not caught up with its peers since it started")
        assert readiness(rig.driver, None, "check this")[1].endswith("started, and a link was refused: check this")


async def test_a_node_that_is_unready_for_its_disk_names_it_and_no_directory(
    store: GatedStore, short_tmp_path: Path
) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig:
        machine = rig.driver.machine
        machine.readiness.is_ready = False
        machine.readiness.has_fallen_behind = True
        machine.board.full_reason = f"the store in {short_tmp_path} is full"
        is_ready, reason = readiness(rig.driver, None)
        assert (is_ready, "disk is full" in reason, str(short_tmp_path) in reason) == (False, True, False)
        machine.board.full_reason = ""
        assert readiness(rig.driver, None) == (
            False,
            "the node has not caught up with its peers since its disk was full",
        )


async def test_a_write_that_comes_after_its_deadline_is_refused_and_not_applied(
    store: GatedStore, short_tmp_path: Path
) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        outcome = await process.outcome(SubmitWrite(1, in_ms(-1), a_put(b"abandoned")))
        far = await process.outcome(SubmitWrite(2, (1 << 64) - 1, a_put(b"k")))
    assert (outcome.ending, outcome.code) == (Ending.REFUSED, "deadline_passed")
    assert far.ending is Ending.ACKED
    assert not has_key(store, b"abandoned")
    assert has_key(store, b"k")


async def test_clock_of_a_node_that_serves_people_is_not_shifted(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        outcome = await process.outcome(SetClock(1, 3_600_000))
        assert (outcome.ending, outcome.code) == (Ending.REFUSED, "clock_fixed")
        assert abs(rig.driver.now().wall_ms - time.time() * 1_000) < 60_000
        assert (await process.query("status"))["clock_offset_ms"] is None


async def test_clock_of_a_node_under_test_is_shifted_and_versions_keep_growing(
    store: GatedStore, short_tmp_path: Path
) -> None:
    async with (
        serving(store, short_tmp_path / "node.sock", WallClock(60_000)) as rig,
        rig.process() as process,
    ):
        assert (await process.query("status"))["clock_offset_ms"] == 60_000
        versions = []
        for request, offset_ms in enumerate((0, 3_600_000, -3_600_000)):
            outcome = await process.outcome(SetClock(request, offset_ms))
            assert outcome.ending is Ending.ACKED
            assert abs(rig.driver.now().wall_ms - time.time() * 1_000 - offset_ms) < 60_000
            assert (await process.query("status"))["clock_offset_ms"] == offset_ms
            versions.append((await process.outcome(SubmitWrite(request, in_ms(5_000), a_put(b"k")))).version or b"")
        assert versions == sorted(set(versions))


def test_clock_before_1970_reads_as_1970() -> None:
    assert WallClock(-(10**15)).now_ms() == 0


async def test_a_version_that_does_not_come_is_answered_in_time(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        never = make_version(1, Stamp(1), Issuer(b"nobody's"))
        with trio.fail_after(2):
            outcome = await process.outcome(AwaitVersion(9, never, in_ms(50)))
    assert (outcome.ending, outcome.code) == (Ending.REFUSED, "not_caught_up")


async def test_a_reader_that_is_ahead_waits_until_the_version_is_written(
    store: GatedStore, short_tmp_path: Path
) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as reader, rig.process() as writer:
        first = (await writer.outcome(SubmitWrite(1, in_ms(5_000), a_put(b"k")))).version
        assert first is not None
        ahead = Version(
            make_version(version_term(first), Stamp(version_stamp(first) + 1), version_issuer(first))
        )  # covered by whatever is written next
        await reader.send(AwaitVersion(5, ahead, in_ms(5_000)))
        with trio.move_on_after(0.05) as waited:
            await reader.receive()
        assert waited.cancelled_caught
        await writer.outcome(SubmitWrite(2, in_ms(5_000), a_put(b"k")))
        answer = await reader.receive()
        assert isinstance(answer, LocalOutcome)
        assert (answer.request, answer.outcome.ending) == (5, Ending.ACKED)


async def test_many_writes_of_one_process_are_each_answered_once(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        await process.send(*(SubmitWrite(number, in_ms(5_000), a_put(b"k-%d" % number)) for number in range(200)))
        answers = [await process.receive() for _ in range(200)]
        assert await process.query("status")  # and nothing comes after them
    assert [answer.request for answer in answers if isinstance(answer, LocalOutcome)] == list(range(200))


async def test_status_tells_what_the_node_believes(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        outcome = await process.outcome(SubmitWrite(1, in_ms(5_000), a_put(b"k")))
        status = await process.query("status")
    version = outcome.version
    assert version is not None
    assert status["name"] == "n"
    assert status["node_id"] == status["leader_node_id"] == NODE.hex()
    assert status["cluster_id"] == (b"c" * 16).hex()
    assert (status["leader"], status["role"], status["term"]) == (True, "leading", 1)
    assert (status["ready"], status["ready_reason"], status["complete"]) == (True, "", True)
    assert status["disk_full"] == ""
    assert (status["lag_ms"], status["skew_ms"], status["diverged"]) == (0, None, False)
    assert status["vector"] == {version_issuer(version).hex(): f"{version_stamp(version):016x}"}
    assert (status["issuers"], status["issuers_max"]) == (1, VECTOR_ISSUERS_MAX)
    assert len(status["state_hash"]) == 32
    assert int(status["state_hash"], 16) != 0
    assert (status["candidates"], status["peers"]) == ([], [])
    purge = {"tombstones": 0, "log_positions": 3, "blocked_by": None, "blocked_why": ""}
    assert status["purge"] == {"fence": "00" * 20, "fence_ms": 0, **purge}
    assert status["members"] == [
        {
            "node_id": NODE.hex(),
            "name": "n",
            "incarnation": 1,
            "mesh_url": "ws://n/mesh",
            "data_url": "http://127.0.0.1:1",
            "api_url": "http://127.0.0.1:2",
            "linked": True,
        }
    ]


async def test_status_tells_which_candidate_keeps_a_leader_from_purging(
    store: GatedStore, short_tmp_path: Path
) -> None:
    other = NodeId(b"o" * 16)
    candidates = Put(SYSTEM_NAMESPACE, CANDIDATES_KEY, encode_candidates((NODE, other)))
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        await process.outcome(SubmitWrite(1, in_ms(5_000), (candidates,)))
        status = await process.query("status")
        assert own_counters(rig.driver)["kvp2p_node_purge_blocked"] == 1
    purge = status["purge"]
    assert (purge["blocked_by"], purge["blocked_why"]) == (other.hex(), "it is not reachable")


async def test_status_tells_what_a_designated_node_waits_for(store: GatedStore) -> None:
    driver = ReplicaDriver(store, QUICK, member_of(NODE), ("ws://p/mesh",))
    driver.dialler = FakeDialler()
    peer, issuer = NodeId(b"p" * 16), Issuer(b"issuer-p")
    async with running(driver):
        await driver.on_link_up(peer, FakeLink())
        shown = VersionVector([make_version(1, Stamp(9), issuer)])
        await driver.on_messages(peer, [Digest(shown, bytes(16), True, EMPTY_VECTOR, None, None, True, 0)])
        await until(lambda: status_document(driver, identity_of(NODE), None)["role"] == "catching_up")
        status = status_document(driver, identity_of(NODE), None)
    assert status["lacks"] == [{"issuer": issuer.hex(), "held": f"{0:016x}", "wanted": f"{9:016x}", "from": peer.hex()}]


async def test_status_tells_that_a_restored_leader_waits_for_a_peer(store: GatedStore) -> None:
    with store.write() as txn:
        txn.set_restored(True)
    driver = ReplicaDriver(store, QUICK, member_of(NODE), ())
    driver.dialler = FakeDialler()
    peer = NodeId(b"p" * 16)
    async with running(driver):
        status = status_document(driver, identity_of(NODE), None)
        assert (status["role"], status["restored"]) == ("hearing", True)
        assert status["waiting"].startswith("waiting for a peer that has the cluster's data")
        await driver.on_link_up(peer, FakeLink())
        await driver.on_messages(peer, [Digest(EMPTY_VECTOR, bytes(16), True, EMPTY_VECTOR, None, None, True, 0)])
        await until(lambda: status_document(driver, identity_of(NODE), None)["role"] == "leading")
        status = status_document(driver, identity_of(NODE), None)
    assert (status["restored"], status["waiting"]) == (False, "")


async def test_metrics_are_the_sum_over_processes_and_keep_what_an_ended_one_counted(
    store: GatedStore, short_tmp_path: Path
) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as watcher:
        async with rig.process() as first, rig.process() as second:
            await first.send(Report((("requests_total", 5), ("connections", 3))))
            await first.send(Report((("requests_total", 7), ("connections", 2))))
            await second.send(Report((("requests_total", 10), ("connections", 1))))
            await until(lambda: rig.counters.sums().get("requests_total") == 17)
            both = await watcher.query("metrics")
        await until(lambda: len(rig.gone) == 2)
        ended = await watcher.query("metrics")
    assert (both["requests_total"], both["connections"]) == (17, 3)
    assert both["kvp2p_node_leads"] == both["kvp2p_node_ready"] == 1
    assert both["kvp2p_node_syncs_total"] >= 1
    assert ended["requests_total"] == 17, "a counter never goes back"
    assert "connections" not in ended, "a gauge ends with its process"


def test_what_links_carried_is_told_by_lane_as_counters() -> None:
    carried = {lane: Traffic(received_bytes=number) for number, lane in enumerate(Lane, 1)}
    samples = mesh_counters(carried)
    assert samples['kvp2p_node_mesh_received_bytes_total{lane="data"}'] == 2
    assert len(samples) == 5 * len(Lane)
    assert {family.name for family in families(samples) if family.type == "counter"} == {
        f"kvp2p_node_mesh_{name}"
        for name in ("sent_messages", "sent_bytes", "received_messages", "received_bytes", "dropped_messages")
    }


async def test_readiness_is_told_at_connect_and_pushed_when_it_changes(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig:
        rig.driver.on_handled = lambda: None
        rig.server.end_turn(False, "held back")
        async with await trio.open_unix_socket(str(rig.path)) as stream:
            process = LocalProcess(stream)
            told = [await process.receive()]
            rig.server.end_turn(True, "")
            rig.server.end_turn(True, "")
            rig.server.end_turn(False, "it lags")
            told += [await process.receive(), await process.receive()]
    expected = [(False, "held back"), (True, ""), (False, "it lags")]
    assert [(one.ready, one.reason) for one in told if isinstance(one, Readiness)] == expected


async def test_leaders_clock_is_pushed_when_it_falls_or_rises_by_much(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock", WallClock(0)) as rig:
        rig.driver.on_handled = lambda: None
        board = rig.driver.machine.board
        async with await trio.open_unix_socket(str(rig.path)) as stream:
            process = LocalProcess(stream)

            async def told_ms() -> int:
                answer = await process.receive()
                assert isinstance(answer, Readiness)
                return answer.clock_ahead_ms

            own_ms = time.time_ns() // MS - time.monotonic_ns() // MS
            first_ms = await told_ms()
            assert abs(first_ms - own_ms) < 1_000
            board.leads = False  # so that the clock is what was heard
            for change_ms, is_told in ((CLOCK_TOLD_MS - 5, False), (CLOCK_TOLD_MS + 5, True), (CLOCK_TOLD_MS, True)):
                board.now = rig.driver.now()
                board.clock = clock_of(board.now, first_ms + change_ms)
                rig.server.end_turn(True, "")
                if is_told:
                    assert await told_ms() == pytest.approx(first_ms + change_ms, abs=2)
            await process.send(SetClock(1, 3_600_000))  # which a follower's wall clock has nothing to do with
            assert isinstance(await process.receive(), LocalOutcome)
            board.leads = True
            await process.send(SetClock(2, 7_200_000))
            assert abs(await told_ms() - own_ms - 7_200_000) < 1_000


def clock_of(now: Now, ahead_ms: int) -> LeaderClock:
    """Return a clock that is so far ahead of the monotonic one."""
    clock = LeaderClock(0, now)
    clock.hear(now.mono_ns // MS + ahead_ms, now)
    return clock


async def test_a_node_that_starts_tells_when_it_is_ready(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        status = await process.query("status")
        assert status["ready"] is True
        async with await trio.open_unix_socket(str(rig.path)) as stream:
            told = await LocalProcess(stream).receive()
            assert isinstance(told, Readiness)
            assert (told.ready, told.reason) == (True, "")


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xff",
        encode_local([Query(1, "secrets")]),
        encode_local([Readiness(True, "")]),
    ],
    ids=["too long", "no CBOR", "no such document", "not for a node"],
)
async def test_what_breaks_the_protocol_ends_that_connection_only(
    store: GatedStore, short_tmp_path: Path, sent: bytes
) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as bystander:
        async with rig.process() as bad:
            await bad.stream.send_all(sent)
            with pytest.raises(EOFError):
                await bad.receive()
        assert (await bystander.outcome(SubmitWrite(1, in_ms(5_000), a_put(b"k")))).ending is Ending.ACKED
        assert len(rig.gone) == 1


async def test_a_process_that_reads_nothing_is_cut_and_the_others_are_served(
    store: GatedStore, short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "LOCAL_ANSWERS_MAX", 100)
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as bystander, rig.process() as deaf:
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):
            for number in range(100_000):  # far more answers than socket buffers and the queue have room for
                await deaf.send(*(Query(number * 10 + one, "status") for one in range(10)))
        await until(lambda: len(rig.gone) == 1)
        assert (await bystander.outcome(SubmitWrite(1, in_ms(5_000), a_put(b"k")))).ending is Ending.ACKED


async def test_a_write_whose_process_has_gone_is_applied_and_told_to_nobody(
    store: GatedStore, short_tmp_path: Path
) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig:
        store.close_gate()
        began = store.began
        async with rig.process() as process:
            await process.send(SubmitWrite(1, in_ms(5_000), a_put(b"orphan")))
            await until(lambda: store.began > began)
        await until(lambda: len(rig.gone) == 1)
        store.open_gate()
        await until(lambda: rig.driver.machine.board.batches_in_flight() == 0)
        async with rig.process() as process:
            assert (await process.outcome(SubmitWrite(1, in_ms(5_000), a_put(b"k")))).ending is Ending.ACKED
    with store.read() as txn:
        assert {key for namespace, key, _ in txn.all_rows()} >= {b"orphan", b"k"}


async def test_the_socket_is_for_its_owner_alone(store: GatedStore, short_tmp_path: Path) -> None:
    async with serving(store, short_tmp_path / "node.sock") as rig:
        assert stat.S_IMODE(rig.path.stat().st_mode) == 0o600


# --- large values


async def test_a_large_value_comes_in_by_chunks_and_its_upload_ends_without_a_trace(
    store: GatedStore, short_tmp_path: Path
) -> None:
    value = Random(1).randbytes(3 * CHUNK_BYTES - 1)
    operations, chunks = chunked_put(b"k", value, CHUNK_BYTES)
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        for request, (chunk, content) in enumerate(chunks, 1):
            assert (await process.outcome(StageChunk(request, 5, chunk, content))).ending is Ending.ACKED
        assert chunks_kept(store) == len(chunks)
        assert (await process.query("metrics"))["kvp2p_node_uploads"] == 1
        assert (await process.outcome(SubmitWrite(9, in_ms(5_000), operations))).ending is Ending.ACKED
        await process.send(EndUpload(5), EndUpload(5))
        await until(lambda: not any_staged(store))
        assert (await process.query("metrics"))["kvp2p_node_uploads"] == 0
        assert (await process.query("status"))["pending_values"] == 0
        assert large_value(store, b"k") == value


async def test_uploads_of_two_processes_are_told_apart_and_end_with_their_connection(
    store: GatedStore, short_tmp_path: Path
) -> None:
    (chunk, content), (other, more) = chunked_put(b"k", b"contentmore", 7)[1]
    async with serving(store, short_tmp_path / "node.sock") as rig:
        async with rig.process() as first, rig.process() as second:
            for process in (first, second):
                assert (await process.outcome(StageChunk(1, 5, chunk, content))).ending is Ending.ACKED
            assert (await first.outcome(StageChunk(2, 5, other, more))).ending is Ending.ACKED
            await first.send(EndUpload(5))
            await until(lambda: chunks_kept(store) == 1)
        await until(lambda: chunks_kept(store) == 0)
        assert len(rig.driver.machine.large_values.uploads) == 0


async def test_a_process_with_too_many_uploads_is_cut(
    store: GatedStore, short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "LOCAL_UPLOADS_MAX", 1)
    ((chunk, content),) = chunked_put(b"k", b"content", 7)[1]
    async with serving(store, short_tmp_path / "node.sock") as rig, rig.process() as process:
        assert (await process.outcome(StageChunk(1, 5, chunk, content))).ending is Ending.ACKED
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await process.outcome(StageChunk(2, 6, chunk, content))
        await until(lambda: chunks_kept(store) == 0)


async def test_a_node_that_lacks_chunks_is_not_ready_and_says_so(tmp_path: Path) -> None:
    (operation,), ((chunk, content), *_) = chunked_put(b"k", b"content", 7)
    assert isinstance(operation, Put)
    peer = NodeId(b"p" * 16)
    at = make_version(1, Stamp(5), Issuer(b"issuer-p"))
    row = encode_row(Kind.CHUNKED, operation.value, None, 0, at)
    frame = Frame(1, Issuer(b"issuer-p"), Stamp(0), Stamp(5), ((Stamp(5), 0),), ((NAMESPACE, b"k", row),))
    follower = make_store(tmp_path / "follower", NODE, leader=peer)
    driver = ReplicaDriver(follower, QUICK, member_of(NODE), (member_of(peer).mesh_url,))
    driver.dialler = FakeDialler()
    async with running(driver):
        await driver.on_link_up(peer, FakeLink())
        digest = Digest(VersionVector([at]), bytes(16), False, EMPTY_VECTOR, None, None, True, 1, 0)
        await driver.on_messages(peer, [digest, frame])
        await until(lambda: driver.machine.board.vector.covers(at))
        assert readiness(driver, None) == (
            False,
            "the node has not received all parts of the large values that its peers had when it started",
        )
        assert own_counters(driver)["kvp2p_node_pending_values"] == 1
        await driver.on_messages(peer, [ChunkPart(chunk, 0, 7, content)])
        await until(lambda: readiness(driver, None)[0])
        assert own_counters(driver)["kvp2p_node_chunks_pulled_total"] == 1
    follower.close()


def any_staged(store: GatedStore) -> bool:
    with store.read() as txn:
        return any(True for _ in txn.staged())
