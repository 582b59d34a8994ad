"""Faults by script on a cluster of three real nodes: links, clocks, suspended processes. What clients see meanwhile, and what is
left when all is mended.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from kvp2p.client import Acked, Client, Refused, Unknown
from kvp2p.config import load_config
from kvp2p.limits import WRITE_DEADLINE_MS
from kvp2p.supervisor.group import read_process
from scripts.local_cluster.state import Node, State, read_state, write_state
from tests.cluster.rig import Cluster, clients_of, run_beside, settings, until, until_equal

# So that a test need not wait 5 s for a link to be given up.
QUICK_LINKS = settings(mesh__ping_interval_ms=500, mesh__link_timeout_ms=2000, mesh__handshake_timeout_ms=2000)
EQUAL_SECONDS_MAX = 5
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Give a cluster whose links are given up soon. What it is made by are tests of `start` and `stop` at the same time."""
    with tempfile.TemporaryDirectory(prefix="kvp2p-") as name:
        cluster = Cluster(Path(name).resolve() / "c")
        try:
            first = cluster.document("start", "--faults", "--nodes", "3", "--gateways", "1", *QUICK_LINKS)
            assert first["faults"] == []
            assert read_process(first["proxy_pid"]) is not None
            cluster.run("link", "n1", "n2", "--cut")
            cluster.run("stop")
            assert read_process(first["proxy_pid"]) is None
            again = cluster.document("start")
            assert again["proxy_pid"] != first["proxy_pid"]
            assert again["faults"] == [], "faults end with the proxy"
            yield cluster
        finally:
            cluster.run("stop")
            assert set(cluster.processes().values()) == {0}


async def mend(cluster: Cluster) -> None:
    """Take off every fault of links and clocks."""
    await run_beside(cluster, "heal")
    for node in read_state(cluster.directory).nodes:
        if node.clock_offset_ms:
            await run_beside(cluster, "clock", node.name, "--offset-ms", "0")
    await until_equal(cluster, 10)


@asynccontextmanager
async def clients(cluster: Cluster, namespace: str) -> AsyncIterator[dict[str, Client]]:
    """Give a client of each node, and a namespace that all have, on a cluster without any fault that an earlier test has left."""
    await mend(cluster)
    async with clients_of(cluster, namespace) as opened:
        yield opened


