"""Large values part by part: sent when they are wanted, stored whole or not at all, and read to their end or not at all."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from kvp2p.client import (
    Acked,
    Client,
    ClientConfig,
    ConnectionConfig,
    ConnectionLost,
    ReadRefused,
    ReadUnavailable,
    Refused,
    StreamedValue,
    Unknown,
    open_client,
    streaming,
)
from tests.client.fake_server import Caller, Handler, Seen, answer, fake_server, saying
from tests.client.test_client import HAS_VERSION, VERSION, refusal

VALUE = random.Random(3).randbytes(3_000_000)
DONE = answer(200, b"{}", HAS_VERSION)
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
IMPATIENT = ClientConfig(connects_at_once=False, connection=ConnectionConfig(answer_timeout_ms=300))


def parts_of(value: bytes, part_bytes: int = 100_000) -> Iterator[bytes]:
    for at in range(0, len(value), part_bytes):
        yield value[at : at + part_bytes]


@asynccontextmanager
async def lazy_client(url: str) -> AsyncIterator[Client]:
    async with open_client(url, "secret", config=IMPATIENT) as client:
        yield client


class Server:
    """Takes PUTs as a node does: says `first` to the head, reads so many bytes of the body, thinks, says `last`."""

    def __init__(self, first: bytes, body_bytes: int, last: bytes | None, thinks_s: float = 0) -> None:
        self.first = first
        self.body_bytes = body_bytes
        self.last = last
        self.thinks_s = thinks_s
        self.head = b""
        self.body = b""

    async def __call__(self, caller: Caller) -> None:
        while b"\r\n\r\n" not in self.head:
            self.head += await caller.stream.receive_some(65_536)
        self.head, _, self.body = self.head.partition(b"\r\n\r\n")
        await caller.say(self.first)
        while len(self.body) < self.body_bytes:
            data = await caller.stream.receive_some(65_536)
            if not data:
                return
            self.body += data
        await trio.sleep(self.thinks_s)
        if self.last is None:
            await trio.sleep(5)
        else:
            await caller.say(self.last)


async def test_value_is_sent_once_it_is_asked_for_and_its_outcome_told() -> None:
    server = Server(GO_ON, len(VALUE), DONE)
    told: list[int] = []
    async with fake_server(server) as url, lazy_client(url) as client:
        outcome = await client.put_from(
            "my/title",
            "../a b",
            parts_of(VALUE),
            len(VALUE),
            {"a": 1},
            if_none_match=True,
            expires_in_s=60,
            on_sent=lambda: told.append(len(server.body)),
        )
    assert outcome == Acked(VERSION)
    assert server.body == VALUE
    assert len(told) == 1
    assert told[0] < len(VALUE), "before the last part leaves"
    line, *fields = server.head.split(b"\r\n")
    assert line == b"PUT /v1/my%2Ftitle/../a%20b HTTP/1.1"
    assert fields[1:] == [
        b"Authorization: Bearer secret",
        b'KV-Metadata: {"a":1}',
        b"If-None-Match: *",
        b"KV-Expires-In: 60",
        b"Content-Length: 3000000",
        b"Expect: 100-continue",
        b"Connection: close",
    ]


async def test_value_that_is_refused_beforehand_is_not_sent() -> None:
    server = Server(refusal(413, "value_too_large", "no"), 0, b"")
    async with fake_server(server) as url, lazy_client(url) as client:
        outcome = await client.put_from("n", "k", parts_of(VALUE), len(VALUE))
    assert outcome == Refused(413, "value_too_large", "said so")
    assert server.body == b""


async def test_server_that_does_not_ask_gets_the_value_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CONTINUE_WAIT_S", 0.1)
    server = Server(b"", len(VALUE), DONE)
    async with fake_server(server) as url, lazy_client(url) as client:
        assert await client.put_from("n", "k", parts_of(VALUE), len(VALUE)) == Acked(VERSION)
    assert server.body == VALUE


async def cut_at_once(caller: Caller) -> None:
    await caller.reset()


async def read_and_leave(caller: Caller) -> None:
    await caller.stream.receive_some(65_536)
    await caller.say(GO_ON)
    await caller.stream.receive_some(65_536)
    await caller.reset()


async def take_nothing(caller: Caller) -> None:
    await caller.stream.receive_some(65_536)
    await caller.say(GO_ON)
    await trio.sleep(5)


@pytest.mark.parametrize("handler", [cut_at_once, read_and_leave, take_nothing])
async def test_value_whose_last_byte_has_not_left_is_not_stored(handler: Handler) -> None:
    large = bytes(30_000_000)  # more than the two kernel buffers of a loopback connection hold
    async with fake_server(handler) as url, lazy_client(url) as client:
        outcome = await client.put_from("n", "k", parts_of(large), len(large))
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.code) == (0, "not_sent")
    assert "nothing was stored" in outcome.message


@pytest.mark.parametrize("last", [b"", None, b"nonsense\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_value_that_has_left_whole_is_unknown_without_an_answer(last: bytes | None) -> None:
    async with fake_server(Server(GO_ON, 10, last)) as url, lazy_client(url) as client:
        assert isinstance(await client.put_from("n", "k", [b"0123456789"], 10), Unknown)


async def test_value_that_may_wait_for_others_is_given_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvp2p.client.connection.LARGE_WAIT_S", 5.0)
    monkeypatch.setattr("kvp2p.client.connection.LARGE_S_PER_MIB", 0.0)
    for value_bytes, outcome in ((32_769, Acked), (32_768, Unknown)):
        server = Server(GO_ON, value_bytes, DONE, thinks_s=0.6)  # longer than a small one is given
        async with fake_server(server) as url, lazy_client(url) as client:
            assert isinstance(await client.put_from("n", "k", [VALUE[:value_bytes]], value_bytes), outcome)


async def test_answer_that_comes_before_the_connection_is_cut_is_heard() -> None:
    async def refuse_and_leave(caller: Caller) -> None:
        await caller.stream.receive_some(65_536)
        await caller.say(GO_ON)
        for _ in range(10):
            await caller.stream.receive_some(65_536)
        await caller.say(refusal(413, "value_too_large", "no"))
        await caller.stream.send_eof()
        await trio.sleep(0.3)

    large = bytes(30_000_000)
    async with fake_server(refuse_and_leave) as url, lazy_client(url) as client:
        outcome = await client.put_from("n", "k", parts_of(large), len(large))
    assert isinstance(outcome, Refused)
    assert outcome.code in {"value_too_large", "not_sent"}  # the reset may have overtaken it


async def test_node_that_is_not_there_is_told() -> None:
    async with lazy_client("http://127.0.0.1:1") as client:
        outcome = await client.put_from("n", "k", [b"v"], 1)
        assert isinstance(outcome, Refused)
        assert outcome.code == "not_sent"
        with pytest.raises(ConnectionLost, match="no connection"):
            async with client.open_value("n", "k"):
                pass


@pytest.mark.parametrize("source", [[b"01234"], [b"0123456789", b"x"], [b"0123", b"456789x"], []])
async def test_source_of_another_length_stores_nothing_but_its_first_bytes(source: list[bytes]) -> None:
    server = Server(GO_ON, 10, DONE)
    async with fake_server(server) as url, lazy_client(url) as client:
        if source[:1] == [b"0123456789"]:  # it has grown meanwhile
            assert await client.put_from("n", "k", source, 10) == Acked(VERSION)
        else:
            with pytest.raises(ValueError, match="does not have the 10 bytes"):
                await client.put_from("n", "k", source, 10)
            assert len(server.body) < 10


# --- reading


def value_answer(value: bytes, length: int | None = None) -> bytes:
    metadata, expiry = b'KV-Metadata: {"a":1}', b"KV-Expires-At: 99"
    said = answer(200, value, HAS_VERSION, metadata, expiry)
    return said if length is None else said.replace(b"Length: %d" % len(value), b"Length: %d" % length)


@asynccontextmanager
async def reading(handler: Handler) -> AsyncIterator[StreamedValue | None]:
    async with (
        fake_server(handler) as url,
        lazy_client(url) as client,
        client.open_value("n", "k", min_version=VERSION) as value,
    ):
        yield value


async def test_value_is_read_part_by_part_with_what_was_stored_with_it() -> None:
    async with reading(saying(value_answer(VALUE))) as value:
        assert value is not None
        assert (value.value_bytes, value.head.version) == (len(VALUE), VERSION)
        assert (value.head.metadata, value.head.expires_at) == ({"a": 1}, 99)
        parts = []
        while part := await value.next_part():
            assert len(part) <= 65_536
            parts.append(part)
        assert b"".join(parts) == VALUE
        assert await value.next_part() == b""


async def test_empty_value_and_no_value_are_told_apart() -> None:
    async with reading(saying(answer(200, b"", HAS_VERSION))) as value:
        assert value is not None
        assert await value.next_part() == b""
    async with reading(saying(refusal(404, "key_not_found"))) as value:
        assert value is None


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        (refusal(404, "namespace_not_found"), ReadRefused),
        (refusal(401, "unauthorized"), ReadRefused),
        (refusal(429, "overloaded"), ReadUnavailable),
        (answer(502, b"x" * 40_000_000), ConnectionLost),
        (b"HTTP/1.1 200 OK\r\n\r\n", ConnectionLost),
        (b"nonsense\r\n\r\n", ConnectionLost),
        (b"", ConnectionLost),
    ],
)
async def test_value_that_cannot_be_read_raises(said: bytes, failure: type[Exception]) -> None:
    async with fake_server(saying(said)) as url, lazy_client(url) as client:
        with pytest.raises(failure):
            async with client.open_value("n", "k"):
                pass


@pytest.mark.parametrize("ending", ["close", "reset", "silence"])
async def test_value_that_is_cut_is_not_taken_for_whole(ending: str) -> None:
    async def cut(caller: Caller) -> None:
        await caller.read()
        await caller.say(value_answer(VALUE, len(VALUE) + 1))
        if ending == "reset":
            await caller.reset()
        elif ending == "silence":
            await trio.sleep(5)

    async with fake_server(cut) as url, lazy_client(url) as client, client.open_value("n", "k") as value:
        assert value is not None
        with pytest.raises(ConnectionLost):
            while await value.next_part():
                pass


async def test_client_that_connects_when_it_is_used_serves_other_calls_too() -> None:
    async with fake_server(saying(DONE, answer(200, b"v", HAS_VERSION))) as url, lazy_client(url) as client:
        assert await client.put("n", "k", b"v") == Acked(VERSION)
        found = await client.get("n", "k")
        assert found is not None
        assert found.value == b"v"


async def test_token_that_would_break_the_framing_is_never_sent() -> None:
    seen: list[Seen] = []
    async with fake_server(saying(DONE, seen=seen)) as url, open_client(url, "x\r\nX: y", config=IMPATIENT) as client:
        with pytest.raises(ValueError, match="holds no line ends"):
            await client.put_from("n", "k", parts_of(VALUE), len(VALUE))
        with pytest.raises(ValueError, match="holds no line ends"):
            async with client.open_value("n", "k"):
                pass
        with pytest.raises(ValueError, match="holds no line ends"):
            await client.get("n", "k")
    assert not seen
