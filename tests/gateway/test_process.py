"""The process as the supervisor starts it: ready when it serves, gone when it is told to or is alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio

from kvp2p.config import NodeConfig
from kvp2p.gateway import main
from kvp2p.gateway.server import Gateway
from kvp2p.gateway.streams import streams_max
from kvp2p.gateway.turns import bytes_max
from kvp2p.limits import HTTP_LARGE_WRITE_BYTES_MAX, HTTP_STREAMS_MAX
from kvp2p.runtime.child import EXIT_ORPHANED, ChildLife
from kvp2p.store.reader import Replica
from tests.gateway.rig import ADMIN, Writer, make_store, until

CODE = """
import sys
from pathlib import Path
from kvp2p.config import NodeConfig
from kvp2p.gateway.main import run
from kvp2p.runtime.child import ChildLife
parent_fd, ready_fd, port = map(int, sys.argv[1:])
life = ChildLife(parent_fd, ready_fd)
life.watch_parent()
run(NodeConfig(directory=Path.cwd(), data_port=port), life, 1)
"""


@contextmanager
def gateway_process(directory: Path, port: int) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start a gateway; gives the process and the end of the pipe whose closing orphans it."""
    parent_read, parent_write = os.pipe()
    ready_read, ready_write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(parent_read), str(ready_write), str(port)],
        cwd=directory,
        pass_fds=(parent_read, ready_write),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(parent_read)
    os.close(ready_write)
    try:
        assert os.read(ready_read, 1) == b"\x01", "the gateway ended before it was ready"
        yield process, parent_write
    finally:
        os.close(ready_read)
        process.kill()
        process.wait()


@pytest.fixture
def directory(short_tmp_path: Path) -> Path:
    with make_store(short_tmp_path) as store:
        writer = Writer(store)
        writer.populate()
        writer.put(b"k", b"v")
    return short_tmp_path


def read(port: int) -> bytes:
    answer = httpx.get(f"http://127.0.0.1:{port}/v1/words/k", headers={"Authorization": f"Bearer {ADMIN}"})
    return answer.raise_for_status().content


def test_gateway_serves_reads_without_a_node_and_ends_on_sigterm(
    directory: Path, free_ports: Callable[[int], list[int]]
) -> None:
    (port,) = free_ports(1)
    with gateway_process(directory, port) as (process, parent):
        assert read(port) == b"v"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=4) == 0
        os.close(parent)


def test_two_gateways_share_a_port_and_one_outlives_the_other(
    directory: Path, free_ports: Callable[[int], list[int]]
) -> None:
    (port,) = free_ports(1)
    with gateway_process(directory, port) as (first, first_parent), gateway_process(directory, port) as (_, parent):
        assert {read(port) for _ in range(20)} == {b"v"}
        first.kill()
        first.wait()
        assert {read(port) for _ in range(20)} == {b"v"}
        os.close(first_parent)
        os.close(parent)


def test_gateway_without_its_supervisor_ends_within_a_second(
    directory: Path, free_ports: Callable[[int], list[int]]
) -> None:
    (port,) = free_ports(1)
    with gateway_process(directory, port) as (process, parent):
        os.close(parent)
        assert process.wait(timeout=1) == EXIT_ORPHANED


async def test_gateway_takes_its_share_of_what_all_of_its_node_may_do(
    directory: Path, free_ports: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Gateway] = []

    class Kept(Gateway):
        def start(self) -> None:
            made.append(self)
            super().start()

    monkeypatch.setattr(main, "Gateway", Kept)
    monkeypatch.chdir(directory)
    config = NodeConfig(directory=directory, data_port=free_ports(1)[0], gateways=20)
    with Replica(directory) as replica:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(main._serve, config, ChildLife(-1, -1), 1, replica)
            await until(lambda: bool(made))
            nursery.cancel_scope.cancel()
    (gateway,) = made
    assert gateway.turns.bytes_max == bytes_max(20) < HTTP_LARGE_WRITE_BYTES_MAX
    assert gateway.reads._streams.streams_max == streams_max(20) < HTTP_STREAMS_MAX
