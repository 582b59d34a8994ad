"""The chunks of large values on their way from a local process to its node, and which uploads they belong to.

Decides: which chunk leaves next, and which uploads the present connection to the node knows.
Keeps true: [I9] LOCAL_STAGES_MAX chunks wait, LOCAL_STAGES_IN_FLIGHT_MAX of them at the node, whose memory they take until they are
    stored. An upload belongs to one connection: its chunks are gone with it, so nothing more of it is sent over the next one.
In and out: requests with a StageChunk in, ended uploads and chunks to be sent out, in the order in which they came. `NodePort` does the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvp2p.core.operations import Outcome
from kvp2p.limits import LOCAL_STAGES_IN_FLIGHT_MAX, LOCAL_STAGES_MAX
from kvp2p.runtime.requests import Request
from kvp2p.wire.local_messages import EndUpload, LocalMessage

UPLOAD_LOST = "the connection to the node process ended while the value was on its way, nothing was stored; retry"


class ChunkLane:
    """The uploads of one process."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._ended: list[EndUpload] = []  # to be told
        self._chunks: dict[int, tuple[Request, int]] = {}  # by number, with their uploads: queued or sent, not ended
        self._queue: dict[int, Request] = {}  # those of them that may still be sent, in the order in which they came
        self._sent = 0  # and not ended

    @property
    def waiting(self) -> Iterable[Request]:
        """The chunks that have not ended."""
        return [request for request, _ in self._chunks.values()]

    @property
    def has_next(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self._ended or (self._queue and self._sent < LOCAL_STAGES_IN_FLIGHT_MAX))

    def open(self, upload: int) -> None:
        """Note that an upload has begun on this connection."""
        self._open.add(upload)

    def is_open(self, upload: int) -> bool:
        """Tell whether the node keeps the chunks of an upload."""
        return upload in self._open

    def push(self, request: Request, upload: int) -> bool:
        """Queue a chunk; False when it has been ended at once, because its upload is lost or a limit is reached."""
        if upload not in self._open:
            request.end_unsent("node_unavailable", UPLOAD_LOST)
        elif len(self._chunks) >= LOCAL_STAGES_MAX:
            request.end_unsent("overloaded", "this node has too many large values on their way, nothing was stored")
        else:
            self._chunks[request.number] = request, upload
            self._queue[request.number] = request
            return True
        return False

    def end(self, upload: int) -> bool:
        """End an upload: nobody waits for its chunks any more. False when it has ended with its connection, so that the node knows."""
        if upload not in self._open:
            return False
        self._open.discard(upload)
        for number in [number for number, (_, owner) in self._chunks.items() if owner == upload]:
            request = self._chunks[number][0]
            if request.is_sent:
                request.callback = _ignore  # it still counts as sent
            else:
                del self._chunks[number]
                self._queue.pop(number, None)
        self._ended.append(EndUpload(upload))
        return True

    def pop(self, number: int) -> Request | None:
        """Take out a chunk that has ended; None when it is not, or no longer, here."""
        found = self._chunks.pop(number, None)
        if found is None:
            return None
        self._sent -= found[0].is_sent
        self._queue.pop(number, None)  # while the node takes nothing, it would be kept there
        return found[0]

    def take_ended(self) -> list[EndUpload]:
        """Return what the node is to be told of ended uploads."""
        ended, self._ended = self._ended, []
        return ended

    def take_chunk(self, now_ns: int) -> list[LocalMessage]:
        """Return the chunk that leaves next. What is past its deadline never does, and is ended by the sweep."""
        while self._queue and self._sent < LOCAL_STAGES_IN_FLIGHT_MAX:
            request = self._queue.pop(next(iter(self._queue)))
            message = request.message
            assert message is not None, "what has been sent is not in the queue"
            if now_ns <= request.deadline_ns:
                request.message = None
                self._sent += 1
                return [message]
        return []

    def clear(self) -> list[Request]:
        """Forget everything: the connection has ended. Returns the chunks that have not ended."""
        requests = [request for request, _ in self._chunks.values()]
        self._open.clear()
        self._ended.clear()
        self._chunks.clear()
        self._queue.clear()
        self._sent = 0
        return requests


def _ignore(_: Outcome) -> None:
    """Take an outcome that nobody waits for any more."""
