"""A model of purging: three stores, messages between them, and a ledger of what was written.

The stores, what changes and what serves them are the real ones; so is who decides of Purges, trims and closed issuers (`Purger`, `IssuerCloser`).
What a host and the rest of a machine do is played: who pulls or walks from whom, what arrives, who is promoted. The ledger knows every write, so
it can say of every store at any time what it must show and what must never come back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import cast

from kvp2p.core import system_rows
from kvp2p.core.apply import summarize
from kvp2p.core.batches import Batch, BatchResult, FrameBatch, PurgeBatch, Settle, StampedWrite, WalkBatch, WriteGroup
from kvp2p.core.board import Board, Peer
from kvp2p.core.entry import is_tombstone, row_expires_at, row_version
from kvp2p.core.events import CloseIssuer, Persist
from kvp2p.core.hlc import HybridClock
from kvp2p.core.issuers import IssuerCloser, opening_rows
from kvp2p.core.leadership import Leadership
from kvp2p.core.messages import Designation, Digest, Frame, Pull, PullEnd, RowKey, WalkPart, WalkRequest
from kvp2p.core.operations import Delete, Operation, Put
from kvp2p.core.purge import Obstacle
from kvp2p.core.purging import Purger
from kvp2p.core.roster import Members
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.vector import VersionVector
from kvp2p.core.writing import LeaderWriter
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    VERSION_ZERO,
    Issuer,
    Now,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_term,
)
from kvp2p.sim.planted_purge import Handling
from tests.core.harness import EPOCH_MS, MS, all_rows, member, new_store, node_id, recounted_hash

NAMES = "abc"
CANDIDATES = ("ab", "ab", "a")  # one of these; the others are ordinary replicas
KEYS = tuple(b"k%d" % number for number in range(5))
MAIL_MAX = 40
ROUNDS_MAX = 60
OPERATOR_COMES_AFTER = 8  # rounds


class Broken(AssertionError):
    """The stores contradict the ledger."""


def claim(is_so: object, what: str) -> None:
    if not is_so:
        raise Broken(what)


@dataclass(frozen=True)
class Written:
    """A write of the ledger. `expires_at` 0: never.

    `is_promised` False: of a node that is no candidate. An operator made it lead, and no Purge waits for it: what it wrote may be lost below a fence [I8].
    """

    version: Version
    is_delete: bool
    expires_at: int
    is_promised: bool

    def may_be_gone(self, now_ms: int) -> bool:
        return self.is_delete or 0 < self.expires_at * 1_000 <= now_ms


@dataclass
class Walk:
    """A walk from a peer. `part` has been served, and is on its way."""

    peer: str
    number: int
    after: RowKey | None = None
    first: VersionVector | None = None
    part: WalkPart | None = None


@dataclass
class Writer:
    """Stands for the writer of a leader: takes what the real purger and closer want to be written."""

    designation: Designation
    issuer: Issuer
    clock: HybridClock
    wall_ms: int
    purges: list[PurgeBatch] = field(default_factory=list)
    rows: list[Operation] = field(default_factory=list)

    def add_purge(self, make: Callable[[Stamp], PurgeBatch], *_: object) -> None:
        self.purges.append(make(self.clock.tick(self.wall_ms)))

    def add_rows(self, operations: tuple[Operation, ...], *_: object) -> None:
        self.rows.extend(operations)


class Node:
    """A store, and what its machine would keep in mind."""

    def __init__(self, name: str, designation: Designation) -> None:
        self.name = name
        self.store = new_store(name, designation=designation)
        self.designation = designation
        self.clock = HybridClock()
        self.issuer: Issuer | None = None  # while it leads
        self.walk: Walk | None = None
        self.heard: dict[str, Digest] = {}
        self.has_above = False  # rows stand above its vector, or are gone that it covers


class Model:
    """One play. Every step ends with a look at the stores that it touched."""

    def __init__(self, seed: int, handling: Handling | None = None, candidates: str | None = None) -> None:
        self.random = Random(seed)
        self.handling = handling or Handling()
        self.candidates = candidates or self.random.choice(CANDIDATES)
        self.settings = ReplicaSettings(
            purge_after_ms=5,
            purge_skew_ms=1,
            log_age_ms=self.random.choice((20_000, 86_400_000)),
            log_positions_max=self.random.choice((8, 1_000)),
        )
        self.mono_ms = 1_000
        self.ledger: dict[bytes, list[Written]] = {key: [] for key in KEYS}
        self.mail: list[tuple[str, Frame, Designation]] = []  # with what its sender knew of who leads
        self.cut: tuple[tuple[str, str], ...] = ()  # pairs that do not hear each other now
        self.walks = self.purged = self.obstacles = 0
        first = Designation(1, Issuer(b"first   "), node_id("a"))
        self.nodes = {name: Node(name, first) for name in NAMES}
        self.write(self.lead(self.nodes["a"]), self._founding())
        self.heal()
        self.purged = 0

    def _founding(self) -> tuple[Operation, ...]:
        row = system_rows.encode_candidates(tuple(map(node_id, self.candidates)))
        return (Put(SYSTEM_NAMESPACE, system_rows.CANDIDATES_KEY, row),)

    @property
    def now_ms(self) -> int:
        return EPOCH_MS + self.mono_ms

    # --- what a host does

    def apply(self, node: Node, batch: Batch) -> BatchResult:
        while True:
            with node.store.write() as txn:
                result = self.handling.apply(txn, batch)
            if result.walk_rest is None:
                break
            batch = result.walk_rest
        self.look(node)
        return result

    def board(self, node: Node) -> Board:
        with node.store.read() as txn:
            summary = summarize(txn)
        board = Board(self.settings, self.random, summary, member(node.name), Now(self.mono_ms * MS, self.now_ms))
        board.designation, board.leads = node.designation, node.issuer is not None
        board.clock.hear(self.now_ms, board.now)
        board.peers = {node_id(name): Peer(digest=digest) for name, digest in node.heard.items()}
        return board

    def digest(self, node: Node) -> Digest:
        board = self.board(node)
        late_ms = self.random.choice((0, 0, 3, 3_000))
        return Digest(
            board.vector,
            board.state_hash.to_bytes(16, "big"),
            board.is_comparable,
            board.floor,
            node.designation,
            node.issuer,
            board.complete,
            self.now_ms,
            self.now_ms - late_ms,
        )

    # --- leading

    def lead(self, node: Node) -> Node:
        """Begin to lead under a new issuer, as a leader that starts does."""
        board = self.board(node)
        for seen in (board.vector, board.above):
            node.clock.observe(seen.latest_stamp())
        node.issuer = Issuer(self.random.randbytes(8))
        self.write(node, opening_rows(board, self.writer(node)))
        return node

    def writer(self, node: Node) -> LeaderWriter:
        assert node.issuer is not None
        return cast(LeaderWriter, Writer(node.designation, node.issuer, node.clock, self.now_ms))

    def promote(self, node: Node) -> None:
        """Give leadership to a candidate, which may have heard nothing of the latest one."""
        node.walk = None
        node.designation = Designation(node.designation.term + 1, Issuer(self.random.randbytes(8)), node_id(node.name))
        self.apply(node, Settle(designation=node.designation))
        self.lead(node)

    def hear(self, node: Node, other: Node) -> None:
        """Take a digest; one of two designations gives way."""
        digest = self.digest(other)
        node.heard[other.name] = digest
        self.learn(node, other.designation)
        if node.issuer is not None:
            node.clock.observe(digest.vector.latest_stamp())

    def learn(self, node: Node, designation: Designation) -> None:
        """Give way to a higher designation: on a link it is told before anything else."""
        if designation.order() > node.designation.order():
            node.designation, node.issuer = designation, None
            self.apply(node, Settle(designation=designation))

    def write(self, node: Node, operations: tuple[Operation, ...]) -> None:
        assert node.issuer is not None
        stamp = node.clock.tick(self.now_ms)
        for _ in operations[1:]:
            node.clock.tick(self.now_ms)
        term = node.designation.term
        for number, operation in enumerate(operations):
            assert isinstance(operation, Put | Delete)
            expires_at = 0
            if isinstance(operation, Put) and operation.expires_in:
                expires_at = -(-self.now_ms // 1_000) + operation.expires_in
            version = make_version(term, Stamp(stamp + number), node.issuer)
            written = Written(version, isinstance(operation, Delete), expires_at, node.name in self.candidates)
            self.ledger.setdefault(operation.key, []).append(written)
        group = WriteGroup(term, node.issuer, (StampedWrite(stamp, operations),), self.now_ms)
        self.tell(node, self.apply(node, group).frame)

    def closer(self, node: Node, writer: LeaderWriter) -> IssuerCloser:
        board = self.board(node)
        members = Members(board, tuple(map(member, NAMES)), ())
        return IssuerCloser(board, members, writer)

    def tend(self, node: Node) -> None:
        """Let the real purger and the real closer of issuers do what is due at a node."""
        board = self.board(node)
        writer = self.writer(node) if node.issuer is not None else None
        purger = Purger(board, cast(Leadership, _Leading(writer)))
        purger.on_timer()
        for effect in board.take_effects():
            if isinstance(effect, Persist):
                self.apply(node, effect.batch)
        if writer is None:
            return
        played = cast(Writer, writer)
        for purge in played.purges:
            frame = self.apply(node, purge).frame
            self.purged += frame is not None
            self.tell(node, frame)
        self.closer(node, writer).on_digest()
        if played.rows:
            self.write(node, tuple(played.rows))

    # --- messages

    def is_linked(self, node: Node, other: Node) -> bool:
        return (node.name, other.name) not in self.cut and (other.name, node.name) not in self.cut

    def tell(self, node: Node, frame: Frame | None) -> None:
        for name in NAMES:
            if frame is None or name == node.name:
                continue
            if self.is_linked(node, self.nodes[name]) or self.random.random() < 0.2:  # or it comes late
                self.post(name, frame, node.designation)

    def post(self, receiver: str, frame: Frame, designation: Designation) -> None:
        if len(self.mail) >= MAIL_MAX:
            del self.mail[self.random.randrange(MAIL_MAX)]  # lost
        self.mail.append((receiver, frame, designation))

    def arrive(self) -> None:
        """Let a frame arrive, in any order; now and then it will once more."""
        if self.mail:
            index = self.random.randrange(len(self.mail))
            receiver, frame, designation = self.mail[index] if self.random.random() < 0.3 else self.mail.pop(index)
            self.learn(self.nodes[receiver], designation)
            self.take(self.nodes[receiver], frame)

    def take(self, node: Node, frame: Frame) -> Obstacle:
        if frame.issuer == node.issuer:
            return Obstacle.NONE  # one's own log comes in from nobody
        obstacle = self.apply(node, FrameBatch(frame)).obstacle
        self.obstacles += bool(obstacle)
        return obstacle

    def pull(self, node: Node, other: Node, issuer: Issuer, term: int) -> tuple[list[Frame], bool]:
        with node.store.read() as txn:
            after = txn.vector.reach(term, issuer)
        with other.store.read() as txn:
            *frames, end = self.handling.serve(txn, Pull(term, issuer, after, 1_000))
        assert isinstance(end, PullEnd)
        return [frame for frame in frames if isinstance(frame, Frame)], end.trimmed

    def lacking(self, node: Node, other: Node) -> list[Version]:
        with node.store.read() as txn:
            has = txn.vector
        with other.store.read() as txn:
            return [top for top in txn.vector.tops() if not has.covers(top) and version_issuer(top) != node.issuer]

    def ask(self, node: Node, other: Node) -> None:
        """Pull something that is lacking; the answer is on its way."""
        lacking = self.lacking(node, other)
        if lacking:
            top = self.random.choice(lacking)
            frames, _ = self.pull(node, other, version_issuer(top), version_term(top))
            for frame in frames:
                self.post(node.name, frame, other.designation)

    # --- walks

    def step_of_walk(self, node: Node, other: Node) -> None:
        """Begin a walk, or let a part of it be served, or arrive."""
        walk = node.walk
        if walk is None:
            self.walks += 1
            walk = node.walk = Walk(other.name, self.walks)
        if walk.part is None:
            self.learn(node, self.nodes[walk.peer].designation)
            with self.nodes[walk.peer].store.read() as txn:
                (part,) = self.handling.serve(txn, WalkRequest(walk.number, walk.after))
            assert isinstance(part, WalkPart)
            walk.part = part
            walk.first = walk.first or part.vector
            return
        part, walk.part = walk.part, None
        walk.after = part.upto
        if part.upto is None:
            node.walk = None
        self.apply(node, WalkBatch(part, walk.first if part.upto is None else None))

    # --- the ledger

    def look(self, node: Node) -> None:
        """Compare a store with the ledger: what it covers it knows, and nothing comes back."""
        with node.store.read() as txn:
            vector, has_above = txn.vector, not txn.above.is_empty
            node.has_above = has_above
            rows = {key: txn.row(SYSTEM_NAMESPACE, key) for key in self.ledger}
            state_hash = txn.state_hash
        for key, row in rows.items():
            if row is not None:
                known = [one.version for one in self.ledger[key]]
                claim(row_version(row) in known, f"{node.name} invents {key!r}")
            covered = [one for one in self.ledger[key] if one.is_promised and vector.covers(one.version)]
            if not covered:
                continue
            last = max(covered, key=lambda one: one.version)
            if row is None:
                # A walk under way has removed what its peer has seen deleted, before the vector says so.
                is_right = key.startswith(system_rows.ISSUER_PREFIX) or self._may_be_gone(key, last, vector, has_above)
            else:
                is_right = row_version(row) >= last.version
            stands = "nothing" if row is None else row_version(row).hex()
            claim(is_right, f"{node.name} covers {last.version.hex()} of {key!r} and has {stands}")
        claim(state_hash == recounted_hash(node.store), f"{node.name} counts H wrong")
        for other in self.nodes.values():
            with other.store.read() as txn:
                is_equal = txn.vector == vector and txn.above.is_empty and not has_above
                claim(not is_equal or txn.state_hash == state_hash, f"H differs at {node.name} and {other.name}")

    def _may_be_gone(self, key: bytes, last: Written, vector: VersionVector, has_above: bool) -> bool:
        later = [one for one in self.ledger[key] if one.version >= last.version]
        return any(one.may_be_gone(self.now_ms) for one in later if has_above or vector.covers(one.version))

    # --- mending

    def heal(self) -> None:
        """Let everybody hear everybody, repair, purge and trim until nothing changes, and look whether all is as it must be."""
        self.mail.clear()
        self.cut = ()
        for node in self.nodes.values():
            node.walk = None
        for number in range(ROUNDS_MAX):
            self.mono_ms += 60_000
            for node in self.nodes.values():
                for other in self.nodes.values():
                    if other is not node:
                        self.hear(node, other)
                        self.catch_up(node, other)
            leaders = [node for node in self.nodes.values() if node.designation.node == node_id(node.name)]
            for node in leaders:
                if node.issuer is None:
                    self.lead(node)
                elif number > OPERATOR_COMES_AFTER:
                    self.close_what_nobody_knows(node)
            for node in self.nodes.values():
                self.tend(node)
            if self.is_at_rest():
                break
        else:
            raise Broken("the stores do not come to rest")
        for key in KEYS:
            promised = [one.version for one in self.ledger[key] if one.is_promised]
            least = max(promised, default=VERSION_ZERO)
            later = [one for one in self.ledger[key] if one.version >= least]
            for node in self.nodes.values():
                with node.store.read() as txn:
                    row = txn.row(SYSTEM_NAMESPACE, key)
                if row is None:
                    is_gone = not promised or any(one.may_be_gone(self.now_ms) for one in later)
                    claim(is_gone, f"{key!r} is lost at {node.name}")
                else:
                    claim(row_version(row) >= least, f"{key!r} is back at {node.name}")

    def close_what_nobody_knows(self, node: Node) -> None:
        """Vouch, as an operator, for issuers whose rows were lost below a fence: one made their node lead that was no candidate."""
        writer = self.writer(node)
        closer = self.closer(node, writer)
        for top in closer.board.vector.tops():
            issuer = version_issuer(top)
            if issuer not in closer.board.issuers and issuer != node.issuer:
                closer.close(CloseIssuer(1, issuer))
        rows = cast(Writer, writer).rows
        if rows:
            self.write(node, tuple(rows))

    def catch_up(self, node: Node, other: Node, *, may_walk: bool = True) -> None:
        """Pull all that is lacking; where that does not do, walk."""
        is_stuck = False
        for top in self.lacking(node, other):
            frames, is_trimmed = self.pull(node, other, version_issuer(top), version_term(top))
            obstacles = [self.take(node, frame) for frame in frames]
            is_stuck = is_stuck or is_trimmed or Obstacle.FOREIGN in obstacles or Obstacle.BEHIND in obstacles
        while is_stuck and may_walk:
            self.step_of_walk(node, other)
            is_stuck = node.walk is not None

    def is_at_rest(self) -> bool:
        """Tell whether all are equal and nothing is left but what lives: the leader's rows and those of the ledger."""
        facts = []
        for node in self.nodes.values():
            with node.store.read() as txn:
                rows = all_rows(node.store)
                is_clean = not any(is_tombstone(row) or row_expires_at(row) for _, _, row in rows)
                issuers = [key for _, key, _ in rows if key.startswith(system_rows.ISSUER_PREFIX)]
                counts = (txn.tombstones, sum(1 for _ in txn.expiring()))
                if not is_clean or counts != (0, 0) or len(issuers) > 1 or not txn.above.is_empty:
                    return False
                facts.append((txn.vector, txn.state_hash))
        return len(set(facts)) == 1


@dataclass
class _Leading:
    """Stands for a node's part in leading."""

    writer: LeaderWriter | None
