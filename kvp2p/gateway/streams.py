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
from kvp2p.core.messages import RowKey
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

    def open(self, view: View, at: RowKey, chunks: ChunkList) -> ValueStream:
        """Stream the value at a key, of which a row of the view names the chunks. The view belongs to the stream then. Raises RequestError; the view stays as it was."""
        if self.open_count >= self.streams_max:
            raise RequestError(
                "overloaded",
                f"this gateway sends {self.streams_max} large values already; retry later or ask another node",
                self.streams_max,
            )
        value = view.open_value(chunks)
        self.open_count += 1
        return ValueStream(self, at, value)


class ValueStream:
    """A value on its way. `head` is the head of the answer, `deadline` the end of its patience in monotonic seconds, `at` its namespace and key. Close it."""

    __slots__ = ("_ahead", "_streams", "_value", "at", "deadline", "head")

    def __init__(self, streams: Streams, at: RowKey, value: OpenValue) -> None:
        self._streams = streams
        self.at = at
        self._value: OpenValue | None = value
        self.deadline = monotonic() + HTTP_STREAM_SECONDS_MAX
        self.head = b""
        self._ahead = b""

    def read_ahead(self) -> None:
        """Read what `next_chunk` returns first: a damaged value is found before a head has promised it. Raises StoreError, and is closed then."""
        try:
            self._ahead = self.next_chunk()
        except Exception:
            self.close()
            raise

    def next_chunk(self) -> bytes:
        """Return what is to be sent next, b"" at the end. Raises StoreError."""
        assert self._value is not None, "the stream is closed"
        ahead, self._ahead = self._ahead, b""
        return ahead or self._value.next_chunk()

    def close(self) -> None:
        """Let go of the transaction. Idempotent."""
        value, self._value = self._value, None
        if value is not None:
            self._streams.open_count -= 1
            value.close()
