"""What arrives as bytes: split anywhere, too much of anything, ambiguous, or not HTTP."""

from pathlib import Path

import pytest

from kvp2p.limits import HTTP_HEADER_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_URL_BYTES_MAX
from tests.gateway.rig import ADMIN, Rig, Wire, request, rig

AUTH = b"Host: kv\r\nAuthorization: Bearer " + ADMIN.encode() + b"\r\n"
PUT_HEAD = b"PUT /v1/words/k HTTP/1.1\r\n" + AUTH
CHUNKED = PUT_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def works(r: Rig) -> bool:
    """Tell whether the gateway still serves others."""
    return (await r.ask("GET", "/healthz", token=None)).status == 200


@pytest.mark.deadline_s(60)
@pytest.mark.parametrize(
    "message",
    [
        request("GET", "/v1/words/k%2Fx", headers={"If-None-Match": "*"}),
        request("PUT", "/v1/words/k/x", b"hello", headers={"KV-Metadata": '{"a":1}'}),
        CHUNKED + b"2;e=1\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n",
    ],
    ids=["get", "put", "chunked"],
)
async def test_request_split_at_any_byte_is_the_same_request(short_tmp_path: Path, message: bytes) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k/x", b"v")
        seen = set()
        for at in range(1, len(message)):
            # Sent behind one that was answered, so that the split falls into a read of its own.
            await wire.send(message[:at])
            assert (await r.ask("GET", "/readyz", token=None)).status == 200
            await wire.send(message[at:])
            seen.add((await wire.reply()).status)
        assert seen == ({304} if message.startswith(b"GET") else {200})
        if b"chunked" in message:
            assert (await wire.ask(request("GET", "/v1/words/k"))).body == b"hello"


