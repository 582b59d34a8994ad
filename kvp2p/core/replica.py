"""The replica machine: every part of the core behind one `handle(event, now) -> list[Effect]`.

Decides: which part an event belongs to, when digests go out, and when this replica may be called ready.
Keeps true: what each part keeps (see there); the machine is total over what peers send: nothing a checked message says raises.
In and out: `core/events.py` is the contract. The host calls `handle` from one task, one event at a time.
"""

from __future__ import annotations

from typing import assert_never

from kvp2p.core.anti_entropy import AntiEntropy
from kvp2p.core.batches import BatchResult, NamespaceSweep, Settle
from kvp2p.core.board import MS, Board, Peer, Random
from kvp2p.core.clock import OFFSET_KEPT_MS
from kvp2p.core.doubts import Doubts
from kvp2p.core.events import (
    Await,
    CloseIssuer,
    Effect,
    EndUpload,
    Event,
    PeerDown,
    PeerUp,
    Persisted,
    PersistFailed,
    Promote,
    Received,
    Reply,
    SendFailed,
    Serve,
    StageChunk,
    Start,
    Stop,
    TimerFired,
    Write,
)
from kvp2p.core.holds import Holds, await_version
from kvp2p.core.large_values import TIMERS, LargeValues
from kvp2p.core.leadership import Leadership, Role
from kvp2p.core.messages import (
    ChunkMissing,
    ChunkPart,
    ChunkPull,
    Digest,
    Forward,
    ForwardOutcome,
    Frame,
    Message,
    Pull,
    PullEnd,
    Roster,
    WalkPart,
    WalkRequest,
)
from kvp2p.core.operations import is_large, refused
from kvp2p.core.purging import Purger
from kvp2p.core.readiness import Readiness
from kvp2p.core.roster import Members
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.writing import AskedWrite, Forwarder, LeaderWriter, refuse_malformed, write_bytes
from kvp2p.ids import Issuer, NamespaceId, NodeId, Now
from kvp2p.limits import CHUNK_PART_BYTES, NAMESPACE_SWEEP_ROWS_MAX


