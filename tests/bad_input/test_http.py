"""Every bad request of the table, over a socket to a real node that does not lead: the exact answer, and nothing stored."""

from __future__ import annotations

import time

import pytest
import trio

from tests.bad_input.cluster import Cluster
from tests.bad_input.http_table import HTTP_GROUPS
from tests.bad_input.rows import HttpRow, Message, StoredRow, request
from tests.gateway.rig import Reply, Wire

pytestmark = pytest.mark.slow

ROWS = [pytest.param(row, id=f"{group}: {row.what}") for group, rows in HTTP_GROUPS.items() for row in rows]
REFUSED = [one for one in ROWS if isinstance(one.values[0], HttpRow)]
STORED = [one for one in ROWS if isinstance(one.values[0], StoredRow)]
GROWN_MIB_MAX = 64.0  # guess: a few whole values on their way, far from one for each request


@pytest.fixture(scope="module")
def began(bad_input_cluster: Cluster) -> float:
    """Give the moment at which these tests began."""
    return time.monotonic()


async def connect(port: int) -> Wire:
    return Wire(await trio.open_tcp_stream("127.0.0.1", port))


async def answers(cluster: Cluster, wire: Wire, message: Message, count: int, tail: bytes = b"") -> list[Reply]:
    """Send a message and what follows on it, and return so many answers. A node need not read what it has refused."""
    replies: list[Reply] = []
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                for part in cluster.parts(message):
                    await wire.send(part)
                if tail:
                    await wire.send(tail)
            except trio.BrokenResourceError:
                pass  # it has ended the connection, and said why: the answer is looked at

        nursery.start_soon(send)
        while len(replies) < count:
            reply = await wire.reply()
            if reply.status != 100:
                replies.append(reply)
        if replies[-1].headers.get("connection") == "close":
            nursery.cancel_scope.cancel()
    return replies


async def check_refusal(cluster: Cluster, row: HttpRow, message: Message) -> None:
    node = cluster.node("n2")
    async with await connect(node.api_port if row.api else node.data_port) as wire:
        # What comes behind a request that ends its connection is not understood as one.
        smuggled = cluster.spell(request("PUT", "/v1/words/smuggled", b"x")) if row.closes else b""
        *good, reply = await answers(cluster, wire, message, row.before + 1, smuggled)
        assert [one.status for one in good] == [200] * row.before
        is_head = message[:4] == b"HEAD" if isinstance(message, bytes) else False
        assert not is_head, "an error's text is in the body: a row is no HEAD"
        assert (reply.status, reply.code) == (row.status, row.code), reply.body
        assert reply.error["applied"] == "no"
        assert reply.error.get("limit") == row.limit
        assert row.says in reply.error["message"]
        assert len(reply.error["message"]) > 10, "it says what was wrong"
        assert {name: reply.headers.get(name) for name in row.headers} == dict(row.headers)
        assert (reply.headers.get("connection") == "close") is row.closes
        if row.closes:
            assert await wire.is_closed()
        else:
            assert (await wire.ask(request("GET", "/healthz", token=None))).status == 200


@pytest.mark.deadline_s(60)
@pytest.mark.parametrize("row", REFUSED)
async def test_bad_request_has_its_one_answer_and_changes_nothing(cluster: Cluster, began: float, row: HttpRow) -> None:
    before = cluster.look_everywhere()
    for message in row.sends:
        await check_refusal(cluster, row, message)
    after = cluster.look_everywhere()
    for name, state in before.items():
        assert (after[name].totals, after[name].keys) == (state.totals, state.keys), name
        assert after[name].vector.keys() == state.vector.keys()


@pytest.mark.deadline_s(60)
@pytest.mark.parametrize("row", STORED)
async def test_request_that_only_looks_bad_is_taken_as_it_is(cluster: Cluster, began: float, row: StoredRow) -> None:
    for message, (key, value, headers) in zip(row.sends, row.reads, strict=True):
        async with await connect(cluster.node("n2").data_port) as wire:
            (reply,) = await answers(cluster, wire, message, 1)
            assert reply.status == 200, reply.body
            assert (await wire.ask(request("GET", "/healthz", token=None))).status == 200
        async with await connect(cluster.node("n1").data_port) as wire:
            waiting = (("KV-Min-Version", reply.json["version"]),)
            shown = await wire.ask(cluster.spell(request("GET", f"/v1/words/{key}", headers=waiting)))
            assert shown.status == 200
            assert shown.body == (b"x" * value if isinstance(value, int) else value)
            assert {name: shown.headers.get(name) for name in headers} == dict(headers)
            deleted = await wire.ask(cluster.spell(request("DELETE", f"/v1/words/{key}")))
            assert deleted.status == 204


def test_honest_clients_noticed_none_of_it(cluster: Cluster, began: float) -> None:
    cluster.assert_unharmed(cluster.figures(began, time.monotonic()), grown_mib_max=GROWN_MIB_MAX)
