"""Two ends of a connection in memory, for links without sockets."""

import math

import trio

from kvp2p.errors import LinkClosed
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
