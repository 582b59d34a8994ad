"""PUT and DELETE of the native API, and what becomes of them."""

import json
from pathlib import Path

import pytest
import trio

from kvp2p.core.operations import (
    Condition,
    CreateNamespace,
    Delete,
    DeleteNamespace,
    Ending,
    Outcome,
    Put,
    refused,
    unknown,
)
from kvp2p.core.system_rows import Permission
from kvp2p.ids import Version
from kvp2p.limits import VALUE_BYTES_MAX
from kvp2p.wire.local import encode_local
from kvp2p.wire.local_messages import LocalOutcome, Readiness
from tests.gateway.rig import (
    ADMIN,
    NAMESPACE,
    OTHER_NAMESPACE,
    READER,
    RESTRICTED,
    TITLE,
    WRITER,
    Rig,
    Wire,
    hex_version,
    request,
    rig,
    until,
    version_of,
)


async def test_put_is_answered_with_its_version_and_read_back_at_once(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        reply = await wire.ask(request("PUT", "/v1/words/a%2Fb", b"\x00value"))
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        version = reply.json["version"]
        assert reply.json == {"version": version}
        assert (reply.headers["etag"], reply.headers["kv-version"]) == (f'"{version}"', version)
        assert "kv-visible" not in reply.headers
        assert r.node.submitted[-1].operations == (Put(NAMESPACE, b"a/b", b"\x00value"),)
        got = await wire.ask(request("GET", "/v1/words/a/b"))
        assert (got.body, got.headers["kv-version"]) == (b"\x00value", version)


async def test_delete_is_204_also_for_a_missing_key(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        for key in ("k", "never"):
            reply = await wire.ask(request("DELETE", f"/v1/words/{key}"))
            assert (reply.status, len(reply.headers["kv-version"])) == (204, 40)
            assert "content-length" not in reply.headers  # RFC 9110 section 8.6
        assert (await wire.ask(request("GET", "/v1/words/k"))).status == 404


async def test_hold_that_ran_out_is_told_as_pending(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        version = version_of(hex_version(5))
        r.node.answer = lambda _: Outcome(Ending.ACKED, version=version, visible=False)
        reply = await r.ask("PUT", "/v1/words/k", b"v")
        assert (reply.status, reply.headers["kv-visible"]) == (200, "pending")
        assert (await r.ask("DELETE", "/v1/words/k")).headers["kv-visible"] == "pending"


async def test_conditions_reach_the_leader(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:

        async def put(value: bytes, name: str, condition: str) -> tuple[int, str | None]:
            reply = await wire.ask(request("PUT", "/v1/words/k", value, headers={name: condition}))
            return reply.status, reply.headers.get("kv-version")

        status, first = await put(b"1", "If-None-Match", "*")
        assert status == 200
        assert await put(b"2", "If-None-Match", "*") == (412, first)
        assert await put(b"2", "If-Match", f'"{hex_version(3)}"') == (412, first)
        status, second = await put(b"2", "If-Match", f'"{first}"')
        assert status == 200
        assert second != first
        assert (await put(b"3", "If-Match", "*"))[0] == 200
        reply = await wire.ask(request("DELETE", "/v1/words/k", headers={"If-Match": f'"{second}"'}))
        assert (reply.status, reply.code, reply.error["applied"]) == (412, "precondition_failed", "no")
        reply = await wire.ask(request("DELETE", "/v1/words/none", headers={"If-Match": "*"}))
        assert (reply.status, "kv-version" in reply.headers) == (412, False)
        conditions = [
            one.operations[0].condition for one in r.node.submitted if isinstance(one.operations[0], Put | Delete)
        ]
        is_, present = Condition.VERSION_IS, Condition.PRESENT
        assert conditions == [Condition.ABSENT, Condition.ABSENT, is_, is_, present, is_, present]


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("PUT", {"If-Match": "abc"}),
        ("PUT", {"If-Match": '"abc"'}),
        ("PUT", {"If-Match": f'"{"A" * 40}"'}),
        ("PUT", {"If-Match": f'"{"a" * 40}", "{"b" * 40}"'}),
        ("PUT", {"If-Match": f'W/"{"a" * 40}"'}),
        ("PUT", {"If-None-Match": f'"{"a" * 40}"'}),
        ("PUT", {"If-None-Match": "*", "If-Match": "*"}),
        ("DELETE", {"If-None-Match": "*"}),
    ],
)
async def test_condition_that_cannot_be_kept_is_refused(
    short_tmp_path: Path, method: str, headers: dict[str, str]
) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask(method, "/v1/words/k", b"", headers=headers)
        assert (reply.status, reply.code) == (400, "bad_condition")
        assert not r.node.submitted


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b'{ "a" : [1, 2.50, true] }', b'{"a":[1,2.5,true]}'),
        ('{"é":"😀"}'.encode(), '{"é":"😀"}'.encode()),
        (rb'{"\u00e9":"\ud83d\ude00"}', '{"é":"😀"}'.encode()),
        (b'"x"', b'"x"'),
        (b"null", None),
        (b'"' + b"m" * 1022 + b'"', b'"' + b"m" * 1022 + b'"'),
        (b'"' + rb"\u00e9" * 511 + b'"', b'"' + "é".encode() * 511 + b'"'),
    ],
)
async def test_metadata_is_stored_as_compact_utf8(short_tmp_path: Path, sent: bytes, stored: bytes | None) -> None:
    async with rig(short_tmp_path) as r:
        assert (await r.ask("PUT", "/v1/words/k", b"v", headers={"KV-Metadata": sent})).status == 200
        operation = r.node.submitted[-1].operations[0]
        assert isinstance(operation, Put)
        assert operation.metadata == stored
        got = await r.ask("GET", "/v1/words/k")
        assert json.loads(got.headers.get("kv-metadata", "null")) == json.loads(sent)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"", 400, "bad_metadata"),
        (b"{", 400, "bad_metadata"),
        (b"NaN", 400, "bad_metadata"),
        (b"1e999", 400, "bad_metadata"),
        (rb'"\ud800"', 400, "bad_metadata"),
        (b'"\xff"', 400, "bad_metadata"),
        (b"[" * 8000, 400, "bad_metadata"),
        (b"9" * 5000, 400, "bad_metadata"),
        (b'"' + b"m" * 1023 + b'"', 413, "metadata_too_large"),
        ('"' + "é" * 512 + '"', 413, "metadata_too_large"),
    ],
)
async def test_bad_metadata_is_refused(short_tmp_path: Path, sent: bytes | str, status: int, code: str) -> None:
    async with rig(short_tmp_path) as r:
        raw = sent if isinstance(sent, bytes) else sent.encode()
        reply = await r.ask("PUT", "/v1/words/k", b"v", headers={"KV-Metadata": raw})
        assert (reply.status, reply.code, reply.error["applied"]) == (status, code, "no")
        assert reply.error.get("limit") == (1024 if status == 413 else None)
        assert not r.node.submitted


