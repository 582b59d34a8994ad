"""The gateway: listener, connections, and the clock that watches over them.

Decides: how many connections there are, which have waited too long, and how the process drains.
Keeps true: I9, `connections_max`; a connection over it is told 503 and closed. Draining ends within `DRAIN_SECONDS`:
    listeners first, then idle connections, then each connection with its last answer. Large values that wait for others are refused then:
    cut off, their clients could not tell that nothing was written.
In and out: `run` serves until it is cancelled; `drain` makes it stop in good order.

A task a connection, one that accepts, one that ticks. Connections whose writes have ended are resumed by the task that read
the outcomes: a group commit ends many at once, and each connection then gets one send.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from time import monotonic
from typing import Final

import structlog
import trio

from kvp2p.config import HttpSettings
from kvp2p.gateway.access import Access
from kvp2p.gateway.answers import error_answer, refresh_heads, with_close
from kvp2p.gateway.bodies import Bodies
from kvp2p.gateway.clock import LeaderClock
from kvp2p.gateway.connection import Connection
from kvp2p.gateway.counters import Counters
from kvp2p.gateway.reads import Reads
from kvp2p.gateway.routes import Routes
from kvp2p.gateway.streams import Streams
from kvp2p.gateway.turns import Turns
from kvp2p.gateway.views import Views
from kvp2p.gateway.writes import Writes
from kvp2p.limits import HTTP_ACCEPTS_MAX, HTTP_LARGE_WRITE_BYTES_MAX, HTTP_STREAMS_MAX
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.reader import Replica

_LOG = structlog.get_logger("kvp2p.gateway")

TICK_SECONDS: Final = 1.0  # dates have seconds; counters are reported as often
DRAIN_SECONDS: Final = 3.5  # the supervisor kills after 5 s
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Gateway:
    """One gateway. Make it inside the nursery it runs in."""

    def __init__(
        self,
        nursery: trio.Nursery,
        listeners: Sequence[socket.socket],
        replica: Replica,
        node: NodePort,
        settings: HttpSettings,
        api_url: str,
        ready_lag_ms_max: int | None = None,
        streams_max: int = HTTP_STREAMS_MAX,
        large_write_bytes_max: int = HTTP_LARGE_WRITE_BYTES_MAX,
    ) -> None:
        self.nursery = nursery
        self.settings = settings
        self.node = node
        self.counters = Counters()
        self.bodies = Bodies()
        self.turns = Turns(large_write_bytes_max)
        self.access = Access()
        self.views = Views(replica, self.access)
        replica.hide_by(LeaderClock(node, replica.kept_now).now)
        self.reads = Reads(self.views, self.access, Streams(streams_max))
        self.writes = Writes(self.views, self.access)
        self.routes = Routes(
            self.reads,
            self.writes,
            self.views,
            node,
            nursery,
            self.resume_answered,
            api_url,
            settings.min_version_wait_ms,
            ready_lag_ms_max,
        )
        node.on_ended = self.resume_answered
        self.is_draining = False
        self._listeners = list(listeners)
        self._connections: set[Connection] = set()
        self._answered: list[Connection] = []
        self._all_closed = trio.Event()

    def start(self) -> None:
        """Begin to serve."""
        for listener in self._listeners:
            self.nursery.start_soon(self._accept, listener)
        self.nursery.start_soon(self._keep_time)

    async def drain(self) -> None:
        """Take no more connections, end those that are there, wait until they have ended or `DRAIN_SECONDS` are over."""
        self.is_draining = True
        for listener in self._listeners:
            # Whoever connected before this moment is served.
            self._accept_waiting(listener)
            trio.lowlevel.notify_closing(listener)
            listener.close()
        try:
            for connection in list(self._connections):
                connection.drain()
        finally:
            self.views.release()
        with trio.move_on_after(DRAIN_SECONDS):
            while self._connections:
                self._all_closed = trio.Event()
                await self._all_closed.wait()
        _LOG.info("drained", connections_cut=len(self._connections))
        self.node.report(self.counters.samples())

    def note_answered(self, connection: Connection) -> None:
        """Keep a connection for `resume_answered`: a request of it has got its answer."""
        self._answered.append(connection)

    def resume_answered(self) -> None:
        """Let the connections go on that have got answers. Whoever ends requests calls it when there are no more to end."""
        if not self._answered:
            return
        connections, self._answered = self._answered, []
        try:
            for connection in dict.fromkeys(connections):
                connection.resume()
        finally:
            self.views.release()

    def resume_soon(self, connection: Connection) -> None:
        """Let a connection go on at the next turn: for whoever has no turn of its own that ends with `resume_answered`."""
        self.note_answered(connection)
        self.nursery.start_soon(self._resume)

    # --- tasks

    async def _resume(self) -> None:
        await trio.lowlevel.checkpoint()
        self.resume_answered()

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    await trio.lowlevel.wait_readable(listener)
                    self._accept_waiting(listener)
                except trio.ClosedResourceError:
                    return
                except OSError as error:
                    if error.errno not in _OUT_OF_DESCRIPTORS:
                        raise
                    _LOG.warning("accept_failed", error=str(error))
                    await trio.sleep(0.1)

    def _accept_waiting(self, listener: socket.socket) -> None:
        for _ in range(HTTP_ACCEPTS_MAX):
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            accepted.setblocking(False)
            if len(self._connections) >= self.settings.connections_max:
                self._refuse(accepted)
                continue
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.counters.connections_accepted += 1
            connection = Connection(self, accepted)
            self._connections.add(connection)
            self.counters.connections_open = len(self._connections)
            self.nursery.start_soon(self._serve, connection)

    def _refuse(self, accepted: socket.socket) -> None:
        self.counters.connections_refused += 1
        limit = self.settings.connections_max
        answer = error_answer("too_many_connections", f"this gateway has {limit} connections, its limit", limit)
        try:
            accepted.send(with_close(answer))
            accepted.shutdown(socket.SHUT_WR)
        except OSError:
            _LOG.debug("refused_connection_gone")
        accepted.close()

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
            self.counters.connections_open = len(self._connections)
            if not self._connections:
                self._all_closed.set()

    async def _keep_time(self) -> None:
        """Expire connections, and tick. One task: an idle gateway wakes once a second."""
        settings = self.settings
        shortest = min(settings.head_timeout_seconds, settings.body_timeout_seconds, settings.idle_timeout_seconds)
        interval = min(TICK_SECONDS, shortest / 4)
        tick_at = monotonic()
        while True:
            now = monotonic()
            try:
                for connection in [one for one in self._connections if one.deadline <= now]:
                    connection.expire()
            finally:
                self.views.release()
            if now >= tick_at:
                tick_at = now + TICK_SECONDS - interval / 2  # sleep may end a little early or late
                self._tick()
            await trio.sleep(interval)

    def _tick(self) -> None:
        refresh_heads()
        self.access.forget_expired()
        self.node.report(self.counters.samples())
        # A file that was replaced under us would be read for ever: end, and be started again.
        self.views.replica.check()
