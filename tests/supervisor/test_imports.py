"""What the start of a node may import: at each restart on a busy machine others wait for that time."""

import json
import subprocess
import sys
from pathlib import Path

from kvp2p.supervisor.directory import create_cluster

PROGRAM = """
import json, sys
from pathlib import Path
from kvp2p.config import load_config
from kvp2p.runtime import logs
from kvp2p.supervisor import main

for spec in main.child_specs(load_config(Path(sys.argv[1]) / "kvp2p.toml")):
    spec.prepare()
before = sorted(sys.modules)
logs.configure("info", sys.argv[2], "supervisor")
logs.get_logger("kvp2p.supervisor").info("serving")
import asyncio, rich.console
print(json.dumps([before, asyncio.__file__ is not None, hasattr(rich.console, "Console")]))
"""
# Of the command line, of coloured logs, of the api process alone.
UNWANTED = {
    "typer",
    "click",
    "httpx",
    "rich",
    "pygments",
    "asyncio",
    "starlette",
    "hypercorn",
    "h2",
    "prometheus_client",
}


def imported(directory: Path, log_format: str) -> tuple[set[str], list[bool]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), log_format],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "serving" in done.stderr
    modules, *later = json.loads(done.stdout)
    return {name.partition(".")[0] for name in modules}, later


def test_supervisor_has_imported_nothing_that_no_node_or_gateway_needs(tmp_path: Path) -> None:
    directory = create_cluster(tmp_path / "n1", "n1").directory
    for log_format in ("console", "json"):
        modules, _ = imported(directory, log_format)
        assert modules >= {"trio", "lmdb", "httptools", "structlog"}
        assert not modules & UNWANTED


def test_what_was_kept_out_of_the_logs_can_be_imported_afterwards(tmp_path: Path) -> None:
    directory = create_cluster(tmp_path / "n1", "n1").directory
    assert imported(directory, "console")[1] == [True, True]
