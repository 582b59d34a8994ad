"""One run: a seed becomes a cluster with a workload and faults, and a report.

Decides: what a seed's run is made of (*swarm*: which faults exist, how the network, disks, clocks and clients are), its phases, and whether
it counts. Safety phase: faults strike while clients write and read. Liveness phase: everything is mended, and the cluster must become equal
and take writes at every node within limits.
Keeps true: a run that exercised nothing fails: under `ACKED_MIN` acknowledged writes, or with a fault that was switched on and never fired.
In and out: a seed in, a `Report` out; it is the same for a seed on every machine.
Source: the swarm of Groce et al., *Swarm Testing* (2012); the two phases of TigerBeetle's simulator.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from kvp2p.core.operations import Ending, Outcome, Put
from kvp2p.core.settings import ReplicaSettings
from kvp2p.ids import NamespaceId
from kvp2p.sim.checkers import Violation, check
from kvp2p.sim.cluster import Cluster, ClusterPlan
from kvp2p.sim.faults import BY_HAND_PURGE_AFTER_MS, KINDS, FaultPlan, Nemesis
from kvp2p.sim.history import Record
from kvp2p.sim.host import Host, MachineFailed
from kvp2p.sim.network import NetworkProfile
from kvp2p.sim.schedule import SECOND, EndlessRun
from kvp2p.sim.seeds import Seeds
from kvp2p.sim.workload import Workload, WorkloadPlan

ACKED_MIN = 200
SAFETY_S_MAX = 2_000.0  # a run that has not shown enough by then fails
BOOT_S_MAX = 30.0
CONVERGE_S_MAX = 60.0  # after all is mended: link timeouts, back-off and a walk fit in; guess
PROBE_S_MAX = 30.0
DRIFT_PPM_MAX = 200  # of quartz; two of them go apart by twice that
WHOLE_S_MAX = 180.0  # a node whose disk was lost pulls some thousand chunks, on links of 80 ms there and back
PURGE_S_MAX = 180.0  # values expire after 90 s at most


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run is made of."""

    cluster: ClusterPlan
    workload: WorkloadPlan
    faults: tuple[FaultPlan, ...]
    safety_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """How a run went. `trace_digest` stands for every event; `lines` are the last of the trace."""

    seed: int
    violations: tuple[Violation, ...]
    acked: int
    unknown: int
    refused: int
    fired: dict[str, int]
    hidden: int  # reads that found a value expired
    nodes: int
    recovery_s: float  # from the end of all faults until every node was equal, idle times of links included
    virtual_s: float
    real_s: float
    events: int
    trace_digest: str
    lines: tuple[str, ...] = field(repr=False)
    history: tuple[Record, ...] = field(repr=False)

    @property
    def is_good(self) -> bool:
        """Tell whether no claim was violated."""
        return not self.violations


def draw_plan(seeds: Seeds) -> RunPlan:
    """Draw what a run is made of."""
    random = seeds.random("plan")
    chance = {"restore": 0.7, "promote": 0.6, "wipe": 0.3}
    own = {"wipe": seeds.random("wipe")}  # drawn apart: the other kinds are those that a seed had before
    enabled = [kind for kind in KINDS if own.get(kind, random).random() < chance.get(kind, 0.5)]
    if len(enabled) < 3:
        enabled = random.sample(KINDS, 3)
    nodes = random.choice((3, 3, 4, 5))
    offsets_ms_max = random.choice((0, 20, 2_000, 60_000))
    return RunPlan(
        cluster=ClusterPlan(
            nodes=nodes,
            candidates=random.randint(2, nodes),
            joining=1 if "join" in enabled else 0,
            sync_ms=random.choice((0.3, 2.0, 10.0, 60.0)),
            clock_offsets_ms=tuple(random.randint(-offsets_ms_max, offsets_ms_max) for _ in range(nodes)),
            drifts_ppm=_draw_drifts(seeds.random("drift"), nodes),
            network=_draw_network(random),
            settings=_draw_settings(random, random.choice((500, 5_000, BY_HAND_PURGE_AFTER_MS))),
        ),
        workload=WorkloadPlan(
            sessions=random.choice((3, 5, 8)),
            think_ms=random.choice((50.0, 100.0, 200.0)),
            keys=random.choice((4, 16, 60)),
            delete_share=random.choice((0.1, 0.3)),
            conditional_share=random.choice((0.0, 0.1, 0.3)),
            expiry_share=random.choice((0.0, 0.2, 0.6)),
            large_share=random.choice((0.0, 0.0, 0.3)),
            chunked_share=seeds.random("chunks").choice((0.0, 0.2, 0.6)),
        ),
        faults=tuple(FaultPlan(kind, _rhythm_s(kind) * random.choice((0.7, 1.0, 1.5))) for kind in enabled),
        safety_s=random.choice((15.0, 25.0)),
    )


