"""The queues of a link: what is sent next, and what is handed out next.

Decides: control before data before chunks, how messages of one lane are joined into payloads, and when credit is spent and given back.
Keeps true: I9. Queued bytes of a lane stay under its limit; payload bytes of the data lane (and of the chunk lane, each for itself) that are sent and not yet
taken in by the peer's consumer stay under CREDIT_BYTES_MAX, on both sides of the link: the sender does not send beyond it, and a
receiver closes on one that does.
I10. A forwarded write whose time ran out while it waited here is never sent.
In and out: encoded messages and payloads, nothing that waits; `net/link.py` is the tasks around it.

A payload holds messages of the data or of the chunk lane, or of neither. Small ones go along behind control messages: one websocket message costs far more
than one of ours. It counts whole for the lane of its last message, so its length is what both ends count. One of the chunk lane is shorter (a part of a
chunk), because whatever comes after it waits until it is sent. Credit goes back when the consumer
is done with all that it was handed, an eighth of the window at a time: the rest of the window is then still larger than any payload, so credit never
stalls a consumer that keeps up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kvp2p.core.messages import LANE_OF, Lane, Message
from kvp2p.errors import RemoteProtocolError
from kvp2p.limits import (
    CHUNK_CREDIT_BYTES_MAX,
    CHUNK_PAYLOAD_BYTES_MAX,
    CONTROL_QUEUE_BYTES_MAX,
    CREDIT_STEPS,
    DATA_CREDIT_BYTES_MAX,
    DATA_QUEUE_BYTES_MAX,
    MESH_MESSAGE_BYTES_MAX,
    SHARED_PAYLOAD_BYTES_MAX,
)
from kvp2p.wire.link_messages import Credit, LinkMessage
from kvp2p.wire.mesh import PACK_HEAD_BYTES, pack

QUEUE_BYTES_MAX: Final = {
    Lane.CONTROL: CONTROL_QUEUE_BYTES_MAX,
    Lane.DATA: DATA_QUEUE_BYTES_MAX,
    Lane.CHUNKS: DATA_QUEUE_BYTES_MAX,
}
# What is on its way of chunks arrives in front of everything that is sent later: their window is narrow.
CREDIT_BYTES_MAX: Final = {Lane.DATA: DATA_CREDIT_BYTES_MAX, Lane.CHUNKS: CHUNK_CREDIT_BYTES_MAX}
PAYLOAD_BYTES_MAX: Final = {Lane.DATA: MESH_MESSAGE_BYTES_MAX, Lane.CHUNKS: CHUNK_PAYLOAD_BYTES_MAX}
# A small message costs more than its bytes while it waits: a limit in bytes alone would let millions of pings queue up.
MESSAGE_OVERHEAD_BYTES: Final = 100


def lane_of(message: Message | LinkMessage) -> Lane:
    """Return the lane of a message; those about the link itself are control."""
    return LANE_OF.get(type(message), Lane.CONTROL)


class SendLanes:
    """Encoded messages that wait to be sent."""

    __slots__ = ("_in_flight", "_queues", "_waiting")

    def __init__(self) -> None:
        self._queues: dict[Lane, deque[tuple[bytes, int | None]]] = {lane: deque() for lane in Lane}
        self._waiting = dict.fromkeys(Lane, 0)
        self._in_flight = {Lane.DATA: 0, Lane.CHUNKS: 0}

    def waiting_bytes(self, lane: Lane) -> int:
        """Return how much waits in a lane, overhead included."""
        return self._waiting[lane]

    def in_flight_bytes(self, lane: Lane) -> int:
        """Return how many payload bytes of a lane the peer has not taken in yet."""
        return self._in_flight[lane]

    def push(self, lane: Lane, element: bytes, expires_ns: int | None = None) -> bool:
        """Queue an encoded message; False, and nothing done, when the lane is full.

        From `expires_ns` of CLOCK_MONOTONIC on it is not sent any more.
        """
        more = len(element) + MESSAGE_OVERHEAD_BYTES
        if self._waiting[lane] + more > QUEUE_BYTES_MAX[lane]:
            return False
        self._queues[lane].append((element, expires_ns))
        self._waiting[lane] += more
        return True

    def next_payload(self) -> tuple[Lane, int, bytes] | None:
        """Take the next payload: the lane that it counts for, its number of messages and its bytes; None when nothing may be sent."""
        elements = self._take(Lane.CONTROL, MESH_MESSAGE_BYTES_MAX - PACK_HEAD_BYTES)
        spent = PACK_HEAD_BYTES + sum(map(len, elements))
        for lane, in_flight in self._in_flight.items():
            payload_bytes_max = SHARED_PAYLOAD_BYTES_MAX if elements else PAYLOAD_BYTES_MAX[lane]
            more = self._take(lane, min(payload_bytes_max, CREDIT_BYTES_MAX[lane] - in_flight) - spent)
            if more:
                payload = pack(elements + more)
                self._in_flight[lane] = in_flight + len(payload)
                return lane, len(elements) + len(more), payload
        return (Lane.CONTROL, len(elements), pack(elements)) if elements else None

    def _take(self, lane: Lane, room: int) -> list[bytes]:
        queue = self._queues[lane]
        elements: list[bytes] = []
        while queue:
            element, expires_ns = queue[0]
            if len(element) > room:
                break
            queue.popleft()
            self._waiting[lane] -= len(element) + MESSAGE_OVERHEAD_BYTES
            if expires_ns is None or time.monotonic_ns() < expires_ns:
                room -= len(element)
                elements.append(element)
        return elements

    def give_back(self, credit: Credit) -> None:
        """Count what the peer has taken in.

        Raises RemoteProtocolError when it is more than was sent.
        """
        in_flight = self._in_flight[credit.lane]
        if credit.taken_bytes > in_flight:
            raise RemoteProtocolError(f"a peer took {credit.taken_bytes} bytes in, of {in_flight} that were sent to it")
        self._in_flight[credit.lane] = in_flight - credit.taken_bytes


@dataclass(slots=True, eq=False)
class _Arrived:
    """One lane of a receiver. Bytes are first queued, then handed out, then taken in, and then given back to the sender."""

    messages: list[Message] = field(default_factory=list)
    queued: int = 0
    handed_out: int = 0
    taken_in: int = 0

    def held(self) -> int:
        return self.queued + self.handed_out + self.taken_in


class ReceiveLanes:
    """Messages that wait to be handed to the consumer."""

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes = {lane: _Arrived() for lane in Lane}

    def push(self, lane: Lane, messages: Sequence[Message], payload_bytes: int) -> None:
        """Queue the messages of one payload.

        Raises RemoteProtocolError when the peer has gone beyond its credit, or, on the control lane, sends faster than the consumer takes.
        """
        if not messages:
            return
        if lane is Lane.CONTROL:
            payload_bytes += len(messages) * MESSAGE_OVERHEAD_BYTES
        limit = CREDIT_BYTES_MAX.get(lane, CONTROL_QUEUE_BYTES_MAX)
        arrived = self._lanes[lane]
        arrived.queued += payload_bytes
        if arrived.held() > limit:
            raise RemoteProtocolError(f"more than {limit} bytes of {lane.name.lower()} wait to be taken in")
        arrived.messages += messages

    def take(self) -> list[Message]:
        """Take all that waits, control first. What was taken the time before counts as taken in from now on."""
        messages: list[Message] = []
        for lane, arrived in self._lanes.items():
            if arrived.handed_out and lane is not Lane.CONTROL:
                arrived.taken_in += arrived.handed_out
            arrived.handed_out, arrived.queued = arrived.queued, 0
            if arrived.messages:
                messages += arrived.messages
                arrived.messages = []
        return messages

    def credit_due(self) -> list[Credit]:
        """Take the credit that should go back to the sender by now."""
        due: list[Credit] = []
        for lane in (Lane.DATA, Lane.CHUNKS):
            arrived = self._lanes[lane]
            if arrived.taken_in >= CREDIT_BYTES_MAX[lane] // CREDIT_STEPS:
                due.append(Credit(lane, arrived.taken_in))
                arrived.taken_in = 0
        return due
