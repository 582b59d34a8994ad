"""One real cluster for the whole table: two nodes with short timeouts, tokens of every kind, a witness beside, and a look into its stores.

`n1` leads. `n2` has a seed URL too many, at which nobody listens until a play does: what a node dials, a stranger may have put a trap at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from kvp2p.client.load import percentile
from kvp2p.cluster_key import ClusterKey, read_cluster_key
from kvp2p.core.operations import CreateNamespace, Delete, Ending, Operation, Put
from kvp2p.core.system_rows import (
    Permission,
    Token,
    account_key,
    encode_account,
    encode_token,
    hash_token,
    token_key,
)
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, Issuer, NamespaceId, NodeId, Stamp
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.cursor import encode_cursor
from kvp2p.store.reader import Replica
from scripts.local_cluster.asking import ask_status, read_pids
from scripts.local_cluster.signals import end
from scripts.local_cluster.starting import (
    Launch,
    choose_ports,
    launch,
    make_cluster,
    wait_for_leader,
    wait_until_ready,
)
from scripts.local_cluster.state import Node, State, read_state, write_state
from tests.bad_input.rows import Large, Message
from tests.bad_input.witness import CLIENTS

ROOT = Path(__file__).resolve().parents[2]
WORDS, OTHERS, HONEST = NamespaceId(b"w" * 16), NamespaceId(b"o" * 16), NamespaceId(b"h" * 16)
FOREIGN_ACCOUNT = AccountId(b"f" * 16)
WAIT_S = 15.0
WINDOW_S_MIN = 1.5  # at 80 operations a second

HEAD_TIMEOUT_S, BODY_TIMEOUT_S, IDLE_TIMEOUT_S = 1.5, 2.0, 5.0
HANDSHAKE_TIMEOUT_S, LINK_TIMEOUT_S = 2.0, 3.0
SETTINGS = f"""
[http]
head_timeout_seconds = {HEAD_TIMEOUT_S}
body_timeout_seconds = {BODY_TIMEOUT_S}
idle_timeout_seconds = {IDLE_TIMEOUT_S}

[mesh]
handshake_timeout_ms = {HANDSHAKE_TIMEOUT_S * 1_000:.0f}
link_timeout_ms = {LINK_TIMEOUT_S * 1_000:.0f}
ping_interval_ms = 500
backoff_ms_max = 200
"""

# What honest clients may notice: guesses, generous for two cores that somebody else uses as well.
P99_MS_MAX = 250.0
P99_TIMES_BEFORE_MAX = 20.0
P99_MS_BEFORE_MIN = 5.0  # less than this is no measure on a machine that may be busy


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a store holds but for what the witness writes: totals and keys of each namespace, and how far its vector is."""

    totals: dict[NamespaceId, Any]
    keys: tuple[tuple[NamespaceId, bytes], ...]
    vector: dict[Issuer, Stamp]


@dataclass(frozen=True, slots=True)
class Figures:
    """What the witness saw within a while. `grown_kib` is the most that each process had over what it had at the beginning."""

    latencies_ms: tuple[float, ...]
    wrong: tuple[str, ...]
    grown_kib: dict[str, int]

    @property
    def p99_ms(self) -> float:
        """The latency that 99 of 100 operations did not exceed."""
        return percentile(sorted(self.latencies_ms), 99)


@dataclass
class Window:
    """A while that the witness is asked about, once it is over."""

    began: float
    figures: Figures | None = None


