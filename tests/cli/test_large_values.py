"""Large values and expiry on the command line: what is sent, kept, shown, and what is left of a value that was cut."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kvp2p.limits import VALUE_BYTES_MAX
from tests.cli.conftest import CLOCK, TOKEN

Run = Callable[..., Any]
Node = Any
LARGE = os.urandom(3_000_000)
PROGRAM = [sys.executable, "-c", "from kvp2p.cli.main import main; main()"]


@pytest.mark.parametrize("way", ["file", "stdin", "dash", "pipe"])
def test_large_value_is_stored_from_wherever_it_comes(kvp2p: Run, node: Node, tmp_path: Path, way: str) -> None:
    source = tmp_path / "source"
    put = ["put", "settings", "../a b", "--metadata", '{"a":1}', "--expires-in", "60"]
    if way == "file":
        source.write_bytes(LARGE)
        result = kvp2p(*put, "--file", str(source))
    elif way == "pipe":
        os.mkfifo(source)
        writer = threading.Thread(target=source.write_bytes, args=(LARGE,))
        writer.start()
        result = kvp2p(*put, "--file", str(source))
        writer.join()
    else:
        result = kvp2p(*put, *(["--file", "-"] if way == "dash" else []), stdin=LARGE)
    assert (result.status, result.out.decode().strip(), result.err) == (0, f"{1:040x}", "")
    assert node.values == {b"../a b": (LARGE, '{"a":1}')}
    assert node.expiries == {b"../a b": CLOCK + 60}
    refused = kvp2p("put", "settings", "../a b", "--if-absent", stdin=LARGE + b"!")
    assert refused.status == 3
    assert node.values[b"../a b"][0] == LARGE


def test_stdin_over_the_limit_is_refused_and_nothing_is_sent(kvp2p: Run, node: Node) -> None:
    result = kvp2p("put", "settings", "k", "--json", stdin=bytes(VALUE_BYTES_MAX + 1))
    assert (result.status, result.document["error"]["code"]) == (3, "value_too_large")
    assert f"more than {VALUE_BYTES_MAX} bytes" in result.err
    assert node.requests == []


def test_file_that_becomes_shorter_meanwhile_is_not_stored(
    kvp2p: Run, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    fstat = os.fstat

    def longer(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if status.st_size != len(LARGE):
            return status
        return os.stat_result((*status[:6], len(LARGE) + 1, *status[7:]))

    monkeypatch.setattr(os, "fstat", longer)
    result = kvp2p("put", "settings", "k", "--file", str(source))
    assert result.status == 2
    assert "became shorter" in result.err
    assert node.values == {}


def test_large_value_is_written_to_stdout_and_to_files(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    node.values[b"k"] = (LARGE, '{"a":1}')
    node.expiries[b"k"] = CLOCK
    assert kvp2p("get", "settings", "k").out == LARGE
    target = tmp_path / "value"
    target.write_bytes(b"old")
    target.chmod(0o600)
    result = kvp2p("get", "settings", "k", "--output", str(target), "--json")
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (LARGE, 0o600)
    assert result.document == {"key": "k", "version": f"{7:040x}", "metadata": {"a": 1}, "expires_at": CLOCK}
    assert list(tmp_path.iterdir()) == [target]
    assert kvp2p("get", "settings", "k", "--output", str(tmp_path / "no" / "where")).status == 2


def test_value_that_is_cut_leaves_the_old_file_and_ends_with_3(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    node.values[b"k"] = (LARGE, None)
    node.value_bytes_sent_max = 2_000_000
    target = tmp_path / "value"
    target.write_bytes(b"old")
    result = kvp2p("get", "settings", "k", "--output", str(target))
    assert result.status == 3
    assert "was lost" in result.err
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    assert kvp2p("get", "settings", "k").status == 3


def test_expiry_is_sent_and_shown(kvp2p: Run, node: Node) -> None:
    assert kvp2p("put", "settings", "a", "v", "--expires-in", "60").status == 0
    assert kvp2p("put", "settings", "b", "v", "--expires-at", "4102444800", "--metadata", "[1]").status == 0
    assert kvp2p("put", "settings", "c", "v").status == 0
    assert node.expiries == {b"a": CLOCK + 60, b"b": 4_102_444_800}
    assert kvp2p("get", "settings", "a", "--json").document["expires_at"] == CLOCK + 60
    assert kvp2p("get", "settings", "c", "--json").document["expires_at"] is None
    listed = kvp2p("list", "settings", "--json").document["keys"]
    assert [one.get("expiration") for one in listed] == [CLOCK + 60, 4_102_444_800, None]
    node.page_keys_max = 1
    lines = kvp2p("list", "settings", "--long", "--all").out.decode().splitlines()
    assert [line.split("\t") for line in lines] == [
        ["NAME", "VERSION", "EXPIRES", "METADATA"],
        ["a", f"{7:040x}", "2096-10-02T07:07:40Z", ""],
        ["b", f"{7:040x}", "2100-01-01T00:00:00Z", "[1]"],
        ["c", f"{7:040x}", "never", ""],
    ]
    node.expiries[b"a"] = 2**53 - 1
    assert "285428751-11-12T07:36:31Z" in kvp2p("list", "settings", "-l").out.decode()
    assert kvp2p("list", "settings").out == b"a\n"


# --- Ctrl-C and a terminal


@contextmanager
def half_reading_server(body_bytes: int) -> Iterator[tuple[str, threading.Event]]:
    """Ask for the body of a PUT, read so many bytes of it, say that, and stay silent."""
    listener = socket.create_server(("127.0.0.1", 0))
    has_read = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(65_536)
                accepted.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                left = body_bytes
                while left > 0:
                    left -= len(accepted.recv(left))
                has_read.set()
                listener.accept()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", has_read
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(("body_bytes", "status"), [(100_000, 130), (20_000_000, 4)])
def test_large_write_that_is_interrupted_is_unknown_only_when_its_last_byte_has_left(
    tmp_path: Path, body_bytes: int, status: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(20_000_000))
    with half_reading_server(body_bytes) as (url, has_read):
        process = subprocess.Popen(
            [*PROGRAM, "put", "settings", "k", "--file", str(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "KVP2P_URL": url, "KVP2P_TOKEN": TOKEN},
        )
        assert has_read.wait(20)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (status, b""), err
    assert b"Traceback" not in err


@pytest.mark.parametrize("arguments", [("put", "settings", "k", "--file"), ("get", "settings", "k", "--output")])
def test_progress_of_a_large_value_is_shown_on_a_terminal(
    node: Node, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "value"
    file.write_bytes(LARGE)
    node.values[b"k"] = (LARGE, None)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments, str(file)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "KVP2P_URL": node.url, "KVP2P_TOKEN": TOKEN, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # at its end a terminal fails instead of returning nothing
        while more := os.read(ours, 65_536):
            said += more
    process.communicate(timeout=20)
    os.close(ours)
    assert process.returncode == 0
    assert (b"writing" if "put" in arguments else b"reading") in said
    assert b"3.0/3.0 MB" in said
