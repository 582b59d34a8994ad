"""Commands against a fake node: what is sent, what is printed, how they end."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Node = Any

AWKWARD_KEYS = [
    "..x",
    "../x",
    "a//b",
    "/a/",
    "é",
    "%",
    "%2F",
    "a b",
    "a?b#c",
    "a+b",
    "\\",
    "\t",
    ":",
    "..",
    "key/with/../dots",
]


@pytest.mark.parametrize("key", [*AWKWARD_KEYS, os.fsdecode(b"\xff\xfe")], ids=ascii)
def test_awkward_keys_travel_raw_and_come_back(kvp2p: Run, node: Node, key: str) -> None:
    value = b"value of \x00\xff" + os.fsencode(key)
    node.values[b"x"] = (b"another key", None)
    assert kvp2p("put", "settings", key, stdin=value).status == 0
    assert node.values[os.fsencode(key)][0] == value
    assert len(node.values) == 2
    got = kvp2p("get", "settings", key)
    assert (got.status, got.out) == (0, value)
    assert kvp2p("delete", "settings", key).status == 0
    assert list(node.values) == [b"x"]


def test_an_encoded_key_is_the_one_of_a_url(kvp2p: Run, node: Node) -> None:
    assert kvp2p("put", "settings", "--encoded", "a%20b/%00%C3%A9+", "v").status == 0
    assert list(node.values) == ["a b/\0é+".encode()]
    assert kvp2p("get", "settings", "--encoded", "a%20b%2F%00%C3%A9%2B").out == b"v"
    assert kvp2p("get", "settings", "a%20b").status == 1
    assert kvp2p("delete", "settings", "--encoded", "a%20b/%00%C3%A9+").status == 0
    assert node.values == {}


def test_what_is_wrong_with_a_key_or_an_end_is_said(kvp2p: Run) -> None:
    assert "a key may not be empty" in kvp2p("put", "settings", "", "v").err
    assert "bad encoding" in kvp2p("get", "settings", "%zz", "--encoded").err
    expiry = kvp2p("token", "create", "web", "-p", "read", "--expires-in", "1").err
    assert "--expires-in" in expiry
    assert "60" in expiry


@pytest.mark.parametrize("arguments", [("list", "settings", "--all"), ("export", "settings")], ids=" ".join)
@pytest.mark.parametrize("keys", [3, 3_000])
def test_a_reader_that_has_enough_ends_a_command_quietly(node: Node, arguments: tuple[str, ...], keys: int) -> None:
    node.values = {b"%04d" % number: (b"v" * 100, None) for number in range(keys)}
    node.page_keys_max = 100
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", "from kvp2p.cli.main import main; main()", *arguments]
    environment = {**os.environ, "KVP2P_URL": node.url, "KVP2P_TOKEN": "kv_secret"}
    ended = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=20, check=False)
    os.close(writer)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr in (b"", b"3 keys\n")


def test_get_adds_nothing_to_the_value_and_writes_files(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    value = bytes(range(256)) * 10
    node.values[b"k"] = (value, '{"a":1}')
    assert kvp2p("get", "settings", "k").out == value
    target = tmp_path / "value"
    assert kvp2p("get", "settings", "k", "--output", str(target)).out == b""
    assert target.read_bytes() == value
    document = kvp2p("get", "settings", "k", "--json").document
    assert (document["base64"], document["metadata"], document["key"]) == (True, {"a": 1}, "k")


def test_put_takes_an_argument_a_file_or_stdin(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"\x00from a file\n")
    assert kvp2p("put", "settings", "a", "from argument").status == 0
    assert kvp2p("put", "settings", "f", "--file", str(source)).status == 0
    assert kvp2p("put", "settings", "s", stdin=b"\x00stdin\n").status == 0
    assert kvp2p("put", "settings", "d", "--file", "-", stdin=b"dash").status == 0
    assert kvp2p("put", "settings", "e", "").status == 0
    values = {key: value for key, (value, _) in node.values.items()}
    assert values == {
        b"a": b"from argument",
        b"f": b"\x00from a file\n",
        b"s": b"\x00stdin\n",
        b"d": b"dash",
        b"e": b"",
    }


def test_put_prints_the_version_and_sends_metadata_and_conditions(kvp2p: Run, node: Node) -> None:
    first = kvp2p("put", "settings", "k", "v", "--metadata", '{"ü": [1]}', "--if-absent")
    assert first.out.decode().strip() == f"{1:040x}"
    assert json.loads(node.values[b"k"][1]) == {"ü": [1]}
    refused = kvp2p("put", "settings", "k", "w", "--if-absent", "--json")
    assert refused.status == 3
    assert refused.document["error"]["code"] == "precondition_failed"
    assert node.values[b"k"][0] == b"v"
    assert kvp2p("put", "settings", "k", "w", "--json").document == {"version": f"{1:040x}", "visible": True}


def test_missing_keys_namespaces_and_tokens_end_with_1(kvp2p: Run) -> None:
    for command in (
        ["get", "settings", "nothing"],
        ["get", "nowhere", "k"],
        ["list", "nowhere"],
        ["put", "nowhere", "k", "v"],
        ["token", "revoke", "2" * 16],
    ):
        result = kvp2p(*command)
        assert result.status == 1, command
        assert result.out == b""
        assert result.err.startswith("kvp2p: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "settings"],
        ["put", "settings", "k", "v", "--file", "f"],
        ["put", "settings", "k", "v", "--if-absent", "--if-match", "0" * 40],
        ["put", "settings", "k", "v", "--if-match", "XYZ"],
        ["put", "settings", "k", "v", "--expires-in", "59"],
        ["put", "settings", "k", "v", "--expires-in", "soon"],
        ["put", "settings", "k", "v", "--expires-at", "0"],
        ["put", "settings", "k", "v", "--expires-at", str(2**63)],
        ["put", "settings", "k", "v", "--expires-in", "60", "--expires-at", "4000000000"],
        ["put", "settings", "k", "v", "--metadata", "{"],
        ["put", "settings", "k", "--file", "/nowhere/at/all"],
        ["list", "settings", "--limit", "1001"],
        ["get", "settings", "k", "--url", "ftp://127.0.0.1"],
        ["get", "settings", "k", "--url", "http://127.0.0.1:1/v1"],
        ["get", "settings", "k", "--token", "bäd"],
        ["init", "--dir", "d", "--name", "n", "--join", "ws://127.0.0.1:1"],
        ["namespace", "delete", "settings"],
        ["put", "settings", "", "v"],
        ["get", "settings", "%zz", "--encoded"],
        ["get", "settings", "a%2", "--encoded"],
        ["token", "create", "web", "-p", "read", "--expires-in", "1"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_asks_the_node_nothing(kvp2p: Run, node: Node, arguments: list[str]) -> None:
    result = kvp2p(*arguments)
    assert result.status == 2
    assert "Traceback" not in result.err
    assert node.writes() == []


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        ((503, "no_leader", "nobody leads"), 3),
        ((413, "value_too_large", "too large"), 3),
        ((400, "bad_key", "no key"), 3),
        ((507, "disk_full", "full"), 3),
        ((504, "outcome_unknown", "the link has ended"), 4),
        ((500, "internal_error", "a fault"), 3),
    ],
)
def test_the_exit_code_tells_refused_from_unknown(kvp2p: Run, node: Node, refusal: Any, status: int) -> None:
    node.refusal = refusal
    for command in (["put", "settings", "k", "v"], ["delete", "settings", "k"], ["namespace", "create", "settings"]):
        result = kvp2p(*command)
        assert result.status == status, command
        assert refusal[2] in result.err
        assert len(result.err.splitlines()) <= 2
    assert len(node.writes()) == 3


def test_a_write_whose_connection_ends_is_unknown_and_is_sent_once(kvp2p: Run, node: Node) -> None:
    node.cuts_writes = True
    for command in (["put", "settings", "k", "v"], ["delete", "settings", "k"], ["token", "create", "x", "-p", "read"]):
        result = kvp2p(*command)
        assert result.status == 4, command
        assert "Read the key before you repeat the write" in result.err
    assert len(node.writes()) == 3


def test_a_node_that_is_not_there_is_told_in_a_sentence(kvp2p: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for command in (["get", "settings", "k"], ["put", "settings", "k", "v"], ["status"], ["token", "list"]):
            result = kvp2p(*command, "--url", url)
            assert result.status == 3
            assert result.err.startswith(f"kvp2p: cannot reach {url}")
            assert "connection refused" in result.err
            assert "--url" in result.err


def test_a_missing_token_is_told_with_what_to_do(kvp2p: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVP2P_TOKEN")
    for command in (["get", "settings", "k"], ["status"]):
        result = kvp2p(*command)
        assert result.status == 3
        assert "KVP2P_TOKEN" in result.err


def test_options_count_before_and_after_the_command(kvp2p: Run, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVP2P_URL")
    monkeypatch.delenv("KVP2P_TOKEN")
    node.values[b"k"] = (b"v", None)
    where = ["--url", node.url, "--token", "kv_secret", "--json"]
    assert kvp2p(*where, "get", "settings", "k").document["value"] == "v"
    assert kvp2p("get", "settings", "k", *where).document["value"] == "v"


def test_list_prints_names_and_goes_on_only_when_asked(kvp2p: Run, node: Node) -> None:
    node.values = {b"%03d" % number: (b"", None) for number in range(25)}
    node.page_keys_max = 10
    first = kvp2p("list", "settings")
    assert first.out.splitlines() == [b"%03d" % number for number in range(10)]
    assert "--cursor 009" in first.err
    assert kvp2p("list", "settings", "--cursor", "009", "--limit", "2").out.splitlines() == [b"010", b"011"]
    whole = kvp2p("list", "settings", "--all")
    assert whole.out.splitlines() == sorted(node.values)
    assert whole.err == ""
    document = kvp2p("list", "settings", "--prefix", "02", "--all", "--json").document
    assert [one["name"] for one in document["keys"]] == ["020", "021", "022", "023", "024"]
    assert document["list_complete"] is True


def test_a_name_that_would_steer_the_terminal_is_shown_escaped(kvp2p: Run, node: Node) -> None:
    node.values = {b"\x1b[31mred\n": (b"", None)}
    assert kvp2p("list", "settings").out == b"\\x1b[31mred\\n\n"


def test_namespaces_are_created_listed_and_deleted(kvp2p: Run, node: Node) -> None:
    assert kvp2p("namespace", "create", "settings").out.strip() == b"0123456789abcdef0123456789abcdef"
    assert b"settings" in kvp2p("namespace", "list").out
    assert kvp2p("namespace", "list", "--json").document["namespaces"][0]["title"] == "settings"
    assert kvp2p("namespace", "delete", "settings", "--yes").status == 0
    assert node.writes() == [("PUT", "/v1/settings"), ("DELETE", "/v1/settings")]


def test_a_created_token_stands_alone_on_stdout(kvp2p: Run, node: Node) -> None:
    result = kvp2p("token", "create", "web", "-p", "read", "-p", "write", "-n", "settings", "--expires-in", "60")
    assert (result.status, result.out) == (0, b"kv_new\n")
    (asked,) = node.created_tokens
    assert (asked["permissions"], asked["namespaces"]) == (["read", "write"], ["settings"])
    assert asked["expires_at"] > 0
    assert b"ops" in kvp2p("token", "list").out
    assert kvp2p("token", "revoke", "1" * 16).status == 0


def test_the_last_token_that_administers_the_cluster_is_not_revoked(kvp2p: Run, node: Node) -> None:
    admin = {"id": "1" * 16, "name": "ops", "permissions": ["admin"], "namespaces": None, "expires_at": None}
    node.tokens = [
        admin,
        {**admin, "id": "2" * 16, "permissions": ["read", "write"]},
        {**admin, "id": "3" * 16, "namespaces": ["4" * 32]},
        {**admin, "id": "5" * 16, "expires_at": 1},
    ]
    refused = kvp2p("token", "revoke", "1" * 16)
    assert refused.status == 2
    assert "create another admin token first" in refused.err
    assert node.writes() == []
    node.tokens.append({**admin, "id": "6" * 16})
    assert kvp2p("token", "revoke", "1" * 16).status == 0


def test_status_shows_members_that_answer_and_members_that_do_not(kvp2p: Run, node: Node) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead_url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        node.members = [
            {"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32},
            {"name": "n2", "api_url": dead_url, "data_url": dead_url, "node_id": "2" * 32},
        ]
        result = kvp2p("status")
        assert result.status == 0
        heads, first, second = (line.split("\t") for line in result.out.decode().splitlines())
        assert dict(zip(heads, first, strict=True))["ROLE"] == "leader"
        assert dict(zip(heads, first, strict=True))["SKEW"] == "3 ms"
        assert dict(zip(heads, second, strict=True))["READY"] == "no answer"
        assert [first[1], second[1]] == ["1" * 8, "2" * 8]
        assert result.err == "1 of 2 nodes does not answer.\n"
        document = kvp2p("status", "--json").document
        assert document["members"][0]["status"]["lag_ms"] == 0
        assert document["members"][1]["status"] is None


def test_status_does_not_show_what_another_node_says_as_a_members(kvp2p: Run, node: Node) -> None:
    node.members = [
        {"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32},
        {"name": "gone", "api_url": node.url, "data_url": node.url, "node_id": "2" * 32},
    ]
    result = kvp2p("status")
    gone = result.out.decode().splitlines()[1].split("\t")
    assert gone == ["gone", "2" * 8, "?", "other node", "-", "-", "-", "-", "-", node.url]
    assert f"gone (22222222): another node answers there, at {node.url}" in result.err
    assert "1 of 2 nodes does not answer" in result.err
    assert "equal" not in result.err
    first, _ = kvp2p("status", "--json").document["members"]
    assert (first["status"], first["error"]) == (None, "another node answers there")


def test_status_says_that_nodes_with_the_same_data_are_equal(kvp2p: Run, node: Node) -> None:
    one = {"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}
    node.members = [one]
    assert kvp2p("status").err == "The only node answers.\n"
    node.members = [one, {**one, "name": "n2"}]
    assert kvp2p("status").err == "All 2 nodes answer.\nAll nodes are equal.\n"


def test_status_does_not_call_nodes_equal_while_a_large_value_is_on_its_way(kvp2p: Run, node: Node) -> None:
    one = {"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}
    node.members = [one, {**one, "name": "n2"}]
    node.says = {"pending_values": 2}
    told = kvp2p("status").err.splitlines()
    assert told[1:] == [
        f"{name} has not got all chunks of large values yet, and shows their old state: 2 to come."
        for name in ("n1", "n2")
    ]


def test_status_tells_nodes_that_have_diverged_and_that_nobody_leads(kvp2p: Run, node: Node) -> None:
    one = {"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}
    node.members = [one, {**one, "name": "n2"}]
    node.says = {"leader": False}
    node.has_other_hash_each_time = True
    assert kvp2p("status").err.splitlines()[1:] == [
        "No node that answers leads: writes are refused, reads go on.",
        "Nodes with the same vector have different H: their data differ.",
    ]


def test_status_says_who_has_no_link_to_the_leader_and_that_nodes_differ(kvp2p: Run, node: Node) -> None:
    one = {"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}
    node.members = [one, {**one, "name": "n2"}]
    node.says = {"leader_node_id": "3" * 32, "members": [{"node_id": "3" * 32, "name": "n3", "linked": False}]}
    node.has_writes_between_answers = True
    told = kvp2p("status").err.splitlines()
    assert told[1:] == [
        "n1 has no link to n3, which leads.",
        "n2 has no link to n3, which leads.",
        "The nodes are not equal at this moment; LAG tells who is behind.",
    ]


def test_status_waits_two_seconds_for_all_nodes_that_are_late_together(kvp2p: Run, node: Node) -> None:
    node.is_status_late = True
    one = {"api_url": node.url, "data_url": node.url, "node_id": "1" * 32}
    node.members = [{"name": f"n{number}", **one} for number in range(40)]
    begun = time.monotonic()
    result = kvp2p("status")
    assert 2 <= time.monotonic() - begun < 8
    assert "40 of 40 nodes do not answer." in result.err


def test_status_gives_up_a_node_that_takes_connections_and_says_nothing(kvp2p: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        result = kvp2p("status", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - begun < 8
    assert (result.status, result.out) == (3, b"")
    assert "no answer from" in result.err
    assert "Ask another node" in result.err


def test_tables_keep_ids_whole_on_a_narrow_terminal(kvp2p: Run, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no colours
    node.members = [{"name": "node-1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}]
    node.says = {"lag_ms": 1234}
    heads, row = kvp2p("status").out.decode().splitlines()
    assert heads.split() == ["NODE", "ID", "ROLE", "READY", "LAG", "SKEW", "KEYS", "VECTOR", "H"]
    assert " ".join(row.split()) == "node-1 11111111 leader yes 1234 ms 3 ms 0 1@22222222 abababab"
    node.tokens = [
        {
            "id": "1" * 16,
            "name": "a long name of a token",
            "permissions": ["admin", "read", "write"],
            "namespaces": ["2" * 32, "3" * 32],
            "expires_at": 2_000_000_000,
        }
    ]
    lines = kvp2p("token", "list").out.decode().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    for word in ("1" * 16, "admin,read,write", "22222222 +1", "2033-05-18 03:33Z"):
        assert word in lines[1]


def test_status_shows_what_a_leader_that_is_catching_up_waits_for(kvp2p: Run, node: Node) -> None:
    node.members = [{"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}]
    lack = {"issuer": "ab" * 8, "held": "00" * 8, "wanted": "12" * 8, "from": "2" * 32}
    node.says = {"leader": False, "role": "catching_up", "lacks": [lack]}
    result = kvp2p("status")
    heads, first = (line.split("\t") for line in result.out.decode().splitlines())
    assert dict(zip(heads, first, strict=True))["ROLE"] == "catching up"
    for word in ("n1 does not lead", "ab" * 8, "00" * 8, "12" * 8, "2" * 32):
        assert word in result.err


def test_status_says_what_a_restored_leader_waits_for(kvp2p: Run, node: Node) -> None:
    node.members = [{"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}]
    node.says = {"leader": False, "role": "hearing", "waiting": "waiting for a peer"}
    assert "n1 is to lead, but is waiting for a peer." in kvp2p("status").err


def test_status_says_which_disk_is_full(kvp2p: Run, node: Node) -> None:
    node.members = [{"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}]
    assert "cannot store" not in kvp2p("status").err
    node.says = {"disk_full": "the store in ./n1 is on a disk that is full: make room there"}
    assert "n1 cannot store any more: the store in ./n1 is on a disk that is full" in kvp2p("status").err


def test_status_says_which_candidate_keeps_tombstones_from_being_purged(kvp2p: Run, node: Node) -> None:
    gone = {"name": "n2", "api_url": "http://127.0.0.1:1", "data_url": "http://127.0.0.1:1", "node_id": "2" * 32}
    node.members = [{"name": "n1", "api_url": node.url, "data_url": node.url, "node_id": "1" * 32}, gone]
    node.says = {"purge": {"tombstones": 7, "blocked_by": None, "blocked_why": ""}}
    assert "purge" not in kvp2p("status").err
    node.says = {"purge": {"tombstones": 7, "blocked_by": "2" * 32, "blocked_why": "it is not reachable"}}
    told = "n1 cannot purge 7 tombstones: it counts on n2, which may lead, and it is not reachable."
    assert told in kvp2p("status").err
    node.says = {"purge": {"tombstones": 7, "blocked_by": "1" * 32, "blocked_why": "it lacks chunks of large values"}}
    assert "n1 cannot purge 7 tombstones: it lacks chunks of large values." in kvp2p("status").err


def test_every_command_has_help_with_an_example(kvp2p: Run) -> None:
    commands = [
        "init",
        "serve",
        "config",
        "get",
        "put",
        "delete",
        "list",
        "import",
        "export",
        "status",
        "backup",
        "restore",
    ]
    groups = [(group, command) for group in ("namespace", "token") for command in ("create", "list")]
    for words in [*((one,) for one in commands), *groups, ("namespace", "delete"), ("token", "revoke")]:
        result = kvp2p(*words, "--help")
        assert result.status == 0
        assert f"  kvp2p {' '.join(words)}" in result.out.decode(), words


def test_help_says_what_permissions_allow_and_what_is_not_there_yet(kvp2p: Run) -> None:
    told = " ".join(kvp2p("token", "create", "--help").out.decode().split())
    assert "does not include read" in told
    assert "restricted to namespaces cannot administer the cluster" in told
    assert "yet" in kvp2p("--help").out.decode()


def test_version_is_printed_without_a_node(kvp2p: Run, node: Node) -> None:
    assert kvp2p("--version").out.startswith(b"kvp2p 0.")
    assert node.requests == []
