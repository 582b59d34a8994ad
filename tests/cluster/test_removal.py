"""What lets keys go on three real nodes: expiry, Purge and the trimming of the log, with clocks that are off by an hour.

Nothing here waits for a minute: what is old is so by the leader's clock, which the tests set forward.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from kvp2p.client import Acked, Client, ClientConfig, ClientError, Refused
from kvp2p.core.operations import Ending, Put
from kvp2p.core.system_rows import CANDIDATES_KEY, encode_candidates
from kvp2p.ids import SYSTEM_NAMESPACE
from kvp2p.limits import CHUNK_BYTES
from tests.cluster.rig import Cluster, clients_of, run_beside, running_cluster, settings, until, until_equal

TTL_S = 60
HOUR_MS = 3_600_000
PURGE_AFTER_MS = 100_000
LONG_MS = 120_000  # longer than that, and than a TTL
HIDDEN_SECONDS = 1.0  # within which all nodes hide what has expired
NODES = ("n1", "n2", "n3")

pytestmark = [pytest.mark.slow, pytest.mark.deadline_s(60)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Give a cluster that purges, and trims its log, after less than two minutes of its leader's clock."""
    quick = settings(
        replica__purge_after_ms=PURGE_AFTER_MS,
        replica__purge_interval_ms=200,
        replica__log_age_ms=PURGE_AFTER_MS,
        mesh__ping_interval_ms=500,
        mesh__link_timeout_ms=2_000,
        log_level="debug",
    )
    with running_cluster("--faults", *quick) as cluster:
        yield cluster


@asynccontextmanager
async def clients(cluster: Cluster, namespace: str) -> AsyncIterator[dict[str, Client]]:
    """Give clients, on a cluster whose nodes all run. The namespace, with its chunks, is gone afterwards."""
    await run_beside(cluster, "start")
    async with clients_of(cluster, namespace, ClientConfig(reconnects=True, read_attempts_max=3)) as nodes:
        yield nodes
        assert isinstance(await nodes["n2"].delete_namespace(namespace), Acked)


async def advance(cluster: Cluster, milliseconds: int) -> int:
    """Set the leader's clock forward, and return by how much it is ahead of this machine's."""
    offset_ms = (cluster.node("n1").clock_offset_ms or 0) + milliseconds
    await run_beside(cluster, "clock", "n1", "--offset-ms", str(offset_ms))
    return offset_ms


async def put_all(client: Client, namespace: str, keys: list[str], *, expires_in_s: int | None = None) -> None:
    """Write 2 kB to each key, but to one of ten two chunks and a bit."""
    for key in keys:
        value = f"{key} ".encode() * 200 + os.urandom(2 * CHUNK_BYTES if key.endswith("7") else 0)
        assert isinstance(await client.put(namespace, key, value, expires_in_s=expires_in_s), Acked)


async def delete_all(client: Client, namespace: str, keys: list[str]) -> None:
    for key in keys:
        assert isinstance(await client.delete(namespace, key), Acked)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}/{number}" for number in range(count)]


def has_only(cluster: Cluster, node: str, namespace: str, keys: list[str]) -> bool:
    """Tell whether a node's file has rows for these keys and no others, no tombstone at all, and the chunks of these values only."""
    stored = cluster.stored(node, namespace)
    is_lean = (stored.tombstones, stored.staged, stored.pending) == (0, 0, 0)
    chunks = 3 * sum(key.endswith("7") for key in keys)
    return is_lean and stored.keys == {key.encode() for key in keys} and len(stored.chunks) == chunks


def tombstones(cluster: Cluster) -> int:
    """Return what the leader tells of them."""
    number: int = cluster.status_of("n1")["purge"]["tombstones"]
    return number


def walks(cluster: Cluster, name: str) -> int:
    return cluster.node(name).log.read_text().count("walk_received")


async def assert_shows_only(cluster: Cluster, nodes: dict[str, Client], namespace: str, keys: list[str]) -> None:
    await until_equal(cluster, 10)
    for name, client in nodes.items():
        listed = await client.list_keys(namespace)
        assert sorted(key.name for key in listed.keys) == sorted(keys), name


