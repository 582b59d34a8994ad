"""A link: an open, authenticated connection to a peer, with three lanes, credit and a heartbeat.

Decides: when a message goes out, when a peer counts as dead, and when a link ends.
Keeps true: I9, nothing that waits is unbounded and nothing waits for a slow peer; a control message never waits behind more than the one payload
that is being written (at most MESH_MESSAGE_BYTES_MAX).
In and out: `Message` values both ways, in order within a lane; any of them may be missing at the end. Nothing comes out after the link has ended, not even what
had arrived before: a forwarded write must not surface when its sender has been told *unknown* [I10].

`run` is three tasks. The *reader* always drains: three unread messages are enough to make trio-websocket stop answering, so what comes is put into bounded
lanes, by the pipe's own task, and never waits for the consumer. The *writer* alone sends: it takes whatever waits in the first lane that may send, as one payload. The *heartbeat* sends a
ping each interval and ends the link when the peer has been silent for too long. Signs of life are whole messages from the peer, of any kind, and as much
of one that is still on its way as makes a line that is slow, and not a peer that drips (LINK_PROGRESS_BYTES_MIN).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from kvp2p.core.messages import Forward, Lane, Message
from kvp2p.errors import LinkClosed, RemoteProtocolError
from kvp2p.ids import NodeId
from kvp2p.limits import LINK_PROGRESS_BYTES_MIN, MESH_MESSAGE_BYTES_MAX
from kvp2p.net.clock import PeerClock, Reading, read_clocks
from kvp2p.net.lanes import ReceiveLanes, SendLanes, lane_of
from kvp2p.net.settings import MeshSettings
from kvp2p.net.transport import CLOSE_GRACE_SECONDS, CODE_NORMAL, CODE_PROTOCOL_ERROR
from kvp2p.wire.link_messages import LINK_MESSAGES, Credit, LinkMessage, Ping, Pong
from kvp2p.wire.mesh import encode_message, unpack_link

# `send` keeps the lane this full, no fuller, so that a long answer to a pull leaves room for what `try_send` adds.
SEND_WAITS_ABOVE_BYTES: Final = 2 * MESH_MESSAGE_BYTES_MAX
_PINGS_REMEMBERED: Final = 16


class Pipe(Protocol):
    """What a link needs of a connection; `net/transport.py` is one."""

    @property
    def received_bytes(self) -> int:
        """All that has come so far, parts of payloads too."""

    async def send(self, payload: bytes) -> None:
        """Send one payload, or raise LinkClosed."""

    async def receive_into(self, take: Callable[[bytes], None]) -> None:
        """Hand each payload to `take` until the connection ends: raise LinkClosed, RemoteProtocolError, or what `take` raised."""

    async def close(self, code: int = CODE_NORMAL, reason: str = "") -> None:
        """End the connection, soon and in any case."""


class Encoder:
    """Encodes messages, and remembers the last: the same frame goes to several peers, one after the other."""

    __slots__ = ("_element", "_message")

    def __init__(self) -> None:
        self._message: Message | None = None
        self._element = b""

    def encode(self, message: Message) -> bytes:
        """Return the element of a message; raises LocalProtocolError when no peer would take it."""
        if message is not self._message:
            self._element = encode_message(message)
            self._message = message
        return self._element


@dataclass(slots=True)
class Traffic:
    """Counts of the payloads that count for one lane of one link, since it opened. Bytes are without websocket heads."""

    sent_messages: int = 0
    sent_bytes: int = 0
    received_messages: int = 0
    received_bytes: int = 0
    dropped_messages: int = 0  # refused by `try_send` because the lane was full


class Link:
    """A link to one peer. `traffic` and `rtt_ms` are for reading; `ended` is set when it is over, and `reason` says why."""

    def __init__(
        self,
        peer: NodeId,
        pipe: Pipe,
        settings: MeshSettings,
        encoder: Encoder | None = None,
        last_word: bytes | None = None,
    ) -> None:
        self.peer = peer
        self.ended = trio.Event()
        self.reason: str | None = None
        self.traffic = {lane: Traffic() for lane in Lane}
        self.rtt_ms: float | None = None
        self._pipe = pipe
        self._settings = settings
        self._encoder = encoder or Encoder()
        self._last_word = last_word  # of the handshake: goes out before everything else
        self._close_code = CODE_NORMAL
        self._outgoing = SendLanes()
        self._incoming = ReceiveLanes()
        self._work = trio.lowlevel.ParkingLot()  # the writer, until something may be sent
        self._room = trio.lowlevel.ParkingLot()  # `send`, until a lane has room
        self._arrival = trio.lowlevel.ParkingLot()  # the consumer, until a message is there
        self._written = trio.Event()  # the writer has ended
        self._heard_at = trio.current_time()
        self._heard_bytes = 0  # that had come by then
        self._clock = PeerClock()
        self._pings: dict[int, tuple[float, Reading]] = {}  # when they were made, by trio's clock and by ours

    async def run(self) -> None:
        """Serve the link until it ends, then close the connection. Errors of the peer end the link and are not raised."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                nursery.start_soon(self._beat)
                await self.ended.wait()
                # A payload that is cut off spoils the closing handshake, and with it the reason that the peer is told.
                self._work.unpark_all()
                with trio.move_on_after(CLOSE_GRACE_SECONDS):
                    await self._written.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.close("this node is stopping")
            await self._pipe.close(self._close_code, self.reason or "")

    def close(self, reason: str) -> None:
        """End the link; the first reason stays. What waits in its lanes is dropped."""
        if self.reason is None:
            self.reason = reason
            self.ended.set()
            self._room.unpark_all()
            self._arrival.unpark_all()

    def try_send(self, message: Message) -> bool:
        """Queue a message if its lane has room, and say whether it had.

        A Forward that is still in its lane at its deadline is dropped unsent. False also when the link has ended. A full control lane ends the link: digests and outcomes must not be lost silently.
        """
        element = self._encoder.encode(message)
        lane = lane_of(message)
        if self.reason is not None:
            return False
        if not self._outgoing.push(lane, element, message.deadline_ns if isinstance(message, Forward) else None):
            self.traffic[lane].dropped_messages += 1
            if lane is Lane.CONTROL:
                self.close("the peer takes control messages too slowly")
            return False
        self._work.unpark()
        return True

    async def send(self, message: Message) -> None:
        """Queue a message, after waiting until its lane is short. Raises LinkClosed when the link ends before that."""
        element = self._encoder.encode(message)
        lane = lane_of(message)
        await trio.lowlevel.checkpoint()
        while self.reason is None and self._outgoing.waiting_bytes(lane) > SEND_WAITS_ABOVE_BYTES:
            await self._room.park()
        if self.reason is not None:
            raise LinkClosed(self.reason)
        is_queued = self._outgoing.push(lane, element)
        assert is_queued, "a lane that is short has room for any message"
        self._work.unpark()

    async def receive(self) -> list[Message]:
        """Wait for messages and return all that are there, control first. Raises LinkClosed when the link has ended. For one consumer.

        They count as taken in when the consumer asks for the next ones. Waits only when there are none: one task switch for however many.
        Nothing comes out before the peer's clock is known: the deadlines of Forwards are told by ours [I10].
        """
        while self.reason is None:
            messages = self._incoming.take() if self._clock.is_known else []
            for credit in self._incoming.credit_due():
                self._push_control(credit)
            if messages:
                return [self._by_our_clock(one) if isinstance(one, Forward) else one for one in messages]
            await self._arrival.park()
        raise LinkClosed(self.reason)

    def _by_our_clock(self, forward: Forward) -> Forward:
        return Forward(forward.request, self._clock.to_ours(forward.deadline_ns), forward.operations)

    async def _read(self) -> None:
        try:
            await self._pipe.receive_into(self._take)
        except RemoteProtocolError as error:
            self._close_code = CODE_PROTOCOL_ERROR
            self.close(f"protocol error: {error}")
        except LinkClosed as error:
            self.close(str(error))

    def _take(self, payload: bytes) -> None:
        self._heard_at = trio.current_time()
        self._heard_bytes = self._pipe.received_bytes
        messages = unpack_link(payload)
        lane = lane_of(messages[-1])
        traffic = self.traffic[lane]
        traffic.received_messages += len(messages)
        traffic.received_bytes += len(payload)
        control: list[Message] = []
        others: list[Message] = []
        for message in messages:
            own_lane = lane_of(message)
            if others if own_lane is Lane.CONTROL else own_lane is not lane:
                raise RemoteProtocolError("a payload mixes lanes")
            if isinstance(message, LINK_MESSAGES):
                self._take_own(message)
            elif own_lane is Lane.CONTROL:
                control.append(message)
            else:
                others.append(message)
        self._incoming.push(Lane.CONTROL, control, len(payload) if lane is Lane.CONTROL else 0)
        self._incoming.push(lane, others, len(payload))
        if self._arrival:
            self._arrival.unpark()

    def _take_own(self, message: LinkMessage) -> None:
        """Take a message about the link itself."""
        match message:
            case Ping(serial):
                self._push_control(Pong(serial, time.monotonic_ns()))
            case Pong(serial, clock_ns):
                self._take_pong(serial, clock_ns)
            case Credit():
                self._outgoing.give_back(message)
                self._work.unpark()

    async def _write(self) -> None:
        try:
            if self._last_word is not None:
                await self._pipe.send(self._last_word)
            while self.reason is None:
                following = self._outgoing.next_payload()
                self._room.unpark_all()  # also when all that was taken was too late to be sent
                if following is None:
                    await self._work.park()
                    continue
                lane, count, payload = following
                await self._pipe.send(payload)
                traffic = self.traffic[lane]
                traffic.sent_messages += count
                traffic.sent_bytes += len(payload)
        except LinkClosed as error:
            self.close(str(error))
        finally:
            self._written.set()

    async def _beat(self) -> None:
        interval = self._settings.ping_interval_ms / 1_000
        timeout = self._settings.link_timeout_ms / 1_000
        serial = 0
        ping_at = -math.inf
        answered_by = trio.current_time() + timeout
        while True:
            if trio.current_time() >= ping_at:
                serial += 1
                self._ping(serial)
                ping_at = trio.current_time() + interval
            wake_at = min(ping_at, self._heard_at + timeout)
            await trio.sleep_until(wake_at)
            now = trio.current_time()
            if now - wake_at > interval:
                # This process stood still (stopped, or starved), so what the peer sent has not been read: it is not the silent one.
                self._heard_at = now
            elif now - self._heard_at >= timeout:
                if self._pipe.received_bytes - self._heard_bytes >= LINK_PROGRESS_BYTES_MIN:
                    self._heard_at, self._heard_bytes = now, self._pipe.received_bytes
                    continue
                self.close(f"nothing was heard of the peer for {timeout:g} s")
                return
            elif now >= answered_by and not self._clock.is_known:
                self.close(f"the peer answered no ping for {timeout:g} s")
                return

    def _ping(self, serial: int) -> None:
        self._pings[serial] = (trio.current_time(), read_clocks())
        # A peer may send data and never answer a ping: the oldest are forgotten.
        self._pings.pop(serial - _PINGS_REMEMBERED, None)
        self._push_control(Ping(serial))

    def _take_pong(self, serial: int, clock_ns: int) -> None:
        ping = self._pings.pop(serial, None)
        if ping is not None:
            sent_at, asked = ping
            self.rtt_ms = (trio.current_time() - sent_at) * 1_000
            self._clock.learn(asked, clock_ns)
            self._arrival.unpark()

    def _push_control(self, message: LinkMessage) -> None:
        if self._outgoing.push(Lane.CONTROL, encode_message(message)):
            self._work.unpark()
        else:
            self.close("the peer takes control messages too slowly")
