"""The data port and the API port: every bad request, and its answer."""

from __future__ import annotations

from tests.bad_input.rows import (
    GET_LINES,
    PUT_LINES,
    VALUE_BYTES_MAX,
    HttpRow,
    StoredRow,
    large,
    put,
    raw,
    request,
)

MIB = 1 << 20
NUL_KEY = "a%00b%0Ac%0D%09%7F"
CHUNKED = b"Transfer-Encoding: chunked"
METADATA_1024 = '"' + "m" * 1_022 + '"'
ALLOWED = {"allow": "GET, HEAD, PUT, DELETE"}
BEARER = {"www-authenticate": "Bearer"}

KEYS: tuple[HttpRow | StoredRow, ...] = (
    HttpRow(what="an empty key", sends=(put(""), request("GET", "/v1/words/")), status=400, code="bad_key"),
    HttpRow(
        what="the keys `.` and `..`, escaped or not",
        sends=(put("."), put(".."), put("%2E"), put("%2e."), request("GET", "/v1/words/.."), request("DELETE", "/v1/words/.")),
        status=400,
        code="bad_key",
    ),
    HttpRow(
        what="a key of 513 bytes",
        sends=(put("k" * 513), put("%6B" * 513), put("%C3%BC" * 256 + "k"), request("GET", "/v1/words/" + "k" * 513)),
        status=414,
        code="key_too_long",
        limit=512,
        says="the key has 513 bytes",
    ),
    HttpRow(
        what="a key that is no UTF-8",
        sends=(put("%FF"), put("a%C3"), put("%ED%A0%80"), put("%C0%AF"), request("GET", "/v1/words/%FF")),
        status=400,
        code="bad_key",
        says="not valid UTF-8 at byte",
    ),
    HttpRow(
        what="a bad percent escape, a bare `#`",
        sends=(put("%"), put("%2"), put("a%GG"), put("%u00e9"), put("a#b")),
        status=400,
        code="bad_key",
    ),
    HttpRow(
        what="a bare `?` in a key",
        sends=(put("what?"), put("a?b=c"), request("GET", "/v1/words/good?x=1")),
        status=400,
        code="bad_query",
    ),
    StoredRow(
        what="keys with NUL, newline, tab, DEL, slashes, dots, `%2F`, `+`; one of 512 bytes",
        sends=tuple(put(key, body=key[:40].encode()) for key in (NUL_KEY, "/", "a//b/../c", "...", "a%252Fb+c", "%C3%BC" * 256)),
        reads=tuple((key, key[:40].encode(), {}) for key in (NUL_KEY, "/", "a//b/../c", "...", "a%252Fb+c", "%C3%BC" * 256)),
    ),
)  # fmt: skip

VALUES: tuple[HttpRow | StoredRow, ...] = (
    StoredRow(
        what="a value of 25 MiB, with a length and in chunks",
        sends=(large(VALUE_BYTES_MAX, key="large"), large(VALUE_BYTES_MAX, chunk=65_536, key="chunked")),
        reads=(("large", VALUE_BYTES_MAX, {}), ("chunked", VALUE_BYTES_MAX, {})),
    ),
    HttpRow(
        what="one byte more",
        sends=(large(VALUE_BYTES_MAX + 1),),
        status=413,
        code="value_too_large",
        limit=VALUE_BYTES_MAX,
        says="26214401 bytes",
    ),
    HttpRow(
        what="one byte more in chunks: counted as they come",
        sends=(large(VALUE_BYTES_MAX + 1, chunk=65_536), large(VALUE_BYTES_MAX + 1, chunk=VALUE_BYTES_MAX + 1)),
        status=413,
        code="value_too_large",
        limit=VALUE_BYTES_MAX,
        says="26214401 bytes",
    ),
    HttpRow(
        what="one byte more with `Expect: 100-continue`: the answer comes before the body",
        sends=(large(VALUE_BYTES_MAX + 1, expects=True, sent=0),),
        status=413,
        code="value_too_large",
        limit=VALUE_BYTES_MAX,
        says="26214401 bytes",
        closes=True,
    ),
    HttpRow(
        what="over 26 MiB announced, and chunks without an end",
        sends=(
            large(100 * MIB, sent=0),
            large(1 << 62, sent=0),
            large(64 * MIB, chunk=65_536),
            large(64 * MIB, chunk=MIB - 1),
        ),
        status=413,
        code="value_too_large",
        limit=VALUE_BYTES_MAX,
        closes=True,
    ),
)

