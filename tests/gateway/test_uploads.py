"""Large values on their way to the node: checked first, cut in chunks, held back, given up; and nothing of them stays behind."""

import os
import time
from pathlib import Path

import pytest
import trio

from kvp2p.config import HttpSettings
from kvp2p.core.operations import Ending, Outcome, Put, refused, unknown
from kvp2p.core.system_rows import Permission
from kvp2p.gateway import uploads
from kvp2p.gateway.bodies import ROOM_BYTES, Bodies
from kvp2p.gateway.uploads import Upload
from kvp2p.limits import (
    CHUNK_BYTES,
    HTTP_BODY_BYTES_HELD_MAX,
    HTTP_DISCARDED_BODY_BYTES_MAX,
    HTTP_UPLOAD_BYTES_HELD_MAX,
    INLINE_VALUE_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from kvp2p.wire.local import encode_local
from kvp2p.wire.local_messages import LocalOutcome
from tests.gateway.rig import NAMESPACE, READER, WRITER, Reply, Rig, request, rig, until
from tests.gateway.test_writes import OUTCOMES, chunked_put

MIB = 1 << 20
GET = request("GET", "/v1/words/k")
ACKED = Outcome(Ending.ACKED)
END_OF_CHUNKS = b"0\r\n\r\n"
IMPATIENT = HttpSettings(head_timeout_seconds=0.8, body_timeout_seconds=0.8, idle_timeout_seconds=2)


async def nothing_is_left(r: Rig, chunks: int = 0) -> None:
    """Wait until no upload is under way anywhere and the store has so many chunks."""
    await until(lambda: not r.node.uploads and len(r.writer.chunks()) == chunks)
    assert (r.gateway.bodies.held_bytes, r.gateway.bodies.rooms) == (0, 0)


def chunk_count(value: bytes) -> int:
    return -(-len(value) // CHUNK_BYTES)


def submitted(r: Rig) -> list[Put]:
    return [one for write in r.node.submitted for one in write.operations if isinstance(one, Put)]


def upload_of(r: Rig, key: bytes) -> Upload:
    """Return the upload that is under way for a key."""
    (upload,) = [
        one.upload
        for connection in r.gateway._connections
        if (one := connection._uploading) is not None and one.upload is not None and one.target.key == key
    ]
    return upload


SIZES = [INLINE_VALUE_BYTES_MAX + 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * MIB + 5]


@pytest.mark.parametrize("value_bytes", SIZES)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_large_value_is_stored_in_chunks_and_read_back(
    short_tmp_path: Path, value_bytes: int, is_chunked: bool
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(value_bytes)
        message = chunked_put(value, 10_007) if is_chunked else request("PUT", "/v1/words/k", value)
        for _ in range(2):
            reply = await wire.ask(message)
            assert (reply.status, reply.json["version"]) == (200, reply.headers["kv-version"])
            got = await wire.ask(GET)
            assert (got.body, got.headers["kv-version"]) == (value, reply.headers["kv-version"])
        assert [one.content for one in r.node.staged[: chunk_count(value)]] == [
            value[at : at + CHUNK_BYTES] for at in range(0, value_bytes, CHUNK_BYTES)
        ]
        await nothing_is_left(r, chunk_count(value))
        assert len(set(r.node.ended_uploads)) == 2
        assert (await wire.ask(request("DELETE", "/v1/words/k"))).status == 204
        await nothing_is_left(r)


async def test_value_up_to_the_inline_limit_goes_with_its_write(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(INLINE_VALUE_BYTES_MAX)
        for message in (request("PUT", "/v1/words/k", value), chunked_put(value, 1_000)):
            assert (await wire.ask(message)).status == 200
            assert submitted(r)[-1] == Put(NAMESPACE, b"k", value)
        assert not r.node.staged


async def test_what_is_stored_with_a_large_value_goes_with_its_write(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(MIB)
        headers = {"KV-Metadata": '{"a": 1}', "KV-Expires-In": "77", "If-None-Match": "*"}
        began_ns = time.monotonic_ns()
        assert (await wire.ask(request("PUT", "/v1/words/k", value, headers=headers))).status == 200
        (put,) = submitted(r)
        assert (put.metadata, put.expires_in, put.condition.name, put.is_chunked) == (b'{"a":1}', 77, "ABSENT", True)
        deadline_ms = (r.node.submitted[0].deadline_ns - began_ns) // 1_000_000
        assert 6_000 <= deadline_ms < 8_000, "5 s, and one more for the MiB"
        reply = await wire.ask(request("PUT", "/v1/words/k", os.urandom(MIB), headers={"If-None-Match": "*"}))
        assert (reply.status, reply.code, reply.error["applied"]) == (412, "precondition_failed", "no")
        await nothing_is_left(r, 4)


@pytest.mark.slow
@pytest.mark.deadline_s(60)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_value_of_exactly_the_limit_is_stored_and_one_byte_more_is_not(
    short_tmp_path: Path, is_chunked: bool
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(MIB) * 25 + b"!"
        assert len(value) == VALUE_BYTES_MAX + 1

        def put(body: bytes) -> bytes:
            return chunked_put(body, 100_000) if is_chunked else request("PUT", "/v1/words/k", body)

        assert (await wire.ask(put(value[:-1]))).status == 200
        await nothing_is_left(r, 4)
        writes, staged = len(r.node.submitted), len(r.node.staged)
        reply = await wire.ask(put(value))
        assert (reply.status, reply.code, reply.error["limit"]) == (413, "value_too_large", VALUE_BYTES_MAX)
        assert f"has {VALUE_BYTES_MAX + 1} bytes;" in reply.error["message"]
        assert len(r.node.submitted) == writes
        assert is_chunked or len(r.node.staged) == staged
        got = await wire.ask(GET)  # on the same connection: what was too much has been read and dropped
        assert got.body == value[:-1]
        await nothing_is_left(r, 4)


async def test_body_without_an_end_is_told_what_it_has_and_cut(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        head = request("PUT", "/v1/words/k", headers={"Transfer-Encoding": "chunked"})

        async def send() -> None:
            try:
                await wire.send(head)
                while True:
                    await wire.send(b"10000\r\n" + bytes(65_536) + b"\r\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            reply = await wire.reply()
            assert (reply.status, reply.code, reply.headers["connection"]) == (413, "value_too_large", "close")
            assert "bytes or more" in reply.error["message"]
            nursery.cancel_scope.cancel()
        await nothing_is_left(r)
        assert not r.node.submitted
        assert r.gateway.counters.bytes_received < HTTP_DISCARDED_BODY_BYTES_MAX + 2 * MIB


REFUSED: list[tuple[str, str | None, dict[str, str], int, str]] = [
    ("/v1/words/k", "nobody", {}, 401, "unauthorized"),
    ("/v1/words/k", READER, {}, 403, "forbidden"),
    ("/v1/other/k", "elsewhere", {}, 404, "namespace_not_found"),
    ("/v1/nowhere/k", WRITER, {}, 404, "namespace_not_found"),
    ("/v1/words/" + "k" * 513, WRITER, {}, 414, "key_too_long"),
    ("/v1/words/%zz", WRITER, {}, 400, "bad_key"),
    ("/v1/words/k?x", WRITER, {}, 400, "bad_query"),
    ("/v1/words/k", WRITER, {"KV-Metadata": "{"}, 400, "bad_metadata"),
    ("/v1/words/k", WRITER, {"KV-Expires-In": "59"}, 400, "bad_expiry"),
    ("/v1/words/k", WRITER, {"If-Match": "odd"}, 400, "bad_condition"),
    ("/v1/words/k", WRITER, {"X-KV-Namespace": "words"}, 501, "not_implemented"),
    ("/v1/words", WRITER, {}, 403, "forbidden"),
    ("/healthz", WRITER, {}, 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("target", "token", "headers", "status", "code"), REFUSED)
async def test_what_is_refused_costs_no_disk_and_is_told_as_for_a_small_value(
    short_tmp_path: Path, target: str, token: str, headers: dict[str, str], status: int, code: str
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.add_token("elsewhere", Permission.WRITE, namespaces=frozenset({NAMESPACE}))
        replies = [
            await wire.ask(request("PUT", target, value, token=token, headers=headers)) for value in (b"v", bytes(MIB))
        ]
        for reply in replies:
            assert (reply.status, reply.code, "connection" in reply.headers) == (status, code, False)
        assert replies[0].body == replies[1].body
        # Who asks first is told before the body, and need not send it.
        expecting = {**headers, "Expect": "100-continue", "Content-Length": str(MIB)}
        if target.startswith("/v1/words/"):
            reply = await wire.ask(request("PUT", target, token=token, headers=expecting))
            assert (reply.status, reply.code, reply.headers["connection"]) == (status, code, "close")
            assert await wire.is_closed()
        assert not r.node.staged
        assert not r.node.submitted
        await nothing_is_left(r)


async def test_body_is_asked_for_once_the_request_has_been_checked(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(MIB)
        r.node.gate = trio.Event()
        await wire.send(request("PUT", "/v1/words/a", b"1"))
        await wire.send(
            request("PUT", "/v1/words/k", headers={"Expect": "100-continue", "Content-Length": str(len(value))})
        )
        await until(lambda: len(r.node.submitted) == 1)
        r.node.gate.set()
        assert (await wire.reply()).status == 200
        assert (await wire.reply()).status == 100
        await wire.send(value)
        assert (await wire.reply()).status == 200
        assert (await wire.ask(GET)).body == value


async def test_client_is_not_read_while_the_node_has_not_stored_its_chunks(short_tmp_path: Path) -> None:
    value = os.urandom(20 * MIB)
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as wire:
        r.node.stage_answer = lambda _: None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, request("PUT", "/v1/words/k", value))
            await until(lambda: len(r.node.staged) == 2)
            await trio.sleep(1.5)  # longer than the patience for a client that is silent: this one is not
            assert len(r.node.staged) == 2
            assert r.gateway.bodies.rooms == 3
            assert r.gateway.counters.bytes_received < 4 * CHUNK_BYTES
            r.node.stage_answer = None
            for one in r.node.staged:
                r.node.uploads.setdefault(one.upload, []).append(one.chunk)
                r.writer.stage((one.chunk, one.content))
                await r.node._streams[0].send_all(encode_local([LocalOutcome(one.request, ACKED)]))
            assert (await wire.reply()).status == 200
        assert (await wire.ask(GET)).body == value


async def test_body_that_stops_is_408_and_nothing_of_it_stays(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, IMPATIENT) as r, await r.connect() as slow, await r.connect() as stuck:
        value = os.urandom(MIB)
        message = request("PUT", "/v1/words/k", value)
        await stuck.send(message[:-1])
        for at in range(0, len(message), 100_000):
            await slow.send(message[at : at + 100_000])
            await trio.sleep(0.12)
        assert (await slow.reply()).status == 200
        reply = await stuck.reply()
        assert (reply.status, reply.code, reply.headers["connection"]) == (408, "request_timeout", "close")
        assert await stuck.is_closed()
        await nothing_is_left(r, 4)
        assert len(r.node.submitted) == 1


@pytest.mark.parametrize("is_eof", [False, True])
async def test_client_that_leaves_in_the_middle_leaves_nothing(short_tmp_path: Path, is_eof: bool) -> None:
    async with rig(short_tmp_path) as r:
        message = request("PUT", "/v1/words/k", os.urandom(MIB))
        async with await r.connect() as wire:
            await wire.send(request("PUT", "/v1/words/small", b"v") + message[:700_000])
            await until(lambda: len(r.node.staged) == 2)
            if is_eof:
                await wire.stream.send_eof()
                assert (await wire.reply()).status == 200
                assert await wire.is_closed()
        await nothing_is_left(r)
        assert len(r.node.submitted) == 1


async def test_client_that_leaves_in_the_middle_of_its_second_value_gets_the_answer_to_its_first(
    short_tmp_path: Path,
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.gate = trio.Event()
        await wire.send(request("PUT", "/v1/words/k", bytes(40_000)))
        await until(lambda: len(r.node.staged) == 1)
        r.gateway.bodies.bytes_max = r.gateway.bodies.held_bytes  # the second one is refused, so it is read on
        await wire.send(request("PUT", "/v1/words/l", bytes(MIB))[:100_000])
        await wire.stream.send_eof()
        (connection,) = r.gateway._connections
        await until(lambda: len(connection._pending) == 2)
        await until(lambda: len(connection._pending) == 1)
        r.node.gate.set()
        assert (await wire.reply()).status == 200
        assert await wire.is_closed()
        await nothing_is_left(r, 1)


async def test_broken_body_is_refused_and_leaves_nothing(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        message = chunked_put(os.urandom(MIB), 50_000)
        await wire.send(message[:800_000] + b"nonsense" * 20_000)
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.headers["connection"]) == (400, "malformed_request", "close")
        assert await wire.is_closed()
        await nothing_is_left(r)
        assert not r.node.submitted


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (refused("disk_full", "no room"), 507, "disk_full"),
        (refused("overloaded", "too much"), 429, "overloaded"),
        (refused("no_leader", "nobody leads"), 503, "no_leader"),
        (unknown("odd"), 503, "unavailable"),
    ],
)
async def test_chunk_that_the_node_does_not_store_ends_the_value_and_not_the_connection(
    short_tmp_path: Path, outcome: Outcome, status: int, code: str
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(5 * MIB)
        r.node.stage_answer = lambda message: outcome if len(r.node.staged) == 3 else ACKED
        reply = await wire.ask(request("PUT", "/v1/words/k", value))
        assert (reply.status, reply.code, reply.error["applied"]) == (status, code, "no")
        assert len(r.node.staged) <= 4
        assert len(r.node.ended_uploads) == 1
        r.node.stage_answer = None
        assert (await wire.ask(GET)).code == "key_not_found"
        assert (await wire.ask(request("PUT", "/v1/words/k", value))).status == 200
        assert (await wire.ask(GET)).body == value
        await nothing_is_left(r, 20)


@pytest.mark.parametrize(("outcome", "status", "code", "retryable", "applied"), OUTCOMES)
async def test_outcome_of_a_large_write_is_repeated_and_nothing_added(
    short_tmp_path: Path, outcome: Outcome, status: int, code: str, retryable: bool, applied: str
) -> None:
    async with rig(short_tmp_path) as r:
        r.node.answer = lambda _: outcome
        reply = await r.ask("PUT", "/v1/words/k", bytes(MIB))
        assert (reply.status, reply.code) == (status, code)
        assert (reply.error["retryable"], reply.error["applied"]) == (retryable, applied)
        await nothing_is_left(r)


async def test_node_that_dies_before_the_write_is_sent_has_stored_nothing(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        message = request("PUT", "/v1/words/k", os.urandom(MIB))
        await wire.send(message[:700_000])
        await until(lambda: len(r.node.staged) == 2)
        r.node.stop()
        await until(lambda: not r.node_port.connected)
        await wire.send(message[700_000:])
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.error["applied"]) == (503, "node_unavailable", "no")
        await r.restart_node()
        assert (await wire.ask(message)).status == 200
        assert len(submitted(r)) == 1


async def test_value_begun_with_one_life_of_the_node_is_not_written_by_the_next(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        message = request("PUT", "/v1/words/k", os.urandom(MIB))
        await wire.send(message[:700_000])
        await until(lambda: len(r.node.staged) == 2)
        r.node.stop()
        await until(lambda: not r.node_port.connected)
        await r.restart_node()
        await wire.send(message[700_000:])
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.error["applied"]) == (503, "node_unavailable", "no")
        assert len(r.node.staged) == 2
        assert not r.node.submitted


async def test_large_write_whose_node_dies_is_unknown(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.answer = lambda _: None
        await wire.send(request("PUT", "/v1/words/k", os.urandom(MIB)))
        await until(lambda: len(r.node.submitted) == 1)
        r.node.stop()
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.error["applied"]) == (504, "outcome_unknown", "unknown")
        assert r.gateway.bodies.held_bytes == 0


async def test_large_write_of_a_client_that_left_goes_on_and_its_upload_ends(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        value = os.urandom(MIB)
        r.node.answer = lambda _: None
        async with await r.connect() as wire:
            await wire.send(request("PUT", "/v1/words/k", value))
            await until(lambda: len(r.node.submitted) == 1)
        assert (await r.ask("GET", "/v1/words/k")).status == 404
        assert not r.node.ended_uploads
        (write,) = r.node.submitted
        outcome = r.writer.write(*write.operations)
        await r.node._streams[0].send_all(encode_local([LocalOutcome(write.request, outcome)]))
        await nothing_is_left(r, 4)
        assert (await r.ask("GET", "/v1/words/k")).body == value


async def test_token_that_is_revoked_meanwhile_writes_nothing(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        message = request("PUT", "/v1/words/k", os.urandom(MIB), token=WRITER)
        await wire.send(message[:700_000])
        await until(lambda: len(r.node.staged) == 2)
        r.writer.revoke(WRITER)
        await wire.send(message[700_000:])
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.error["applied"]) == (401, "unauthorized", "no")
        assert not r.node.submitted
        await nothing_is_left(r)


# --- pipelines


async def test_what_follows_a_large_value_does_not_overtake_it(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        large, other = os.urandom(2 * MIB), os.urandom(MIB)
        message = (
            request("PUT", "/v1/words/k", b"first")
            + request("PUT", "/v1/words/k", large)
            + request("PUT", "/v1/words/k", b"second")
            + GET
            + request("PUT", "/v1/words/k", other)
            + request("PUT", "/v1/words/o", large)
            + GET
            + request("DELETE", "/v1/words/k")
            + GET
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, message)
            versions = [(await wire.reply()).json["version"] for _ in range(3)]
            assert versions == sorted(versions)
            assert (await wire.reply()).body == b"second"
            assert [(await wire.reply()).status for _ in range(2)] == [200, 200]
            assert (await wire.reply()).body == other
            assert (await wire.reply()).status == 204
            assert (await wire.reply()).status == 404
        assert [one.is_chunked for one in submitted(r)] == [False, True, False, True, True]


async def test_small_write_is_not_sent_before_the_large_one_ahead_has_ended(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.answer = lambda _: None
        await wire.send(request("PUT", "/v1/words/k", os.urandom(MIB)) + request("PUT", "/v1/words/k", b"small"))
        await until(lambda: len(r.node.submitted) == 1)
        await trio.sleep(0.1)
        assert len(r.node.submitted) == 1
        r.node.answer = None
        (write,) = r.node.submitted
        outcome = r.writer.write(*write.operations)
        await r.node._streams[0].send_all(encode_local([LocalOutcome(write.request, outcome)]))
        assert [(await wire.reply()).status for _ in range(2)] == [200, 200]
        assert (await wire.ask(GET)).body == b"small"


async def test_large_value_may_go_into_a_namespace_that_is_made_before_it(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(2 * MIB)
        message = request("PUT", "/v1/fresh") + request("PUT", "/v1/fresh/k", value) + request("GET", "/v1/fresh/k")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, message)
            assert [(await wire.reply()).status for _ in range(2)] == [201, 200]
            assert (await wire.reply()).body == value


async def test_body_that_means_nothing_is_read_and_dropped(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        large = bytes(5 * MIB)
        assert (await wire.ask(request("PUT", "/v1/made", large))).status == 201
        assert (await wire.ask(request("DELETE", "/v1/words/k", large))).status == 204
        assert (await wire.ask(request("GET", "/v1/words/k", large))).status == 404
        assert not r.node.staged


# --- how many at once


async def put_slowly(r: Rig, key: str, value: bytes, replies: list[Reply]) -> None:
    async with await r.connect() as wire:
        message = request("PUT", f"/v1/words/{key}", value)
        for at in range(0, len(message), 50_000):
            await wire.send(message[at : at + 50_000])
        replies.append(await wire.reply())


@pytest.mark.parametrize("rooms_max", [1, 3, 150])
async def test_many_at_once_share_the_rooms_and_all_come_round(short_tmp_path: Path, rooms_max: int) -> None:
    async with rig(short_tmp_path) as r:
        bodies = r.gateway.bodies
        bodies.rooms_max = rooms_max
        most = 0

        def look(_: object) -> Outcome | None:
            nonlocal most
            most = max(most, bodies.rooms)
            return ACKED

        r.node.stage_answer = look
        r.node.answer = lambda _: refused("overloaded", "stored nothing: this test is about what comes before")
        replies: list[Reply] = []
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(put_slowly, r, f"k{number}", os.urandom(600_000), replies)
        assert [reply.status for reply in replies] == [429] * 50
        assert len(r.node.submitted) == 50
        assert len(r.node.staged) == 150
        assert 1 <= most <= rooms_max
        await nothing_is_left(r)


def test_large_values_leave_room_for_small_ones_and_fifty_of_them_have_all_they_can_use() -> None:
    bodies = Bodies()
    rooms = 0
    while bodies.take_room():
        rooms += 1
    assert rooms >= 50 * 3
    assert bodies.held_bytes <= HTTP_UPLOAD_BYTES_HELD_MAX
    assert bodies.hold(HTTP_BODY_BYTES_HELD_MAX - HTTP_UPLOAD_BYTES_HELD_MAX)


def test_rooms_are_given_in_turn_and_not_past_those_who_wait() -> None:
    bodies = Bodies(10 * ROOM_BYTES, rooms_max=2)
    given: list[str] = []
    assert bodies.take_room()
    assert bodies.take_room()

    def first() -> None:
        given.append("first")

    def second() -> None:
        given.append("second")

    def gone() -> None:
        given.append("gone")

    for one in (first, gone, second):
        bodies.wait_for_room(one)
    bodies.stop_waiting(gone)
    bodies.give_room()
    assert given == ["first"]
    assert not bodies.take_room()
    bodies.give_room()
    assert given == ["first", "second"]
    assert not bodies.take_room()
    bodies.give_room()
    assert bodies.take_room()


# One that is still coming, and one that came whole in one piece.
@pytest.mark.parametrize("value_bytes", [2 * MIB, 40_000])
async def test_value_that_waits_too_long_for_others_is_429(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value_bytes: int
) -> None:
    monkeypatch.setattr(uploads, "HTTP_ROOM_WAIT_SECONDS", 0.5)
    settings = HttpSettings(body_timeout_seconds=0.4, idle_timeout_seconds=20)
    async with rig(short_tmp_path, settings) as r, await r.connect() as slow, await r.connect() as waiting:
        r.gateway.bodies.rooms_max = 1
        large = request("PUT", "/v1/words/k", bytes(MIB))
        value = os.urandom(value_bytes)
        await slow.send(large[:100_000])
        await until(lambda: r.gateway.bodies.rooms == 1)
        began = trio.current_time()

        async def drip() -> None:
            for at in range(100_000, 100_030):
                await slow.send(large[at : at + 1])
                await trio.sleep(0.05)
            await slow.send(large[100_030:])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            reply = await waiting.ask(request("PUT", "/v1/words/w", value))
            assert (reply.status, reply.code, reply.error["applied"]) == (429, "overloaded", "no")
            assert 0.5 <= trio.current_time() - began < 1.4
            assert (await waiting.ask(request("PUT", "/v1/words/s", b"small"))).status == 200
            assert (await slow.reply()).status == 200
        assert (await waiting.ask(request("PUT", "/v1/words/w", value))).status == 200
        assert (await waiting.ask(request("GET", "/v1/words/w"))).body == value
        assert r.gateway.counters.connections_timed_out == 0


@pytest.mark.parametrize("is_eof", [False, True])
async def test_reads_behind_a_value_that_may_wait_no_longer_leave_no_old_view_behind(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_eof: bool
) -> None:
    if not is_eof:
        monkeypatch.setattr(uploads, "HTTP_ROOM_WAIT_SECONDS", 0.2)
    async with rig(short_tmp_path) as r, await r.connect() as waiting:
        r.gateway.bodies.rooms_max = 0
        await waiting.send(request("PUT", "/v1/words/w", bytes(40_000)) + GET)
        if is_eof:
            await waiting.stream.send_eof()
        assert (await waiting.reply()).status == 429
        assert (await waiting.reply()).code == "key_not_found"
        r.writer.put(b"k", b"new")
        assert (await r.ask("GET", "/v1/words/k")).body == b"new"


async def test_room_of_a_client_that_leaves_goes_to_the_next_at_once(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as waiting, await r.connect() as leaving:
        r.gateway.bodies.rooms_max = 1
        await leaving.send(request("PUT", "/v1/words/k", bytes(MIB))[:100_000])
        await until(lambda: r.gateway.bodies.rooms == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.send, request("PUT", "/v1/words/w", os.urandom(MIB)))
            await until(lambda: any(one._receiving is not None for one in r.gateway._connections))
            await trio.sleep(0.05)
            began = trio.current_time()
            await trio.aclose_forcefully(leaving.stream)
            assert (await waiting.reply()).status == 200
            assert trio.current_time() - began < 0.8, "not by the sweep, which comes each second"


async def test_waiting_client_that_leaves_is_passed_over(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as first:
        r.gateway.bodies.rooms_max = 1
        large = request("PUT", "/v1/words/k", os.urandom(MIB))
        await first.send(large[:100_000])
        await until(lambda: r.gateway.bodies.rooms == 1)
        async with await r.connect() as leaving:
            await leaving.send(request("PUT", "/v1/words/k", bytes(MIB))[:100_000])
            await until(lambda: len(r.gateway.bodies._waiting) == 1)
        await first.send(large[100_000:])
        assert (await first.reply()).status == 200
        await until(lambda: len(r.gateway._connections) == 1)
        await nothing_is_left(r, 4)


@pytest.mark.parametrize("value_bytes", [INLINE_VALUE_BYTES_MAX + 1, 150_000])
async def test_value_that_waits_for_its_room_when_its_client_leaves_is_not_written(
    short_tmp_path: Path, value_bytes: int
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as first, await r.connect() as leaving:
        r.gateway.bodies.rooms_max = 1
        large = request("PUT", "/v1/words/k", os.urandom(MIB))
        await first.send(large[:100_000])
        await until(lambda: r.gateway.bodies.rooms == 1)
        await leaving.send(request("PUT", "/v1/words/k", os.urandom(value_bytes)))
        await leaving.stream.send_eof()
        # A larger one is mostly not read before there is room, nor that its client has left.
        is_whole = value_bytes < 150_000
        if not is_whole:
            await until(lambda: len(r.gateway.bodies._waiting) == 1)
            await first.send(large[100_000:])
            assert (await first.reply()).status == 200
        reply = await leaving.reply()
        assert (reply.status, reply.code, reply.error["applied"]) == (429, "overloaded", "no")
        assert "nothing more comes" in reply.error["message"], "at once, not when it has waited too long"
        if is_whole:
            await first.send(large[100_000:])
            assert (await first.reply()).status == 200
        assert len(submitted(r)) == 1
        await nothing_is_left(r, 4)


async def test_value_that_ends_with_a_chunk_keeps_no_room_for_more(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire, await r.connect() as other:
        r.gateway.bodies.rooms_max = 1
        r.gateway.turns.bytes_under_way = r.gateway.turns.bytes_max  # so that it has to wait in line
        body = os.urandom(2 * CHUNK_BYTES)
        message = chunked_put(body, CHUNK_BYTES)
        assert message.endswith(END_OF_CHUNKS)
        await wire.send(message[: -len(END_OF_CHUNKS)])
        await until(lambda: sum(len(one.content) for one in r.node.staged) == len(body))
        upload = upload_of(r, b"k")
        await until(lambda: upload._unanswered == 0)
        assert r.gateway.bodies.rooms == 1
        await other.send(request("PUT", "/v1/words/other", os.urandom(100_000)))
        await until(lambda: len(r.gateway.bodies._waiting) == 1)
        await wire.send(END_OF_CHUNKS)
        await until(lambda: len(r.node.staged) == 3)
        assert not submitted(r)
        r.gateway.turns.give_back(r.gateway.turns.bytes_max)
        for one in (wire, other):
            assert (await one.reply()).status == 200
        await nothing_is_left(r, 3)


async def test_bodies_that_wait_for_their_turn_are_bounded_like_small_ones(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.gateway.bodies.bytes_max = 20_000
        r.node.answer = lambda _: None
        await wire.send(request("PUT", "/v1/fresh") + request("PUT", "/v1/words/k", bytes(MIB))[:60_000])
        await until(lambda: len(r.node.submitted) == 1)
        assert r.gateway.bodies.held_bytes <= 20_000
        (write,) = r.node.submitted
        outcome = r.writer.write(*write.operations)
        await r.node._streams[0].send_all(encode_local([LocalOutcome(write.request, outcome)]))
        assert (await wire.reply()).status == 201
        await wire.send(bytes(MIB + len(request("PUT", "/v1/words/k", bytes(MIB))) - MIB - 60_000))
        assert (await wire.reply()).code == "overloaded"
        assert r.gateway.bodies.held_bytes == 0


async def test_draining_lets_a_large_value_end(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = os.urandom(MIB)
        message = request("PUT", "/v1/words/k", value)
        await wire.send(message[:700_000])
        await until(lambda: len(r.node.staged) == 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r.gateway.drain)
            await until(lambda: r.gateway.is_draining)
            await wire.send(message[700_000:])
            reply = await wire.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert await wire.is_closed()
            await trio.aclose_forcefully(wire.stream)
        assert len(submitted(r)) == 1


async def test_small_requests_of_others_go_on_meanwhile(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as large, await r.connect() as small:
        message = request("PUT", "/v1/words/k", os.urandom(20 * MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(large.send, message[:-1])
            await until(lambda: len(r.node.staged) >= 1)
            for number in range(20):
                assert (await small.ask(request("PUT", "/v1/words/s", b"%d" % number))).status == 200
                assert (await small.ask(request("GET", "/v1/words/s"))).body == b"%d" % number
        await large.send(message[-1:])
        assert (await large.reply()).status == 200
