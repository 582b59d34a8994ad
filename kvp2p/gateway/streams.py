"""Large values on their way to clients, chunk by chunk.

Decides: which values are streamed and how many at once, and how long one may take.
Keeps true: [I9] a stream has one chunk in memory; `streams_max` of them hold a read transaction each, and so a slot of the store and the
    pages that are freed meanwhile, for HTTP_STREAM_SECONDS_MAX at most. What is streamed is one value, whole: everything comes from the
    transaction that its row was read in, and where that cannot go on the connection is cut.
In and out: a view and a chunk list of one of its rows in, a `ValueStream` out; RequestError `overloaded` when there are too many.

Refused and not queued: a queue of streams of 60 s would be longer than anybody waits.
"""

from __future__ import annotations

from time import monotonic

from kvp2p.core.entry import ChunkList
from kvp2p.errors import RequestError
from kvp2p.limits import HTTP_STREAM_SECONDS_MAX, HTTP_STREAMS_MAX, STORE_STREAMS_MAX
from kvp2p.store.chunked import OpenValue
from kvp2p.store.reader import View


def streams_max(gateways: int) -> int:
    """Return how many values each gateway of a node may stream: together they leave slots of the store for all other reads."""
    return min(HTTP_STREAMS_MAX, STORE_STREAMS_MAX // gateways)


class Streams:
    """Counts the streams of a process."""

    __slots__ = ("open_count", "streams_max")

    def __init__(self, streams_max: int = HTTP_STREAMS_MAX) -> None:
        self.streams_max = streams_max
        self.open_count = 0

    def open(self, view: View, chunks: ChunkList) -> ValueStream:
        """Stream a value that a row of the view names the chunks of. The view belongs to the stream then. Raises RequestError; the view stays as it was."""
        if self.open_count >= self.streams_max:
            raise RequestError(
                "overloaded",
                f"this gateway sends {self.streams_max} large values already; retry later or ask another node",
                self.streams_max,
            )
        value = view.open_value(chunks)
        self.open_count += 1
        return ValueStream(self, value)


class ValueStream:
    """A value on its way. `head` is the head of the answer, `deadline` the end of its patience in monotonic seconds. Close it."""

    __slots__ = ("_streams", "_value", "deadline", "head")

    def __init__(self, streams: Streams, value: OpenValue) -> None:
        self._streams = streams
        self._value: OpenValue | None = value
        self.deadline = monotonic() + HTTP_STREAM_SECONDS_MAX
        self.head = b""

    def next_chunk(self) -> bytes:
        """Return what is to be sent next, b"" at the end. Raises StoreError."""
        assert self._value is not None, "the stream is closed"
        return self._value.next_chunk()

    def close(self) -> None:
        """Let go of the transaction. Idempotent."""
        value, self._value = self._value, None
        if value is not None:
            self._streams.open_count -= 1
            value.close()