METADATA: tuple[HttpRow | StoredRow, ...] = (
    HttpRow(
        what="metadata of 1 025 bytes",
        sends=(
            put("bad", ("KV-Metadata", METADATA_1024[:-1] + 'm"')),
            put("bad", ("KV-Metadata", ('"' + "ü" * 511 + 'm"').encode())),
            put("bad", ("KV-Metadata", '"' + "\\u00fc" * 511 + 'm"')),
        ),
        status=413,
        code="metadata_too_large",
        limit=1_024,
        says="1025 bytes",
    ),
    HttpRow(
        what="metadata that is no JSON",
        sends=tuple(
            put("bad", ("KV-Metadata", text))
            for text in (b"", b"{", b"plain", b"{'a':1}", b"NaN", b"[1,]", b'"\xff"', b'"\xed\xa0\x80"', b"1 2", b"[" * 2_000)
        ),
        status=400,
        code="bad_metadata",
    ),
    HttpRow(
        what="metadata twice",
        sends=(put("bad", ("KV-Metadata", "1"), ("KV-Metadata", "2")),),
        status=400,
        code="malformed_request",
        closes=True,
    ),
    StoredRow(
        what="metadata that is not ASCII, raw or escaped; 1 024 bytes of it",
        sends=(
            put("raw", ("KV-Metadata", '{"é": "\U0001f600"}')),
            put("escaped", ("KV-Metadata", '{"\\u00e9": "\\ud83d\\ude00"}')),
            put("full", ("KV-Metadata", METADATA_1024)),
        ),
        reads=(
            ("raw", b"v", {"kv-metadata": '{"\\u00e9":"\\ud83d\\ude00"}'}),
            ("escaped", b"v", {"kv-metadata": '{"\\u00e9":"\\ud83d\\ude00"}'}),
            ("full", b"v", {"kv-metadata": METADATA_1024}),
        ),
        note="answered ASCII-escaped",
    ),
)  # fmt: skip

EXPIRY: tuple[HttpRow | StoredRow, ...] = (
    HttpRow(
        what="a TTL (`KV-Expires-In`) of 59, 0, −1, 60.5, `soon`, nothing",
        sends=tuple(put("bad", ("KV-Expires-In", ttl)) for ttl in ("59", "0", "-1", "60.5", "soon", "1e3", "٦٠", "")),
        status=400,
        code="bad_expiry",
        limit=60,
    ),
    HttpRow(
        what="a TTL of 2^63",
        sends=(put("bad", ("KV-Expires-In", str(1 << 63))),),
        status=400,
        code="bad_expiry",
        limit=(1 << 52) - 1,
    ),
    HttpRow(
        what="an expiry (`KV-Expires-At`) in the past, or within a minute",
        sends=tuple(put("bad", ("KV-Expires-At", at)) for at in ("1", "$past", "$soon")),
        status=400,
        code="bad_expiry",
    ),
    HttpRow(
        what="an expiry of 0, −1, 60.5, `soon`, nothing",
        sends=tuple(put("bad", ("KV-Expires-At", at)) for at in ("0", "-1", "60.5", "soon", "2026-01-01", "")),
        status=400,
        code="bad_expiry",
        limit=1,
    ),
    HttpRow(
        what="an expiry of 2^64",
        sends=(put("bad", ("KV-Expires-At", str(1 << 64))),),
        status=400,
        code="bad_expiry",
        limit=(1 << 53) - 1,
    ),
    HttpRow(
        what="a good expiry and a bad TTL: the TTL counts",
        sends=(put("bad", ("KV-Expires-In", "59"), ("KV-Expires-At", "$later")),),
        status=400,
        code="bad_expiry",
        limit=60,
    ),
    StoredRow(
        what="a good TTL and an expiry in the past: the TTL counts",
        sends=(put("expires", ("KV-Expires-In", "3600"), ("KV-Expires-At", "$past")),),
        reads=(("expires", b"v", {}),),
    ),
)

