"""The nemesis: faults that happen during the safety phase.

Decides: which fault strikes whom and when. Each kind has a generator and a rhythm of its own, so adding one leaves the others as they were.
Keeps true: the fault model of DESIGN §3. The faults that may lose acknowledged writes, a disk put back to an older copy or wiped, strike only
while another disk holds everything that one has. `fired` counts what really happened: a fault without effect does not count.
In and out: a cluster to act upon in; `fired` out. `stop` ends all faults and mends everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kvp2p.core.apply import mark_restored
from kvp2p.core.operations import Ending, Outcome
from kvp2p.sim.cluster import Cluster
from kvp2p.sim.host import Host
from kvp2p.sim.network import Pair
from kvp2p.sim.schedule import SECOND
from kvp2p.sim.seeds import Seeds
from kvp2p.store.memory import MemoryStore


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """A kind of fault and its rhythm; times between two of it are 0.5 to 1.5 times `every_s`."""

    kind: str
    every_s: float


BY_HAND_PURGE_AFTER_MS = 14_400_000  # four hours: more than clocks are set back by


class Nemesis:
    """All faults of a run."""

    def __init__(self, cluster: Cluster, seeds: Seeds, plans: tuple[FaultPlan, ...]) -> None:
        self.cluster = cluster
        self.fired: dict[str, int] = {plan.kind: 0 for plan in plans}
        self.is_stopped = False
        self._plans = plans
        self._randoms = {plan.kind: seeds.random(plan.kind) for plan in plans}
        self._operator = seeds.random("operator")
        self._cuts: list[list[Pair]] = []
        self._held: list[Host] = []  # dead, and not to be restarted by anybody else
        kinds = (
            self._crash_replica,
            self._crash_leader,
            self._cut,
            self._one_way_cut,
            self._reset,
            self._drop,
            self._promote,
            self._clock,
            self._restore,
            self._disk_full,
            self._pause,
            self._join,
            self._wipe,
        )
        self._kinds: dict[str, Callable[[Random], None]] = {kind.__name__[1:]: kind for kind in kinds}

    def start(self) -> None:
        """Let every kind of fault begin its rhythm."""
        for plan in self._plans:
            self._strike_later(plan, 0.3)

    def _strike_later(self, plan: FaultPlan, factor: float) -> None:
        random = self._randoms[plan.kind]

        def strike() -> None:
            if not self.is_stopped:
                self._kinds[plan.kind](random)
                self._strike_later(plan, 1.0)

        self._after(plan.every_s * (0.5 + random.random()) * factor, strike)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self.cluster.schedule.after(seconds * SECOND, action)

    def stop(self) -> None:
        """End all faults: heal every cut, start every dead or waiting node, let no message be dropped."""
        self.is_stopped = True
        while self._cuts:
            self.cluster.heal(self._cuts.pop())
        self.cluster.network.drop_chance = 0.0
        self._held.clear()
        for host in self.cluster.hosts:
            host.disk.is_full = False
            if host.is_paused:
                host.resume()
        for host in self.cluster.hosts:
            if not host.is_alive:
                host.start()

    def missing(self) -> list[str]:
        """Return the kinds that were to strike and have not."""
        return [kind for kind, count in self.fired.items() if not count]

    # --- processes

    def _crash_replica(self, random: Random) -> None:
        leader = self.cluster.leader()
        self._crash_one("crash_replica", random, [host for host in self.cluster.alive() if host is not leader])

    def _crash_leader(self, random: Random) -> None:
        leader = self.cluster.leader()
        self._crash_one("crash_leader", random, [leader] if leader is not None and leader.is_alive else [])

    def _crash_one(self, kind: str, random: Random, victims: list[Host]) -> None:
        if not victims:
            return
        victim = random.choice(victims)
        down_s = random.choice((0.1, 1.0, 3.0, 8.0)) * (0.5 + random.random())

        def strike() -> None:
            if victim.is_alive and victim not in self._held and not self.is_stopped:
                self.fired[kind] += 1
                self._kill(victim, random)
                self._after(down_s, lambda: self._restart(victim))

        if random.random() < 0.3:
            strike()
            return
        if random.random() < 0.3:  # alone, so that nobody else can have what it says it has
            self._cut_for([victim], 0.5 + random.random(), random.choice(("", "out")))
        # Crashes tell most while a batch is in flight, between what was said and what is durable.
        sync_share = 1.5 * random.random()
        victim.disk.on_next_submit = lambda: self._after(sync_share * victim.disk.sync_ms / 1_000, strike)

    def _kill(self, victim: Host, random: Random) -> None:
        share_kept = random.choice((0.0, 1.0, random.random()))
        # A killed process is noticed at once, a machine that lost its power when links time out.
        self.cluster.crash(victim, share_kept, random.choice((5.0, 200.0, 3_000.0)))

    def _restart(self, host: Host) -> None:
        if not host.is_alive and host not in self._held and not self.is_stopped:
            host.start()

    def _pause(self, random: Random) -> None:
        """Stop a process for longer or shorter than its links last."""
        leader = self.cluster.leader()
        victim = leader if leader is not None and random.random() < 0.4 else random.choice(self.cluster.hosts)
        if not victim.is_alive or victim.is_paused:
            return
        self.fired["pause"] += 1
        life = victim.life
        victim.pause()
        pause_s = random.choice((0.2, 2.0, 9.0)) * (0.5 + random.random())

        def lose_links() -> None:
            if victim.is_paused and victim.life == life:
                self.cluster.network.host_silent(victim)

        def resume() -> None:
            if victim.is_paused and victim.life == life:
                victim.resume()

        self._after(self.cluster.plan.network.timeout_ms / 1_000, lose_links)
        self._after(pause_s, resume)

    def _join(self, random: Random) -> None:
        for host in self.cluster.hosts:
            if host.life == 0:
                self.fired["join"] += 1
                host.start()
                return

    # --- network

    def _cut(self, random: Random) -> None:
        self._cut_some("cut", random, "")

    def _one_way_cut(self, random: Random) -> None:
        self._cut_some("one_way_cut", random, random.choice(("out", "in")))

    def _cut_some(self, kind: str, random: Random, one_way: str) -> None:
        hosts = self.cluster.hosts
        group = random.sample(hosts, random.randint(1, len(hosts) - 1))
        inside = {host.node: host in group for host in hosts}
        if not any(inside[one] != inside[other] for one, other in self.cluster.network.links_up()):
            return  # nothing to cut
        self.fired[kind] += 1
        # Some shorter than the timeout of a link, so that what was held back arrives late; some longer.
        self._cut_for(group, random.choice((0.5, 2.0, 8.0)) * (0.5 + random.random()), one_way)

    def _cut_for(self, group: list[Host], seconds: float, one_way: str = "") -> None:
        directions = self.cluster.cut_off(group, one_way)
        self._cuts.append(directions)

        def heal() -> None:
            if directions in self._cuts:
                self._cuts.remove(directions)
                self.cluster.heal(directions)

        self._after(seconds, heal)

    def _reset(self, random: Random) -> None:
        pairs = sorted(self.cluster.network.links_up())
        if pairs and self.cluster.network.reset(*random.choice(pairs)):
            self.fired["reset"] += 1

    def _drop(self, random: Random) -> None:
        network = self.cluster.network
        before = network.counts["dropped"]
        network.drop_chance = random.choice((0.02, 0.2, 0.7))

        def end() -> None:
            network.drop_chance = 0.0
            if network.counts["dropped"] > before:
                self.fired["drop"] += 1

        self._after(0.5 + 2 * random.random(), end)

    # --- leadership, clocks, disks

    def _disk_full(self, random: Random) -> None:
        """Let a disk take nothing for a while."""
        disk = random.choice(self.cluster.hosts).disk
        if disk.is_full:
            return
        before = disk.failed
        disk.is_full = True

        def end() -> None:
            disk.is_full = False
            if disk.failed > before:
                self.fired["disk_full"] += 1

        self._after(0.2 + 4 * random.random(), end)

    def _promote(self, random: Random) -> None:
        """Cut the leader off or kill it, and promote a candidate."""
        leader = self.cluster.leader()
        if leader is None or not leader.is_alive:
            return
        if random.random() < 0.7:
            self._cut_for([leader], 4 + 8 * random.random(), random.choice(("", "", "out", "in")))
        else:
            self._kill(leader, random)
            self._after(2 + 8 * random.random(), lambda: self._restart(leader))
        candidates = [host for host in self.cluster.hosts[: self.cluster.plan.candidates] if host is not leader]
        self._after(0.2 + 3 * random.random(), lambda: self._promote_one(random.choice(candidates)))

    def _promote_one(self, host: Host) -> None:
        if not host.is_alive or self.is_stopped:
            return
        self.cluster.note(f"promote {host.name}")

        def told(outcome: Outcome | None) -> None:
            if outcome is not None and outcome.ending is Ending.ACKED:
                self.fired["promote"] += 1
                if self._operator.random() < 0.4:
                    self._after(2 * self._operator.random(), lambda: self._give_up(host))

        self.cluster.promote(host, told)

    def _give_up(self, host: Host) -> None:
        """Take the old leader for gone for ever, as an operator may: it comes back all the same, perhaps with more."""
        if host.is_alive and not self.is_stopped:
            for row in self.cluster.open_issuers(host):
                if row.node != host.node:
                    self.cluster.close_issuer(host, row.issuer, lambda _: None)

    def _clock(self, random: Random) -> None:
        host = random.choice(self.cluster.hosts)
        offset_ms = int(random.choice((1, 50, 3_000, 3_600_000)) * (2 * random.random() - 1))
        self.cluster.note(f"clock of {host.name} from {host.clock_offset_ms} to {offset_ms} ms off")
        self.fired["clock"] += host.clock_offset_ms != offset_ms
        host.clock_offset_ms = offset_ms

    def _restore(self, random: Random) -> None:
        """Copy a disk, wait, and restore the copy: at best of the leader, cut off from all others and with its clock set back.

        By hand, or as `kvp2p restore` does it, which says so in the store. By hand only where nothing is purged that soon: a leader that has forgotten a
        fence, and hears of nobody, could write below it [I2].
        """
        if self._held:
            return
        leader = self.cluster.leader()
        victim = leader if leader is not None and random.random() < 0.7 else random.choice(self.cluster.hosts)
        with victim.disk.store.read() as txn:
            if txn.restored:
                return  # its node has not caught up since the last time: a leader that never leads shows nothing
        copy, life = victim.disk.store.snapshot(), victim.disk.generation
        self.cluster.note(f"back up the disk of {victim.name}")
        age_s = 1 + 6 * random.random()
        is_isolated = random.random() < 0.6

        def put_back() -> None:
            if self.is_stopped or self._held or victim.disk.generation != life:
                return
            if victim.is_alive:
                self._kill(victim, random)
            self._held.append(victim)
            self._put_back_when_safe(victim, copy, is_isolated, random, tries=20)

        self._after(age_s, put_back)

    def _put_back_when_safe(
        self, victim: Host, copy: MemoryStore, is_isolated: bool, random: Random, tries: int
    ) -> None:
        if self.is_stopped or victim not in self._held:
            return
        if self._is_held_elsewhere(victim):
            self._held.remove(victim)
            self.fired["restore"] += 1
            is_by_hand = self.cluster.plan.settings.purge_after_ms >= BY_HAND_PURGE_AFTER_MS and random.random() < 0.5
            if not is_by_hand:
                with copy.write() as txn:
                    mark_restored(txn)
            victim.disk.replace(copy)
            self.cluster.note(f"restore the disk of {victim.name}")
            if is_isolated:
                self._cut_for([victim], 4 + 4 * random.random())
                victim.clock_offset_ms -= random.choice((0, 10_000))
            self._restart(victim)
        elif tries:
            self._after(0.25, lambda: self._put_back_when_safe(victim, copy, is_isolated, random, tries - 1))
        else:
            self._held.remove(victim)
            self._restart(victim)

    def _wipe(self, random: Random) -> None:
        """Kill a replica and give it an empty disk: it comes back under its own name, with nothing."""
        leader = self.cluster.leader()
        victim = random.choice(self.cluster.hosts)
        if self._held or victim is leader or not victim.is_alive or not self._is_held_elsewhere(victim):
            return
        self._kill(victim, random)
        if not self._is_held_elsewhere(victim):  # by what was in flight
            self._restart(victim)
            return
        with victim.disk.store.read() as txn:
            identity = txn.identity
        victim.disk.replace(MemoryStore(identity, complete=False))
        self.fired["wipe"] += 1
        self.cluster.note(f"wipe the disk of {victim.name}")
        self._after(3 * random.random(), lambda: self._restart(victim))

    def _is_held_elsewhere(self, victim: Host) -> bool:
        """Tell whether some other disk holds everything that this one has, chunks included, so that nothing acknowledged is lost."""
        with victim.disk.store.read() as txn:
            vector = txn.vector
        for host in self.cluster.hosts:
            if host is not victim:
                with host.disk.store.read() as txn:
                    is_whole = txn.complete and next(txn.pending_rows(), None) is None
                    if is_whole and txn.vector.covers_vector(vector):
                        return True
        return False


KINDS = (
    "crash_replica",
    "crash_leader",
    "cut",
    "one_way_cut",
    "reset",
    "drop",
    "promote",
    "clock",
    "restore",
    "disk_full",
    "pause",
    "join",
    "wipe",
)
