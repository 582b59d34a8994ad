"""The operations: what goes on the wire, and what each answer means [I10]."""

import json

import pytest
import trio

from kvp2p.client import (
    Acked,
    Client,
    ClientConfig,
    Found,
    KeyInfo,
    KeyPage,
    Namespace,
    NotSent,
    ReadRefused,
    ReadUnavailable,
    Refused,
    Unanswered,
    Unknown,
    open_client,
)
from tests.client.fake_server import Caller, Handler, Seen, answer, fake_server, saying

VERSION = "0123456789" * 4
HAS_VERSION = b"KV-Version: " + VERSION.encode()
RECONNECTING = ClientConfig(reconnects=True)


def refusal(status: int, code: str, applied: str | None = None, *headers: bytes) -> bytes:
    error = {"code": code, "message": "said so"} | ({} if applied is None else {"applied": applied})
    return answer(status, json.dumps({"error": error}).encode(), *headers)


async def cut_after_reading(caller: Caller) -> None:
    await caller.read()


async def test_a_value_comes_back_with_all_that_belongs_to_it() -> None:
    headers = (HAS_VERSION, b'KV-Metadata: {"a":"\\u00e9"}', b"KV-Expires-At: 1800000000")
    said = (answer(200, b"\x00value", *headers), answer(200, b"", HAS_VERSION))
    async with fake_server(saying(*said)) as url, open_client(url) as client:
        full, bare = await client.get("n", "k"), await client.get("n", "k")
    assert full is not None
    assert bare is not None
    assert (full.value, full.version, full.metadata, full.expires_at) == (
        b"\0value",
        VERSION,
        {"a": "é"},
        1_800_000_000,
    )
    assert (bare.value, bare.version, bare.metadata, bare.expires_at) == (b"", VERSION, None, None)
    assert repr(full) == f"Found(value_bytes=6, version='{VERSION}')"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("domain/de_DE/Côte", b"domain/de_DE/C%C3%B4te"),
        (b"\xff\x00 ", b"%FF%00%20"),
        ("a//b/../c/./", b"a//b/../c/./"),
        ("..", b".."),
        ('+?#%&=;@:[]"', b"%2B%3F%23%25%26%3D%3B%40%3A%5B%5D%22"),
        ("AZaz09-._~", b"AZaz09-._~"),
        ("", b""),
    ],
)
async def test_a_key_is_encoded_exactly_and_never_normalised(key: str | bytes, path: bytes) -> None:
    seen: list[Seen] = []
    said = (refusal(404, "key_not_found"), answer(200, b"{}", HAS_VERSION), answer(204, b"", HAS_VERSION))
    async with fake_server(saying(*said, seen=seen)) as url, open_client(url) as client:
        assert await client.get("my/title", key) is None
        await client.put("my/title", key, b"")
        await client.delete("my/title", key)
    assert [request.line.split(b" ")[1] for request in seen] == [b"/v1/my%2Ftitle/" + path] * 3