class ReplicaMachine:
    """One node's replication, as a pure machine. The first event is `Start`."""

    board: Board
    members: Members
    leadership: Leadership
    doubts: Doubts
    anti_entropy: AntiEntropy
    holds: Holds
    forwarder: Forwarder
    readiness: Readiness
    large_values: LargeValues
    purger: Purger

    def __init__(self, settings: ReplicaSettings, random: Random, chunk_part_bytes: int = CHUNK_PART_BYTES) -> None:
        self._settings = settings
        self._chunk_part_bytes = chunk_part_bytes  # asked for
        self._random = random
        self._changed_ns = 0
        self._clock_offset_ms = 0
        self._sweeping: dict[NamespaceId, bool] = {}

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """Take one event and return what is to be done, in order."""
        if isinstance(event, Start):
            return self._start(event, now)
        self.board.now = now
        match event:
            case Received(peer=peer, message=message):
                self._on_message(peer, message)
            case Persisted(ticket=ticket, result=result):
                self._on_persisted(ticket, result)
            case Write():
                self._on_write(event)
            case StageChunk():
                self.large_values.uploads.stage(event)
            case EndUpload():
                self.large_values.uploads.end(event)
            case TimerFired(token=token):
                self._on_timer(token)
            case Await():
                await_version(self.holds, event)
            case PeerUp(peer=peer):
                self.board.peers[peer] = Peer()
                self.members.greet(peer)
                self.board.send(peer, self._digest())
            case PeerDown(peer=peer):
                self._on_peer_down(peer)
            case PersistFailed(ticket=ticket, reason=reason):
                self.board.on_persist_failed(ticket, reason)
                self.readiness.on_disk_full()
            case SendFailed(message=forward):
                self.forwarder.on_send_failed(forward)
            case Promote():
                self.leadership.promote(event)
            case CloseIssuer():
                self.leadership.close_issuer(event)
            case Stop():
                self.board.is_stopping = True
                self.leadership.stop()
            case _:
                assert_never(event)
        return self.board.take_effects()

    def _start(self, event: Start, now: Now) -> list[Effect]:
        self.board = board = Board(self._settings, self._random, event.store, event.me, now)
        self._clock_offset_ms = event.store.clock_offset_ms
        self.members = Members(board, event.store.members, event.seeds)
        self.leadership = Leadership(board, self.members)
        self.doubts = Doubts(board, self.leadership)
        self.anti_entropy = AntiEntropy(board, self.leadership)
        self.holds = Holds(board)
        self.forwarder = Forwarder(board, self.holds)
        self.readiness = Readiness(board, self.members)
        self.large_values = LargeValues(board, self._chunk_part_bytes)
        self.purger = Purger(board, self.leadership)
        self.members.start()
        self.readiness.start()
        self.purger.start()
        self.leadership.start()
        self.large_values.start(event.store.staged)
        self._sweep(event.store.namespaces_to_sweep)
        self.board.set_timer("digest", self._settings.digest_busy_ms)
        return board.take_effects()

    # --- peers

    def _on_message(self, peer: NodeId, message: Message) -> None:
        state = self.board.peers.get(peer)
        if state is None or state.is_refused:
            return
        match message:
            case Frame():
                if self.doubts.takes(peer, message):
                    self.anti_entropy.on_frame(peer, message)
            case Forward():
                self._on_forward(peer, message)
            case ForwardOutcome():
                self.forwarder.on_outcome(peer, message)
            case Digest():
                self._on_digest(peer, message)
            case Pull() | WalkRequest() | ChunkPull():
                self.board.emit(Serve(peer, message))
            case PullEnd():
                self.anti_entropy.on_pull_end(peer, message)
            case WalkPart():
                if self.doubts.takes(peer, message):
                    self.anti_entropy.on_walk_part(peer, message)
            case ChunkPart():
                self.large_values.pulls.on_part(peer, message)
            case ChunkMissing():
                self.large_values.pulls.on_missing(peer, message)
            case Roster():
                self.members.on_roster(peer, message)
            case _:
                assert_never(message)

    def _on_digest(self, peer: NodeId, digest: Digest) -> None:
        state = self.board.peers[peer]
        is_first = state.digest is None
        state.digest = digest
        state.skew_ms = digest.wall_ms - self.board.now.wall_ms
        if digest.clock_ms and not self.board.leads:
            self.board.clock.hear(digest.clock_ms, self.board.now)
        self.doubts.on_digest(peer, digest)
        was_leading = self.leadership.role is Role.LEADING
        self.leadership.on_digest(peer, digest)
        self.anti_entropy.on_digest(peer, digest, is_first)
        self.readiness.on_digest(peer, digest)
        self.large_values.pulls.pull()
        if was_leading != (self.leadership.role is Role.LEADING):
            self._tell_all()

    def _on_peer_down(self, peer: NodeId) -> None:
        if self.board.peers.pop(peer, None) is None:
            return
        self.forwarder.on_peer_down(peer)
        self.leadership.on_peer_down(peer)
        self.large_values.on_peer_down(peer)
        self.anti_entropy.on_peer_down(peer)

    def _digest(self) -> Digest:
        board = self.board
        return Digest(
            vector=board.vector,
            state_hash=board.state_hash.to_bytes(16, "big"),
            comparable=board.is_comparable,
            floor=board.floor,
            designation=board.designation,
            leads=self.leadership.issuer,
            complete=board.complete,
            wall_ms=board.now.wall_ms,
            clock_ms=board.clock_ms() if board.clock.is_known else 0,
            whole=None if not board.pending.versions else board.whole.vector(),
        )

    def _tell_all(self) -> None:
        digest = self._digest()
        for peer in self.board.peers:
            self.board.send(peer, digest)

    def _keep_clock_offset(self) -> None:
        """Write down by how much the leader's clock is ahead of this machine's, for the next start and for programs that read the file."""
        board = self.board
        offset_ms = board.clock.offset_ms(board.now)
        if board.clock.is_known and abs(offset_ms - self._clock_offset_ms) > OFFSET_KEPT_MS:
            self._clock_offset_ms = offset_ms
            board.persist(Settle(clock_offset_ms=offset_ms))  # when the disk is full, the next change does it

    # --- writes

    def _on_write(self, event: Write) -> None:
        bytes_used = write_bytes(event.operations)
        malformed = refuse_malformed(event.operations, bytes_used)
        if malformed is not None:
            self.board.emit(Reply(event.request, malformed))
        elif self.leadership.writer is not None:
            asked = AskedWrite(None, None, event.request, event.operations, event.deadline_ns, bytes_used)
            self._lead(self.leadership.writer, asked)
        elif self.board.is_leader(self.board.me.node):
            why = f"still {self.leadership.role}{self.leadership.waiting}"
            not_yet = refused("no_leader", f"this node is the leader and is {why}; nothing was applied")
            self.board.emit(Reply(event.request, not_yet))
        else:
            self.forwarder.submit(event, bytes_used)

    def _on_forward(self, peer: NodeId, forward: Forward) -> None:
        bytes_used = write_bytes(forward.operations)
        outcome = refuse_malformed(forward.operations, bytes_used)
        writer = self.leadership.writer
        if outcome is not None:
            self.board.send(peer, ForwardOutcome(forward.request, outcome))
        elif writer is None:
            not_leading = refused("no_leader", f"the node asked is {self.leadership.role}; nothing was applied")
            self.board.send(peer, ForwardOutcome(forward.request, not_leading))
        else:
            link = self.board.peers[peer]
            operations = forward.operations
            self._lead(writer, AskedWrite(peer, link, forward.request, operations, forward.deadline_ns, bytes_used))

    def _lead(self, writer: LeaderWriter, asked: AskedWrite) -> None:
        if is_large(asked.operations):
            self.large_values.writes.submit(writer, asked)
        else:
            writer.submit(asked)

    # --- the store

    def _on_persisted(self, ticket: int, result: BatchResult) -> None:
        board = self.board
        is_moved = result.vector != board.vector
        is_new = result.complete != board.complete
        was_leading = self.leadership.role is Role.LEADING
        board.on_persisted(ticket, result)
        self._sweep(result.namespaces_to_sweep)
        if result.pending is not None:
            self.large_values.pulls.on_pending()
            self.readiness.on_vector()
        if is_moved or result.pending is not None:
            self.holds.on_shown()
        if is_moved or is_new:
            self.leadership.on_vector()
            self.readiness.on_vector()
            self._on_change()
        if is_new or was_leading != (self.leadership.role is Role.LEADING):
            self._tell_all()

    def _on_change(self) -> None:
        was_busy = self.board.now.mono_ns - self._changed_ns < self._settings.busy_ms * MS
        self._changed_ns = self.board.now.mono_ns
        if not was_busy:
            self.board.set_timer("digest", self._settings.digest_busy_ms)

    def _sweep(self, namespaces: tuple[NamespaceId, ...]) -> None:
        for namespace in namespaces:
            if namespace not in self._sweeping:
                self._sweeping[namespace] = True

                def done(_: BatchResult, swept: NamespaceId = namespace) -> None:
                    del self._sweeping[swept]

                def failed(_: str, swept: NamespaceId = namespace) -> None:
                    del self._sweeping[swept]
                    self.board.set_timer("sweep", self._settings.digest_idle_ms, swept)

                self.board.persist(NamespaceSweep(namespace, NAMESPACE_SWEEP_ROWS_MAX), done, failed)

    # --- time

    def _on_timer(self, token: int) -> None:
        named = self.board.take_timer(token)
        if named is None:
            return  # stale
        name, key = named
        if name in TIMERS:
            self.large_values.on_timer(name, key)
            return
        match name:
            case "digest":
                self._tell_all()
                self._keep_clock_offset()
                is_busy = self.board.now.mono_ns - self._changed_ns < self._settings.busy_ms * MS
                self.board.set_timer(
                    "digest", self._settings.digest_busy_ms if is_busy else self._settings.digest_idle_ms
                )
            case "forward":
                self.forwarder.on_timer()
            case "hold":
                self.holds.on_timer()
            case "grace":
                assert isinstance(key, bytes)
                self.anti_entropy.on_grace_over(Issuer(key))
            case "pull":
                assert isinstance(key, bytes)
                self.anti_entropy.on_pull_timeout(Issuer(key))
            case "walk":
                self.anti_entropy.on_walk_timeout()
            case "rest":
                self.anti_entropy.on_rest_over()
            case "hear":
                self.leadership.on_nobody_heard()
                self._tell_all()
            case "roster":
                self.members.store()
            case "purge":
                self.purger.on_timer()
            case "open" | "close" | "settle":
                self.leadership.on_retry(name)
            case "contact":
                self.readiness.on_nobody_heard()
            case "restored":
                self.board.forget_restored()
            case _:
                assert isinstance(key, bytes)
                self._sweep((NamespaceId(key),))

    def check(self) -> None:
        """Assert what must hold between two events; a failure is a bug of ours."""
        board = self.board
        assert board.accepted.covers_vector(board.vector), "accepted covers durable"
        is_leading = self.leadership.role is Role.LEADING
        assert not is_leading or board.is_leader(board.me.node), "only the designated node leads"
        assert is_leading == (self.leadership.writer is not None), "who leads has a writer, and nobody else"
        assert is_leading == board.leads, "whose clock is the cluster's leads, and nobody else"
        assert board.batches_in_flight() or board.accepted == board.vector, "nothing is accepted that is not in flight"
        assert board.me.node not in board.peers, "no node is its own peer"
        assert board.complete or not board.garbage.log_positions, "who has not had everything yet has no log to trim"
        self.anti_entropy.check()
        self.large_values.check()
