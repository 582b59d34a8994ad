"""Requests of a local process to its node, while they are on their way.

Decides: what a request is told that ends without an answer.
Keeps true: [I10] a write that was sent is unknown then, all else is refused. [I9] what has left is not kept: values least of all.
In and out: made and ended by `node_port.py` and `chunk_lane.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from kvp2p.core.operations import Outcome, refused, unknown
from kvp2p.wire.local_messages import AwaitVersion, LocalMessage, Query, StageChunk, SubmitWrite

MS = 1_000_000

WriteCallback = Callable[[Outcome], None]

_NOT_YET = unknown("the request is under way")


class Request:
    """One request on its way to its answer. Deadlines as CLOCK_MONOTONIC tells them: the node reads the same clock."""

    __slots__ = (
        "answer_by_ns",
        "body",
        "callback",
        "deadline_ns",
        "estimated_bytes",
        "kind",
        "message",
        "number",
    )

    def __init__(
        self,
        message: SubmitWrite | StageChunk | AwaitVersion | Query,
        deadline_ns: int,
        grace_ms: int,
        estimated_bytes: int,
        callback: WriteCallback,
    ) -> None:
        self.number = message.request
        self.kind = type(message)
        self.message: LocalMessage | None = message  # None once it has left: its values are not kept until the answer
        self.deadline_ns = deadline_ns
        self.answer_by_ns = deadline_ns + grace_ms * MS
        self.estimated_bytes = estimated_bytes
        self.callback = callback
        self.body: bytes | None = None  # of the answer to a Query

    @property
    def is_sent(self) -> bool:
        """Whether it has left, so that the node may act on it."""
        return self.message is None

    def end_unsent(self, code: str, message: str) -> None:
        """The node will never see this request."""
        self.callback(refused(code, message))

    def end_unanswered(self, message: str) -> None:
        """The node may have seen this request."""
        # Waiting, asking and a chunk that no row names change nothing, so there is nothing unknown about them.
        self.callback(unknown(message) if self.kind is SubmitWrite else refused("node_unavailable", message))


class Ended:
    """A callback that can be waited for."""

    def __init__(self) -> None:
        self.outcome = _NOT_YET
        self._event = trio.Event()

    def __call__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._event.set()

    async def wait(self) -> None:
        """Return when the request has ended; `outcome` says how."""
        await self._event.wait()
