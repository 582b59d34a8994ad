"""Client sessions: what is written and read during a run.

Decides: which operation comes next, at which node, and how long a session thinks.
Keeps true: one write at a time in a session; no session writes one value twice, so a checker can tell every write from every other (C5).
In and out: a cluster to act upon and a plan in; the cluster records what happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from kvp2p.core.operations import Condition, CreateNamespace, Delete, DeleteNamespace, Ending, Operation, Outcome, Put
from kvp2p.ids import NamespaceId, Version
from kvp2p.sim.cluster import Cluster
from kvp2p.sim.host import Host
from kvp2p.sim.large import CHUNK_BYTES, is_cut
from kvp2p.sim.schedule import MS
from kvp2p.sim.seeds import Seeds

NAMESPACES_MAX = 4
LONG_KEY_BYTES = 500  # beyond what LMDB takes in one piece, so the store splits it
BACK_OFF_MS = 150.0  # after a write that was not acknowledged
TITLES = 6  # few, so that a title is asked for again while it is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPlan:
    """How clients behave in one run. Shares are of all writes."""

    sessions: int = 4
    think_ms: float = 200.0
    keys: int = 24
    delete_share: float = 0.15
    conditional_share: float = 0.1
    bulk_share: float = 0.05
    namespace_share: float = 0.02
    expiry_share: float = 0.0
    large_share: float = 0.0
    chunked_share: float = 0.0
    give_up_share: float = 0.05  # of those in chunks: the client goes away while it sends
    large_bytes: int = 40_000  # a walk over a few of these takes more than one part
    wait_share: float = 0.1


class Workload:
    """All sessions of a run."""

    def __init__(self, cluster: Cluster, seeds: Seeds, plan: WorkloadPlan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.namespaces: list[NamespaceId] = []
        self.is_stopped = False
        self.sessions = [
            _Session(self, number + 1, seeds.random(f"session {number}"), seeds.random(f"large values of {number}"))
            for number in range(plan.sessions)
        ]

    def start(self) -> None:
        """Let every session begin."""
        for session in self.sessions:
            session.act_later()

    def stop(self) -> None:
        """Begin nothing new."""
        self.is_stopped = True

    def is_idle(self) -> bool:
        """Tell whether no session waits for an outcome."""
        return not any(session.is_waiting for session in self.sessions)


class _Session:
    """One client."""

    def __init__(self, workload: Workload, number: int, random: Random, large: Random) -> None:
        self.workload = workload
        self.cluster = workload.cluster
        self.number = number
        self.random = random
        self.is_waiting = False
        self._values = 0
        self._large = large
        self._seen: dict[tuple[NamespaceId, bytes], Version] = {}

    def act_later(self, at_least_ms: float = 0.0) -> None:
        delay_ms = at_least_ms + self.random.expovariate(1.0) * self.workload.plan.think_ms
        self.cluster.schedule.after(delay_ms * MS, self._act)

    def _act(self) -> None:
        if self.workload.is_stopped:
            return
        if self.workload.namespaces and self.random.random() < 0.6:
            self._read()
        alive = self.cluster.alive()
        if not alive:
            self.act_later(BACK_OFF_MS)
            return
        host = self.random.choice(alive)
        operations = self._operations()

        def told(outcome: Outcome | None) -> None:
            self.is_waiting = False
            self._on_outcome(operations, outcome)

        self.is_waiting = True
        gives_up_after = None
        if any(map(is_cut, operations)) and self._large.random() < self.workload.plan.give_up_share:
            gives_up_after = self._large.randint(1, 5)
        self.cluster.write(host, *operations, session=self.number, told=told, gives_up_after=gives_up_after)

    def _on_outcome(self, operations: tuple[Operation, ...], outcome: Outcome | None) -> None:
        namespaces = self.workload.namespaces
        first = operations[0]
        if outcome is None or outcome.ending is not Ending.ACKED:
            if outcome is not None and outcome.code == "namespace_not_found":
                self._forget(first)
            self.act_later(BACK_OFF_MS)
            return
        if isinstance(first, CreateNamespace) and outcome.namespace is not None and outcome.namespace not in namespaces:
            namespaces.append(outcome.namespace)
        elif isinstance(first, DeleteNamespace):
            self._forget(first)
        elif outcome.version is not None and self.random.random() < self.workload.plan.wait_share:
            alive = self.cluster.alive()
            if alive:
                self.cluster.wait_for_version(self.random.choice(alive), outcome.version, 2_000)
        self.act_later()

    def _forget(self, operation: Operation) -> None:
        if operation.namespace in self.workload.namespaces:
            self.workload.namespaces.remove(operation.namespace)

    # --- what to do

    def _operations(self) -> tuple[Operation, ...]:
        plan, random = self.workload.plan, self.random
        if not self.workload.namespaces:
            return (self._create(),)
        if random.random() < plan.namespace_share:
            if len(self.workload.namespaces) < NAMESPACES_MAX and random.random() < 0.6:
                return (self._create(),)
            return (DeleteNamespace(random.choice(self.workload.namespaces)),)
        if random.random() < plan.bulk_share:
            return tuple(self._operation() for _ in range(random.randint(2, 8)))
        return (self._operation(),)

    def _create(self) -> Operation:
        namespace = NamespaceId(self.random.randbytes(16))
        return CreateNamespace(namespace, self.cluster.account, f"title {self.random.randrange(TITLES)}")

    def _operation(self) -> Operation:
        plan, random = self.workload.plan, self.random
        namespace, key = self._place()
        condition, version = Condition.ALWAYS, None
        if random.random() < plan.conditional_share:
            condition = random.choice((Condition.VERSION_IS, Condition.ABSENT, Condition.PRESENT))
            if condition is Condition.VERSION_IS:
                version = self._seen.get((namespace, key))
                condition = Condition.VERSION_IS if version is not None else Condition.ABSENT
        if random.random() < plan.delete_share:
            return Delete(namespace, key, condition, version)
        metadata = b'{"by":%d}' % self.number if random.random() < 0.3 else None
        expires_in_s = random.randint(60, 90) if random.random() < plan.expiry_share else 0
        put = Put(namespace, key, self._value(), metadata, 0, condition, version, expires_in_s)
        if self._large.random() < plan.chunked_share:
            put = put._replace(value=self._large_value(put.value), is_chunked=True)
        return put

    def _place(self) -> tuple[NamespaceId, bytes]:
        number = self.random.randrange(self.workload.plan.keys)
        key = b"key %d" % number
        if number % 16 == 15:
            key += b"/" * (LONG_KEY_BYTES - len(key)) + b"%d" % (number % 3)
        return self.random.choice(self.workload.namespaces), key

    def _value(self) -> bytes:
        self._values += 1
        is_large = self.random.random() < self.workload.plan.large_share
        filler = self.workload.plan.large_bytes if is_large else int(self.random.expovariate(1 / 40))
        return b"%d of session %d " % (self._values, self.number) + b"." * filler

    def _large_value(self, first: bytes) -> bytes:
        """Make a value of 2 to 20 chunks that begins as no other does. Half of the others are chunks that other values have, too."""
        chunks = [first[:CHUNK_BYTES].ljust(CHUNK_BYTES, b".")]
        for _ in range(self._large.randint(1, 19)):
            is_shared = self._large.random() < 0.5
            chunk = bytes([self._large.randrange(8)]) * CHUNK_BYTES if is_shared else self._large.randbytes(CHUNK_BYTES)
            chunks.append(chunk)
        return b"".join(chunks)[: -self._large.randint(0, CHUNK_BYTES - 1) or None]

    def _read(self) -> None:
        namespace, key = self._place()
        host: Host = self.random.choice(self.cluster.hosts)  # a dead process answers reads all the same
        seen = self.cluster.read(host, namespace, key)
        if seen.version is not None:
            self._seen[namespace, key] = Version(bytes.fromhex(seen.version))