LISTS: tuple[HttpRow | StoredRow, ...] = (
    HttpRow(
        what="`limit` of 0, 1 001, −1, 2^63, `ten`, nothing",
        sends=tuple(request("GET", f"/v1/words?limit={one}") for one in ("0", "1001", "-1", str(1 << 63), "ten", "")),
        status=400,
        code="bad_limit",
        limit=1_000,
    ),
    HttpRow(
        what="a cursor of another namespace",
        sends=(request("GET", "/v1/others?cursor=$cursor"), request("GET", "/v1/others?limit=1&cursor=$cursor")),
        status=400,
        code="bad_cursor",
        says="another namespace",
    ),
    HttpRow(
        what="a cursor that is none, or was changed",
        sends=tuple(request("GET", f"/v1/words?cursor={one}") for one in ("x", "$cursor-", "A$cursor", "%FF", "c" * 4_000)),
        status=400,
        code="bad_cursor",
    ),
    HttpRow(
        what="a prefix of 513 bytes",
        sends=(request("GET", "/v1/words?prefix=" + "p" * 513),),
        status=414,
        code="prefix_too_long",
        limit=512,
    ),
    HttpRow(
        what="a parameter that is not known, or given twice",
        sends=(request("GET", "/v1/words?order=desc"), request("GET", "/v1/words?limit=1&limit=1"), request("GET", "/v1?limit=1")),
        status=400,
        code="bad_query",
    ),
    HttpRow(
        what="a version that is none",
        sends=(request("GET", "/v1/words/good", headers=(("KV-Min-Version", "1"),)),),
        status=400,
        code="bad_version",
    ),
    HttpRow(
        what="a condition that is none, or has no meaning here",
        sends=(
            put("bad", ("If-Match", "abc")),
            put("bad", ("If-None-Match", '"0000000000000000000000000000000000000000"')),
            put("bad", ("If-Match", "*"), ("If-None-Match", "*")),
            request("PUT", "/v1/bad", headers=(("If-None-Match", "*"),)),
        ),
        status=400,
        code="bad_condition",
    ),
)  # fmt: skip

# Each is tried with what a token of its kind might be wanted for: a read, a list and a write.
READS = (("GET", "/v1/words/good", None), ("HEAD", "/v1/words/good", None), ("GET", "/v1/words", None))
WRITES = (("PUT", "/v1/words/bad", b"v"), ("DELETE", "/v1/words/good", None), ("DELETE", "/v1/words", None))


def _as(token: str | None, *asked: tuple[str, str, bytes | None]) -> tuple[bytes, ...]:
    return tuple(request(method, target, body, token=token) for method, target, body in asked)


def _refused_tokens(*, api: bool) -> tuple[HttpRow, ...]:
    asked = API_ROUTES if api else (*READS[::2], *WRITES, ("PUT", "/v1/bad", None), ("GET", "/v1", None))
    wrong = _as("wrong", *asked) + tuple(
        request(*asked[0], token=None, headers=(("Authorization", text),))
        for text in ("", "Bearer", "Bearer ", "Basic $admin", "$admin", b"Bearer \xff")
    )
    kinds = {
        "no token": _as(None, *asked),
        "a token that is not known, or is none": wrong,
        "a token that has expired": _as("$expired", *asked),
        "a token that was revoked": _as("$revoked", *asked),
    }
    return tuple(
        HttpRow(what=what, sends=sends, status=401, code="unauthorized", headers=BEARER, api=api)
        for what, sends in kinds.items()
    )


API_ROUTES: tuple[tuple[str, str, bytes | None], ...] = (
    ("GET", "/admin/v1/status", None),
    ("GET", "/admin/v1/members", None),
    ("GET", "/admin/v1/leader", None),
    ("GET", "/admin/v1/tokens", None),
    ("POST", "/admin/v1/tokens", b'{"name":"bad","permissions":["admin"]}'),
    ("DELETE", "/admin/v1/tokens/$admin_id", None),
    ("GET", "/metrics", None),
)