def _draw_drifts(random: Random, nodes: int) -> tuple[int, ...]:
    """Draw how much too fast each node's clocks go: in half of the runs not at all."""
    drift_ppm_max = random.choice((0, 0, 20, DRIFT_PPM_MAX))
    return tuple(random.randint(-drift_ppm_max, drift_ppm_max) for _ in range(nodes))


def _rhythm_s(kind: str) -> float:
    return {"reset": 3.0, "drop": 4.0, "clock": 4.0, "restore": 10.0, "promote": 8.0}.get(kind, 6.0)


def _draw_settings(random: Random, purge_after_ms: int) -> ReplicaSettings:
    """Draw the usual patience, or that of a machine in a hurry: its timeouts fire while answers are still on their way."""
    purging = {
        "purge_interval_ms": random.choice((300, 2_000)),
        "purge_after_ms": purge_after_ms,
        "log_age_ms": random.choice((1_000, 10_000, 86_400_000)),
        "log_positions_max": random.choice((20, 1_000_000)),
    }
    if random.random() < 0.6:
        return ReplicaSettings(**purging)
    return ReplicaSettings(
        **purging,
        digest_busy_ms=random.choice((100, 250)),
        digest_idle_ms=random.choice((500, 2_000)),
        pull_grace_ms=random.choice((1, 50, 500)),
        pull_timeout_ms=random.choice((100, 500)),
        walk_timeout_ms=random.choice((200, 1_000)),
        first_contact_ms=random.choice((200, 1_000)),
        hold_ms=random.choice((20, 1_000)),
    )


def _draw_network(random: Random) -> NetworkProfile:
    delay_ms = random.choice((0.1, 1.0, 5.0, 40.0))
    return NetworkProfile(
        delay_ms=delay_ms,
        jitter_ms=delay_ms * random.choice((0.1, 1.0, 3.0)),
        timeout_ms=random.choice((2_000.0, 5_000.0)),
        is_encoded=random.random() < 0.4,
    )