@dataclass
class Cluster:
    """The running cluster."""

    directory: Path
    state: State
    trap_port: int
    words: dict[str, bytes]
    key: ClusterKey
    node_ids: dict[str, NodeId]
    record: Path
    replicas: dict[str, Replica]
    before_p99_ms: float = 0.0
    pids: dict[str, int] = field(default_factory=dict)

    def node(self, name: str) -> Node:
        return self.state.node(name)

    # --- what is sent

    def spell(self, message: bytes) -> bytes:
        """Put the words that only this cluster knows into a message."""
        for name in sorted(self.words, key=len, reverse=True):
            message = message.replace(b"$" + name.encode(), self.words[name])
        return message

    def parts(self, message: Message) -> Iterator[bytes]:
        """Yield what is sent of a message, part by part."""
        if not isinstance(message, Large):
            yield self.spell(message)
            return
        yield self.spell(message.head)
        left = message.filler
        while left > 0:
            size = min(message.chunk or 1 << 20, left)
            body = b"x" * size
            yield b"%x\r\n%b\r\n" % (size, body) if message.chunk else body
            left -= size
        yield message.tail

    # --- what is there

    def look(self, name: str) -> NodeState:
        """Read a node's store."""
        with self.replicas[name].view() as view:
            txn = view.transaction
            totals = {namespace: totals for namespace, totals in txn.all_totals() if namespace != HONEST}
            keys = tuple((namespace, key) for namespace, key, _ in txn.all_rows() if namespace != HONEST)
            return NodeState(totals, keys, dict(txn.vector.items()))

    def row(self, name: str, namespace: NamespaceId, key: bytes) -> bytes | None:
        """Return a row as a node has it."""
        with self.replicas[name].view() as view:
            return view.raw_row(namespace, key)

    def look_everywhere(self) -> dict[str, NodeState]:
        return {name: self.look(name) for name in self.replicas}

    def equal_hashes(self) -> bool:
        """Tell whether all nodes are at one vector with one H."""
        seen = set()
        for replica in self.replicas.values():
            with replica.view() as view:
                seen.add((view.vector.encode(), view.transaction.state_hash))
        return len(seen) == 1

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Ask every node what it says of itself."""
        found = {node.name: ask_status(self.state, node) for node in self.state.nodes}
        return {name: status or {} for name, status in found.items()}

    def log_lines(self, name: str, since: int = 0) -> list[str]:
        """Return the events of a node's log from a place on, as `event reason`."""
        with self.node(name).log.open("rb") as log:
            log.seek(since)
            lines = log.read().decode("utf-8", "replace").splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [f"{one['event']} {one.get('reason', '')}".strip() for one in events]

    def log_end(self, name: str) -> int:
        """Return the place where a node's log ends now."""
        return self.node(name).log.stat().st_size

    # --- the witness

    @contextmanager
    def watched(self) -> Iterator[Window]:
        """Let the block be watched; afterwards the window has the figures."""
        window = Window(time.monotonic())
        yield window
        window.figures = self.figures(window.began, time.monotonic())

    def figures(self, since: float, until: float) -> Figures:
        """Return what the witness saw from one reading of CLOCK_MONOTONIC to another; waits until it has seen that far.

        What was begun before the end counts, also when it took longer. A while too short to judge by is made longer.
        """
        until = max(until, since + WINDOW_S_MIN)
        deadline = time.monotonic() + WAIT_S
        while True:
            rows = [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]
            asked = [row for row in rows if row[0] != "memory"]
            if {row[4] for row in asked if row[1] > until} == set(range(CLIENTS)):
                break
            assert time.monotonic() < deadline, "a client of the witness is silent"
            time.sleep(0.02)
        memory = [row[2] for row in rows if row[0] == "memory" and since <= row[1] <= until]
        within = [row for row in asked if row[1] <= until and row[1] + row[2] / 1_000 >= since]
        return Figures(
            latencies_ms=tuple(row[2] for row in within),
            wrong=tuple(f"{row[0]}: {row[3]}" for row in within if row[3]),
            grown_kib={name: max(one[name] for one in memory) - memory[0][name] for name in self.pids},
        )

    def assert_unharmed(self, figures: Figures, *, grown_mib_max: float) -> None:
        """Assert that honest clients noticed nothing and that no process grew by more than so much."""
        assert len(figures.latencies_ms) >= 10, "the witness saw too little to judge by"
        assert figures.wrong == ()
        assert _processes(self) == self.pids, "a process has ended"
        p99_ms_max = min(P99_MS_MAX, P99_TIMES_BEFORE_MAX * max(self.before_p99_ms, P99_MS_BEFORE_MIN))
        assert figures.p99_ms <= p99_ms_max, f"p99 {figures.p99_ms} ms, before {self.before_p99_ms} ms"
        grown = {name: kib / 1024 for name, kib in figures.grown_kib.items()}
        assert max(grown.values()) <= grown_mib_max, grown