TOKENS: tuple[HttpRow | StoredRow, ...] = (
    *_refused_tokens(api=False),
    HttpRow(
        what="a token of another account, or one restricted to other namespaces: as if there were no such namespace",
        sends=(*_as("$foreign", *READS[::2], *WRITES), *_as("$restricted", *READS[::2], *WRITES)),
        status=404,
        code="namespace_not_found",
    ),
    HttpRow(
        what="a token that may read, for a write; one that may write, for a read; either, for what takes `admin`",
        sends=(
            *_as("$reader", *WRITES, ("PUT", "/v1/bad", None)),
            *_as("$writer", *READS[::2], ("DELETE", "/v1/words", None), ("PUT", "/v1/bad", None), ("GET", "/v1", None)),
        ),
        status=403,
        code="forbidden",
    ),
)

ROUTES: tuple[HttpRow | StoredRow, ...] = (
    HttpRow(
        what="a method that a path has not",
        sends=(request("POST", "/v1/words/good", b"v"), request("PATCH", "/v1/words/good", b"v"), request("POST", "/v1/words")),
        status=405,
        code="method_not_allowed",
        headers=ALLOWED,
    ),
    HttpRow(
        what="the same on `/v1`, `/healthz`, `/readyz`",
        sends=(request("DELETE", "/v1"), request("PUT", "/healthz"), request("POST", "/readyz")),
        status=405,
        code="method_not_allowed",
        headers={"allow": "GET, HEAD"},
    ),
    HttpRow(
        what="a method that is none",
        sends=(request("FROB", "/v1/words/good"), request("get", "/v1/words/good"), request("", "/v1/words/good")),
        status=400,
        code="malformed_request",
        closes=True,
    ),
    HttpRow(what="`CONNECT`", sends=(request("CONNECT", "kv:80"),), status=404, code="route_not_found", closes=True),
    HttpRow(
        what="a path that is not there",
        sends=tuple(request("GET", one) for one in ("/", "/v2/words/good", "//v1/words/good", "/V1/words/good", "*")),
        status=404,
        code="route_not_found",
    ),
    HttpRow(
        what="a namespace that is not there",
        sends=tuple(request("GET", f"/v1/{one}/good") for one in ("nowhere", "0" * 32, "f" * 32, "Words", "words%20")),
        status=404,
        code="namespace_not_found",
    ),
    HttpRow(
        what="a namespace without a name, or with one that is no UTF-8; a title that looks like an id",
        sends=(
            request("GET", "/v1/"),
            request("GET", "/v1//good"),
            request("GET", "/v1/%FF"),
            request("PUT", "/v1/" + "0" * 32),
            request("PUT", "/v1/.."),
        ),
        status=400,
        code="bad_namespace",
    ),
    HttpRow(
        what="a title of 513 characters",
        sends=(request("PUT", "/v1/" + "t" * 513), request("PUT", "/v1/" + "%C3%BC" * 513)),
        status=400,
        code="bad_namespace",
        limit=512,
    ),
    HttpRow(
        what="`X-KV-Namespace` and `/proxy/…`, which are not served yet",
        sends=(request("GET", "/v1/words/good", headers=(("X-KV-Namespace", "words"),)), request("GET", "/proxy/t/words")),
        status=501,
        code="not_implemented",
    ),
)  # fmt: skip

