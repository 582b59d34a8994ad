"""Large values on three real nodes whose links are slow and whose processes are killed: nothing half is seen, and nothing is left over."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from kvp2p.client import Acked, Client, ClientConfig, Unknown, WriteOutcome
from kvp2p.limits import CHUNK_BYTES
from kvp2p.store.scrub import check_store
from scripts.local_cluster.state import read_state
from tests.cluster.rig import Cluster, clients_of, run_beside, running_cluster, settings, until, until_equal

MIB = 1 << 20
SPACE = "large"
NODES = ("n1", "n2", "n3")
SLOW = ("--rate-kbps", "16000")  # 2 MB a second: eight chunks

pytestmark = [pytest.mark.slow, pytest.mark.deadline_s(60)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    quick = settings(mesh__ping_interval_ms=500, mesh__link_timeout_ms=2_000, replica__first_contact_ms=500)
    with running_cluster("--faults", *quick) as cluster:
        yield cluster


@asynccontextmanager
async def clients(cluster: Cluster) -> AsyncIterator[dict[str, Client]]:
    """Give clients, on a cluster whose nodes all run; at the end nothing is left of what the test has stored."""
    await run_beside(cluster, "heal")
    await run_beside(cluster, "start")
    async with clients_of(cluster, SPACE, ClientConfig(reconnects=True, read_attempts_max=3)) as nodes:
        yield nodes
        await run_beside(cluster, "heal")
        await until_leading(nodes["n2"])
        for key in (await nodes["n1"].list_keys(SPACE)).keys:
            assert isinstance(await nodes["n2"].delete(SPACE, key.name), Acked)
        await until_equal(cluster, 10)
        for name in NODES:
            await until(partial(is_clean, cluster, name))
            assert check_store(cluster.node(name).directory / "store") == []


def is_clean(cluster: Cluster, name: str) -> bool:
    """Tell whether a node stores no chunk, keeps none for a write, and waits for none."""
    stored = cluster.stored(name, SPACE)
    return (stored.chunks, stored.staged, stored.pending) == ({}, 0, 0)


async def until_leading(client: Client) -> None:
    with trio.fail_after(15):
        while not isinstance(await client.put(SPACE, "small", b""), Acked):  # noqa: ASYNC110
            await trio.sleep(0.05)


def chunks_here(cluster: Cluster, name: str) -> int:
    return sum(cluster.stored(name, SPACE).chunks.values())


async def put(client: Client, key: str, value: bytes) -> str:
    outcome = await client.put(SPACE, key, value)
    assert isinstance(outcome, Acked), outcome
    return outcome.version


async def value_of(client: Client, key: str) -> bytes | None:
    found = await client.get(SPACE, key)
    return None if found is None else found.value


async def test_old_value_is_shown_until_the_new_one_is_whole(cluster: Cluster) -> None:
    async with clients(cluster) as nodes:
        old, new = os.urandom(MIB), os.urandom(3 * MIB)
        version = await put(nodes["n2"], "key", old)
        assert (await nodes["n3"].get(SPACE, "key", min_version=version)) is not None
        await run_beside(cluster, "link", "n1", "n3", *SLOW)
        version = await put(nodes["n2"], "key", new)
        seen: list[bytes] = []
        while not seen or seen[-1] != new:
            found = await nodes["n3"].get(SPACE, "key")
            assert found is not None
            seen.append(found.value)
            (listed,) = (await nodes["n3"].list_keys(SPACE, prefix="key")).keys
            assert (found.version == version) == (found.value == new)
            assert (listed.version == version) or found.value == old
        assert set(seen) == {old, new}
        assert len(seen) > 10


async def test_replica_that_is_killed_goes_on_pulling_where_it_was(cluster: Cluster) -> None:
    async with clients(cluster) as nodes:
        value = os.urandom(16 * CHUNK_BYTES)
        await run_beside(cluster, "link", "n1", "n3", *SLOW)
        version = await put(nodes["n1"], "key", value)
        await until(lambda: chunks_here(cluster, "n3") >= 6)
        await run_beside(cluster, "kill", "n3")
        here = chunks_here(cluster, "n3")
        assert 6 <= here < 16
        await run_beside(cluster, "heal")
        await run_beside(cluster, "restart", "n3")
        found = await nodes["n3"].get(SPACE, "key", min_version=version)
        assert found is not None
        assert found.value == value
        assert cluster.metric("n3", "kvp2p_node_chunks_pulled_total") == 16 - here
        received = cluster.metric("n3", "kvp2p_node_chunk_bytes_received_total")
        assert received == (16 - here) * CHUNK_BYTES, (
            "not even of the chunks that were under way is anything left to be sent twice"
        )


async def test_superseded_value_is_pulled_no_more(cluster: Cluster) -> None:
    async with clients(cluster) as nodes:
        before = cluster.metric("n3", "kvp2p_node_chunk_bytes_received_total")
        await run_beside(cluster, "link", "n1", "n3", *SLOW)
        await put(nodes["n1"], "key", os.urandom(10 * MIB))
        await until(lambda: chunks_here(cluster, "n3") >= 3)
        version = await put(nodes["n1"], "key", b"small")
        found = await nodes["n3"].get(SPACE, "key", min_version=version)
        assert found is not None
        assert found.value == b"small"
        await until(lambda: is_clean(cluster, "n3"))
        await trio.sleep(1)
        received = cluster.metric("n3", "kvp2p_node_chunk_bytes_received_total") - before
        # What was under way comes all the same.
        assert received < 10 * MIB // 2


# --- processes that are killed in the middle of an upload


async def upload_in_part(cluster: Cluster, name: str, key: str, value: bytes, part_bytes: int) -> trio.SocketStream:
    """Begin to write a value at a node, and stop after a part of it."""
    state = read_state(cluster.directory)
    stream = await trio.open_tcp_stream("127.0.0.1", state.node(name).data_port)
    lines = [f"PUT /v1/{SPACE}/{key} HTTP/1.1", "Host: kv", f"Authorization: Bearer {state.admin_token}"]
    await stream.send_all("\r\n".join([*lines, f"Content-Length: {len(value)}", "", ""]).encode())
    await stream.send_all(value[:part_bytes])
    return stream


async def answer_to_the_rest(stream: trio.SocketStream, rest_bytes: int) -> bytes:
    """Send the rest of a value, and return the beginning of the answer, b"" when there is none."""
    try:
        await stream.send_all(bytes(rest_bytes))
        return bytes(await stream.receive_some(4_096))
    except trio.BrokenResourceError:
        return b""


async def assert_nothing_of(nodes: dict[str, Client], key: str) -> None:
    for name, client in nodes.items():
        assert await value_of(client, key) is None, name


@pytest.mark.parametrize("victim", ["gateway", "node", "whole"])
async def test_upload_whose_process_is_killed_leaves_nothing(cluster: Cluster, victim: str) -> None:
    async with clients(cluster) as nodes:
        stream = await upload_in_part(cluster, "n2", "key", os.urandom(4 * MIB), 3 * MIB)
        async with stream:
            await until(lambda: chunks_here(cluster, "n2") >= 8)
            if victim == "whole":
                await run_beside(cluster, "kill", "n2")
                await run_beside(cluster, "restart", "n2")
            else:
                pids = cluster.pids("n2")
                os.kill(pids["node"] if victim == "node" else pids["gateways"][0], signal.SIGKILL)
            await until(lambda: is_clean(cluster, "n2"))
            answer = await answer_to_the_rest(stream, MIB)
            if victim == "node":  # its gateway lives, and says so
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b'"applied": "no"' in answer
            else:
                assert answer == b""
        await until_leading(nodes["n2"])
        await assert_nothing_of(nodes, "key")


async def outcome_when_killed(cluster: Cluster, client: Client, victim: str) -> WriteOutcome:
    """Kill a node while the leader pulls a large write from n2, whose client that is, and return how the write ended."""
    outcomes: list[WriteOutcome] = []

    async def write() -> None:
        outcomes.append(await client.put(SPACE, "key", os.urandom(8 * MIB)))

    await run_beside(cluster, "link", "n2", "n1", *SLOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await until(lambda: chunks_here(cluster, "n1") >= 4)
        await run_beside(cluster, "kill", victim)
    return outcomes[0]


async def test_forwarding_node_that_is_killed_takes_its_large_write_along(cluster: Cluster) -> None:
    async with clients(cluster) as nodes:
        assert isinstance(await outcome_when_killed(cluster, nodes["n2"], "n2"), Unknown)
        await until(lambda: is_clean(cluster, "n1"))
        await run_beside(cluster, "restart", "n2")
        await until(lambda: is_clean(cluster, "n2"))
        await assert_nothing_of(nodes, "key")


async def test_leader_that_is_killed_while_it_pulls_a_write_has_not_applied_it(cluster: Cluster) -> None:
    async with clients(cluster) as nodes:
        outcome = await outcome_when_killed(cluster, nodes["n2"], "n1")
        assert isinstance(outcome, Unknown), "it was handed to the leader"
        await run_beside(cluster, "restart", "n1")
        for name in ("n1", "n2"):
            await until(partial(is_clean, cluster, name))
        await until_leading(nodes["n2"])
        await assert_nothing_of(nodes, "key")