async def test_conditions_metadata_and_expiry_travel_as_headers() -> None:
    seen: list[Seen] = []
    said = [answer(200, b"{}", HAS_VERSION)] * 4
    async with fake_server(saying(*said, seen=seen)) as url, open_client(url) as client:
        await client.put("n", "k", b"v", {"é": [1, None]}, if_match=VERSION, expires_in_s=60)
        await client.put("n", "k", b"v", if_none_match=True, expires_at=1_800_000_000)
        await client.delete("n", "k", if_match=VERSION)
        await client.get("n", "k", min_version=VERSION)
    sent = [{name: value for name, value in request.headers.items() if name != b"host"} for request in seen]
    match = b'"' + VERSION.encode() + b'"'
    metadata = b'{"\\u00e9":[1,null]}'
    assert sent == [
        {b"kv-metadata": metadata, b"if-match": match, b"kv-expires-in": b"60", b"content-length": b"1"},
        {b"if-none-match": b"*", b"kv-expires-at": b"1800000000", b"content-length": b"1"},
        {b"if-match": match},
        {b"kv-min-version": VERSION.encode()},
    ]


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (answer(200, json.dumps({"version": VERSION}).encode()), Acked(VERSION)),
        (answer(200, b'{"version": "other"}', HAS_VERSION), Acked(VERSION)),
        (answer(204, b"", HAS_VERSION, b"KV-Visible: pending"), Acked(VERSION, is_visible=False)),
        (answer(204), Acked("")),
        (answer(200, b"[not json"), Acked("")),
        (answer(200, b"[1]"), Acked("")),
        (answer(200, b'{"version": 1}'), Acked("")),
        (refusal(412, "condition_failed", "no"), Refused(412, "condition_failed", "said so")),
        (refusal(400, "bad_key"), Refused(400, "bad_key", "said so")),
        (answer(413, b"plain text"), Refused(413, "", "plain text")),
        (refusal(503, "no_leader", "no", b"Retry-After: 2"), Refused(503, "no_leader", "said so", 2)),
        (
            refusal(503, "busy", "no", b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"),
            Refused(503, "busy", "said so"),
        ),
        (answer(503, b"", b"Retry-After: 2"), Unknown("503 : ")),
        (answer(507), Unknown("507 : ")),
        (refusal(500, "internal", "no"), Refused(500, "internal", "said so")),
        (answer(500), Unknown("500 : ")),
        (answer(502, b"proxy"), Unknown("502 : proxy")),
        (refusal(503, "cut", "unknown"), Unknown("503 cut: said so")),
        (refusal(504, "timeout", "unknown"), Unknown("504 timeout: said so")),
        (refusal(504, "timeout", "no"), Unknown("504 timeout: said so")),
        (answer(302), Unknown("302 : ")),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", Unknown("304 : ")),
    ],
)
async def test_each_answer_to_a_write_means_one_outcome(said: bytes, outcome: Acked | Refused | Unknown) -> None:
    async with fake_server(saying(said, said, said)) as url, open_client(url) as client:
        assert await client.put("n", "k", b"v") == outcome
        assert await client.delete("n", "k") == outcome
        assert await client.delete_namespace("n") == outcome


async def test_a_write_is_sent_once_and_unknown_when_its_connection_ends() -> None:
    connections = 0
    requests: list[Seen] = []

    async def cut(caller: Caller) -> None:
        nonlocal connections
        connections += 1
        requests.extend(await caller.read())

    config = ClientConfig(reconnects=True, read_attempts_max=5)
    async with fake_server(cut) as url, open_client(url, config=config) as client:
        outcomes = [
            await client.put("n", "k", b"v"),
            await client.delete("n", "k"),
            await client.create_namespace("n"),
            await client.delete_namespace("n"),
        ]
        await trio.sleep(0.05)  # time in which a repeated write would arrive
    unknown = Unknown("the server closed the connection (sent, not answered)")
    assert outcomes == [unknown] * 4
    assert len(requests) == connections == 4


async def test_a_write_that_never_left_is_refused() -> None:
    async with fake_server(cut_after_reading) as url, open_client(url) as client:
        client.close()
        assert await client.put("n", "k", b"v") == Refused(0, "not_sent", "closed by the caller")
    async with open_client(url, config=RECONNECTING) as client:
        outcome = await client.put("n", "k", b"v")
        assert isinstance(outcome, Refused)
        assert (outcome.status, outcome.code, outcome.outcome) == (0, "not_sent", "refused")
        created = await client.create_namespace("n")
        assert isinstance(created, Refused)


@pytest.mark.parametrize(
    ("said", "failure", "retryable"),
    [
        (refusal(404, "namespace_not_found"), ReadRefused(404, "namespace_not_found", "said so"), False),
        (refusal(401, "unauthorized"), ReadRefused(401, "unauthorized", "said so"), False),
        (refusal(429, "slow", None, b"Retry-After: 1"), ReadUnavailable(429, "slow", "said so", 1), True),
        (refusal(503, "behind", "no", b"Retry-After: 3"), ReadUnavailable(503, "behind", "said so", 3), True),
        (answer(500, b"\xff"), ReadUnavailable(500, "", "\ufffd"), True),
        (answer(204), ReadRefused(204, "", ""), False),
    ],
)
async def test_an_error_answer_to_a_read_is_raised(said: bytes, failure: ReadRefused, retryable: bool) -> None:
    async with fake_server(saying(said, said, said)) as url, open_client(url) as client:
        for read in (lambda: client.get("n", "k"), lambda: client.list_keys("n"), client.list_namespaces):
            with pytest.raises(ReadRefused) as caught:
                await read()
            assert type(caught.value) is type(failure)
            assert str(caught.value) == str(failure)
            assert caught.value.retryable == retryable
            assert caught.value.retry_after_s == failure.retry_after_s


