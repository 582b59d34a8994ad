"""A simulated cluster for scenarios that read like a play: who is cut off, who dies, and what must be true then."""

from collections.abc import Callable

from kvp2p.core.operations import CreateNamespace, Delete, Ending, Operation, Outcome, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.ids import NamespaceId
from kvp2p.sim.checkers import check
from kvp2p.sim.cluster import Cluster, ClusterPlan
from kvp2p.sim.host import Host
from kvp2p.sim.network import NetworkProfile
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

    def promote(self, host: Host) -> Ending | None:
        ended: list[Outcome | None] = []
        self.cluster.promote(host, ended.append)
        self.until(lambda: bool(ended))
        return ended[0].ending if ended[0] is not None else None

    def has(self, host: Host, key: bytes) -> bool:
        return bool(self.cluster.read(host, NAMESPACE, key).content)

    def stores(self, host: Host, key: bytes) -> bool:
        """Tell whether a row stands at a key, hidden or not."""
        with host.disk.store.read() as txn:
            return txn.row(NAMESPACE, key) is not None

    def end(self) -> None:
        """All nodes are up: they become equal, and no claim was violated."""
        self.until(lambda: self.cluster.are_equal(self.cluster.hosts))
        self.run(5)
        self.cluster.history.extend(self.cluster.states())
        assert check(self.cluster.history) == []
