"""A cluster of hosts on one schedule: what scenarios, workload and faults act upon.

Decides: how a cluster begins (its first node as `kvp2p init` makes it, members empty), and how a run's history is recorded.
Keeps true: everything random comes from the run's seed; two runs with the same seed and plan are the same to the last event.
In and out: `run_for`, `write`, `read`, `crash`, `restart`, `cut` for those who act; history, trace and states for those who judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvp2p.core import system_rows
from kvp2p.core.apply import apply_batch, is_namespace_deleted, issuers_of
from kvp2p.core.batches import Batch, BatchResult, StampedWrite, WriteGroup
from kvp2p.core.chunk_rows import shown_row
from kvp2p.core.entry import (
    STATE_HASH_MASK,
    Kind,
    is_tombstone,
    row_expires_at,
    row_kind,
    row_version,
)
from kvp2p.core.events import Await, CloseIssuer, Notice, Promote, Write
from kvp2p.core.hlc import HybridClock, stamp_wall_ms
from kvp2p.core.messages import Designation, Member
from kvp2p.core.operations import Delete, DeleteNamespace, Ending, Operation, Outcome, Put
from kvp2p.core.port import Identity, ReadTransaction
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.system_rows import IssuerRow
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    AccountId,
    ClusterId,
    Issuer,
    NamespaceId,
    NodeId,
    Stamp,
    Version,
    version_issuer,
)
from kvp2p.limits import WRITE_DEADLINE_MS
from kvp2p.sim import large
from kvp2p.sim.clocks import LeadersClocks, Oscillator
from kvp2p.sim.disk import Disk
from kvp2p.sim.history import (
    ABSENT_CONTENT,
    Ended,
    Invoked,
    Issued,
    Record,
    Seen,
    StoreState,
    Told,
    asked_of,
    version_of_operation,
)
from kvp2p.sim.host import EPOCH_MS, Host, World
from kvp2p.sim.network import Network, NetworkProfile, Pair
from kvp2p.sim.schedule import MS, SECOND, Schedule
from kvp2p.sim.seeds import Seeds
from kvp2p.sim.standing import state_of
from kvp2p.sim.trace import Trace
from kvp2p.store.memory import MemoryStore

FIRST_TERM = 1
ALARMS = {"diverged": "I7"}  # notice -> the claim it contradicts: rows differ although vectors are equal


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """What a cluster is made of. `candidates` may be promoted; `joining` of the nodes are started later by a fault."""

    nodes: int = 3
    candidates: int = 2
    joining: int = 0
    sync_ms: float = 2.0
    clock_offsets_ms: tuple[int, ...] = ()
    drifts_ppm: tuple[int, ...] = ()
    network: NetworkProfile = field(default_factory=NetworkProfile)
    settings: ReplicaSettings = field(default_factory=ReplicaSettings)


class Cluster:
    """A running cluster. `host_type` is replaced by planted bugs only."""

    def __init__(
        self,
        seeds: Seeds,
        plan: ClusterPlan,
        host_type: type[Host] = Host,
        printer: Callable[[str], None] | None = None,
    ) -> None:
        self.plan = plan
        self.schedule = Schedule()
        self.trace = Trace(printer)
        self.network = Network(self.schedule, seeds.random("network"), plan.network, self.note)
        self.history: list[Record] = []
        self.hosts: list[Host] = []
        self.acked = 0
        self.hidden = 0  # reads that found a value expired
        self._writes = 0
        self._acked: list[_Acked] = []
        self._leaders_clocks = LeadersClocks()
        self._dropped: set[NamespaceId] = set()  # asked for; only ever looked into
        world = World(self.schedule, self.network, self.trace, self)
        identities = seeds.random("identities")
        cluster, account = ClusterId(identities.randbytes(16)), AccountId(identities.randbytes(16))
        self.account = account
        for index in range(plan.nodes):
            own = seeds.child(f"node {index}")
            name = f"n{index + 1}"
            identity = Identity(cluster, account, NodeId(own.random("id").randbytes(16)), name)
            store = MemoryStore(identity, complete=index == 0)
            url = f"sim://{name}"
            member = Member(identity.node, 0, name, url, "", "")
            disk = Disk(self.schedule, own.random("disk"), store, plan.sync_ms)
            join = () if index == 0 else ("sim://n1",)
            host = host_type(world, member, disk, plan.settings, own.random("machine"), join)
            host.chunk_part_bytes = large.PART_BYTES
            if index < len(plan.clock_offsets_ms):
                host.clock_offset_ms = plan.clock_offsets_ms[index]
            if index < len(plan.drifts_ppm):
                host.oscillator = Oscillator(plan.drifts_ppm[index])
            self.hosts.append(host)
            self.network.hosts[url] = host
        self._found(Issuer(identities.randbytes(8)))

    def _found(self, issuer: Issuer) -> None:
        """Make the first node's store begin as its log would have: designation and the rows that say so."""
        first = self.hosts[0]
        candidates = tuple(host.node for host in self.hosts[: self.plan.candidates])
        puts: tuple[Put, ...] = (
            Put(SYSTEM_NAMESPACE, system_rows.LEADER_KEY, system_rows.encode_leader(first.node, FIRST_TERM)),
            Put(SYSTEM_NAMESPACE, system_rows.CANDIDATES_KEY, system_rows.encode_candidates(candidates)),
        )
        stamp = HybridClock().tick(EPOCH_MS - 1)
        ended = system_rows.IssuerRow(issuer, first.node, FIRST_TERM, Stamp(stamp + len(puts)))
        puts = (*puts, Put(SYSTEM_NAMESPACE, *system_rows.encode_issuer(ended)))
        write = StampedWrite(stamp, puts)
        group = WriteGroup(FIRST_TERM, issuer, (write,), EPOCH_MS, Designation(FIRST_TERM, issuer, first.node))
        with first.disk.store.write() as txn:
            apply_batch(txn, group)

    # --- acting

    def start(self) -> None:
        """Start all nodes but those that join later."""
        for host in self.hosts[: self.plan.nodes - self.plan.joining]:
            host.start()

    def run_for(self, seconds: float, is_over: Callable[[], bool] | None = None) -> bool:
        """Let virtual time pass, until `is_over()` if that comes first; tell whether it did."""
        return self.schedule.run_until(self.schedule.now_ns + int(seconds * SECOND), is_over)

    def write(
        self,
        host: Host,
        *operations: Operation,
        session: int = 0,
        told: Callable[[Outcome | None], None] | None = None,
        deadline_ms: int = WRITE_DEADLINE_MS,
        gives_up_after: int | None = None,
    ) -> int:
        """Ask a living node for a write and record how it ends; return the write's number in the history.

        Values of puts that are `is_chunked` are sent in chunks before; after `gives_up_after` of them the client goes away.
        """
        self._writes += 1
        number = self._writes
        self._dropped |= {one.namespace for one in operations if isinstance(one, DeleteNamespace)}
        asked = tuple(map(asked_of, operations))
        self.history.append(Invoked(self.schedule.now_ns, number, session, host.name, asked))

        def ended(outcome: Outcome | None) -> None:
            self._on_ended(host, number, operations, outcome)
            if told is not None:
                told(outcome)

        def write(asked_for: tuple[Operation, ...], tell: Callable[[Outcome | None], None]) -> None:
            deadline_ns = host.now().mono_ns + deadline_ms * MS
            host.request(lambda request: Write(request, asked_for, deadline_ns), tell)

        if any(map(large.is_cut, operations)):
            large.Upload(host, number, operations, write, ended, gives_up_after)
        else:
            write(operations, ended)
        return number

    def _on_ended(self, host: Host, number: int, operations: tuple[Operation, ...], outcome: Outcome | None) -> None:
        now_ns = self.schedule.now_ns
        if outcome is None:
            self.history.append(Ended(now_ns, number, "lost", "", (), visible=False, covered=False))
            return
        versions: tuple[str, ...] = ()
        covered = False
        if outcome.ending is Ending.ACKED and outcome.version is not None:
            self.acked += 1
            count = len(operations)
            versions = tuple(version_of_operation(outcome.version, index, count).hex() for index in range(count))
            mine = [
                _Acked(Version(bytes.fromhex(version)), operation.namespace, operation.key)
                for version, operation in zip(versions, operations, strict=True)
                if isinstance(operation, Put | Delete)
            ]
            self._acked += mine
            with host.disk.store.read() as txn:
                covered = _has(txn, outcome) and all(self._shows(txn, one) for one in mine)
        ending = outcome.ending.name.lower()
        self.history.append(Ended(now_ns, number, ending, outcome.code, versions, outcome.visible, covered))

    def read(self, host: Host, namespace: NamespaceId, key: bytes) -> Seen:
        """Read a key as a gateway of that node would, and record what was seen. Works while the node's process is down."""
        with host.disk.store.read() as txn:
            row = None if is_namespace_deleted(txn, namespace) else shown_row(txn, namespace, key)
            content = ABSENT_CONTENT if row is None else large.content_of_row(txn, namespace, key, row)
        version = None if row is None else row_version(row).hex()
        if row is not None and self._has_expired(host, row):
            content = ABSENT_CONTENT
        where = (namespace.hex(), key.hex())
        seen = Seen(self.schedule.now_ns, host.name, host.disk.generation, *where, version, content)
        self.history.append(seen)
        return seen

    def _shows(self, txn: ReadTransaction, acked: _Acked) -> bool:
        """Tell whether a reader sees an acknowledged write, or something newer: nothing, where the namespace was deleted meanwhile [I7]."""
        space = txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(acked.namespace))
        # Its tombstone may have been purged by now. A delete that was refused has left it as it was.
        is_gone = acked.namespace in self._dropped and (space is None or is_tombstone(space))
        return is_gone or large.shows(txn, acked.namespace, acked.key, acked.version)

    def _has_expired(self, host: Host, row: bytes) -> bool:
        """Tell whether a gateway of that node hides a row, and judge that by the clocks of all that lead [I7]."""
        expires_ms = row_expires_at(row) * 1_000
        if not expires_ms or row_kind(row) == Kind.TOMBSTONE:
            return False
        clock_ms = self.clock_ms_of(host)
        leads_ms = self.leading_clock_ms()
        is_known = host.machine is not None and host.machine.board.clock.is_known
        if clock_ms >= expires_ms:
            if is_known and leads_ms and leads_ms < expires_ms:
                self.alarm(
                    host, "I7", f"hides {row_version(row).hex()} {expires_ms - leads_ms} ms before its leader would"
                )
            self.hidden += 1
            return True
        return False

    def clock_ms_of(self, host: Host) -> int:
        """Return what a gateway of that node goes by: what its node believes, or while that is down what the store says."""
        if host.is_paused and host.machine is not None:
            return host.machine.board.clock.read(host.now())  # its gateways go on with what it told them last
        if host.machine is not None:
            host.machine.board.now = host.now()
            self.on_handled(host)  # a leader whose clock was just set
            return host.machine.board.clock_ms()
        with host.disk.store.read() as txn:
            return host.now().wall_ms + txn.clock_offset_ms

    def leading_clock_ms(self) -> int:
        """Return the greatest clock of any node that leads or has led, as it would stand now; 0 before any did."""
        return self._leaders_clocks.latest_ms(self.schedule.now_ns)

    def stamps_ahead_ms(self) -> int:
        """Return by how much the latest stamp is ahead of the leader's clock; negative when it is behind."""
        with self.hosts[0].disk.store.read() as txn:
            return stamp_wall_ms(txn.vector.latest_stamp()) - self.clock_ms_of(self.leader() or self.hosts[0])

    def is_purged(self) -> bool:
        """Tell whether no store has anything left that a Purge would remove: its entries are what lives."""
        for host in self.hosts:
            clock_s = self.clock_ms_of(host) // 1_000
            with host.disk.store.read() as txn:
                expiring = next(txn.expiring(), None)
                has_expired = expiring is not None and int.from_bytes(expiring[0][:8], "big") <= clock_s
                if txn.tombstones or has_expired or len(issuers_of(txn)) > 1:
                    return False
                rows = sum(1 for _ in txn.all_rows())
                if rows != sum(totals.live for _, totals in txn.all_totals()):
                    return False
        return True

    def promote(self, host: Host, told: Callable[[Outcome | None], None], *, override: bool = False) -> None:
        """Ask a living node to lead at a new term."""
        host.request(lambda request: Promote(request, override), told)

    def close_issuer(self, host: Host, issuer: Issuer, told: Callable[[Outcome | None], None]) -> None:
        """Vouch at a living node that nothing more is added under an issuer."""
        host.request(lambda request: CloseIssuer(request, issuer), told)

    def wait_for_version(self, host: Host, version: Version, timeout_ms: int) -> None:
        """Let a reader wait at a living node until a version is whole; a node that says so must have it durably, and all before it [I3]."""

        def ended(outcome: Outcome | None) -> None:
            if outcome is not None and outcome.ending is Ending.ACKED:
                issuer = version_issuer(version)
                with host.disk.store.read() as txn:
                    if not txn.vector.covers(version):
                        self.alarm(host, "I3", f"a reader was told that {version.hex()} is here")
                    for one in self._acked:
                        if (
                            version_issuer(one.version) == issuer
                            and one.version <= version
                            and not self._shows(txn, one)
                        ):
                            told = f"a reader was told that all up to {version.hex()} is here"
                            self.alarm(
                                host, "I3", f"{told}, and {one.key!r} shows nothing as new as {one.version.hex()}"
                            )

        deadline_ns = host.now().mono_ns + timeout_ms * MS
        host.request(lambda request: Await(request, version, deadline_ns), ended)

    def crash(self, host: Host, share_kept: float = 0.0, notice_ms: float = 200.0) -> None:
        """Kill a node's process."""
        host.crash(share_kept, notice_ms)

    def cut_off(self, group: list[Host], one_way: str = "") -> list[Pair]:
        """Cut a group from the rest in both directions, or only "out" of it or "in"to it; give the result to `heal`."""
        rest = [host for host in self.hosts if host not in group]
        out = [(inner.node, outer.node) for inner in group for outer in rest]
        back = [(outer, inner) for inner, outer in out]
        directions = {"": out + back, "out": out, "in": back}[one_way]
        self.network.cut(directions)
        shape = {"": "", "out": " outwards", "in": " inwards"}[one_way]
        self.note(f"cut off {' '.join(host.name for host in group)}{shape}")
        return directions

    def heal(self, directions: list[Pair]) -> None:
        """End a cut."""
        self.network.heal(directions)
        self.note("heal a cut")

    # --- looking

    def alive(self) -> list[Host]:
        """Return the hosts whose process runs."""
        return [host for host in self.hosts if host.is_alive]

    def leader(self) -> Host | None:
        """Return the node that the newest stored designation names, whether or not it is alive."""
        found: Designation | None = None
        for host in self.hosts:
            with host.disk.store.read() as txn:
                own = txn.designation
            if own is not None and (found is None or own.order() > found.order()):
                found = own
        return next((host for host in self.hosts if found is not None and host.node == found.node), None)

    def are_equal(self, hosts: list[Host]) -> bool:
        """Tell whether the stores of these hosts are complete with equal vectors and equal H."""
        facts = []
        for host in hosts:
            with host.disk.store.read() as txn:
                hashes = sum(totals.state_hash for _, totals in txn.all_totals()) & STATE_HASH_MASK
                facts.append((txn.complete, txn.vector, hashes))
        return bool(facts) and facts[0][0] and all(fact == facts[0] for fact in facts)

    def are_whole(self) -> bool:
        """Tell whether no store lacks chunks or keeps any for a write under way."""
        for host in self.hosts:
            with host.disk.store.read() as txn:
                if not large.is_at_rest(txn):
                    return False
        return True

    def open_issuers(self, host: Host) -> list[IssuerRow]:
        """Return the issuers to which positions may still be added, as far as a host's store tells."""
        with host.disk.store.read() as txn:
            return [row for row in issuers_of(txn) if row.closed is None]

    def are_issuers_closed(self) -> bool:
        """Tell whether every store says of all issuers but one that nothing more can be added."""
        for host in self.hosts:
            with host.disk.store.read() as txn:
                rows = {row.issuer: row for row in issuers_of(txn)}
                vector = txn.vector
            ended = {row.issuer: row.closed for row in rows.values() if row.closed is not None}
            if any(issuer not in rows for issuer, _ in vector.items()) or len(ended) != len(rows) - 1:
                return False
            if any(stamp > ended.get(issuer, stamp) for issuer, stamp in vector.items()):
                return False
        return True

    def states(self, *, is_purged: bool = False) -> list[StoreState]:
        """Return every store as it stands, recounted from its rows."""
        leader = self.leader()
        return [
            replace(state_of(host, self.clock_ms_of(host)), leads=host is leader, is_purged=is_purged)
            for host in self.hosts
        ]

    # --- what hosts report

    def on_applied(self, host: Host, batch: Batch, result: BatchResult) -> None:
        """Record the positions that a leader's disk made durable."""
        if not isinstance(batch, WriteGroup):
            return
        for write, outcome in zip(batch.writes, result.outcomes, strict=True):
            if outcome.ending is not Ending.ACKED:
                continue
            for index, operation in enumerate(write.operations):
                stamp = write.first_stamp + index
                where = (host.name, batch.issuer.hex(), stamp)
                issued = Issued(self.schedule.now_ns, *where, asked_of(operation), batch.wall_ms)
                self.history.append(issued)

    def on_handled(self, host: Host) -> None:
        """Note the clock of a node that leads."""
        if host.machine is not None and host.machine.board.leads:
            clock_ms = host.machine.board.clock_ms()
            self._leaders_clocks.note(host.name, host.life, host.oscillator, clock_ms, self.schedule.now_ns)

    def on_notice(self, host: Host, notice: Notice) -> None:
        """Record alarms."""
        if notice.kind in ALARMS:
            self.alarm(host, ALARMS[notice.kind], f"{notice.kind} {notice.fields}")

    def alarm(self, host: Host, claim: str, text: str) -> None:
        """Record that a node contradicted a claim."""
        self.history.append(Told(self.schedule.now_ns, host.name, claim, text))

    def note(self, text: str) -> None:
        """Add a line of the run itself to the trace."""
        self.trace.add(self.schedule.now_ns, f"-- {text}")


@dataclass(frozen=True, slots=True)
class _Acked:
    """An operation that was acknowledged to a client."""

    version: Version
    namespace: NamespaceId
    key: bytes


def _has(txn: ReadTransaction, outcome: Outcome) -> bool:
    """Tell whether a store has what was acknowledged. The row of a namespace that was there before may stand above the vector."""
    assert outcome.version is not None
    if txn.vector.covers(outcome.version):
        return True
    space = (
        None if outcome.namespace is None else txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(outcome.namespace))
    )
    return space is not None and row_version(space) >= outcome.version
