"""What `serve` refuses before anything is started."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kvp2p.supervisor.claims import lock_directory
from kvp2p.supervisor.directory import create_cluster

FreePorts = Callable[[int], list[int]]


def serve(directory: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "kvp2p.supervisor", str(directory)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stderr


def make_node(directory: Path, ports: list[int]) -> Path:
    settings = {"data_port": ports[0], "api_port": ports[1], "mesh_port": ports[2]}
    return create_cluster(directory, "n1", settings).directory


def test_directory_without_a_node_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, told = serve(tmp_path / "empty")
    assert (status, "kvp2p init" in told) == (3, True)
    (tmp_path / "empty" / "kvp2p.toml").touch()
    status, told = serve(tmp_path / "empty")
    assert (status, "has no store" in told) == (3, True)


def test_directory_in_use_is_refused_before_anything_starts(tmp_path: Path, free_ports: FreePorts) -> None:
    directory = make_node(tmp_path / "d", free_ports(3))
    lock = lock_directory(directory / "lock")
    status, told = serve(directory)
    os.close(lock)
    assert status == 3
    assert "is in use by the node of process" in told
    assert "child_started" not in told


def test_json_log_is_one_object_a_line_with_the_same_fields() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import logging, structlog\n"
                "from kvp2p.runtime import logs\n"
                "log = structlog.get_logger('kvp2p.node')\n"
                "logs.configure('info', 'json', 'node')\n"
                "log.debug('not_shown')\n"
                "log.info('peer_up', peer=bytes(2), lag_ms=3)\n"
                "logging.getLogger('hypercorn').warning('from %s', 'a library')\n"
            ),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == ""
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert set(first) == {"event", "level", "timestamp", "process", "logger", "peer", "lag_ms"}
    assert (first["event"], first["process"], first["logger"]) == ("peer_up", "node", "kvp2p.node")
    assert (first["peer"], first["lag_ms"]) == ("0000", 3)
    assert (second["event"], second["logger"], second["message"]) == ("library_message", "hypercorn", "from a library")
