"""`scripts/cluster` as other programs run it, and what tests ask of the nodes that it runs."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import trio

from kvp2p import Replica
from kvp2p.client import Client, ClientConfig, Namespace, open_client
from kvp2p.core.entry import ChunkId
from kvp2p.core.operations import Operation, Outcome
from kvp2p.limits import WRITE_DEADLINE_MS
from kvp2p.supervisor.group import group_members
from kvp2p.wire.local_messages import SubmitWrite
from scripts.local_cluster.asking import ask_status, get
from scripts.local_cluster.clock import tell_node
from scripts.local_cluster.state import Node, read_state

PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "cluster.py"


class Stored(NamedTuple):
    """What is in a node's file: the keys of a namespace that have a row, and of the whole store: tombstones, positions of the log,
    chunks (whether their content is there), how many of these are staged, rows that lack some, and by how much the leader's clock
    is ahead.
    """

    keys: set[bytes]
    tombstones: int
    log_positions: int
    chunks: dict[ChunkId, bool]
    staged: int
    pending: int
    clock_offset_ms: int


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

    def node(self, name: str) -> Node:
        """Return a node as it is written down."""
        return read_state(self.directory).node(name)

    def pids(self, name: str) -> dict[str, Any]:
        """Return the processes of a node as its supervisor has written them down."""
        found: dict[str, Any] = json.loads((self.node(name).directory / "pids.json").read_text())
        return found

    def status_of(self, name: str) -> dict[str, Any]:
        """Return what a node says of itself."""
        said = ask_status(read_state(self.directory), self.node(name))
        assert said is not None
        return said

    def metric(self, name: str, sample: str) -> int:
        """Return one sample of a node's metrics."""
        answer = get(self.node(name).api_port, "/metrics", read_state(self.directory).admin_token)
        assert answer is not None
        for line in answer[1].decode().splitlines():
            if line.startswith(f"{sample} "):
                return int(float(line.rpartition(" ")[2]))
        raise AssertionError(f"{name} does not tell {sample}")

    def stored(self, name: str, namespace: str) -> Stored:
        """Look into the file of a node, which may run or not."""
        with Replica(self.node(name).directory) as replica, replica.store.read() as txn:
            rows = dict(txn.rows(replica.resolve(namespace)))
            chunks = {chunk: content is not None for chunk, _, content in txn.chunk_states()}
            staged, pending = len(list(txn.staged())), len(list(txn.pending_rows()))
            return Stored(set(rows), txn.tombstones, txn.log_positions, chunks, staged, pending, txn.clock_offset_ms)

    def submit(self, name: str, *operations: Operation) -> Outcome:
        """Write below the HTTP of a node, where rows of the system may be written as well."""
        deadline_ns = time.monotonic_ns() + WRITE_DEADLINE_MS * 1_000_000
        return tell_node(self.node(name), SubmitWrite(1, deadline_ns, operations))


@contextmanager
def running_cluster(*options: str) -> Iterator[Cluster]:
    """Run a cluster of three nodes with a gateway each; `options` of `start` besides."""
    with tempfile.TemporaryDirectory(prefix="kvp2p-") as name:
        cluster = Cluster(Path(name).resolve() / "c")
        try:
            cluster.run("start", "--nodes", "3", "--gateways", "1", *options)
            yield cluster
        finally:
            cluster.run("stop")
            assert set(cluster.processes().values()) == {0}


def settings(**values: object) -> list[str]:
    """Return options of `start`; two underscores stand for the dot in a name."""
    return [word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


@asynccontextmanager
async def clients_of(
    cluster: Cluster, namespace: str, config: ClientConfig | None = None
) -> AsyncIterator[dict[str, Client]]:
    """Give a client of each node, and a namespace that all have."""
    state = read_state(cluster.directory)
    async with AsyncExitStack() as stack:
        opened = {
            node.name: await stack.enter_async_context(
                open_client(f"http://127.0.0.1:{node.data_port}", state.admin_token, config=config)
            )
            for node in state.nodes
        }
        assert isinstance(await opened["n1"].create_namespace(namespace), Namespace)
        await until_equal(cluster, 10)
        yield opened


async def until(is_so: Callable[[], object], seconds: float = 10) -> None:
    """Wait for what a node tells when it is asked."""
    with trio.fail_after(seconds):
        while not await trio.to_thread.run_sync(is_so):  # noqa: ASYNC110
            await trio.sleep(0.05)


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
