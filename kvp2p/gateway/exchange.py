"""One request on its way to its answer.

Decides: nothing; it is what intake, pipeline and routes hand to each other.
Keeps true: an exchange is answered exactly once.
In and out: made by the intake with everything that was received, or before the body of a large value, which then goes through its upload;
    ended by a route or by the node's outcome.
"""

from __future__ import annotations

from collections.abc import Callable

from kvp2p.errors import RequestError
from kvp2p.gateway.fields import Fields
from kvp2p.gateway.streams import ValueStream
from kvp2p.gateway.target import Target, parse_target
from kvp2p.gateway.uploads import Upload

METHODS_OF_WRITES = frozenset({b"PUT", b"DELETE"})


class Exchange:
    """A request, and in the end its answer. `body` is None when it was not kept, `body_bytes` is its length all the same.

    `refusal` is what stands against a request that was received whole.
    """

    __slots__ = (
        "answer",
        "body",
        "body_bytes",
        "closes",
        "fields",
        "is_abandoned",
        "is_key_write",
        "is_received",
        "method",
        "on_end",
        "received_at",
        "refusal",
        "stream",
        "target",
        "upload",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        fields: Fields | None,
        received_at: float,
        body: bytes | None = None,
        body_bytes: int = 0,
        refusal: RequestError | None = None,
    ) -> None:
        self.method = method
        self.target: Target = parse_target(target)
        self.fields = fields
        self.body = body
        self.body_bytes = body_bytes
        self.refusal = refusal
        self.received_at = received_at
        self.is_key_write = method in METHODS_OF_WRITES and bool(self.target.key)
        self.closes = False
        self.is_abandoned = False
        self.answer: bytes | None = None
        self.stream: ValueStream | None = None  # of what follows the answer
        self.upload: Upload | None = None  # of the body, when that is large
        self.is_received = True  # whole; it is not answered before
        self.on_end: Callable[[], None] | None = None

    def feed(self, part: bytes) -> None:
        """Take a part of the body of a large value."""
        assert self.upload is not None, "the body of a large value is an upload"
        self.upload.feed(part)

    def drop_body(self) -> None:
        """Take note that the body is too large; what still comes of it is dropped."""
        if self.upload is not None:
            self.upload.close()

    def end(self, answer: bytes | ValueStream) -> None:
        """Give the answer; tells the connection, if it no longer waits in the same call."""
        assert self.answer is None
        if isinstance(answer, ValueStream):
            self.answer = answer.head
            self.stream = answer
            if self.is_abandoned:
                answer.close()
        else:
            self.answer = answer
        if self.on_end is not None:
            self.on_end()

    def abandon(self) -> None:
        """Take note that nobody will send the answer."""
        self.is_abandoned = True
        if self.stream is not None:
            self.stream.close()
        if self.upload is not None:
            self.upload.close()
