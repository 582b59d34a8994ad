"""GET and HEAD of the native API."""

from pathlib import Path

import pytest

from kvp2p.core.operations import Delete, DeleteNamespace, Put
from kvp2p.core.system_rows import Permission, namespace_key
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, NamespaceId
from tests.gateway.rig import (
    ADMIN,
    NAMESPACE,
    OTHER_NAMESPACE,
    READER,
    RESTRICTED,
    TITLE,
    WRITER,
    Rig,
    hex_version,
    request,
    rig,
)


async def test_value_comes_with_its_version_by_title_and_by_id(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        version = r.writer.put(b"k", b"\x00\xffvalue")
        for namespace in (TITLE, NAMESPACE.hex(), NAMESPACE.hex().upper()):
            for _ in range(2):  # the longer way, then the hot path
                reply = await wire.ask(request("GET", f"/v1/{namespace}/k"))
                assert (reply.status, reply.reason, reply.body) == (200, "OK", b"\x00\xffvalue")
                assert reply.headers["etag"] == f'"{version}"'
                assert reply.headers["kv-version"] == version
                assert reply.headers["content-length"] == "7"
                assert reply.headers["content-type"] == "application/octet-stream"
                assert reply.headers["date"].endswith("GMT")
                assert "kv-metadata" not in reply.headers


async def test_hot_path_and_longer_way_give_the_same_bytes(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v" * 200)
        first = await wire.ask(request("GET", "/v1/words/k"))
        assert r.gateway.counters.values_read == 0
        second = await wire.ask(request("GET", "/v1/words/k"))
        assert r.gateway.counters.values_read == 1
        assert {**first.headers, "date": ""} == {**second.headers, "date": ""}
        assert (first.status, first.body) == (second.status, second.body)


async def test_empty_value_is_a_value_and_a_missing_key_is_404(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"empty", b"")
        for _ in range(2):
            assert (await wire.ask(request("GET", "/v1/words/empty"))).body == b""
            reply = await wire.ask(request("GET", "/v1/words/none"))
            assert (reply.status, reply.code) == (404, "key_not_found")
            assert reply.error == {
                "code": "key_not_found",
                "message": "there is no value under this key",
                "retryable": False,
                "applied": "no",
            }


async def test_deleted_key_is_missing(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        assert (await wire.ask(request("GET", "/v1/words/k"))).status == 200
        r.writer.write(Delete(NAMESPACE, b"k"))
        assert (await wire.ask(request("GET", "/v1/words/k"))).status == 404


async def test_expired_row_is_hidden_and_a_living_one_names_its_end(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put(b"old", b"v", expires_at=1_000)
        r.writer.put(b"new", b"v", expires_at=99_999_999_999)
        assert (await r.ask("GET", "/v1/words/old")).status == 404
        assert (await r.ask("GET", "/v1/words/new")).headers["kv-expires-at"] == "99999999999"


async def test_metadata_is_answered_ascii_escaped(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put(b"ascii", b"v", b'{"a":[1,null]}')
        r.writer.put(b"text", b"v", '{"é":"😀\x7f"}'.encode())
        assert (await r.ask("GET", "/v1/words/ascii")).headers["kv-metadata"] == '{"a":[1,null]}'
        assert (await r.ask("GET", "/v1/words/text")).headers["kv-metadata"] == r'{"\u00e9":"\ud83d\ude00\u007f"}'


async def test_head_is_get_without_the_body(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"value", b"1")
        for target in ("/v1/words/k", "/v1/words/none", "/v1/words", "/v1", "/healthz", "/readyz", "/nowhere"):
            got = await wire.ask(request("GET", target))
            head = await wire.ask(request("HEAD", target))
            assert (head.status, {**head.headers, "date": ""}) == (got.status, {**got.headers, "date": ""})
            assert head.headers["content-length"] == str(len(got.body))


async def test_conditional_get_answers_304_or_412(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        version = r.writer.put(b"k", b"value")
        other = hex_version(7)

        async def status(name: str, value: str, key: str = "k") -> int:
            return (await wire.ask(request("GET", f"/v1/words/{key}", headers={name: value}))).status

        for matching in (f'"{version}"', f'W/"{version}"', "*", f'"{other}", "{version}"'):
            reply = await wire.ask(request("GET", "/v1/words/k", headers={"If-None-Match": matching}))
            assert (reply.status, reply.headers["etag"], reply.headers["kv-version"]) == (304, f'"{version}"', version)
        assert await status("If-None-Match", f'"{other}"') == 200
        assert await status("If-None-Match", "*", "none") == 404
        assert await status("If-Match", f'"{version}"') == 200
        assert await status("If-Match", "*") == 200
        assert await status("If-Match", f'"{other}"') == 412
        assert await status("If-Match", "*", "none") == 412
        assert await status("If-Match", version) == 400


KEYS = [
    ("a/b//c/../d/", b"a/b//c/../d/"),
    ("%2e", None),
    ("..", None),
    (".hidden", b".hidden"),
    ("...", b"..."),
    ("a+b", b"a+b"),
    ("a%2Bb", b"a+b"),
    ("a%252Fb", b"a%2Fb"),
    ("%00", b"\x00"),
    ("%F0%9F%98%80", "😀".encode()),
    ("%ff", None),
    ("%ED%A0%80", None),
    ("%zz", None),
    ("%", None),
    ("%4", None),
    ("a#b", None),
    ("", None),
]


@pytest.mark.parametrize(("raw", "key"), KEYS)
async def test_path_is_decoded_once_and_never_normalised(short_tmp_path: Path, raw: str, key: bytes | None) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"warm", b"")
        await wire.ask(request("GET", "/v1/words/warm"))
        if key is not None:
            r.writer.put(key, b"here")
        reply = await wire.ask(request("GET", f"/v1/words/{raw}"))
        if key is None:
            assert (reply.status, reply.code) == (400, "bad_key")
        else:
            assert (reply.status, reply.body) == (200, b"here")


async def test_key_has_at_most_512_bytes_after_decoding(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        for key in ("k" * 512, "k" * 494, "k" * 495, "é" * 256):
            r.writer.put(key.encode(), b"here")
        for _ in range(2):
            assert (await wire.ask(request("GET", "/v1/words/" + "k" * 512))).body == b"here"
            assert (await wire.ask(request("GET", "/v1/words/" + "k" * 494))).body == b"here"
            assert (await wire.ask(request("GET", "/v1/words/" + "k" * 495))).body == b"here"
            assert (await wire.ask(request("GET", "/v1/words/" + "%C3%A9" * 256))).body == b"here"
            for raw in ("k" * 513, "%C3%A9" * 256 + "k"):
                reply = await wire.ask(request("GET", f"/v1/words/{raw}"))
                assert (reply.status, reply.code, reply.error["limit"]) == (414, "key_too_long", 512)


async def test_query_on_a_key_is_refused_rather_than_cut_off(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put(b"k", b"v")
        reply = await r.ask("GET", "/v1/words/k?x")
        assert (reply.status, reply.code) == (400, "bad_query")


async def test_absolute_form_of_the_target_is_understood(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        r.writer.put(b"k", b"v")
        assert (await r.ask("GET", "http://kv:8787/v1/words/k")).body == b"v"


async def names(r: Rig, target: str) -> tuple[list[str], str | None]:
    reply = await r.ask("GET", target)
    assert reply.status == 200
    page = reply.json
    assert page["list_complete"] == ("cursor" not in page)
    return [one["name"] for one in page["keys"]], page.get("cursor")


async def test_listing_goes_in_byte_order_with_prefix_limit_and_cursor(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        keys = sorted([b"a", b"a/1", b"a/2", b"a/3", b"b+c", "é".encode(), b"z" * 512, b'"\\\n'])
        for key in keys:
            r.writer.put(key, b"v")
        r.writer.write(Delete(NAMESPACE, b"a/2"))
        keys.remove(b"a/2")
        assert await names(r, "/v1/words") == ([key.decode() for key in keys], None)
        assert await names(r, "/v1/words?prefix=a%2F") == (["a/1", "a/3"], None)
        assert await names(r, "/v1/words?prefix=b+") == (["b+c"], None)
        assert await names(r, "/v1/words?prefix=none") == ([], None)
        for limit in (1, 2, 3):
            seen: list[str] = []
            cursor = None
            for _ in range(len(keys) + 1):
                page, cursor = await names(r, f"/v1/words?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
                assert len(page) <= limit
                seen += page
                if cursor is None:
                    break
            assert seen == [key.decode() for key in keys]


async def test_listed_key_shows_version_metadata_and_expiration(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        plain = r.writer.put(b"a", b"v")
        full = r.writer.put(b"b", b"v", '{"é":1}'.encode(), 99_999_999_999)
        r.writer.put(b"c", b"v", expires_at=100)
        reply = await r.ask("GET", "/v1/words")
        assert reply.headers["content-type"] == "application/json"
        assert reply.json == {
            "keys": [
                {"name": "a", "version": plain},
                {"name": "b", "expiration": 99_999_999_999, "metadata": {"é": 1}, "version": full},
            ],
            "list_complete": True,
        }


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 400, "bad_limit"),
        ("limit=1001", 400, "bad_limit"),
        ("limit=x", 400, "bad_limit"),
        ("limit=", 400, "bad_limit"),
        ("limit=-1", 400, "bad_limit"),
        ("limit=%C2%B2", 400, "bad_limit"),
        ("cursor=nonsense", 400, "bad_cursor"),
        ("cursor=%ff", 400, "bad_cursor"),
        ("prefix=" + "p" * 513, 414, "prefix_too_long"),
        ("prefix=%zz", 400, "bad_query"),
        ("limit=1&limit=2", 400, "bad_query"),
        ("page=2", 400, "bad_query"),
    ],
)
async def test_bad_listing_is_refused(short_tmp_path: Path, query: str, status: int, code: str) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask("GET", f"/v1/words?{query}")
        assert (reply.status, reply.code) == (status, code)


async def test_namespaces_are_listed_as_far_as_the_token_sees_them(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        words, other = {"id": NAMESPACE.hex(), "title": TITLE}, {"id": OTHER_NAMESPACE.hex(), "title": "other"}
        r.writer.add_token("stranger", Permission.ADMIN, account=AccountId(b"b" * 16))
        assert (await r.ask("GET", "/v1")).json == {"namespaces": [words, other]}
        assert (await r.ask("GET", "/v1", token=READER)).json == {"namespaces": [words, other]}
        assert (await r.ask("GET", "/v1", token=RESTRICTED)).json == {"namespaces": [words]}
        assert (await r.ask("GET", "/v1", token="stranger")).json == {"namespaces": []}
        assert (await r.ask("GET", "/v1", token=WRITER)).code == "forbidden"
        r.writer.write(DeleteNamespace(NAMESPACE))
        assert (await r.ask("GET", "/v1")).json == {"namespaces": [other]}


async def test_namespace_whose_row_cannot_be_read_is_503_and_the_others_are_served(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.writer.put(b"k", b"v")
        bad = NamespaceId(b"b" * 16)
        r.writer.write(Put(SYSTEM_NAMESPACE, namespace_key(bad), b"no JSON"))
        for _ in range(2):
            assert (await wire.ask(request("GET", "/v1/words/k"))).body == b"v"
            for method, target in (("GET", f"/v1/{bad.hex()}/k"), ("GET", "/v1/its-title/k"), ("GET", "/v1")):
                reply = await wire.ask(request(method, target))
                assert (reply.status, reply.code) == (503, "unavailable")
            reply = await wire.ask(request("PUT", f"/v1/{bad.hex()}/k", b"v"))
            assert (reply.status, reply.code, reply.error["applied"]) == (503, "unavailable", "no")
        r.writer.write(Delete(SYSTEM_NAMESPACE, namespace_key(bad)))
        assert (await wire.ask(request("GET", f"/v1/{bad.hex()}/k"))).code == "namespace_not_found"
        assert (await wire.ask(request("GET", "/v1"))).status == 200


async def test_healthz_and_readyz_need_no_token(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r:
        reply = await r.ask("GET", "/healthz", token=None)
        assert reply.status == 200
        assert set(reply.json) == {"name", "node_id", "cluster_id", "version", "api_url"}
        assert (reply.json["name"], reply.json["cluster_id"]) == ("n1", (b"c" * 16).hex())
        assert reply.json["api_url"] == "http://127.0.0.1:8788"
        assert (await r.ask("GET", "/readyz", token=None)).status == 200


async def test_pipelined_large_values_come_whole_and_in_order(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        values = [bytes([n]) * 150_000 for n in range(40)]
        for n, value in enumerate(values):
            r.writer.write(Put(NAMESPACE, b"k%d" % n, value))
        await wire.send(b"".join(request("GET", f"/v1/words/k{n}") for n in range(40)))
        for value in values:
            assert (await wire.reply()).body == value
        assert (await wire.ask(request("GET", "/v1/words/k0", token=ADMIN))).body == values[0]