FRAMING: tuple[HttpRow | StoredRow, ...] = (
    HttpRow(
        what="a request line of more than 8 KiB",
        sends=(request("GET", "/v1/words/" + "u" * 8_192), request("GET", "/v1/words/" + "u" * 1_000_000)),
        status=414,
        code="url_too_long",
        limit=8_192,
        closes=True,
    ),
    HttpRow(
        what="headers of more than 16 KiB, or that never end",
        sends=(
            raw(*GET_LINES, b"X: " + b"h" * 16_384),
            b"\r\n".join([*GET_LINES, b"X: " + b"h" * 200_000]),
            b"\r\n".join([*GET_LINES, b"h" * 200_000]),
        ),
        status=431,
        code="headers_too_large",
        limit=16_384,
        closes=True,
    ),
    HttpRow(
        what="101 header fields",
        sends=(raw(*GET_LINES, *(b"X-%d: 1" % n for n in range(99))),),
        status=431,
        code="headers_too_large",
        limit=100,
        closes=True,
    ),
    HttpRow(
        what="a chunk extension of more than 64 bytes",
        sends=(
            raw(*PUT_LINES, CHUNKED, body=b"1;" + b"e" * 500 + b"\r\nv\r\n0\r\n\r\n"),
            raw(*PUT_LINES, CHUNKED, body=b"1;" + b"e" * 60_000),
        ),
        status=400,
        code="malformed_request",
        limit=64,
        closes=True,
    ),
    HttpRow(
        what="a trailer of more than 16 KiB",
        sends=(raw(*PUT_LINES, CHUNKED, body=b"1\r\nv\r\n0\r\nX: " + b"t" * 60_000),),
        status=400,
        code="malformed_request",
        limit=16_384,
        closes=True,
    ),
    HttpRow(
        what="`Content-Length` with `Transfer-Encoding`; `chunked` twice; two lengths; a length that is negative or no number",
        sends=(
            raw(*PUT_LINES, b"Content-Length: 1", CHUNKED, body=b"0\r\n\r\n"),
            raw(*PUT_LINES, CHUNKED, b"Content-Length: 1", body=b"0\r\n\r\n"),
            raw(*PUT_LINES, b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
            *(
                raw(*PUT_LINES, *lengths, body=b"v")
                for lengths in (
                    (b"Content-Length: 1", b"Content-Length: 1"),
                    (b"Content-Length: 1", b"Content-Length: 2"),
                    (b"Content-Length: 1, 1",),
                    (b"Content-Length: -1",),
                    (b"Content-Length: +1",),
                    (b"Content-Length: 0x1",),
                    (b"Content-Length: 1.0",),
                    (b"Content-Length: one",),
                    (b"Content-Length:",),
                    (b"Content-Length: " + b"9" * 30,),
                )
            ),
        ),
        status=400,
        code="malformed_request",
        closes=True,
    ),
    HttpRow(
        what="chunk sizes that are negative, no number, too long, or not what follows",
        sends=tuple(
            raw(*PUT_LINES, CHUNKED, body=body + b"0\r\n\r\n")
            for body in (b"-1\r\nv\r\n", b"x\r\nv\r\n", b"0x1\r\nv\r\n", b" 1\r\nv\r\n", b"\r\n", b"1" * 17 + b"\r\nv\r\n", b"1\r\nvv\r\n", b"1\nv\n")
        ),
        status=400,
        code="malformed_request",
        closes=True,
    ),
    HttpRow(
        what="a transfer coding that is not `chunked`",
        sends=tuple(raw(*PUT_LINES, b"Transfer-Encoding: " + one, body=b"0\r\n\r\n") for one in (b"gzip, chunked", b"gzip")),
        status=501,
        code="not_implemented",
        closes=True,
    ),
    HttpRow(
        what="an expectation that is not `100-continue`",
        sends=tuple(raw(*PUT_LINES, b"Expect: " + one, b"Content-Length: 1", body=b"v") for one in (b"a-cookie", b"", b"100")),
        status=417,
        code="expectation_failed",
        closes=True,
    ),
    HttpRow(
        what="bare newlines, folded headers, NUL, no `Host` or two, TLS, HTTP/2, plain garbage",
        sends=(
            b"\n".join(GET_LINES) + b"\n\n",
            raw(*GET_LINES, b"X: 1", b" folded"),
            raw(*GET_LINES, b"X: a\x00b"),
            raw(*GET_LINES, b"X : 1"),
            raw(*GET_LINES, b"no colon"),
            raw(GET_LINES[0], GET_LINES[2]),
            raw(*GET_LINES, b"Host: other"),
            raw(b"GET /v1/words/g\xc3\xb6 HTTP/1.1", *GET_LINES[1:]),
            raw(b"GET /v1/words/good HTTP/1.2", *GET_LINES[1:]),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x00" * 1_000,
            b"\xff" * 1_000,
            b"no HTTP at all\r\n\r\n",
        ),
        status=400,
        code="malformed_request",
        closes=True,
    ),
    HttpRow(
        what="HTTP/0.9 and HTTP/2.0",
        sends=(b"GET /v1/words/good\r\n\r\n", raw(b"GET /v1/words/good HTTP/2.0", *GET_LINES[1:])),
        status=505,
        code="version_not_supported",
        closes=True,
    ),
    HttpRow(
        what="a hundred good requests, and garbage behind them: the good ones are answered",
        sends=(raw(*GET_LINES) * 100 + b"\x00garbage\r\n\r\n", raw(*GET_LINES) * 100 + b"GET / HTTP/1.1\r\n\r\n"),
        status=400,
        code="malformed_request",
        closes=True,
        before=100,
    ),
    StoredRow(
        what="`Expect: 100-continue`, short chunk extensions, a trailer",
        sends=(
            raw(*PUT_LINES[:1], *PUT_LINES[1:], b"Expect: 100-continue", b"Content-Length: 1", body=b"v"),
            raw(*PUT_LINES, CHUNKED, body=b"1;" + b"e" * 60 + b"\r\nv\r\n0\r\nKV-Metadata: 1\r\n\r\n"),
        ),
        reads=(("bad", b"v", {}), ("bad", b"v", {})),
    ),
)  # fmt: skip

API: tuple[HttpRow | StoredRow, ...] = (
    *_refused_tokens(api=True),
    HttpRow(
        what="a token without `admin`, one restricted to namespaces, an admin of another account",
        sends=tuple(
            request(*asked, token=token)
            for token in ("$reader", "$writer", "$restricted", "$foreign")
            for asked in API_ROUTES[:6]
        )
        + tuple(request(*API_ROUTES[6], token=token) for token in ("$writer", "$restricted", "$foreign")),
        status=403,
        code="forbidden",
        api=True,
    ),
    HttpRow(
        what="a method that a route has not",
        sends=(request("POST", "/admin/v1/status", b""), request("PATCH", "/admin/v1/tokens", b""), request("GET", "/admin/v1/tokens/x")),
        status=405,
        code="method_not_allowed",
        api=True,
    ),
    HttpRow(
        what="a route that is not there",
        sends=tuple(request("GET", one) for one in ("/", "/admin", "/admin/v1/status/", "/admin/v1/../v1/status", "/v1/words/good")),
        status=404,
        code="route_not_found",
        api=True,
    ),
    HttpRow(
        what="a token without a name, or with a long one",
        sends=(
            request("POST", "/admin/v1/tokens", b'{"name":"","permissions":["read"]}'),
            request("POST", "/admin/v1/tokens", b'{"name":"' + b"n" * 129 + b'","permissions":["read"]}'),
        ),
        status=400,
        code="bad_request",
        limit=128,
        api=True,
    ),
    HttpRow(
        what="a token that makes no sense",
        sends=tuple(
            request("POST", "/admin/v1/tokens", body)
            for body in (
                b"",
                b"{",
                b"[]",
                b'{"name":"bad","permissions":[]}',
                b'{"name":"bad","permissions":["root"]}',
                b'{"name":"bad","permissions":["read"],"scope":"all"}',
                b'{"name":"bad","permissions":["read"],"expires_at":1}',
                b'{"name":"bad","permissions":["read"],"account":"00000000000000000000000000000000"}',
                b'{"name":"bad","permissions":["read"],"namespaces":[]}',
                b"[" * 60_000,
            )
        ),
        status=400,
        code="bad_request",
        api=True,
    ),
    HttpRow(
        what="a body of more than 64 KiB",
        sends=(request("POST", "/admin/v1/tokens", b" " * 65_537),),
        status=413,
        code="value_too_large",
        limit=65_536,
        api=True,
    ),
    HttpRow(
        what="revoking a token that is not there",
        sends=(request("DELETE", "/admin/v1/tokens/0000000000000000"),),
        status=404,
        code="token_not_found",
        api=True,
    ),
)  # fmt: skip

HTTP_GROUPS: dict[str, tuple[HttpRow | StoredRow, ...]] = {
    "Keys": KEYS,
    "Values": VALUES,
    "Metadata": METADATA,
    "Expiry": EXPIRY,
    "Lists and conditions": LISTS,
    "Tokens": TOKENS,
    "Methods and paths": ROUTES,
    "HTTP itself": FRAMING,
    "The API port": API,
}