async def test_head_gives_the_bare_answer() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nKV-Version: " + VERSION.encode() + b"\r\n\r\n"
    seen: list[Seen] = []
    async with fake_server(saying(said, answer(404), seen=seen)) as url, open_client(url) as client:
        there, missing = await client.head("n", "k", min_version=VERSION), await client.head("n", "other")
    assert (there.status, there.headers[b"kv-version"], there.body) == (200, VERSION.encode(), b"")
    assert missing.status == 404
    assert seen[0].line == b"HEAD /v1/n/k HTTP/1.1"
    assert seen[0].headers[b"kv-min-version"] == VERSION.encode()


async def test_many_reads_share_one_call_and_keep_their_order() -> None:
    said = (answer(200, b"1", HAS_VERSION), refusal(404, "key_not_found"), answer(200, b"3", HAS_VERSION))
    async with fake_server(saying(*said)) as url, open_client(url) as client:
        results = await client.get_many("n", ["a", "b", "c"])
    assert [found.value if found is not None else None for found in results] == [b"1", None, b"3"]


async def test_many_reads_raise_the_first_failure() -> None:
    async with fake_server(saying(answer(403), answer(403))) as url, open_client(url) as client:
        with pytest.raises(ReadRefused, match="403"):
            await client.get_many("n", ["a", "b"])
    async with fake_server(cut_after_reading) as url, open_client(url) as client:
        with pytest.raises(Unanswered):
            await client.get_many("n", ["a", "b"])


async def test_a_listing_is_walked_by_its_cursor() -> None:
    first = {
        "keys": [{"name": "a", "version": VERSION, "metadata": {"x": 1}, "expiration": 1_800_000_000}],
        "list_complete": False,
        "cursor": "c+/=",
    }
    last = {"keys": [{"name": "é", "version": VERSION}], "list_complete": True}
    seen: list[Seen] = []
    said = [answer(200, json.dumps(page).encode()) for page in (first, last)]
    async with fake_server(saying(*said, seen=seen)) as url, open_client(url) as client:
        page = await client.list_keys("n", limit=1)
        assert page == KeyPage((KeyInfo("a", VERSION, {"x": 1}, 1_800_000_000),), "c+/=")
        assert await client.list_keys("n", "p/é", 5, page.cursor) == KeyPage((KeyInfo("é", VERSION),), None)
    assert [request.line for request in seen] == [
        b"GET /v1/n?limit=1 HTTP/1.1",
        b"GET /v1/n?limit=5&prefix=p%2F%C3%A9&cursor=c%2B%2F%3D HTTP/1.1",
    ]


async def test_namespaces_are_created_found_listed_and_deleted() -> None:
    body = json.dumps({"id": "0" * 32, "title": "my title"}).encode()
    listing = b'{"namespaces": [' + body + b"]}"
    seen: list[Seen] = []
    said = (answer(201, body), answer(200, body), answer(200, listing), answer(204), refusal(403, "forbidden", "no"))
    async with fake_server(saying(*said, seen=seen)) as url, open_client(url, "t") as client:
        assert await client.create_namespace("my title") == Namespace("0" * 32, "my title", created=True)
        assert await client.create_namespace("my title") == Namespace("0" * 32, "my title")
        assert await client.list_namespaces() == (Namespace("0" * 32, "my title"),)
        assert await client.delete_namespace("0" * 32) == Acked("")
        assert await client.create_namespace("x") == Refused(403, "forbidden", "said so")
    assert [request.line for request in seen[:4]] == [
        b"PUT /v1/my%20title HTTP/1.1",
        b"PUT /v1/my%20title HTTP/1.1",
        b"GET /v1 HTTP/1.1",
        b"DELETE /v1/" + b"0" * 32 + b" HTTP/1.1",
    ]
    assert {request.headers[b"authorization"] for request in seen} == {b"Bearer t"}