async def value_of(client: Client, namespace: str, key: str) -> bytes | None:
    found = await client.get(namespace, key)
    return None if found is None else found.value


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_side_without_the_leader_reads_and_refuses_writes_until_the_cut_is_healed(cluster: Cluster) -> None:
    async with clients(cluster, "cut") as nodes:
        before = await nodes["n2"].put("cut", "key", b"before")
        assert isinstance(before, Acked)
        await until_equal(cluster, 5)
        assert await run_beside(cluster, "partition", "n1,n2", "n3") == "n1,n2 | n3\n"
        async with trio.open_nursery() as nursery:

            async def abandon() -> None:
                # Taken by a link that has not been given up yet, and never answered.
                assert isinstance(await nodes["n3"].put("cut", "abandoned", b""), Unknown)

            nursery.start_soon(abandon)
            for name in ("n1", "n2"):
                assert isinstance(await nodes[name].put("cut", "key", name.encode()), Acked)
        # A link that n1 had not given up, too, would bring it the write after all, and an unknown one may be applied.
        await until(lambda: len(cluster.status_of("n1")["peers"]) == 1)
        refused = await nodes["n3"].put("cut", "key", b"n3")
        assert isinstance(refused, Refused)
        assert (refused.status, refused.code) == (503, "no_leader")
        assert [await value_of(nodes[name], "cut", "key") for name in nodes] == [b"n2", b"n2", b"before"]
        told = cluster.document("status")
        assert {(one["from"], one["to"]) for one in told["faults"] if one["cut"]} == {
            ("n1", "n3"),
            ("n3", "n1"),
            ("n2", "n3"),
            ("n3", "n2"),
        }
        assert [node["ready"] for node in told["nodes"]] == [True] * 3
        await run_beside(cluster, "heal")
        await until_equal(cluster, EQUAL_SECONDS_MAX)
        for client in nodes.values():
            assert await value_of(client, "cut", "key") == b"n2"
            assert await value_of(client, "cut", "abandoned") is None
        assert isinstance(await nodes["n3"].put("cut", "key", b"n3"), Acked)


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_short_cut_ends_no_link_and_loses_nothing(cluster: Cluster) -> None:
    async with clients(cluster, "short") as nodes, trio.open_nursery() as nursery:
        logs = [node.log for node in read_state(cluster.directory).nodes]
        before = [log.read_text().count("link_down") for log in logs]
        await run_beside(cluster, "link", "n2", "n1", "--cut")
        began = trio.current_time()

        async def put() -> None:
            assert isinstance(await nodes["n2"].put("short", "key", b"held and then applied"), Acked)
            assert trio.current_time() - began > 0.4

        nursery.start_soon(put)
        await trio.sleep(0.5)
        await run_beside(cluster, "link", "n2", "n1", "--mend")
    assert [log.read_text().count("link_down") for log in logs] == before


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_slow_link_delays_writes_and_a_reset_one_is_made_again(cluster: Cluster) -> None:
    async with clients(cluster, "slow") as nodes:
        told = await run_beside(cluster, "link", "n1", "n2", "--both", "--delay-ms", "120")
        assert told == "n2 -> n1: delay 120 ms\nn1 -> n2: delay 120 ms\n"
        began = trio.current_time()
        assert isinstance(await nodes["n2"].put("slow", "key", b""), Acked)
        assert trio.current_time() - began > 0.235
        told = await run_beside(cluster, "link", "n1", "n2", "--mend", "--rate-kbps", "4000")
        assert told == "n1 -> n2: at most 4000 kbit/s\n"
        assert await run_beside(cluster, "link", "n1", "n2") == told
        assert await run_beside(cluster, "link", "n2", "n1", "--mend") == ""
        version = (await until_equal(cluster, 5))[0]["vector"]
        log = read_state(cluster.directory).node("n2").log
        before = log.read_text().count("link_down")
        await run_beside(cluster, "link", "n1", "n2", "--reset", "--both")
        with trio.fail_after(5):
            while log.read_text().count("link_down") == before:  # noqa: ASYNC110
                await trio.sleep(0.02)
            while not isinstance(await nodes["n2"].put("slow", "key", b"after"), Acked):  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert (await until_equal(cluster, 5))[0]["vector"] != version


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_suspended_replica_catches_up(cluster: Cluster) -> None:
    async with clients(cluster, "replica") as nodes:
        await run_beside(cluster, "kill", "n3", "--signal", "STOP")
        try:
            await until(lambda: len(cluster.status_of("n1")["peers"]) == 1)  # it is given up
            for number in range(100):
                assert isinstance(await nodes["n2"].put("replica", f"key/{number}", b"missed"), Acked)
        finally:
            await run_beside(cluster, "kill", "n3", "--signal", "CONT")
        await until_equal(cluster, EQUAL_SECONDS_MAX)
        assert len((await nodes["n3"].list_keys("replica")).keys) == 100


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_what_a_suspended_leader_was_sent_does_not_surface_after_its_time(cluster: Cluster) -> None:
    async with clients(cluster, "leader") as nodes:
        assert isinstance(await nodes["n2"].put("leader", "key", b"before"), Acked)
        await run_beside(cluster, "kill", "n1", "--signal", "STOP")
        try:
            began = trio.current_time()
            assert isinstance(await nodes["n2"].put("leader", "abandoned", b""), Unknown)
            refused = await nodes["n2"].put("leader", "key", b"refused")
            assert isinstance(refused, Refused)
            assert refused.status == 503
            assert await value_of(nodes["n3"], "leader", "key") == b"before"
            await trio.sleep_until(began + WRITE_DEADLINE_MS / 1_000 + 0.2)
        finally:
            await run_beside(cluster, "kill", "n1", "--signal", "CONT")
        with trio.fail_after(EQUAL_SECONDS_MAX):
            while not isinstance(await nodes["n3"].put("leader", "key", b"after"), Acked):  # noqa: ASYNC110
                await trio.sleep(0.05)
        await until_equal(cluster, EQUAL_SECONDS_MAX)
        for client in nodes.values():
            assert await value_of(client, "leader", "key") == b"after"
            assert await value_of(client, "leader", "abandoned") is None


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_steps_of_an_hour_of_any_clock_lose_no_write_and_versions_keep_growing(cluster: Cluster) -> None:
    versions: dict[str, list[str]] = {"n2": [], "n3": []}
    async with clients(cluster, "clocks") as nodes:
        async with trio.open_nursery() as nursery:

            async def write(name: str) -> None:
                while True:
                    outcome = await nodes[name].put("clocks", name, str(len(versions[name])).encode())
                    assert isinstance(outcome, Acked), outcome
                    versions[name].append(outcome.version)

            for name in versions:
                nursery.start_soon(write, name)
            for name, offset_ms in (("n1", HOUR_MS), ("n2", HOUR_MS), ("n1", -HOUR_MS), ("n2", -HOUR_MS)):
                await run_beside(cluster, "clock", name, "--offset-ms", str(offset_ms))
                assert cluster.status_of(name)["clock_offset_ms"] == offset_ms
                await trio.sleep(0.3)
            # The best of eight digests is believed, so a step back is seen when all eight are younger.
            await until(lambda: abs(cluster.status_of("n3")["skew_ms"] + HOUR_MS) < 60_000)
            nursery.cancel_scope.cancel()
        # The leader starts again with a clock that says what it said an hour ago, and does not issue the past.
        await run_beside(cluster, "kill", "n1")
        await run_beside(cluster, "restart", "n1")
        assert cluster.status_of("n1")["clock_offset_ms"] == -HOUR_MS
        with trio.fail_after(10):
            while not isinstance(last := await nodes["n2"].put("clocks", "n2", b"last"), Acked):  # noqa: ASYNC110
                await trio.sleep(0.05)
        versions["n2"].append(last.version)
        for name, grown in versions.items():
            assert len(grown) > 20
            assert grown == sorted(set(grown)), name
        await until_equal(cluster, EQUAL_SECONDS_MAX)


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_leader_whose_clock_is_a_day_ahead_raises_an_alarm_and_writes_go_on(cluster: Cluster) -> None:
    await mend(cluster)
    await run_beside(cluster, "restart", "n2")  # so that it has no older alarm than the one to come
    async with clients(cluster, "day") as nodes:
        before = await nodes["n2"].put("day", "key", b"before")
        assert isinstance(before, Acked)
        log = read_state(cluster.directory).node("n2").log
        alarms = log.read_text().count("clock_skewed")
        await run_beside(cluster, "clock", "n1", "--offset-ms", str(24 * HOUR_MS))
        ahead = await nodes["n2"].put("day", "key", b"ahead")
        await until(lambda: abs(cluster.status_of("n2")["skew_ms"] - 24 * HOUR_MS) < 60_000)
        assert log.read_text().count("clock_skewed") > alarms
        assert f"clock +{24 * HOUR_MS} ms" in await run_beside(cluster, "status")
        await run_beside(cluster, "clock", "n1", "--offset-ms", "0")
        after = await nodes["n2"].put("day", "key", b"after")
        assert isinstance(ahead, Acked)
        assert isinstance(after, Acked)
        assert before.version < ahead.version < after.version
        await until_equal(cluster, EQUAL_SECONDS_MAX)