async def test_value_up_to_the_limit_is_stored_and_one_above_is_413(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
        assert (await wire.ask(request("PUT", "/v1/words/k", value))).status == 200
        assert (await wire.ask(request("GET", "/v1/words/k"))).body == value
        reply = await wire.ask(request("PUT", "/v1/words/k", value + b"!"))
        assert (reply.status, reply.code, reply.error["limit"]) == (413, "value_too_large", VALUE_BYTES_MAX)
        assert str(VALUE_BYTES_MAX + 1) in reply.error["message"]
        assert str(VALUE_BYTES_MAX) in reply.error["message"]
        # Framing was kept, and so is the connection.
        assert (await wire.ask(request("GET", "/v1/words/k"))).body == value


def chunked(value: bytes, chunk_bytes: int) -> bytes:
    parts = [value[at : at + chunk_bytes] for at in range(0, len(value), chunk_bytes)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def chunked_put(value: bytes, chunk_bytes: int) -> bytes:
    head = request("PUT", "/v1/words/k", headers={"Transfer-Encoding": "chunked"})
    return head + chunked(value, chunk_bytes)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000, VALUE_BYTES_MAX])
async def test_chunked_value_is_stored_whole(short_tmp_path: Path, chunk_bytes: int) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = bytes(range(256)) * (VALUE_BYTES_MAX // 256 if chunk_bytes > 7 else 20)
        assert (await wire.ask(chunked_put(value, chunk_bytes))).status == 200
        assert (await wire.ask(request("GET", "/v1/words/k"))).body == value


async def test_chunked_value_over_the_limit_is_counted_not_kept(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value_bytes = VALUE_BYTES_MAX + 300_000
        reply = await wire.ask(chunked_put(bytes(value_bytes), 60_000))
        assert (reply.status, reply.code) == (413, "value_too_large")
        assert f"has {value_bytes} bytes;" in reply.error["message"]
        assert (await wire.ask(request("PUT", "/v1/words/k", b"small"))).status == 200


async def test_absurd_length_is_answered_at_once_and_ends_the_connection(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(request("PUT", "/v1/words/k", headers={"Content-Length": "99999999999"}) + b"some")
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.headers["connection"]) == (413, "value_too_large", "close")
        assert await wire.is_closed()


async def test_expect_100_continue_is_answered_before_the_body(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(request("PUT", "/v1/words/k", headers={"Expect": "100-continue", "Content-Length": "5"}))
        assert (await wire.reply()).status == 100
        await wire.send(b"value")
        assert (await wire.reply()).status == 200
        length = str(VALUE_BYTES_MAX + 1)
        await wire.send(request("PUT", "/v1/words/k", headers={"Expect": "100-continue", "Content-Length": length}))
        assert (await wire.reply()).status == 413
        assert await wire.is_closed()


async def test_continue_waits_for_the_answers_before_it(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.gate = trio.Event()
        await wire.send(request("PUT", "/v1/words/a", b"1"))
        await wire.send(request("PUT", "/v1/words/b", headers={"Expect": "100-continue", "Content-Length": "1"}))
        await until(lambda: len(r.node.submitted) == 1)
        r.node.gate.set()
        assert (await wire.reply()).status == 200
        assert (await wire.reply()).status == 100
        await wire.send(b"2")
        assert (await wire.reply()).status == 200


OUTCOMES = [
    (refused("no_leader", "no leader can be reached"), 503, "no_leader", True, "no"),
    (refused("overloaded", "too much"), 429, "overloaded", True, "no"),
    (refused("deadline_passed", "late"), 503, "deadline_passed", True, "no"),
    (refused("disk_full", "no room"), 507, "disk_full", True, "no"),
    (refused("namespace_not_found", "deleted"), 404, "namespace_not_found", False, "no"),
    (refused("bad_request", "odd"), 400, "bad_request", False, "no"),
    (refused("from_the_future", "new word"), 503, "unavailable", True, "no"),
    (unknown("the leader fell silent"), 504, "outcome_unknown", False, "unknown"),
]


@pytest.mark.parametrize(("outcome", "status", "code", "retryable", "applied"), OUTCOMES)
async def test_outcome_is_repeated_and_nothing_added(
    short_tmp_path: Path, outcome: Outcome, status: int, code: str, retryable: bool, applied: str
) -> None:
    async with rig(short_tmp_path) as r:
        r.node.answer = lambda _: outcome
        reply = await r.ask("PUT", "/v1/words/k", b"v")
        assert (reply.status, reply.code) == (status, code)
        assert (reply.error["retryable"], reply.error["applied"]) == (retryable, applied)
        assert outcome.message in reply.error["message"]
        assert ("retry-after" in reply.headers) == (status in {429, 503})


async def test_without_its_node_a_gateway_reads_and_refuses_writes(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        r.node.stop()
        await until(lambda: not r.node_port.connected)
        assert (await wire.ask(request("GET", "/v1/words/k"))).body == b"v"
        assert (await wire.ask(request("GET", "/readyz"))).status == 200  # what was complete stays complete
        reply = await wire.ask(request("PUT", "/v1/words/k", b"w"))
        assert (reply.status, reply.code, reply.error["applied"]) == (503, "node_unavailable", "no")
        assert reply.headers["retry-after"] == "1"
        await r.restart_node()
        assert (await wire.ask(request("PUT", "/v1/words/k", b"w"))).status == 200


async def test_write_whose_node_dies_is_unknown(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.answer = lambda _: None
        await wire.send(request("PUT", "/v1/words/k", b"w"))
        await until(lambda: len(r.node.submitted) == 1)
        r.node.stop()
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.error["applied"]) == (504, "outcome_unknown", "unknown")


async def test_readyz_says_what_the_node_says(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        await r.node.push_readiness(Readiness(ready=False, reason="catching up"))
        await until(lambda: not r.node_port.readiness.ready)
        reply = await r.ask("GET", "/readyz", token=None)
        assert (reply.status, reply.json) == (503, {"ready": False, "reason": "catching up"})
        assert reply.headers["retry-after"] == "1"


async def test_lost_node_counts_as_lag_where_lag_counts(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, ready_lag_ms_max=60_000) as r, await r.connect() as wire:
        r.node.stop()
        await until(lambda: not r.node_port.connected)
        assert (await wire.ask(request("GET", "/readyz"))).status == 200  # it lags, but not too much
        r.node_port._lost_at -= 61  # a minute later
        reply = await wire.ask(request("GET", "/readyz"))
        assert (reply.status, reply.json["ready"]) == (503, False)
        assert "ready_lag_ms_max is 60000" in reply.json["reason"]
        await r.restart_node()
        assert (await wire.ask(request("GET", "/readyz"))).status == 200


async def test_node_that_was_never_there_is_not_ready(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path, node_runs=False) as r:
        assert (await r.ask("GET", "/readyz", token=None)).status == 503
        assert (await r.ask("GET", "/healthz", token=None)).status == 200


# --- pipelines


async def test_pipelined_writes_are_under_way_together_and_answered_in_order(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.gate = trio.Event()
        await wire.send(b"".join(request("PUT", f"/v1/words/k{n}", b"%d" % n) for n in range(5)))
        # The fake reads nothing more once it waits at the gate, so look at what the gateway has handed to the port.
        await until(lambda: len(r.node_port._requests) == 5)
        await wire.send(request("DELETE", "/v1/words/k0") + request("PUT", "/v1/words/%zz", b""))
        r.node.gate.set()
        versions = [(await wire.reply()).json["version"] for _ in range(5)]
        assert versions == sorted(versions)
        assert (await wire.reply()).status == 204
        assert (await wire.reply()).code == "bad_key"
        operations = [one.operations[0] for one in r.node.submitted]
        assert operations[:5] == [Put(NAMESPACE, b"k%d" % n, b"%d" % n) for n in range(5)]
        assert operations[5] == Delete(NAMESPACE, b"k0")


async def test_write_after_a_write_does_not_wait_in_separate_packets(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.gate = trio.Event()
        first_gate = r.node.gate
        await wire.send(request("PUT", "/v1/words/a", b"1"))
        await until(lambda: len(r.node.submitted) == 1)
        await wire.send(request("PUT", "/v1/words/b", b"2"))
        await until(lambda: len(r.node_port._requests) == 2)
        first_gate.set()
        assert [(await wire.reply()).status for _ in range(2)] == [200, 200]


async def test_answers_out_of_order_are_put_in_order(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.answer = lambda _: None
        await wire.send(b"".join(request("PUT", f"/v1/words/k{n}", b"") for n in range(3)))
        await until(lambda: len(r.node.submitted) == 3)
        for submitted in reversed(r.node.submitted):
            version = Version(submitted.request.to_bytes(20, "big"))
            await r.node._streams[0].send_all(
                encode_local([LocalOutcome(submitted.request, Outcome(Ending.ACKED, version=version))])
            )
            await trio.sleep(0.01)
        replies = [(await wire.reply()).json["version"] for _ in range(3)]
        assert replies == [one.request.to_bytes(20, "big").hex() for one in r.node.submitted]


async def test_read_behind_a_write_sees_it(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.ask(request("GET", "/v1/words/k"))  # the hot path is warm
        for n in range(20):
            value = b"%d" % n
            await wire.send(
                request("PUT", "/v1/words/k", value)
                + request("GET", "/v1/words/k")
                + request("DELETE", "/v1/words/k")
                + request("GET", "/v1/words/k")
                + request("GET", "/v1/words")
            )
            assert (await wire.reply()).status == 200
            assert (await wire.reply()).body == value
            assert (await wire.reply()).status == 204
            assert (await wire.reply()).status == 404
            assert (await wire.reply()).json["keys"] == []


async def test_long_pipeline_of_writes_is_answered_whole(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        count = 500

        async def send() -> None:
            await wire.send(b"".join(request("PUT", f"/v1/words/k{n}", b"v" * 1000) for n in range(count)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert {(await wire.reply()).status for _ in range(count)} == {200}
        keys = [one.operations[0].key for one in r.node.submitted if isinstance(one.operations[0], Put)]
        assert keys == [b"k%d" % n for n in range(count)]


async def test_outcome_for_a_client_that_left_harms_nobody(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.node.gate = trio.Event()
        wire = await r.connect()
        await wire.send(request("PUT", "/v1/words/k", b"v"))
        await until(lambda: len(r.node.submitted) == 1)
        await trio.aclose_forcefully(wire.stream)
        r.node.gate.set()
        assert (await r.ask("PUT", "/v1/words/l", b"v")).status == 200
        assert (await r.ask("GET", "/v1/words/k")).body == b"v"


async def test_client_that_only_stops_sending_still_gets_its_answers(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(request("PUT", "/v1/words/k", b"v") + request("GET", "/v1/words/k"))
        await wire.stream.send_eof()
        assert (await wire.reply()).status == 200
        assert (await wire.reply()).body == b"v"
        assert await wire.is_closed()


# --- KV-Min-Version


async def min_version(wire: Wire, version: str, target: str = "/v1/words/k") -> tuple[int, bytes]:
    reply = await wire.ask(request("GET", target, headers={"KV-Min-Version": version}))
    return reply.status, reply.body


async def test_covered_version_is_read_here(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        version = r.writer.put(b"k", b"v")
        assert await min_version(wire, version) == (200, b"v")
        assert not r.node.awaited


async def test_version_to_come_is_waited_for_at_the_node(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:

        def catch_up(_: object) -> Outcome:
            r.writer.put(b"k", b"new")
            return Outcome(Ending.ACKED)

        r.writer.put(b"k", b"old")
        r.node.await_answer = catch_up
        version = hex_version(r.writer.stamp)
        await wire.send(
            request("GET", "/v1/words/k", headers={"KV-Min-Version": version}) + request("GET", "/v1/words/k")
        )
        assert [(await wire.reply()).body for _ in range(2)] == [b"new", b"new"]
        assert [one.version.hex() for one in r.node.awaited] == [version]


async def test_version_that_does_not_come_is_503(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.await_answer = lambda _: refused("not_caught_up", "behind")
        for target in ("/v1/words/k", "/v1/words", "/v1"):
            reply = await wire.ask(request("GET", target, headers={"KV-Min-Version": hex_version(1 << 60)}))
            assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "not_caught_up", "1")
        r.node.stop()
        await until(lambda: not r.node_port.connected)
        assert (await min_version(wire, hex_version(1 << 60)))[0] == 503


@pytest.mark.parametrize("version", ["", "1", "G" * 40, "A" * 40, '"' + "a" * 40 + '"'])
async def test_malformed_version_is_400(short_tmp_path: Path, version: str) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask("GET", "/v1/words/k", headers={"KV-Min-Version": version})
        assert (reply.status, reply.code) == (400, "bad_version")


async def test_who_may_not_read_does_not_make_the_node_wait(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask("GET", "/v1/words/k", token="none", headers={"KV-Min-Version": hex_version(1 << 60)})
        assert reply.status == 401
        assert not r.node.awaited


# --- namespaces


async def test_namespace_is_created_once_used_and_deleted(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        made = await wire.ask(request("PUT", "/v1/caf%C3%A9%20%2F+"))
        assert made.status == 201
        assert made.json["title"] == "café /+"
        again = await wire.ask(request("PUT", "/v1/caf%C3%A9%20%2F+"))
        assert (again.status, again.json) == (200, made.json)
        assert (await wire.ask(request("PUT", f"/v1/{made.json['id']}/k", b"v"))).status == 200
        assert (await wire.ask(request("GET", "/v1/caf%C3%A9%20%2F+/k"))).body == b"v"
        assert (await wire.ask(request("GET", "/v1/caf%C3%A9%20%2F+/k"))).body == b"v"
        gone = await wire.ask(request("DELETE", "/v1/caf%C3%A9%20%2F+"))
        assert gone.status == 204
        for target in ("/v1/caf%C3%A9%20%2F+/k", "/v1/caf%C3%A9%20%2F+", f"/v1/{made.json['id']}/k"):
            assert (await wire.ask(request("GET", target))).code == "namespace_not_found"
        assert isinstance(r.node.submitted[-1].operations[0], DeleteNamespace)


async def test_namespace_write_in_a_pipeline_is_waited_for(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(
            request("PUT", "/v1/fresh")
            + request("PUT", "/v1/fresh/k", b"v")
            + request("DELETE", "/v1/fresh")
            + request("PUT", "/v1/fresh/k", b"v")
        )
        assert [(await wire.reply()).status for _ in range(4)] == [201, 200, 204, 404]


@pytest.mark.parametrize(
    "segment", ["", "a" * 32, "A" * 32, "%2e", "..", "%ff", "%zz", "t" * 513, "a#b"], ids=lambda one: one[:8]
)
async def test_bad_title_is_refused(short_tmp_path: Path, segment: str) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask("PUT", f"/v1/{segment}")
        assert (reply.status, reply.code) == (400, "bad_namespace")
        assert not r.node.submitted


async def test_title_of_512_characters_is_accepted(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        assert (await r.ask("PUT", "/v1/" + "%C3%A9" * 512)).status == 201


async def test_id_is_drawn_anew_for_each_namespace(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        ids = {(await r.ask("PUT", f"/v1/title{n}")).json["id"] for n in range(3)}
        drawn = {
            one.operations[0].namespace.hex()
            for one in r.node.submitted
            if isinstance(one.operations[0], CreateNamespace)
        }
        assert len(ids) == 3
        assert ids == drawn


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_condition_on_a_namespace_is_refused(short_tmp_path: Path, method: str) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask(method, f"/v1/{TITLE}", headers={"If-Match": "*"})
        assert (reply.status, reply.code) == (400, "bad_condition")


# --- permissions


async def test_permissions_decide_who_reads_writes_and_administers(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put(b"k", b"v")
        r.writer.add_token("read-other", Permission.READ, namespaces=frozenset({OTHER_NAMESPACE}))

        async def statuses(token: str | None) -> list[int]:
            asked = [
                ("GET", "/v1/words/k", None),
                ("PUT", "/v1/words/l", b"v"),
                ("DELETE", "/v1/words/l", None),
                ("GET", "/v1/other/k", None),
                ("PUT", "/v1/made", None),
                ("DELETE", "/v1/nothing", None),
            ]
            return [(await r.ask(method, target, body, token=token)).status for method, target, body in asked]

        assert await statuses(ADMIN) == [200, 200, 204, 404, 201, 404]
        assert await statuses(READER) == [200, 403, 403, 404, 403, 404]
        assert await statuses(WRITER) == [403, 200, 204, 403, 403, 404]
        assert await statuses(RESTRICTED) == [200, 200, 204, 404, 403, 404]
        assert await statuses("read-other") == [404, 404, 404, 404, 403, 404]
        assert await statuses("nobody") == [401] * 6
        assert await statuses(None) == [401] * 6


async def test_missing_key_differs_from_a_namespace_out_of_sight(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        assert (await r.ask("GET", "/v1/other/k")).code == "key_not_found"
        assert (await r.ask("GET", "/v1/other/k", token=RESTRICTED)).code == "namespace_not_found"


async def warm(r: Rig, wire: Wire, token: str) -> int:
    return (await wire.ask(request("GET", "/v1/words/k", token=token))).status


async def test_revoked_token_is_refused_at_once_on_a_warm_connection(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        assert [await warm(r, wire, READER) for _ in range(3)] == [200] * 3
        r.writer.revoke(READER)
        reply = await wire.ask(request("GET", "/v1/words/k", token=READER))
        assert (reply.status, reply.code, reply.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")


async def test_deleted_namespace_is_gone_at_once_on_a_warm_connection(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        assert [await warm(r, wire, ADMIN) for _ in range(3)] == [200] * 3
        r.writer.write(DeleteNamespace(NAMESPACE))
        assert await warm(r, wire, ADMIN) == 404


async def test_token_that_expires_is_refused_within_a_tick(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        now = [1_000.0]
        r.gateway.access._wall_s = lambda: now[0]
        r.writer.put(b"k", b"v")
        r.writer.add_token("short-lived", Permission.READ, expires_at=2_000)
        assert [await warm(r, wire, "short-lived") for _ in range(2)] == [200, 200]
        now[0] = 2_000.0
        r.gateway.access.forget_expired()
        reply = await wire.ask(request("GET", "/v1/words/k", token="short-lived"))
        assert (reply.status, reply.error["message"]) == (401, "the token has expired")


async def test_expired_token_does_not_make_the_gateway_forget_the_others(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        access = r.gateway.access
        r.writer.put(b"k", b"v")
        r.writer.add_token("expired", Permission.READ, expires_at=2_000)
        assert await warm(r, wire, READER) == 200
        assert [await warm(r, wire, "expired") for _ in range(2)] == [401, 401]
        access.forget_expired()
        assert {authorization for authorization, _ in access.readable} == {f"Bearer {READER}".encode()}
        assert list(access._tokens) == [f"Bearer {READER}".encode()]


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Basic abc", "admin-token", "Bearer admin-tokenx"])
async def test_anything_but_a_known_bearer_token_is_401(short_tmp_path: Path, authorization: str) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask("GET", "/v1/words/k", token=None, headers={"Authorization": authorization})
        assert (reply.status, reply.code) == (401, "unauthorized")


async def test_scheme_is_case_insensitive(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        assert (await r.ask("GET", "/v1", token=None, headers={"Authorization": f"bEARER {ADMIN}"})).status == 200


@pytest.mark.parametrize(("populated", "complete"), [(False, True), (True, False), (False, False)])
async def test_node_without_the_system_rows_answers_503_not_401(
    short_tmp_path: Path, populated: bool, complete: bool
) -> None:
    async with rig(short_tmp_path, populated=populated, complete=complete) as r:
        for method, token in (("GET", ADMIN), ("PUT", ADMIN), ("GET", None)):
            reply = await r.ask(method, "/v1/words/k", b"v", token=token)
            assert (reply.status, reply.code, reply.error["applied"]) == (503, "not_ready", "no")