class Simulation:
    """A run in the making. `host_type` is replaced by planted bugs only."""

    def __init__(
        self,
        seed: int,
        *,
        plan: RunPlan | None = None,
        host_type: type[Host] = Host,
        printer: Callable[[str], None] | None = None,
    ) -> None:
        seeds = Seeds(seed)
        self.seed = seed
        self.plan = plan if plan is not None else draw_plan(seeds)
        self.cluster = Cluster(seeds, self.plan.cluster, host_type, printer)
        self.workload = Workload(self.cluster, seeds.child("workload"), self.plan.workload)
        self.nemesis = Nemesis(self.cluster, seeds.child("faults"), self.plan.faults)
        self._violations: list[Violation] = []
        self._recovery_s = 0.0
        self._is_purged = False

    def run(self) -> Report:
        """Run all phases and judge."""
        began = time.perf_counter()
        try:
            self._boot() and self._safety() and self._liveness()
            self.cluster.history.extend(self.cluster.states(is_purged=self._is_purged))
            self._violations.extend(check(self.cluster.history))
        except MachineFailed as failure:
            where = "".join(traceback.format_exception(failure.__cause__)) if failure.__cause__ else ""
            self._violations.append(Violation("machine", f"{failure}\n{where}"))
        except EndlessRun as failure:
            self._violations.append(Violation("C10", str(failure)))
        return self._report(time.perf_counter() - began)

    def _boot(self) -> bool:
        cluster = self.cluster
        cluster.start()
        started = [host for host in cluster.hosts if host.is_alive]
        return self._reach("boot", BOOT_S_MAX, lambda: cluster.are_equal(started))

    def _safety(self) -> bool:
        cluster = self.cluster
        cluster.note(f"safety phase: {', '.join(plan.kind for plan in self.plan.faults)}")
        self.workload.start()
        self.nemesis.start()
        cluster.run_for(self.plan.safety_s)
        while cluster.schedule.now_ns < SAFETY_S_MAX * SECOND and (cluster.acked < ACKED_MIN or self.nemesis.missing()):
            cluster.run_for(5.0)
        for kind in self.nemesis.missing():
            self._violate("harness", f"the fault {kind} was switched on and never fired")
        if cluster.acked < ACKED_MIN:
            self._violate("harness", f"{cluster.acked} acknowledged writes, at least {ACKED_MIN} are needed")
        return True

    def _liveness(self) -> bool:
        cluster = self.cluster
        cluster.note("liveness phase: everything is mended")
        self.workload.stop()
        self.nemesis.stop()
        began_ns = cluster.schedule.now_ns
        is_equal = self._reach("every write ends", 15.0, self.workload.is_idle) and self._reach(
            "all nodes are equal", CONVERGE_S_MAX, lambda: cluster.are_equal(cluster.hosts)
        )
        self._recovery_s = (cluster.schedule.now_ns - began_ns) / SECOND
        return (
            is_equal
            and self._probe()
            and self._reach("all issuers but one are closed", CONVERGE_S_MAX, cluster.are_issuers_closed)
            and self._reach("all nodes are equal again", CONVERGE_S_MAX, lambda: cluster.are_equal(cluster.hosts))
            and self._purge()
            and self._reach("all values are whole", WHOLE_S_MAX, cluster.are_whole)
            and self._settle()
        )

    def _probe(self) -> bool:
        """Write through every node until it is acknowledged there."""
        cluster = self.cluster
        namespace = NamespaceId(bytes(16))
        done: dict[str, bool] = {}

        def ask(host: Host) -> None:
            def told(outcome: Outcome | None) -> None:
                if outcome is not None and outcome.ending is Ending.ACKED:
                    done[host.name] = True
                else:
                    cluster.schedule.after(0.5 * SECOND, lambda: ask(host))

            if len(done) < len(cluster.hosts) and host.is_alive:
                cluster.write(host, Put(namespace, b"probe of " + host.name.encode(), b"liveness"), told=told)

        for host in cluster.hosts:
            ask(host)
        return self._reach("every node takes writes", PROBE_S_MAX, lambda: len(done) == len(cluster.hosts))

    def _purge(self) -> bool:
        """Wait until nothing is left but what lives, where that does not take a simulated hour [I8]."""
        cluster = self.cluster
        if cluster.plan.settings.purge_after_ms > PURGE_S_MAX * 1_000 or cluster.stamps_ahead_ms() > 0:
            return True  # what a clock that was ahead has stamped goes when the leader's has passed it
        self._is_purged = self._reach("all that may go is purged", PURGE_S_MAX, cluster.is_purged)
        return self._is_purged and self._reach(
            "all nodes are equal after that", CONVERGE_S_MAX, lambda: cluster.are_equal(cluster.hosts)
        )

    def _settle(self) -> bool:
        """Let digests be compared once more at rest, and every machine check itself."""
        self.cluster.run_for(5.0)
        for host in self.cluster.hosts:
            host.check()
        # A value may just have expired, and its Purge be on its way: a run that did not wait for purging ends at any moment of it.
        return self._reach(
            "all nodes are equal at rest", CONVERGE_S_MAX, lambda: self.cluster.are_equal(self.cluster.hosts)
        )

    def _reach(self, what: str, seconds: float, is_so: Callable[[], bool]) -> bool:
        """Let time pass until something is so, in steps of 100 ms; note a violation when it takes too long."""
        self.cluster.note(f"wait until: {what}")
        for _ in range(int(seconds * 10)):
            if is_so():
                return True
            self.cluster.run_for(0.1)
        self._violate("L", f"not so after {seconds:.0f} s without faults: {what}")
        return False

    def _violate(self, claim: str, text: str) -> None:
        self._violations.append(Violation(claim, text))

    def _report(self, real_s: float) -> Report:
        cluster = self.cluster
        endings = [getattr(record, "ending", "") for record in cluster.history]
        return Report(
            seed=self.seed,
            violations=tuple(self._violations),
            acked=cluster.acked,
            unknown=endings.count("unknown") + endings.count("lost"),
            refused=endings.count("refused"),
            fired=dict(self.nemesis.fired),
            hidden=cluster.hidden,
            nodes=len(cluster.hosts),
            recovery_s=self._recovery_s,
            virtual_s=cluster.schedule.now_ns / SECOND,
            real_s=real_s,
            events=cluster.schedule.events_run,
            trace_digest=cluster.trace.digest(),
            lines=tuple(cluster.trace.lines),
            history=tuple(cluster.history),
        )