async def test_more_namespaces_than_it_remembers_still_work() -> None:
    seen: list[Seen] = []
    async with fake_server(saying(*[answer(204)] * 1100, seen=seen)) as url, open_client(url) as client:
        for number in range(1100):
            await client.delete_namespace(f"n{number}")
        assert len(client._paths) == 1024
    assert seen[-1].line == b"DELETE /v1/n1099 HTTP/1.1"


def cutting_first(cuts: int, said: bytes) -> Handler:
    """Close so many connections after one request each; answer on the later ones."""
    connections = 0

    async def handler(caller: Caller) -> None:
        nonlocal connections
        connections += 1
        if connections <= cuts:
            await caller.read()
            return
        while await caller.read():
            await caller.say(said)

    return handler


async def test_a_read_is_asked_again_only_as_often_as_allowed() -> None:
    said = answer(200, b"v", HAS_VERSION)
    config = ClientConfig(reconnects=True, read_attempts_max=3)
    async with fake_server(cutting_first(2, said)) as url, open_client(url, config=config) as client:
        assert isinstance(await client.get("n", "k"), Found)
    async with fake_server(cutting_first(3, said)) as url, open_client(url, config=config) as client:
        with pytest.raises(Unanswered):
            await client.get("n", "k")


async def test_a_lost_connection_stays_lost_until_the_caller_reconnects() -> None:
    async with fake_server(cutting_first(1, answer(200, b"v", HAS_VERSION))) as url, open_client(url) as client:
        with pytest.raises(Unanswered):
            await client.get("n", "k")
        with pytest.raises(NotSent):
            await client.get("n", "k")
        await client.reconnect()
        assert isinstance(await client.get("n", "k"), Found)


async def test_calls_take_turns_over_the_connections() -> None:
    requests_per_connection: list[int] = []

    async def count(caller: Caller) -> None:
        place = len(requests_per_connection)
        requests_per_connection.append(0)
        while await caller.read():
            requests_per_connection[place] += 1
            await caller.say(answer(200, b"", HAS_VERSION))

    async with fake_server(count) as url, open_client(url, config=ClientConfig(connections=3)) as client:
        for _ in range(9):
            await client.get("n", "k")
    assert requests_per_connection == [3, 3, 3]


async def test_simultaneous_calls_open_a_lost_connection_once() -> None:
    connections = 0

    async def count(caller: Caller) -> None:
        nonlocal connections
        connections += 1
        while await caller.read():
            await caller.say(answer(200, b"", HAS_VERSION))

    async with fake_server(count) as url, open_client(url, config=RECONNECTING) as client:
        client.close()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(client.get, "n", "k")
    assert connections == 2


async def test_a_client_that_does_not_reconnect_wants_its_server_at_the_start() -> None:
    async with fake_server(cut_after_reading) as url:
        pass
    with pytest.raises(NotSent):
        async with open_client(url):
            raise AssertionError("not reached")


async def test_what_the_block_raises_comes_out_as_it_was_raised() -> None:
    async with fake_server(saying()) as url:
        with pytest.raises(KeyError) as caught:
            async with open_client(url):
                raise KeyError("mine") from OSError("cause")
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(ExceptionGroup) as group:
            async with open_client(url):
                raise ExceptionGroup("both", [KeyError(), ValueError()])
        assert [type(error) for error in group.value.exceptions] == [KeyError, ValueError]


async def test_a_cancelled_block_ends_as_cancelled() -> None:
    clients: list[Client] = []
    async with fake_server(saying()) as url:
        with trio.move_on_after(0.05) as scope:
            async with open_client(url) as client:
                clients.append(client)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(NotSent, match="shutting down"):
            await clients[0].get("n", "k")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="only by a client that reconnects"):
        ClientConfig(read_attempts_max=2)
    with pytest.raises(ValueError, match="at least 1"):
        ClientConfig(connections=0)
