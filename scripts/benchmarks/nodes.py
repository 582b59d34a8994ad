"""Clusters for figures (`scripts/cluster`), what their processes take, and questions to their nodes.

Keeps true: a cluster ends with the block that started it, also after Ctrl-C, and its data with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from kvp2p.config import SOCKET_FILE
from kvp2p.runtime.node_port import NodePort
from scripts.benchmarks.results import ROOT, CannotMeasure

CLUSTER_PROGRAM = ROOT / "scripts" / "cluster"
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node that runs. Process ids are those of its start."""

    name: str
    node_id: str
    data_url: str
    directory: Path
    is_leader: bool
    node_process: int
    api_process: int
    gateway_processes: tuple[int, ...]

    @property
    def processes(self) -> tuple[int, ...]:
        """All that do the node's work."""
        return (self.node_process, self.api_process, *self.gateway_processes)


class Cluster:
    """A cluster that runs in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.token = ""
        self.nodes: list[Node] = []

    def call(self, command: str, *arguments: str) -> str:
        """Run scripts/cluster; what it has to say of a failure goes to stderr."""
        run = [str(CLUSTER_PROGRAM), command, "--dir", str(self.directory), *arguments]
        done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise CannotMeasure(f"`scripts/cluster {command}` ended with status {done.returncode}, see above")
        return done.stdout

    def start(self, nodes: int, gateways: int) -> None:
        """Start a new cluster; all nodes are ready afterwards, and one leads."""
        self.call("start", "--nodes", str(nodes), "--gateways", str(gateways))
        self.look()

    def look(self) -> None:
        """See which nodes there are by now, and under which process ids. Those that are down are left out."""
        from scripts.local_cluster.asking import ask_status, read_pids
        from scripts.local_cluster.state import read_state

        state = read_state(self.directory)
        self.token = state.admin_token
        self.nodes = []
        for node in state.nodes:
            says, pids = (ask_status(state, node), read_pids(node)) if node.is_alive() else (None, None)
            if says is not None and pids is not None:
                url = f"http://127.0.0.1:{node.data_port}"
                processes = (pids["node"], pids["api"], tuple(pids["gateways"]))
                self.nodes.append(
                    Node(node.name, says["node_id"], url, node.directory, says["leader"], *processes),
                )

    @property
    def leader(self) -> Node:
        return next(node for node in self.nodes if node.is_leader)

    @property
    def others(self) -> list[Node]:
        """The nodes that do not lead."""
        return [node for node in self.nodes if not node.is_leader]


@contextmanager
def cluster(nodes: int, *, gateways: int = 1) -> Iterator[Cluster]:
    """Run a new cluster of so many nodes for the length of a block."""
    # Short: the path of a node's unix socket may have 107 bytes (unix(7)), and this program opens them by their full names.
    parent = Path(tempfile.mkdtemp(prefix="kvp2p-bench-"))
    made = Cluster(parent / "c")
    try:
        made.start(nodes, gateways)
        yield made
    finally:
        if made.directory.exists():
            subprocess.run([str(CLUSTER_PROGRAM), "stop", "--dir", str(made.directory)], check=False)
        shutil.rmtree(parent, ignore_errors=True)


# --- processes


def cpu_seconds(process_ids: Sequence[int]) -> float:
    """Return user and system time of processes so far."""
    ticks = 0
    for process_id in process_ids:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime: fields 14 and 15 of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Return the time that the machine's processors have worked so far, for whomever."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]  # proc(5): the rest is counted among these
    ticks = sum(map(int, fields)) - int(fields[3]) - int(fields[4])  # idle and iowait
    return ticks / os.sysconf("SC_CLK_TCK")


def anonymous_mb(process_id: int) -> float:
    """Return a process's anonymous memory in MB (10^6 bytes): RssAnon of proc(5), without mapped pages of the store."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise CannotMeasure(f"the kernel does not tell RssAnon of process {process_id}")


# --- questions


@asynccontextmanager
async def node_port(node: Node) -> AsyncIterator[NodePort]:
    """Connect to a node's unix socket."""
    async with trio.open_nursery() as nursery:
        port = NodePort(str(node.directory / SOCKET_FILE), "bench")
        await nursery.start(port.run)
        with trio.fail_after(CONNECT_SECONDS):
            await port.wait_connected()
        yield port
        nursery.cancel_scope.cancel()


async def ask(port: NodePort, what: str) -> dict[str, Any]:
    """Return one of the documents of a node."""
    document: dict[str, Any] = json.loads(await port.query(what))
    return document
