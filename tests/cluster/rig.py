"""`scripts/cluster` as other programs run it."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

from kvp2p.supervisor.group import group_members

PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "cluster.py"


class Cluster:
    """A directory and the program that runs a cluster in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, command: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        # Captured: a node that kept the caller's stdout would make this call wait for its end.
        done = subprocess.run(
            [sys.executable, str(PROGRAM), command, "--dir", str(self.directory), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done

    def document(self, command: str, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(command, "--json", *arguments).stdout)
        return found

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in self.document("status")["nodes"]}

    def processes(self) -> dict[str, int]:
        """Return how many processes each node of the state file has."""
        nodes = json.loads((self.directory / "cluster.json").read_text())["nodes"]
        return {node["name"]: len(group_members(node["pid"], Path(node["data_dir"]))) for node in nodes}


async def run_beside(cluster: Cluster, command: str, *arguments: str, status: int = 0) -> str:
    """Run a command while the test's own tasks go on, and return what it printed."""
    done = await trio.to_thread.run_sync(partial(cluster.run, command, *arguments, status=status))
    return done.stdout


async def until_equal(cluster: Cluster, seconds: float) -> list[dict[str, Any]]:
    """Wait until all nodes are ready and show the same vector and state hash; return what they say then."""
    with trio.fail_after(seconds):
        while True:
            document = json.loads(await run_beside(cluster, "status", "--json"))
            nodes: list[dict[str, Any]] = document["nodes"]
            said = [(node["ready"], node["state_hash"], node["vector"]) for node in nodes]
            if said[0][0] and said[0][1] and all(one == said[0] for one in said):
                return nodes
            await trio.sleep(0.05)
