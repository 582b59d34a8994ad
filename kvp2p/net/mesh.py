"""The mesh of one node: it listens, dials as it is told, keeps one link a pair and hands messages to its host.

Decides: which connections become links, and when a peer is up or down.
Keeps true: I9 (connections that have not proved anything, links, targets, time for a handshake); for each peer `on_link_up` and `on_link_down` strictly
alternate and every `on_messages` falls in between; an error of a peer ends its own link, never the listener. An error of the host's own handler ends the mesh and with
it the node, which restarts from its store (crash-only).
In and out: a `MeshHost` is called; `connect`, `stop_dialling`, `disconnect` and the links themselves are used by the host, from the same trio run.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, Protocol

import structlog
import trio

from kvp2p.core.messages import Message
from kvp2p.errors import HandshakeRefused, LinkClosed, RemoteProtocolError
from kvp2p.ids import ClusterId, NodeId
from kvp2p.limits import PEERS_MAX, UNPROVEN_LINKS_MAX
from kvp2p.net.dialling import Backoff, Target, Targets, parse_mesh_url
from kvp2p.net.handshake import CHECKS, INSTANCE_BYTES, NONCE_BYTES, Handshake, Identity, Peer, Phase, Refusal, refuse
from kvp2p.net.link import Encoder, Link
from kvp2p.net.notices import Notices
from kvp2p.net.registry import Registry, Session
from kvp2p.net.settings import MeshSettings
from kvp2p.net.traffic import MeshTraffic
from kvp2p.net.transport import CODE_NORMAL, Transport, upgrade_client, upgrade_server

# How long the end that decides holds a peer's dial back for its own that is under way; guess: a handshake takes two round trips.
OWN_DIAL_GRACE_SECONDS: Final = 1.0
REFUSAL_SECONDS: Final = 0.25  # for the word that says why; guess
_LOST: Final = "connection_lost"
# Ordinary ends of a dial, of no interest to an operator.
_QUIET: Final = {Refusal.ALREADY_LINKED, Refusal.SELF}

_log = structlog.get_logger("kvp2p.mesh")


class MeshHost(Protocol):
    """What the mesh tells its host. All three are awaited: while one waits, nothing more of that peer is handed over."""

    async def on_link_up(self, peer: NodeId, link: Link) -> None:
        """Take note of a link; messages follow."""

    async def on_link_down(self, peer: NodeId, reason: str) -> None:
        """Take note that a link has ended; nothing of it follows."""

    async def on_messages(self, peer: NodeId, messages: Sequence[Message]) -> None:
        """Take messages. Cancelled when the link ends; an error that is raised ends the mesh."""


class Mesh:
    """See the head of this module. `port` is the one that is listened on, once `run` has started."""

    def __init__(
        self,
        *,
        cluster: ClusterId,
        node: NodeId,
        key: bytes,
        host: MeshHost,
        settings: MeshSettings | None = None,
        random: Random | None = None,
    ) -> None:
        self.port = 0
        self.refused_dial = (
            ""  # why the last dial was refused, if somebody has to mend it; empty again with the next link
        )
        self._identity = Identity(cluster, node, secrets.token_bytes(INSTANCE_BYTES), key)
        self._host = host
        self._settings = settings or MeshSettings()
        self._random = random or Random()
        self._registry = Registry(self._settings.link_timeout_ms / 1_000)
        self._targets = Targets()
        self._dialling: dict[NodeId, trio.Event] = {}  # own handshakes under way, from the moment their peer is known
        self._unproven = 0
        self._encoder = Encoder()
        self._notices = Notices()
        self.traffic = MeshTraffic()
        self._nursery: trio.Nursery | None = None

    # --- for the host

    async def run(
        self, address: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen and dial until cancelled; reports the port once it listens (of port 0, the one that was given).

        Raises OSError when the port cannot be had. A mesh runs once.
        """
        assert self._nursery is None, "a mesh runs once"
        listeners = await trio.open_tcp_listeners(port, host=address)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.port = listeners[0].socket.getsockname()[1]
            for target in self._targets.all():
                nursery.start_soon(self._dial, target)
            serve = partial(trio.serve_listeners, self._answer, listeners, handler_nursery=nursery)
            await nursery.start(serve)
            _log.info("mesh_listening", address=address, port=self.port)
            task_status.started(self.port)

    def connect(self, node: NodeId | None, url: str) -> None:
        """Dial a URL whenever there is no link to `node`; None: a seed, whose owner is found out. Given again, a new URL replaces the old one.

        A URL that is none, this node's own id, or more than MEMBERS_MAX targets are ignored.
        """
        if node == self._identity.node:
            return
        if parse_mesh_url(url) is None:
            self._notices.tell("mesh_url_refused", "no_mesh_url", url=url[:200])
            return
        target = Target(node, url, Backoff(self._settings, self._random))
        if self._targets.add(target) and self._nursery is not None:
            self._nursery.start_soon(self._dial, target)

    def stop_dialling(self, node: NodeId) -> None:
        """Forget a target; a link that is up stays."""
        target = self._targets.remove(node)
        if target is not None:
            target.scope.cancel()

    def disconnect(self, peer: NodeId, reason: str) -> None:
        """End the link to a peer, if there is one; `on_link_down` follows. A target is dialled again: stop that first."""
        session = self._registry.get(peer)
        if session is not None:
            session.link.close(reason)

    def link(self, peer: NodeId) -> Link | None:
        """Return the link to a peer while it is up."""
        session = self._registry.get(peer)
        return session.link if session is not None and session.is_up else None

    def links(self) -> dict[NodeId, Link]:
        """Return the links that are up."""
        return {session.peer.node: session.link for session in self._registry.all() if session.is_up}

    def try_send(self, peer: NodeId, message: Message) -> bool:
        """Queue a message for a peer; False when there is no link or its lane is full."""
        link = self.link(peer)
        return link is not None and link.try_send(message)

    # --- connections

    async def _answer(self, stream: trio.SocketStream) -> None:
        """Serve a connection that came in."""
        if self._unproven >= UNPROVEN_LINKS_MAX:
            self._notices.tell("handshake_refused", "too_many_unproven", remote=_remote_of(stream))
            return
        self._unproven += 1
        async with trio.open_nursery() as nursery:
            try:
                opening = await self._open(partial(upgrade_server, nursery, stream), False, _remote_of(stream))
            finally:
                self._unproven -= 1
            await self._hold(opening)
            nursery.cancel_scope.cancel()

    async def _dial(self, target: Target) -> None:
        """Dial a target whenever it is not linked, until it is forgotten."""
        assert self._nursery is not None
        with target.scope:
            while True:
                if target.node is not None:
                    await self._registry.until_unlinked(target.node)
                opening: _Opening = await self._nursery.start(self._dial_once, target)
                if target.node is None and opening.reason == Refusal.SELF:
                    self._targets.remove(target.url)
                    return
                if target.node is None and opening.node is not None and not self._targets.adopt(target, opening.node):
                    return
                if target.node is not None:
                    age = await self._registry.until_unlinked(target.node)
                    if age > self._settings.link_settled_ms / 1_000:
                        target.backoff.reset()
                await trio.sleep(target.backoff.next_seconds())

    async def _dial_once(self, target: Target, *, task_status: trio.TaskStatus[_Opening]) -> None:
        """Make one attempt, report how it ended, and serve the link if there is one: that outlives the target."""
        handshake_over = trio.Event()
        if target.node is not None:
            self._dialling[target.node] = handshake_over
        async with trio.open_nursery() as nursery:
            try:
                connect = partial(self._connect, nursery, target)
                opening = await self._open(connect, True, target.url, handshake_over)
            finally:
                handshake_over.set()
                for node in [node for node, event in self._dialling.items() if event is handshake_over]:
                    del self._dialling[node]
            task_status.started(opening)
            await self._hold(opening)
            nursery.cancel_scope.cancel()

    async def _connect(self, nursery: trio.Nursery, target: Target) -> Transport:
        node = target.node or NodeId(b"")
        if self._registry.is_full_for(node):
            raise _refused(Refusal.TOO_MANY_LINKS, Peer(node, b""))
        parsed = parse_mesh_url(target.url)
        assert parsed is not None, "`connect` lets no other URL in"
        try:
            stream = await trio.open_tcp_stream(*parsed, local_address=self._settings.dial_from)
        except (OSError, UnicodeError) as error:
            # The host name may be a peer's, so whatever the resolver says of it is no fault of ours.
            raise LinkClosed(f"cannot be reached: {error}") from error
        host, port = parsed
        return await upgrade_client(nursery, stream, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    async def _open(
        self,
        connect: Callable[[], Awaitable[Transport]],
        is_dialled: bool,
        remote: str,
        handshake_over: trio.Event | None = None,
    ) -> _Opening:
        """Turn a connection into a session, or end it and say why. Takes at most the time of a handshake."""
        handshake = Handshake(self._identity, is_dialled, secrets.token_bytes(NONCE_BYTES))
        transport: Transport | None = None
        try:
            with trio.fail_after(self._settings.handshake_timeout_ms / 1_000):
                transport = await connect()
                return await self._shake_hands(handshake, transport, is_dialled, handshake_over)
        except trio.TooSlowError:
            reason, told = "timeout", "the handshake took too long"
        except HandshakeRefused as error:
            reason, told = error.reason, str(error)
            if transport is not None and not error.by_peer:
                await _tell_refusal(transport, reason)
        except RemoteProtocolError as error:
            reason, told = str(Refusal.MALFORMED), str(error)
        except LinkClosed as error:
            reason, told = _LOST, str(error)
        finally:
            if transport is not None and handshake.phase is not Phase.OPEN:
                await transport.close(CODE_NORMAL, "no link")
        if reason in _QUIET or (reason == _LOST and not is_dialled):
            _log.debug("handshake_ended", reason=reason, remote=remote, told=told)
        else:
            fields = {"remote": remote, "told": told}
            if reason in CHECKS:
                fields["check"] = CHECKS[reason]
                if is_dialled:  # whoever merely calls here says nothing about this node
                    self.refused_dial = CHECKS[reason]
            self._notices.tell("dial_failed" if reason == _LOST else "handshake_refused", reason, **fields)
        # Of all refusals only this one says something about the peer that is worth keeping, and it costs nothing if it is a lie.
        linked_with = handshake.peer if reason == Refusal.ALREADY_LINKED else None
        return _Opening(None, None if linked_with is None else linked_with.node, reason)

    async def _shake_hands(
        self, handshake: Handshake, transport: Transport, is_dialled: bool, handshake_over: trio.Event | None
    ) -> _Opening:
        hello = handshake.start()
        if hello is not None:
            await transport.send(hello)
        while handshake.phase is not Phase.PROVEN:
            answer = handshake.receive(await transport.receive())
            if handshake.phase is Phase.PROOF and handshake.peer is not None:
                self._look_at_hello(handshake.peer, is_dialled)
                if handshake_over is not None:
                    self._dialling[handshake.peer.node] = handshake_over
            if answer is not None:
                await transport.send(answer)
        peer = handshake.peer
        assert peer is not None, "a proven peer has said hello"
        acceptance: bytes | None = None
        if handshake.decides:
            own_dial = None if is_dialled else self._dialling.get(peer.node)
            if own_dial is not None:
                with trio.move_on_after(OWN_DIAL_GRACE_SECONDS):
                    await own_dial.wait()
            objection = self._registry.objection(peer, is_dialled)
            if objection is not None:
                raise _refused(objection, peer)
            acceptance = handshake.accept()
        else:
            handshake.receive(await transport.receive())
        # Nothing waits between the judgement and this line. Whoever gets the session runs its link, and so closes the connection.
        link = Link(peer.node, transport, self._settings, self._encoder, acceptance)
        return _Opening(self._registry.add(peer, link, is_dialled), peer.node, "")

    def _look_at_hello(self, peer: Peer, is_dialled: bool) -> None:
        """Give up early. What a hello says is not proved yet, so it may only be used against the connection it came on."""
        if self._registry.is_full_for(peer.node):
            raise _refused(Refusal.TOO_MANY_LINKS, peer)
        standing = self._registry.get(peer.node)
        if is_dialled and standing is not None and standing.link.reason is None and standing.peer == peer:
            raise _refused(Refusal.ALREADY_LINKED, peer)

    async def _hold(self, opening: _Opening) -> None:
        """Serve a session to its end: tell the host of it once the session before it is told down."""
        session = opening.session
        if session is None:
            return
        self.traffic.begin(session.link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.link.run)
                if session.before is not None:
                    await session.before.finished.wait()
                if session.link.reason is None:
                    await self._serve(session)
                # Here, not when the connection is closed as well: a newer session waits for it.
                session.finished.set()
                self._registry.remove(session)
        finally:
            session.finished.set()
            self._registry.remove(session)
            self.traffic.end(session.link)

    async def _serve(self, session: Session) -> None:
        peer, link = session.peer.node, session.link
        session.is_up = True
        self.refused_dial = ""
        _log.info("link_up", peer=peer.hex(), dialled=session.is_dialled)
        # Neither of the two calls is cut off by the end of the link: the host could not tell whether it had been told.
        await self._host.on_link_up(peer, link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hand_over, session)
            await link.ended.wait()
            nursery.cancel_scope.cancel()
        session.is_up = False
        reason = link.reason or ""
        _log.info("link_down", peer=peer.hex(), reason=reason)
        await self._host.on_link_down(peer, reason)

    async def _hand_over(self, session: Session) -> None:
        while True:
            try:
                messages = await session.link.receive()
            except LinkClosed:
                return
            await self._host.on_messages(session.peer.node, messages)


@dataclass(frozen=True, slots=True)
class _Opening:
    """How an attempt to open a link ended: a session or a reason; `node` if there is a link to it now."""

    session: Session | None
    node: NodeId | None
    reason: str


def _refused(objection: Refusal, peer: Peer) -> HandshakeRefused:
    told = {
        Refusal.TOO_MANY_LINKS: f"this node has {PEERS_MAX} links already, as many as it may have",
        Refusal.ALREADY_LINKED: f"there is a link to {peer.node.hex()} already",
    }
    return HandshakeRefused(objection, told[objection])


async def _tell_refusal(transport: Transport, reason: str) -> None:
    with trio.move_on_after(REFUSAL_SECONDS), suppress(LinkClosed):
        await transport.send(refuse(reason))


def _remote_of(stream: trio.SocketStream) -> str:
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return "gone"
    return f"{host}:{port}"
