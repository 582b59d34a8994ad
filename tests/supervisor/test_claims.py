"""What a supervisor claims before it starts: refused by name when it is taken."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvp2p.config import NodeConfig
from kvp2p.errors import ConfigError, StoreLocked
from kvp2p.net.settings import MeshSettings
from kvp2p.supervisor.claims import check_dial_from, check_ports, lock_directory, raise_open_files_limit

FreePorts = Callable[[int], list[int]]

HOLDER = """
import os, sys, time
from pathlib import Path
from kvp2p.supervisor.claims import lock_directory
lock_directory(Path(sys.argv[1]))
child_seconds = float(sys.argv[2])
if child_seconds and os.fork() == 0:
    time.sleep(child_seconds)
    os._exit(0)
print("locked", flush=True)
time.sleep(60)
"""


def start_holder(lock: Path, child_seconds: float = 0.0) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock), str(child_seconds)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    return holder


def end_holder(holder: subprocess.Popen[bytes]) -> None:
    os.killpg(holder.pid, signal.SIGKILL)
    holder.communicate()


def config_on(directory: Path, ports: list[int], host: str = "127.0.0.1") -> NodeConfig:
    return NodeConfig(directory=directory, host=host, data_port=ports[0], api_port=ports[1], mesh_port=ports[2])


def test_second_node_in_a_directory_is_told_who_has_it(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "lock")
    try:
        with pytest.raises(StoreLocked, match=rf"{tmp_path} is in use by the node of process {holder.pid};"):
            lock_directory(tmp_path / "lock")
    finally:
        end_holder(holder)
    os.close(lock_directory(tmp_path / "lock"))
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_lock_is_waited_for_while_orphans_of_a_dead_supervisor_end(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "lock", child_seconds=0.5)
    holder.kill()
    holder.communicate()
    began = time.monotonic()
    descriptor = lock_directory(tmp_path / "lock")
    assert time.monotonic() - began < 2
    os.close(descriptor)


@pytest.mark.parametrize(("index", "word"), [(0, "data"), (1, "api"), (2, "mesh")])
def test_taken_port_is_refused_by_name(tmp_path: Path, free_ports: FreePorts, index: int, word: str) -> None:
    ports = free_ports(3)
    with socket.socket() as taken:
        # As a gateway of another node would: sharing is offered, and still refused.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", ports[index]))
        taken.listen()
        with pytest.raises(ConfigError, match=rf"^{word} port 127\.0\.0\.1:{ports[index]} is taken; .*{word}_port"):
            check_ports(config_on(tmp_path, ports))
    check_ports(config_on(tmp_path, ports))


def test_host_of_another_machine_is_refused_by_name(tmp_path: Path, free_ports: FreePorts) -> None:
    # 192.0.2.0/24 is kept for documentation (RFC 5737): no machine has it.
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this machine"):
        check_ports(config_on(tmp_path, free_ports(3), host="192.0.2.1"))


def test_dial_from_must_be_an_address_of_this_machine(tmp_path: Path) -> None:
    for address in (None, "127.0.9.9"):
        check_dial_from(NodeConfig(directory=tmp_path, mesh=MeshSettings(dial_from=address)))
    with pytest.raises(ConfigError, match=r"^\[mesh\] dial_from 192\.0\.2\.1 is no address of this machine \("):
        check_dial_from(NodeConfig(directory=tmp_path, mesh=MeshSettings(dial_from="192.0.2.1")))


def test_limit_of_open_files_is_raised_to_what_is_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_open_files_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