@pytest.mark.slow
def test_clock_of_a_node_that_is_down_is_wrong_when_it_starts(cluster: Cluster) -> None:
    cluster.run("kill", "n3")
    cluster.run("clock", "n3", "--offset-ms", str(HOUR_MS))
    cluster.run("restart", "n3")
    assert cluster.status_of("n3")["clock_offset_ms"] == HOUR_MS
    cluster.run("clock", "n3", "--offset-ms", "0")
    assert cluster.status_of("n3")["clock_offset_ms"] == 0


@pytest.mark.slow
@pytest.mark.deadline_s(60)
async def test_added_node_is_linked_through_the_proxy_and_may_be_cut_off(cluster: Cluster) -> None:
    await run_beside(cluster, "heal")
    await run_beside(cluster, "add")
    assert load_config(cluster.directory / "n4" / "kvp2p.toml").mesh.link_timeout_ms == 2_000
    await until_equal(cluster, 10)
    assert await run_beside(cluster, "partition", "n4") == "n4 | n1,n2,n3\n"
    assert "n3 -> n4: cut" in await run_beside(cluster, "status")
    await run_beside(cluster, "heal")
    await until_equal(cluster, EQUAL_SECONDS_MAX)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("partition", "n1,n9"), "no node 'n9'"),
        (("partition", "n1", "n2,n1"), "n1 is in two groups"),
        (("link", "n1", "n1", "--cut"), "not from n1 to itself"),
        (("link", "n1", "n9", "--cut"), "no node 'n9'"),
        (("link", "n1", "n2", "--delay-ms", "-1"), "must be from 0 to 60000"),
    ],
)
def test_fault_that_makes_no_sense_is_refused_with_a_reason(
    cluster: Cluster, arguments: tuple[str, ...], told: str
) -> None:
    assert told in cluster.run(*arguments, status=2).stderr
    assert cluster.document("status")["faults"] == []


@pytest.mark.slow
def test_partition_into_one_group_is_refused(cluster: Cluster) -> None:
    everybody = ",".join(cluster.nodes())
    assert "all nodes are in one group" in cluster.run("partition", everybody, status=2).stderr


@pytest.mark.parametrize("arguments", [("partition", "n1"), ("heal",), ("link", "n1", "n2"), ("start", "--faults")])
def test_cluster_without_faults_refuses_to_make_any_and_says_how_to_have_them(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    write_state(tmp_path, State("", "", "", 1, [Node("n1", str(tmp_path / "n1"), 1, 2, 3)]))
    told = Cluster(tmp_path).run(*arguments, status=2).stderr
    assert "cannot have faults: they are direct. `start --faults` with a new directory" in told


def test_clock_of_a_node_that_was_not_started_for_it_is_left_alone(tmp_path: Path) -> None:
    write_state(tmp_path, State("", "", "", 1, [Node("n1", str(tmp_path / "n1"), 1, 2, 3)]))
    told = Cluster(tmp_path).run("clock", "n1", "--offset-ms", "-5", status=2).stderr
    assert "the clock of n1 cannot be shifted" in told


def test_proxy_that_does_not_run_is_told(tmp_path: Path) -> None:
    write_state(tmp_path, State("", "", "", 1, [], has_faults=True))
    told = Cluster(tmp_path).run("heal", status=1).stderr
    assert "the fault proxy of" in told
    assert f"`start --dir {tmp_path}` starts it again" in told
