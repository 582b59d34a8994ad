"""One large value on its way from a client to the node.

Decides: where it is cut into chunks, when the next one leaves, when its client is read no further, and how long it waits for others.
Keeps true: [I9] it holds the chunk that is being collected and UPLOAD_CHUNKS_UNANSWERED_MAX that the node has not stored yet, each in a room of
    `bodies.py`; its client is read only while there is room. Nothing of it is sent before `begin`, which is called when the request has
    been checked. The node keeps its chunks until `close`: every upload that has begun is closed, whatever becomes of it.
In and out: parts of a body in (`feed`, `finish`), chunks to the node out; `failure` or `is_ready` tells how it stands. Whoever owns it calls
    `drive` after each of these, and when it is told that something has changed (`on_change`), fails it at `wait_deadline`, and tells it when
    its client says no more (`leave`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Final

from kvp2p.core.entry import ChunkId, ChunkList, chunk_id, encode_chunk_list
from kvp2p.core.operations import Ending, Outcome, Put, refused
from kvp2p.gateway.bodies import Bodies
from kvp2p.gateway.turns import Turns, large_ms
from kvp2p.limits import (
    CHUNK_BYTES,
    HTTP_ROOM_WAIT_SECONDS,
    HTTP_TURN_WAIT_SECONDS,
    UPLOAD_CHUNKS_UNANSWERED_MAX,
    WRITE_DEADLINE_MS,
)
from kvp2p.runtime.node_port import NodePort

OVERLOADED: Final = refused(
    "overloaded", "this gateway has too many large values on their way, nothing was stored; retry later"
)
DRAINING: Final = refused("unavailable", "this gateway ends, and the value had to wait for others; nothing was stored")
LEFT: Final = refused(
    "overloaded",
    "the value had to wait for others and its client said that nothing more comes; nothing was stored; retry later",
)


class Upload:
    """A value. `on_change` is called when a chunk has been answered, `on_turn` when it need not wait for others any more."""

    __slots__ = (
        "_bodies",
        "_buffer",
        "_early_bytes",
        "_has_room",
        "_has_turn",
        "_has_waited",
        "_ids",
        "_is_closed",
        "_is_in_line",
        "_is_waiting",
        "_node",
        "_number",
        "_on_change",
        "_on_turn",
        "_turns",
        "_unanswered",
        "_wait_refusal",
        "failure",
        "is_finished",
        "is_submitted",
        "value_bytes",
        "wait_deadline",
    )

    def __init__(
        self, node: NodePort, bodies: Bodies, turns: Turns, on_change: Callable[[], None], on_turn: Callable[[], None]
    ) -> None:
        self._node = node
        self._bodies = bodies
        self._turns = turns
        self._on_change = on_change
        self._on_turn = on_turn
        self._buffer = bytearray()  # received, and not yet cut
        self._early_bytes = 0  # of the buffer, before there is a room for it
        self._has_room = False  # for the buffer
        self._is_waiting = False  # for the first room
        self._is_in_line = False  # for its turn to be written
        self._has_turn = False
        self._has_waited = False  # for either
        self._wait_refusal: Outcome | None = None  # with which it ends where it would have to wait
        self._is_closed = False
        self._number: int | None = None  # that the node knows it by, once it has begun
        self._ids: list[ChunkId] = []
        self._unanswered = 0
        self.value_bytes = 0
        self.failure: Outcome | None = None
        self.is_finished = False
        self.is_submitted = False
        self.wait_deadline = math.inf  # monotonic seconds, while it waits for its first room, or for its turn

    @property
    def is_full(self) -> bool:
        """Whether its client is to be read no further for the present."""
        if self._is_closed:
            return False  # what still comes is dropped
        return not self._has_room or len(self._buffer) >= CHUNK_BYTES

    @property
    def is_ready(self) -> bool:
        """Whether the node has all of it and its turn has come, so that the write may be submitted."""
        return self._has_turn and not self.is_submitted

    @property
    def _is_stored(self) -> bool:
        """Whether the node has all of it."""
        return self.is_finished and not (self._buffer or self._unanswered or self._is_closed or self._number is None)

    # --- from the client

    def feed(self, part: bytes) -> None:
        """Take the next part of the body."""
        self.value_bytes += len(part)
        if self._is_closed:
            return
        if not self._has_room and self._unanswered == 0:
            # Before the first room: bounded as small bodies are. Later what comes behind a chunk has place in that one's room.
            if not self._bodies.hold(len(part)):
                self.fail(OVERLOADED)
                return
            self._early_bytes += len(part)
        self._buffer += part

    def finish(self) -> None:
        """Take note that the body is whole."""
        self.is_finished = True
        if self._has_room and not self._buffer:
            self._has_room = False  # it was for what might have come, and others can use it while this one is in line
            self._bodies.give_room()

    # --- to the node

    def begin(self) -> None:
        """Let chunks leave from here on."""
        if self._is_closed:
            return
        assert self._number is None, "an upload begins once"
        self._number = self._node.open_upload()
        if self._bodies.take_room():
            self._enter()
        elif self._may_wait():
            self._is_waiting = True
            self.wait_deadline = monotonic() + HTTP_ROOM_WAIT_SECONDS
            self._bodies.wait_for_room(self._take_first_room)

    def _may_wait(self) -> bool:
        """Tell whether it may wait for others; it has ended when not."""
        if self._wait_refusal is not None:
            self.fail(self._wait_refusal)
            return False
        self._has_waited = True
        return True

    def _take_first_room(self) -> None:
        self._is_waiting = False
        self.wait_deadline = math.inf
        self._enter()
        self._on_turn()

    def _enter(self) -> None:
        self._has_room = True
        early_bytes, self._early_bytes = self._early_bytes, 0
        self._bodies.release(early_bytes)

    def drive(self) -> None:
        """Send what can be sent, and get in line when that is all."""
        self._send_chunks()
        if self._is_stored and not (self._has_turn or self._is_in_line):
            if self._turns.take(self.value_bytes):
                self._has_turn = True
            elif self._may_wait():
                self._is_in_line = True
                self.wait_deadline = monotonic() + HTTP_TURN_WAIT_SECONDS
                self._turns.wait(self.value_bytes, self._take_turn)

    def _take_turn(self) -> None:
        self._is_in_line = False
        self._has_turn = True
        self.wait_deadline = math.inf
        self._on_turn()

    def _send_chunks(self) -> None:
        while self._has_room and not self._is_closed and self._unanswered < UPLOAD_CHUNKS_UNANSWERED_MAX:
            if len(self._buffer) < CHUNK_BYTES and not (self.is_finished and self._buffer):
                return
            content = bytes(memoryview(self._buffer)[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            self._unanswered += 1  # the room is its own now
            self._has_room = self._needs_room and self._bodies.take_room()
            name = chunk_id(content)
            self._ids.append(name)
            assert self._number is not None, "it has a room, so it has begun"
            self._node.stage_nowait(self._number, name, content, self._take_outcome)

    @property
    def _needs_room(self) -> bool:
        return bool(self._buffer) or not self.is_finished

    def _take_outcome(self, outcome: Outcome) -> None:
        if self._is_closed:
            return
        self._unanswered -= 1
        if not self._has_room and self._needs_room:
            self._has_room = True  # that of the chunk
        else:
            self._bodies.give_room()
        if outcome.ending is not Ending.ACKED:
            code = outcome.code if outcome.ending is Ending.REFUSED else "unavailable"
            self.fail(
                refused(code, outcome.message)
            )  # nothing names the chunks: whatever became of them, nothing was stored
        self._on_change()

    def submit(self, put: Put, callback: Callable[[Outcome], None]) -> None:
        """Submit the write, which names the chunks; `callback` as for `NodePort.submit_nowait`."""
        assert self.is_ready, "the node has all of it, and it is its turn"
        self.is_submitted = True
        value = encode_chunk_list(ChunkList(self.value_bytes, CHUNK_BYTES, tuple(self._ids)))

        def end(outcome: Outcome) -> None:
            self._end()
            callback(outcome)

        self._node.submit_nowait(
            (put._replace(value=value, is_chunked=True),),
            WRITE_DEADLINE_MS,
            end,
            upload=self._number,
            large_ms=large_ms(self.value_bytes),
        )

    # --- the end

    def fail(self, failure: Outcome) -> None:
        """End it because it cannot be stored. What still comes of the body is counted and dropped."""
        if self.failure is None:
            self.failure = failure
        self.close()

    def wait_no_more(self, refusal: Outcome) -> None:
        """End it with `refusal` where it waits for others, or would have to from here on."""
        self._wait_refusal = refusal
        if self._is_waiting or self._is_in_line:
            self.fail(refusal)

    def leave(self) -> None:
        """Take note that its client says no more, and may be gone: it is written only if it had not to wait.

        After a wait it could surface when others have written the key anew, and nobody would know of it [I10].
        """
        self.wait_no_more(LEFT)
        if self._has_waited and not (self.is_submitted or self._is_closed):
            self.fail(LEFT)

    def close(self) -> None:
        """End it, unless its write is under way: that goes on, and ends it [I10]. Idempotent."""
        if not self.is_submitted:
            self._end()

    def _end(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.wait_deadline = math.inf
        if self._is_waiting:
            self._is_waiting = False
            self._bodies.stop_waiting(self._take_first_room)
        if self._number is not None:
            self._node.end_upload(self._number)
        self._buffer = bytearray()
        early_bytes, self._early_bytes = self._early_bytes, 0
        rooms = self._has_room + self._unanswered
        self._has_room = False
        self._unanswered = 0
        self._bodies.release(early_bytes)
        for _ in range(rooms):
            self._bodies.give_room()
        if self._is_in_line:
            self._is_in_line = False
            self._turns.stop_waiting(self._take_turn)
        if self._has_turn:
            self._has_turn = False
            self._turns.give_back(self.value_bytes)