async def test_node_that_was_away_while_keys_were_purged_and_the_log_trimmed_brings_none_back(cluster: Cluster) -> None:
    async with clients(cluster, "away") as nodes:
        await put_all(nodes["n2"], "away", [*names("stays", 60), *names("goes", 30)])
        await put_all(nodes["n2"], "away", names("ends", 10), expires_in_s=TTL_S)
        await until_equal(cluster, 10)
        before = walks(cluster, "n3")
        await run_beside(cluster, "kill", "n3")
        await delete_all(nodes["n2"], "away", names("goes", 30))
        left = [*names("stays", 60), *names("new", 5)]
        await put_all(nodes["n2"], "away", names("new", 5))
        assert tombstones(cluster) >= 30
        await advance(cluster, LONG_MS)
        for name in ("n1", "n2"):
            await until(partial(has_only, cluster, name, "away", left))
        # The Purge itself is young, and stays.
        await until(lambda: cluster.status_of("n1")["purge"]["log_positions"] < 5)
        purge = cluster.status_of("n1")["purge"]
        assert (purge["tombstones"], purge["blocked_by"]) == (0, None)
        assert len(cluster.stored("n3", "away").keys) == 100, "it was away"
        await run_beside(cluster, "restart", "n3")
        await assert_shows_only(cluster, nodes, "away", left)
        assert walks(cluster, "n3") == before + 1
        assert "reason='no log goes back to what is missing'" in cluster.node("n3").log.read_text()
        assert has_only(cluster, "n3", "away", left)
        assert [node["ready"] for node in cluster.document("status")["nodes"]] == [True] * 3


async def test_node_that_was_away_for_a_moment_pulls_what_it_missed_from_the_log(cluster: Cluster) -> None:
    async with clients(cluster, "moment") as nodes:
        await put_all(nodes["n2"], "moment", [*names("stays", 100), *names("goes", 5)])
        await until_equal(cluster, 10)
        before = walks(cluster, "n3")
        await run_beside(cluster, "kill", "n3")
        await delete_all(nodes["n2"], "moment", names("goes", 5))
        await run_beside(cluster, "restart", "n3")
        await assert_shows_only(cluster, nodes, "moment", names("stays", 100))
        assert walks(cluster, "n3") == before
        received = cluster.metric("n3", 'kvp2p_node_mesh_received_bytes_total{lane="data"}')
        assert 0 < received < 5_000, "the tombstones, and none of 100 values"


async def test_candidate_that_is_gone_blocks_purging_which_is_told_and_goes_on_when_it_is_back(
    cluster: Cluster,
) -> None:
    async with clients(cluster, "candidates") as nodes:
        ids = {name: bytes.fromhex(cluster.status_of(name)["node_id"]) for name in NODES}

        def nominate(*candidates: str) -> None:
            row = Put(SYSTEM_NAMESPACE, CANDIDATES_KEY, encode_candidates(tuple(ids[name] for name in candidates)))
            assert cluster.submit("n1", row).ending is Ending.ACKED

        nominate("n1", "n3")
        try:
            await put_all(nodes["n2"], "candidates", [*names("stays", 3), *names("goes", 7)])
            await until_equal(cluster, 10)
            await run_beside(cluster, "kill", "n3")
            before = tombstones(cluster)
            await delete_all(nodes["n2"], "candidates", names("goes", 7))
            purges = cluster.metric("n1", "kvp2p_node_purges_total")
            await advance(cluster, LONG_MS)
            await until(lambda: cluster.status_of("n1")["purge"]["blocked_by"] == ids["n3"].hex())
            await trio.sleep(0.6)  # three chances to purge
            purge = cluster.status_of("n1")["purge"]
            assert (purge["tombstones"], purge["blocked_why"]) == (before + 7, "it is not reachable")
            assert cluster.metric("n1", "kvp2p_node_purges_total") == purges
            assert cluster.metric("n1", "kvp2p_node_purge_blocked") == 1
            assert len(cluster.stored("n2", "candidates").keys) == 10
            await run_beside(cluster, "restart", "n3")
            for name in NODES:
                await until(partial(has_only, cluster, name, "candidates", names("stays", 3)))
            await until(lambda: cluster.status_of("n1")["purge"]["blocked_by"] is None)  # with its next digest
        finally:
            nominate("n1")


# --- expiry


PROGRAM = """
import sys, time
from kvp2p import Replica
directory, shift_s = sys.argv[1], float(sys.argv[2])
with Replica(directory, wall_s=lambda: time.time() + shift_s) as replica:
    print("reads", flush=True)
    while True:
        asked = time.time()
        if replica.get("moments", "key") is None:
            break
        shown = asked
        time.sleep(0.005)
    print(shown, time.time(), len(replica.list("moments").keys))
"""


async def watch_program(cluster: Cluster, name: str, shift_s: float, told: dict[str, Any]) -> None:
    """Run a program that reads the file of a node, on a machine whose clock is wrong, until the key is hidden from it."""
    command = [sys.executable, "-c", PROGRAM, str(cluster.node(name).directory), str(shift_s)]
    done = await trio.run_process(command, capture_stdout=True)
    shown, hidden, listed = done.stdout.decode().split()[1:]
    told[f"a program at {name}"] = (float(shown), float(hidden), int(listed))