async def test_request_byte_by_byte_is_the_same_request(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        message = CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + request("GET", "/v1/words/k")
        for byte in message:
            await wire.send(bytes([byte]))
        assert (await wire.reply()).status == 200
        assert (await wire.reply()).body == b"hello"


SMUGGLED = request("DELETE", "/v1/words/victim")


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        (PUT_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"),
        (PUT_HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "malformed_request"),
        (PUT_HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "malformed_request"),
        (PUT_HEAD + b"Content-Length: 5, 5\r\n\r\nhello", 400, "malformed_request"),
        (PUT_HEAD + b"Content-Length: +5\r\n\r\nhello", 400, "malformed_request"),
        (PUT_HEAD + b"Content-Length: -5\r\n\r\nhello", 400, "malformed_request"),
        (PUT_HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", 400, "malformed_request"),
        (PUT_HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "not_implemented"),
        (PUT_HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"),
        (PUT_HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, "not_implemented"),
        (PUT_HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 400, "malformed_request"),
        (PUT_HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed_request"),
        (PUT_HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"),
        (CHUNKED + b"fffffffffffffffff\r\n", 400, "malformed_request"),
        (CHUNKED + b"xyz\r\n", 400, "malformed_request"),
        (CHUNKED + b"5\r\nhelloworld\r\n", 400, "malformed_request"),
        (b"PUT /v1/words/k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/words/k HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/words/k HTTP/1.1\r\n" + AUTH + b"Host: other\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/words/k HTTP/1.1\r\n" + AUTH + b"Authorization: Bearer x\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/words/k HTTP/1.1\n" + AUTH + b"\r\n", 400, "malformed_request"),
        (b"GET /v1/words/k HTTP/1.1\r\n" + AUTH + b"X: 1\r\n folded\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/words/k x HTTP/1.1\r\n" + AUTH + b"\r\n", 400, "malformed_request"),
        (b"GET /v1/words/\xc3\xa9 HTTP/1.1\r\n" + AUTH + b"\r\n", 400, "malformed_request"),
        (b"GET /v1/words/\x01 HTTP/1.1\r\n" + AUTH + b"\r\n", 400, "malformed_request"),
        (b"GET /v1/words/k\r\n\r\n", 505, "version_not_supported"),
        (b"GET /v1/words/k HTTP/2.0\r\n" + AUTH + b"\r\n", 505, "version_not_supported"),
        (b"GET /v1/words/k HTTP/1.2\r\n" + AUTH + b"\r\n", 400, "malformed_request"),
        (b"FROB /v1/words/k HTTP/1.1\r\n" + AUTH + b"\r\n", 400, "malformed_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request"),
        (PUT_HEAD + b"Expect: a-cookie\r\nContent-Length: 1\r\n\r\nx", 417, "expectation_failed"),
        (
            PUT_HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx",
            501,
            "not_implemented",
        ),
    ],
)
async def test_ambiguous_or_broken_request_is_refused_and_ends_the_connection(
    short_tmp_path: Path, message: bytes, status: int, code: str
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"kept")
        r.writer.put(b"victim", b"alive")
        await wire.send(request("GET", "/v1/words/k") + message + SMUGGLED)
        assert (await wire.reply()).body == b"kept"  # what came before it is answered
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.headers["connection"]) == (status, code, "close")
        assert reply.error["applied"] == "no"
        assert await wire.is_closed()
        assert (await r.ask("GET", "/v1/words/victim")).body == b"alive"
        assert (await r.ask("GET", "/v1/words/k")).body == b"kept"


async def refused(wire: Wire, status: int, code: str) -> None:
    reply = await wire.reply()
    assert (reply.status, reply.code, reply.headers["connection"]) == (status, code, "close")
    assert await wire.is_closed()


@pytest.mark.parametrize("url_bytes", [HTTP_URL_BYTES_MAX + 1, 1_000_000])
async def test_long_target_is_414(short_tmp_path: Path, url_bytes: int) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        target = b"/v1/words?prefix="
        await wire.send(b"GET " + target + b"x" * (url_bytes - len(target)) + b" HTTP/1.1\r\n" + AUTH + b"\r\n")
        await refused(wire, 414, "url_too_long")
        assert await works(r)


async def test_target_at_the_limit_is_read(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        target = b"/v1/words?prefix="
        reply = await r.ask("GET", target + b"x" * (HTTP_URL_BYTES_MAX - len(target)))
        assert reply.code == "prefix_too_long"


async def test_headers_are_limited_in_number_and_bytes(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        line = b"GET /v1/words/k HTTP/1.1\r\n" + AUTH
        fits = [
            line + b"".join(b"X-%d: 1\r\n" % n for n in range(HTTP_HEADERS_MAX - 2)),
            line + b"X: " + b"x" * (HTTP_HEADER_BYTES_MAX - len(AUTH) - 5) + b"\r\n",
        ]
        for head in fits:
            async with await r.connect() as wire:
                assert (await wire.ask(head + b"\r\n")).status == 404
        too_much = [
            line + b"".join(b"X-%d: 1\r\n" % n for n in range(HTTP_HEADERS_MAX - 1)),
            line + b"X: " + b"x" * (HTTP_HEADER_BYTES_MAX - len(AUTH) - 4) + b"\r\n",
        ]
        for head in too_much:
            async with await r.connect() as wire:
                await wire.send(head + b"\r\n")
                await refused(wire, 431, "headers_too_large")


@pytest.mark.parametrize(
    "endless",
    [b"X: " + b"x" * 200_000, b"x" * 200_000, b"X: 1\r\n" * 40_000],
    ids=["value", "name", "many"],
)
async def test_header_that_never_ends_is_431(short_tmp_path: Path, endless: bytes) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(b"GET /v1/words/k HTTP/1.1\r\n" + AUTH + endless)
        await refused(wire, 431, "headers_too_large")


@pytest.mark.parametrize("whole", [True, False])
async def test_long_chunk_extension_is_refused(short_tmp_path: Path, whole: bool) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        message = CHUNKED + b"5;" + b"e" * 60_000 + b"\r\nhello\r\n0\r\n\r\n"
        await wire.send(message if whole else message[:1000])
        await refused(wire, 400, "malformed_request")


async def test_long_chunk_extension_right_behind_the_rest_of_another_body_is_refused(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(PUT_HEAD + b"Content-Length: 10\r\n\r\nhello")
        await works(r)  # so that the rest comes with a read of its own
        await wire.send(b"again" + CHUNKED + b"5;" + b"e" * 10_000 + b"\r\nhello\r\n0\r\n\r\n")
        assert (await wire.reply()).status == 200
        await refused(wire, 400, "malformed_request")


async def test_chunk_extension_that_drips_in_is_counted_all_the_same(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(CHUNKED + b"5;")
        for _ in range(100):
            await wire.send(b"e")
            await works(r)
        await refused(wire, 400, "malformed_request")


async def test_short_chunk_extensions_and_trailers_are_ignored(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        body = b"".join(b"1;" + b"e" * 62 + b"\r\n%c\r\n" % byte for byte in b"hello" * 100)
        trailer = b"Authorization: Bearer other\r\nKV-Metadata: 1\r\nX: " + b"x" * 8_000 + b"\r\n"
        assert (await wire.ask(CHUNKED + body + b"0\r\n" + trailer + b"\r\n")).status == 200
        reply = await wire.ask(request("GET", "/v1/words/k"))
        assert (reply.body, "kv-metadata" in reply.headers) == (b"hello" * 100, False)


async def test_endless_trailer_is_refused(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(CHUNKED + b"0\r\n" + b"X: " + b"x" * 100_000)
        await refused(wire, 400, "malformed_request")


async def test_word_chunked_inside_a_value_changes_nothing(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        value = b"chunked " * 100_000
        assert (await wire.ask(request("PUT", "/v1/words/k", value))).status == 200
        assert (await wire.ask(request("GET", "/v1/words/k"))).body == value


async def test_upgrade_is_declined_by_an_ordinary_answer(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        upgrade = request("GET", "/v1/words/k", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
        await wire.send(upgrade * 1_500 + request("GET", "/v1/words/none"))
        for _ in range(1_500):
            assert (await wire.reply()).body == b"v"
        assert (await wire.reply()).status == 404


async def test_connect_is_refused(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(b"CONNECT kv:80 HTTP/1.1\r\n" + AUTH + b"\r\n" + request("GET", "/v1"))
        await refused(wire, 404, "route_not_found")


async def test_connection_close_is_kept_and_what_follows_is_dropped(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        closing = request("GET", "/v1/words/k", headers={"Connection": "close"})
        await wire.send(closing + request("PUT", "/v1/words/k", b"w"))
        reply = await wire.reply()
        assert (reply.body, reply.headers["connection"]) == (b"v", "close")
        assert await wire.is_closed()
        assert not r.node.submitted


@pytest.mark.parametrize("header", [b"", b"Host: kv\r\n", b"Connection: keep-alive\r\nHost: kv\r\n"])
async def test_http_1_0_is_answered_and_closed(short_tmp_path: Path, header: bytes) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        await r.ask("GET", "/v1/words/k")
        message = b"GET /v1/words/k HTTP/1.0\r\nAuthorization: Bearer admin-token\r\n" + header + b"\r\n"
        await wire.send(message * 2)
        reply = await wire.reply()
        assert (reply.body, reply.headers["connection"]) == (b"v", "close")
        assert await wire.is_closed()


async def test_http_1_1_client_that_says_keep_alive_is_kept(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        for _ in range(3):
            reply = await wire.ask(request("GET", "/v1/words/k", headers={"Connection": "keep-alive"}))
            assert (reply.body, "connection" in reply.headers) == (b"v", False)


async def test_body_of_a_get_is_read_and_ignored(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        for body in (b"x", b"x" * 300_000):
            assert (await wire.ask(request("GET", "/v1/words/k", body))).body == b"v"


async def test_body_without_a_token_is_not_kept(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        await wire.send(request("PUT", "/v1/words/k", b"x" * 100_000, token="nobody")[:-1])
        assert await works(r)
        connections = list(r.gateway._connections)
        assert [one._intake._body for one in connections if one._intake._body_bytes] == [None]
        await wire.send(b"x")
        assert (await wire.reply()).status == 401


# --- routes and methods


@pytest.mark.parametrize(
    ("method", "target", "status", "code", "allow"),
    [
        ("POST", "/v1/words/k", 405, "method_not_allowed", "GET, HEAD, PUT, DELETE"),
        ("POST", "/v1/words", 405, "method_not_allowed", "GET, HEAD, PUT, DELETE"),
        ("DELETE", "/v1", 405, "method_not_allowed", "GET, HEAD"),
        ("PUT", "/healthz", 405, "method_not_allowed", "GET, HEAD"),
        ("POST", "/readyz", 405, "method_not_allowed", "GET, HEAD"),
        ("OPTIONS", "*", 404, "route_not_found", None),
        ("GET", "/", 404, "route_not_found", None),
        ("GET", "/v2/words/k", 404, "route_not_found", None),
        ("GET", "//v1/words/k", 404, "route_not_found", None),
        ("GET", "/V1/words/k", 404, "route_not_found", None),
        ("GET", "/client/v4/accounts", 404, "route_not_found", None),
        ("GET", "/v1/", 400, "bad_namespace", None),
        ("GET", "/v1//k", 400, "bad_namespace", None),
        ("PUT", "/v1/words/", 400, "bad_key", None),
        ("GET", "/v1/nowhere/k", 404, "namespace_not_found", None),
        ("GET", "/proxy/token/words/k", 501, "not_implemented", None),
    ],
)
async def test_route_or_method_that_is_not_there(
    short_tmp_path: Path, method: str, target: str, status: int, code: str, allow: str | None
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        reply = await wire.ask(request(method, target))
        assert (reply.status, reply.code, reply.headers.get("allow")) == (status, code, allow)
        assert (await wire.ask(request("GET", "/healthz"))).status == 200


@pytest.mark.parametrize("target", ["/v1/words/k", "/k?urlencoded=true", "/bulk/get", "/healthz"])
async def test_binding_protocol_is_501_whatever_the_path(short_tmp_path: Path, target: str) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        await wire.ask(request("GET", "/v1/words/k"))
        reply = await wire.ask(request("GET", target, headers={"X-KV-Namespace": "words"}))
        assert (reply.status, reply.code) == (501, "not_implemented")
        assert "X-KV-Namespace" in reply.error["message"]