def _settings(path: Path, trap_url: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = [line.replace("]", f', "{trap_url}"]') if line.startswith("join = ") else line for line in lines]
    lines.append('log_format = "json"')
    path.write_text("\n".join(lines) + "\n" + SETTINGS, encoding="utf-8")


def _tokens(account: AccountId) -> tuple[dict[str, bytes], list[Operation]]:
    """Draw tokens of every kind; return their texts and the writes that make them."""
    read, write, admin = ({Permission.READ}, {Permission.WRITE}, {Permission.ADMIN})
    every = {Permission.READ, Permission.WRITE, Permission.ADMIN}
    now = int(time.time())
    kinds: dict[str, tuple[set[Permission], AccountId, frozenset[NamespaceId] | None, int]] = {
        "reader": (read, account, None, 0),
        "writer": (write, account, None, 0),
        "restricted": (every, account, frozenset({OTHERS}), 0),
        "foreign": (every, FOREIGN_ACCOUNT, None, 0),
        "expired": (admin, account, None, now - 1),
        "revoked": (admin, account, None, 0),
    }
    words: dict[str, bytes] = {}
    operations: list[Operation] = []
    for name, (permissions, owner, namespaces, expires_at) in kinds.items():
        text = f"kv_{name}_{os.urandom(8).hex()}"
        digest = hash_token(text)
        token = Token(
            digest, digest.hex()[:16], name, owner, frozenset(permissions), namespaces, expires_at, now * 1_000
        )
        words[name] = text.encode()
        operations.append(Put(SYSTEM_NAMESPACE, *encode_token(token)))
    return words, operations


async def _write(socket: Path, *writes: Sequence[Operation]) -> None:
    """Write at a node as its api process does."""
    port = NodePort(str(socket), "api")
    async with trio.open_nursery() as nursery:
        await nursery.start(port.run)
        await port.wait_connected()
        for operations in writes:
            outcome = await port.submit(operations, 5_000)
            assert outcome.ending is Ending.ACKED, outcome
        nursery.cancel_scope.cancel()


def _fill(cluster: Cluster) -> None:
    """Make namespaces, keys and tokens, and wait until all nodes have them."""
    account = cluster.key.account
    words, tokens = _tokens(account)
    spaces: list[Operation] = [
        CreateNamespace(WORDS, account, "words"),
        CreateNamespace(OTHERS, account, "others"),
        CreateNamespace(HONEST, account, "honest"),
        Put(SYSTEM_NAMESPACE, account_key(FOREIGN_ACCOUNT), encode_account("foreign")),
    ]
    keys: list[Operation] = [Put(one, key, b"good") for one in (WORDS, OTHERS) for key in (b"good", b"more", b"victim")]
    revoked = token_key(hash_token(words["revoked"].decode()))
    trio.run(
        _write,
        cluster.node("n1").directory / "node.sock",
        spaces,
        [*keys, *tokens],
        [Delete(SYSTEM_NAMESPACE, revoked)],
    )
    now = int(time.time())
    admin = cluster.state.admin_token
    cluster.words = {
        **words,
        "admin": admin.encode(),
        "admin_id": hash_token(admin).hex()[:16].encode(),
        "cursor": encode_cursor(WORDS, b"good").encode(),
        "past": b"%d" % (now - 10),
        "soon": b"%d" % (now + 30),
        "later": b"%d" % (now + 86_400),
    }
    deadline = time.monotonic() + WAIT_S
    while not cluster.equal_hashes():
        assert time.monotonic() < deadline, "the nodes do not become equal"
        time.sleep(0.05)


def _processes(cluster: Cluster) -> dict[str, int]:
    """Return the process id of every process of every node."""
    found: dict[str, int] = {}
    for node in cluster.state.nodes:
        pids = read_pids(node)
        assert pids is not None, f"{node.name} has no list of processes"
        found |= {f"{node.name} {role}": pids[role] for role in ("supervisor", "node", "api")}
        found |= {f"{node.name} gateway {number}": pid for number, pid in enumerate(pids["gateways"], 1)}
    return found


def _end_all(directory: Path, launches: dict[str, Launch]) -> None:
    for node in read_state(directory).nodes:
        end(node)
    for one in launches.values():
        one.process.wait()


@contextmanager
def running_cluster(directory: Path) -> Iterator[Cluster]:
    """Run the cluster and its witness for the length of a block."""
    state = make_cluster(directory, 2, 1, None, has_faults=False)
    (trap_port,) = choose_ports(1, None)
    write_state(directory, state)
    for node in state.nodes:
        _settings(node.directory / "kvp2p.toml", f"ws://127.0.0.1:{trap_port}")
    launches: dict[str, Launch] = {}
    with ExitStack() as stack:
        stack.callback(_end_all, directory, launches)
        for node in state.nodes:
            launches[node.name] = launch(directory, node.name)
        state = read_state(directory)
        wait_until_ready(state.nodes, launches)
        wait_for_leader(state)
        replicas = {node.name: stack.enter_context(Replica(node.directory)) for node in state.nodes}
        key = read_cluster_key(state.nodes[0].directory / "cluster.key")
        ids = {}
        for name, replica in replicas.items():
            with replica.view() as view:
                ids[name] = view.transaction.identity.node
        cluster = Cluster(directory, state, trap_port, {}, key, ids, directory / "witness", replicas)
        _fill(cluster)
        cluster.pids = _processes(cluster)
        place = {
            "ports": [node.data_port for node in state.nodes],
            "token": state.admin_token,
            "namespace": HONEST.hex(),
            "processes": cluster.pids,
            "record": str(cluster.record),
        }
        command = [sys.executable, "-m", "tests.bad_input.witness", json.dumps(place)]
        witness = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
        stack.callback(witness.wait)
        assert witness.stdin is not None
        stack.callback(witness.stdin.close)
        began = time.monotonic()
        time.sleep(2.0)
        before = cluster.figures(began + 0.5, began + 2.0)
        assert before.wrong == ()
        cluster.before_p99_ms = before.p99_ms
        yield cluster