async def watch_node(client: Client, name: str, told: dict[str, Any]) -> None:
    """Read a key until it is hidden: when it was asked for the last time that it was shown, and when it was not."""
    shown = 0.0
    while True:
        asked = time.time()
        if await client.get("moments", "key") is None:
            break
        shown = asked
        await trio.sleep(0.005)
    hidden = time.time()
    assert (await client.head("moments", "key")).status == 404
    told[name] = (shown, hidden, len((await client.list_keys("moments")).keys))


async def test_value_is_hidden_at_the_same_moment_everywhere_whatever_the_clocks_say(cluster: Cluster) -> None:
    shifts_ms = {"n1": 0, "n2": -HOUR_MS, "n3": HOUR_MS}
    for name in ("n2", "n3"):
        await run_beside(cluster, "clock", name, "--offset-ms", str(shifts_ms[name]))
    try:
        async with clients(cluster, "moments") as nodes:
            await put_all(nodes["n2"], "moments", ["key"], expires_in_s=TTL_S)
            await until_equal(cluster, 10)
            refused = await nodes["n3"].put("moments", "key", b"", if_none_match=True)
            assert isinstance(refused, Refused)
            assert refused.status == 412
            found = await nodes["n3"].get("moments", "key")
            assert found is not None
            assert found.expires_at is not None
            offset_ms = cluster.node("n1").clock_offset_ms or 0
            left_ms = found.expires_at * 1_000 - (time.time() * 1_000 + offset_ms)
            assert TTL_S - 10 < left_ms / 1_000 < TTL_S + 1
            offset_ms = await advance(cluster, int(left_ms) - 3_000)
            told: dict[str, tuple[float, float, int]] = {}
            async with trio.open_nursery() as nursery:
                for name, client in nodes.items():
                    nursery.start_soon(watch_node, client, name, told)
                    # The leader's machine has a clock that is wrong, too; what is set forward here is that of its node.
                    shift_s = (offset_ms if name == "n1" else shifts_ms[name]) / 1_000
                    nursery.start_soon(watch_program, cluster, name, shift_s, told)
            moment = found.expires_at - offset_ms / 1_000  # by this machine's clock
            assert len(told) == 2 * len(NODES)
            for who, (shown, hidden, listed) in told.items():
                assert moment - 3 < shown < moment + HIDDEN_SECONDS, who
                assert hidden > moment, f"{who} hides {moment - hidden:.3f} s early"
                assert listed == 0, who
            # A leader's clock that is set back takes nothing back.
            await advance(cluster, -HOUR_MS)
            await trio.sleep(0.5)
            for name, client in nodes.items():
                assert await client.get("moments", "key") is None, name
            assert isinstance(await nodes["n3"].put("moments", "key", b"again", if_none_match=True), Acked)
            await until_equal(cluster, 10)
            for client in nodes.values():
                found = await client.get("moments", "key")
                assert found is not None
                assert found.value == b"again"
            await advance(cluster, HOUR_MS)
    finally:
        for name in ("n2", "n3"):
            await run_beside(cluster, "clock", name, "--offset-ms", "0")


async def test_gateway_that_starts_while_its_node_is_stuck_still_hides_by_the_leaders_clock(cluster: Cluster) -> None:
    async with clients(cluster, "stuck") as nodes:
        await put_all(nodes["n2"], "stuck", ["key"], expires_in_s=TTL_S)
        await put_all(nodes["n2"], "stuck", ["stays"])
        await until_equal(cluster, 10)
        offset_ms = await advance(cluster, 1_000 * (TTL_S + 3))
        # What the node has written down, roughly, is what a gateway that it says nothing to goes by.
        await until(lambda: cluster.stored("n2", "stuck").clock_offset_ms > offset_ms - 1_000)
        pids = cluster.pids("n2")
        os.kill(pids["node"], signal.SIGSTOP)
        try:
            os.kill(pids["gateways"][0], signal.SIGKILL)
            with trio.fail_after(10):
                while await status_of_key(nodes["n2"], "stays") != 200:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            assert await status_of_key(nodes["n2"], "key") == 404
            assert [key.name for key in (await nodes["n2"].list_keys("stuck")).keys] == ["stays"]
            assert cluster.stored("n2", "stuck").keys == {b"key", b"stays"}, "it was hidden, and not purged"
        finally:
            os.kill(pids["node"], signal.SIGCONT)


async def status_of_key(client: Client, key: str) -> int:
    """Return how a key is answered, 0 while nobody answers."""
    try:
        return (await client.head("stuck", key)).status
    except ClientError:
        return 0
