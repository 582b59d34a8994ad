"""Ctrl-C, and proxies: what is said of a write whose answer will not be heard."""

import array
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kvp2p.client import Client
from kvp2p.client.response import ResponseParser

Run = Callable[..., Any]
Node = Any
TOKEN = "kv_secret"
PROGRAM = "from kvp2p.cli.main import main; main()"


def interrupted(
    node: Node, *arguments: str, stdin: int = subprocess.DEVNULL, is_due: Callable[[], bool] | None = None
) -> tuple[int, bytes, str]:
    """Run a command, press Ctrl-C when the node has fallen silent, and return exit code, stdout and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "KVP2P_URL": node.url, "KVP2P_TOKEN": TOKEN},
    )
    deadline = time.monotonic() + 20
    while not (node.is_silent.is_set() if is_due is None else is_due()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("put", "settings", "k", "v"),
        ("delete", "settings", "k"),
        ("namespace", "create", "settings"),
        ("namespace", "delete", "settings", "--yes"),
        ("token", "create", "web", "-p", "read"),
        ("token", "revoke", "3f2a9c0d11e84b57"),
    ],
    ids=" ".join,
)
def test_a_write_that_is_interrupted_after_it_was_sent_ends_with_4(node: Node, arguments: tuple[str, ...]) -> None:
    node.writes_answered_max = 0
    status, out, err = interrupted(node, *arguments)
    assert (status, out) == (4, b"")
    assert "nobody knows whether the write was applied: interrupted before an answer came" in err
    assert "Read the key before you repeat the write" in err


def test_an_interruption_before_a_write_is_sent_ends_with_130(node: Node) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"half of a value")

    def has_read() -> bool:
        left = array.array("i", [0])
        fcntl.ioctl(reader, termios.FIONREAD, left)
        return left[0] == 0

    status, out, err = interrupted(node, "put", "settings", "k", stdin=reader, is_due=has_read)
    os.close(reader)
    os.close(writer)
    assert (status, out) == (130, b"")
    assert "Traceback" not in err
    assert node.writes() == []


@pytest.mark.parametrize(("typed", "expected"), [(b"\x03", 130), (b"\x04", 3), (b"n\n", 3), (b"y\n", 0)])
def test_a_namespace_is_deleted_from_a_terminal_only_when_the_answer_is_yes(
    node: Node, typed: bytes, expected: int
) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "namespace", "delete", "settings"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "KVP2P_URL": node.url, "KVP2P_TOKEN": TOKEN},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no threads in the child
    )
    os.close(theirs)
    said = b""
    while b"[y/N]:" not in said:
        said += os.read(ours, 1024)
    os.write(ours, typed)
    out, _ = process.communicate(timeout=20)
    with suppress(OSError):  # at its end a terminal fails instead of returning nothing
        while more := os.read(ours, 1024):
            said += more
    os.close(ours)
    assert (process.returncode, out) == (expected, b"")
    assert b"Traceback" not in said
    assert len(node.writes()) == (expected == 0)


@pytest.mark.parametrize("parallel", [1, 5])
def test_an_import_that_is_interrupted_says_how_far_it_came(node: Node, tmp_path: Path, parallel: int) -> None:
    node.writes_answered_max = 20
    file = tmp_path / "bulk.json"
    file.write_text(json.dumps([{"key": f"k{number:03}", "value": "v"} for number in range(100)]))
    status, out, err = interrupted(node, "import", "settings", str(file), "--parallel", str(parallel), "--json")
    assert status == 4
    told = json.loads(out)
    # With several under way an answer may be on its way back when the command is interrupted: it counts as unknown.
    begun = told["acked"] + told["unknown"]
    assert (told["total"], told["refused"]) == (100, 0)
    assert 20 - parallel < told["acked"] <= 20
    assert 1 <= told["unknown"] <= parallel
    assert told["not_begun"] == 100 - begun
    assert told["last_key"] == f"k{begun - 1:03}"
    assert told["error"]["code"] == "interrupted"
    assert f"{told['acked']} of 100 written, 0 refused, {told['unknown']} unknown" in err
    assert f"in the order of the file: {told['last_key']}" in err


def test_an_import_that_is_interrupted_begins_no_further_write(
    kvp2p: Run, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bulk.json"
    file.write_text(json.dumps([{"key": f"k{number}", "value": "v"} for number in range(2_000)]))
    fed = begun = 0
    feed, put = ResponseParser.feed, Client.put

    def feed_and_interrupt(parser: ResponseParser, data: Any) -> None:
        """Press Ctrl-C where it does most harm: in a connection, whose end wakes all writes at once."""
        nonlocal fed
        feed(parser, data)
        fed += 1
        if fed == 100:
            signal.raise_signal(signal.SIGINT)

    def put_and_count(*arguments: Any, **options: Any) -> Any:
        nonlocal begun
        begun += 1
        return put(*arguments, **options)

    monkeypatch.setattr(ResponseParser, "feed", feed_and_interrupt)
    monkeypatch.setattr(Client, "put", put_and_count)
    result = kvp2p("import", "settings", str(file), "--json")
    told = result.document
    assert (result.status, told["refused"], told["error"]["code"]) == (4, 0, "interrupted")
    assert 1 <= told["unknown"] <= 128
    assert told["acked"] + told["unknown"] == begun == 2_000 - told["not_begun"]


@pytest.mark.parametrize("status", [200, 500, 502, 503, 504])
def test_an_answer_that_is_not_a_nodes_leaves_a_write_unknown(kvp2p: Run, node: Node, status: int) -> None:
    node.page = (status, b"<html>Bad Gateway</html>")
    for arguments in (("token", "create", "web", "-p", "read"), ("token", "revoke", "3f2a9c0d11e84b57")):
        result = kvp2p(*arguments)
        assert (result.status, result.out) == (4, b"")
        assert f"answered {status} and not as a kvp2p node does" in result.err


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxys_error_page_leaves_the_write_of_a_key_unknown(kvp2p: Run, node: Node, status: int) -> None:
    node.page = (status, b"<html>Bad Gateway</html>")
    assert kvp2p("put", "settings", "k", "v").status == 4
    assert kvp2p("delete", "settings", "k").status == 4
    assert kvp2p("namespace", "delete", "settings", "--yes").status == 4


def test_a_page_that_refuses_a_request_says_that_nothing_was_applied(kvp2p: Run, node: Node) -> None:
    node.page = (403, b"<html>Forbidden</html>")
    result = kvp2p("token", "create", "web", "-p", "read")
    assert result.status == 3
    assert "Check the address" in result.err
