"""Values that expire: what is asked for, what is refused, and by which clock they are hidden."""

import time
from pathlib import Path

import pytest

from kvp2p.core.operations import Put
from kvp2p.gateway.clock import LeaderClock
from kvp2p.limits import EXPIRES_AT_MAX, EXPIRES_IN_MAX
from kvp2p.runtime.node_port import NodePort
from kvp2p.wire.local_messages import Readiness
from tests.gateway.rig import Rig, request, rig, until


def submitted(r: Rig) -> tuple[int, int]:
    (operation,) = r.node.submitted[-1].operations
    assert isinstance(operation, Put)
    return operation.expires_at, operation.expires_in


async def test_expiry_reaches_the_leader_and_is_told_to_readers(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        now = int(time.time())
        r.writer.wall_ms = now * 1_000
        for headers, sent, stored in (
            ({"KV-Expires-In": "60"}, (0, 60), now + 60),
            ({"KV-Expires-In": "0000000060"}, (0, 60), now + 60),
            ({"KV-Expires-At": str(now + 61)}, (now + 61, 0), now + 61),
            ({"KV-Expires-At": str(now + 999), "KV-Expires-In": "77"}, (0, 77), now + 77),
            ({"KV-Expires-At": str(EXPIRES_AT_MAX)}, (EXPIRES_AT_MAX, 0), EXPIRES_AT_MAX),
            ({"KV-Expires-In": str(EXPIRES_IN_MAX)}, (0, EXPIRES_IN_MAX), now + EXPIRES_IN_MAX),
        ):
            assert (await wire.ask(request("PUT", "/v1/words/k", b"v", headers=headers))).status == 200
            assert submitted(r) == sent
            for method in ("GET", "HEAD"):
                reply = await wire.ask(request(method, "/v1/words/k"))
                assert (reply.status, reply.headers["kv-expires-at"]) == (200, str(stored))
            (listed,) = (await wire.ask(request("GET", "/v1/words"))).json["keys"]
            assert listed["expiration"] == stored
        assert (await wire.ask(request("PUT", "/v1/words/k", b"v"))).status == 200
        assert "kv-expires-at" not in (await wire.ask(request("GET", "/v1/words/k"))).headers


BAD = ["59", "0", "-1", "60.5", "soon", str(2**63), "9" * 5_000, "", "+60", "6_0", "0x40", "60, 60", "²"]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
@pytest.mark.parametrize("header", ["KV-Expires-In", "KV-Expires-At"])
async def test_expiry_that_is_none_is_refused_and_nothing_is_sent(short_tmp_path: Path, header: str, text: str) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.wall_ms = 1_000_000_000_000
        headers: dict[str, str | bytes] = {header: text.encode()}
        if header == "KV-Expires-At":
            headers["KV-Expires-In"] = "60"  # one that counts does not excuse one that is wrong
        reply = await r.ask("PUT", "/v1/words/k", b"v", headers=headers)
        is_judged_by_the_leader = header == "KV-Expires-At" and text == "59"
        if is_judged_by_the_leader:
            assert reply.status == 200
            return
        assert (reply.status, reply.code, reply.error["applied"]) == (400, "bad_expiry", "no")
        assert header.lower() in reply.error["message"]
        assert not r.node.submitted


async def test_moment_that_is_too_near_is_refused_by_the_leader(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        now = int(time.time())
        r.writer.wall_ms = now * 1_000
        for moment in (1, now - 1, now, now + 59):
            reply = await r.ask("PUT", "/v1/words/k", b"v", headers={"KV-Expires-At": str(moment)})
            assert (reply.status, reply.code, reply.error["applied"]) == (400, "bad_expiry", "no")
            assert len(r.node.submitted) > 0
        assert (await r.ask("GET", "/v1/words/k")).code == "key_not_found"


async def test_value_is_hidden_by_the_leaders_clock_as_the_node_tells_it(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        in_an_hour = int(time.time()) + 3_600
        r.writer.put(b"k", b"v", expires_at=in_an_hour)
        assert (await wire.ask(request("GET", "/v1/words/k"))).status == 200
        ahead_ms = int((time.time() - time.monotonic()) * 1_000)
        await r.node.push_readiness(Readiness(True, "", ahead_ms + 3_601_000))
        await until(lambda: r.node_port.readiness.clock_ahead_ms > ahead_ms)
        assert (await wire.ask(request("GET", "/v1/words/k"))).code == "key_not_found"
        assert (await wire.ask(request("GET", "/v1/words"))).json["keys"] == []
        # What was shown as expired stays so.
        await r.node.push_readiness(Readiness(True, "", ahead_ms))
        await until(lambda: r.node_port.readiness.clock_ahead_ms == ahead_ms)
        assert (await wire.ask(request("GET", "/v1/words/k"))).code == "key_not_found"


async def test_condition_of_a_read_does_not_see_what_has_expired(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        version = r.writer.put(b"k", b"v", expires_at=100)
        reply = await r.ask("GET", "/v1/words/k", headers={"If-Match": f'"{version}"'})
        assert (reply.status, reply.code) == (412, "precondition_failed")
        assert (await r.ask("GET", "/v1/words/k", headers={"If-None-Match": f'"{version}"'})).status == 404


def test_clock_is_that_of_the_store_until_told_and_then_never_steps_back() -> None:
    node = NodePort("nowhere", "gateway")
    kept, monotonic = 5_000.0, 10.0
    clock = LeaderClock(node, lambda: kept, lambda: monotonic)

    def hear(seconds: float) -> None:
        node.readiness = Readiness(True, "", int(seconds * 1_000))

    assert clock.now() == 5_000.0
    kept = 4_000.0
    assert clock.now() == 4_000.0
    hear(990.0)
    assert clock.now() == 1_000.0, "a clock of an hour ahead has hidden too much: that ends"
    monotonic = 12.0
    assert clock.now() == 1_002.0
    hear(980.0)
    assert clock.now() == 1_002.0
    monotonic = 20.0
    assert clock.now() == 1_002.0
    monotonic = 23.0
    assert clock.now() == 1_003.0
    hear(0.0)
    monotonic = 24.0
    assert clock.now() == 1_004.0, "a node that was restarted and does not know yet takes nothing back"
