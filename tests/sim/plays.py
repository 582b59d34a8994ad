"""A simulated cluster for scenarios that read like a play: who is cut off, who dies, and what must be true then."""

from collections.abc import Callable, Sequence

from kvp2p.core.operations import CreateNamespace, Delete, Ending, Operation, Outcome, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.ids import NamespaceId
from kvp2p.sim.checkers import Violation, check
from kvp2p.sim.cluster import Cluster, ClusterPlan
from kvp2p.sim.host import Host
from kvp2p.sim.network import NetworkProfile, Pair
from kvp2p.sim.seeds import Seeds

NAMESPACE = NamespaceId(b"namespace number")
SYNC_MS = 2.0
SETTINGS = ReplicaSettings()


class Play:
    """A cluster of named nodes; n1 leads, n1 and n2 may lead."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        joining: int = 0,
        delay_ms: float = 1.0,
        seed: int = 1,
        host_type: type[Host] = Host,
        settings: ReplicaSettings = SETTINGS,
        drifts_ppm: tuple[int, ...] = (),
    ) -> None:
        plan = ClusterPlan(
            nodes=nodes,
            joining=joining,
            network=NetworkProfile(delay_ms=delay_ms, jitter_ms=0.1),
            sync_ms=SYNC_MS,
            settings=settings,
            drifts_ppm=drifts_ppm,
        )
        self.cluster = Cluster(Seeds(seed), plan, host_type)
        self._cut: list[Pair] = []
        self.cluster.start()
        self.run(5)
        assert self.write(self.node(1), CreateNamespace(NAMESPACE, self.cluster.account, "play")) is Ending.ACKED
        self.run(2)
        assert self.cluster.are_equal(self.cluster.alive())

    def node(self, number: int) -> Host:
        return self.cluster.hosts[number - 1]

    def run(self, seconds: float) -> None:
        self.cluster.run_for(seconds)

    def until(self, what: Callable[[], bool], seconds: float = 30.0) -> None:
        assert self.cluster.run_for(seconds, what), "it did not come to that"

    def write(self, host: Host, *operations: Operation) -> Ending | None:
        """Write and wait for the end."""
        ended: list[Outcome | None] = []
        self.cluster.write(host, *operations, told=ended.append)
        self.until(lambda: bool(ended))
        return ended[0].ending if ended[0] is not None else None

    def put(self, host: Host, key: bytes, value: bytes) -> Ending | None:
        return self.write(host, Put(NAMESPACE, key, value))

    def delete(self, host: Host, key: bytes) -> Ending | None:
        return self.write(host, Delete(NAMESPACE, key))

    def promote(self, host: Host, *, override: bool = False) -> Ending | None:
        ended: list[Outcome | None] = []
        self.cluster.promote(host, ended.append, override=override)
        self.until(lambda: bool(ended))
        return ended[0].ending if ended[0] is not None else None

    def has(self, host: Host, key: bytes) -> bool:
        return bool(self.cluster.read(host, NAMESPACE, key).content)

    def stores(self, host: Host, key: bytes) -> bool:
        """Tell whether a row stands at a key, hidden or not."""
        with host.disk.store.read() as txn:
            return txn.row(NAMESPACE, key) is not None

    def group(self, *groups: Sequence[Host]) -> None:
        """Let those hear each other, from here on, that are in a group together, and nobody else."""
        together = {(one.node, other.node) for hosts in groups for one in hosts for other in hosts}
        nodes = [host.node for host in self.cluster.hosts]
        cut = [(one, other) for one in nodes for other in nodes if one != other and (one, other) not in together]
        self.cluster.network.heal([pair for pair in self._cut if pair not in cut])
        self.cluster.network.cut([pair for pair in cut if pair not in self._cut])
        self._cut = cut

    def are_linked(self, one: Host, other: Host) -> bool:
        pairs = list(self.cluster.network.links_up())
        return (one.node, other.node) in pairs or (other.node, one.node) in pairs

    def end(self) -> None:
        """All nodes are up: they become equal, and no claim was violated."""
        self.until(lambda: self.cluster.are_equal(self.cluster.hosts))
        assert self.verdict() == []

    def verdict(self) -> list[Violation]:
        """All nodes are up and hear each other: give them the time to become equal, and say which claims were violated."""
        self.group(self.cluster.hosts)
        self.cluster.run_for(30, lambda: self.cluster.are_equal(self.cluster.hosts))
        self.run(5)
        self.cluster.history.extend(self.cluster.states())
        return check(self.cluster.history)
