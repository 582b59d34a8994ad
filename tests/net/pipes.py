"""Two ends of a connection in memory, for links without sockets, and a consumer of what a link gives out."""

import math
from collections import deque
from collections.abc import Callable

import trio

from kvp2p.core.messages import Message
from kvp2p.errors import LinkClosed
from kvp2p.net.link import Link
from kvp2p.net.transport import CODE_NORMAL


class MemoryPipe:
    """One end. `sent` records payloads; `may_send` can hold the writer inside a payload, as a full socket does."""

    def __init__(self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self.sent: list[bytes] = []
        self.may_send = trio.Event()
        self.may_send.set()
        self.closed_with: tuple[int, str] | None = None
        self.received_bytes = 0  # a test adds to it, as a payload that is on its way does

    async def send(self, payload: bytes) -> None:
        self.sent.append(payload)
        await self.may_send.wait()
        try:
            await self._outgoing.send(payload)
        except trio.BrokenResourceError as error:
            raise LinkClosed("the connection was lost") from error

    async def receive(self) -> bytes:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel as error:
            raise LinkClosed("the connection was lost") from error

    async def receive_into(self, take: Callable[[bytes], None]) -> None:
        while True:
            take(await self.receive())

    async def close(self, code: int = CODE_NORMAL, reason: str = "") -> None:  # async by protocol: Pipe
        self.closed_with = (code, reason)
        self._outgoing.close()
        self._incoming.close()

    def hold(self) -> None:
        """Let the next payload wait inside `send`."""
        self.may_send = trio.Event()


def pipe_pair() -> tuple[MemoryPipe, MemoryPipe]:
    """Return both ends of a connection that never loses anything."""
    there_send, there_receive = trio.open_memory_channel[bytes](math.inf)
    back_send, back_receive = trio.open_memory_channel[bytes](math.inf)
    return MemoryPipe(there_send, back_receive), MemoryPipe(back_send, there_receive)


class Consumer:
    """Takes the messages of a link one by one; asks for more when it has none left."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[Message] = deque()

    async def receive(self) -> Message:
        if not self._waiting:
            self._waiting.extend(await self._link.receive())
        return self._waiting.popleft()
