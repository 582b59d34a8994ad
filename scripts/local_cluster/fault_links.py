"""Directed links with faults, and connections whose bytes pass through them.

Decides: when a byte that came from one node is handed to the other.
Keeps true: bytes of a connection stay in order and whole, whatever faults come and go; what is held of one direction is at most
HELD_BYTES_MAX, PIPE_BYTES_MAX on a link with delay, and what the kernel holds beside it. What one end does (close, reset) reaches the
other only on a way that is not cut.
In and out: connected sockets; faults are set on a `FaultLink` at any time and hold from then on.

The faults of a directed link (bytes from x to y, whoever of the two has dialled):

    cut         nothing passes: no byte, no end of a connection, no new connection. What was under way is held, and after that
                nothing more is read, so the sender's kernel fills up as without acknowledgements. When the cut is over, all goes on.
                Other than on a real wire, the way back does not suffer for want of acknowledgements: it is a link of its own.
    stall       bytes stand still, as before a receiver that does not read: new connections are made, a reset gets through.
    delay_ms    each byte comes so much later
    rate_kbps   at most so many kilobits a second, of all connections together
    reset       is done, not set: y's end of each connection is reset at once. x hears of it as one does: when it sends again.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

HELD_BYTES_MAX = 64 * 1024  # of one direction of a connection without delay: a relay, not a second send buffer
# The same with delay: what a wire of 80 Mbit/s and 100 ms has under way.
PIPE_BYTES_MAX = 1024 * 1024
# For the kernel, of each socket and each way (Linux doubles it): its own choice, up to 6 MB, would hide that nothing gets through.
SOCKET_BUFFER_BYTES = 64 * 1024
# In the kernel and not yet on its way; the same that nodes have.
NOT_SENT_BYTES_MAX = 16 * 1024
READ_BYTES = 64 * 1024
PIECE_SECONDS = (
    0.02  # of a limited rate that is sent at once: less would mean more wake-ups than a machine of two cores has
)


class Faults(NamedTuple):
    """What is wrong with a directed link; `rate_kbps` 0 is no limit."""

    cut: bool = False
    stall: bool = False
    delay_ms: int = 0
    rate_kbps: int = 0


NO_FAULTS = Faults()


class FaultLink:
    """One direction between two nodes."""

    def __init__(self, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self.faults = NO_FAULTS
        self.free_at = 0.0  # when the next byte may pass a limited rate
        self.connections: list[Connection] = []  # whose bytes pass here
        self._changes = trio.lowlevel.ParkingLot()

    def set(self, faults: Faults) -> None:
        """Put these faults in place of what was there."""
        self.faults = faults
        self.free_at = 0.0
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for a change of anything here."""
        self._changes.unpark_all()

    async def change(self) -> None:
        """Wait for a change."""
        await self._changes.park()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something about this link is so."""
        while not is_so():
            await self.change()

    async def until_whole(self) -> None:
        """Wait until it is not cut."""
        await self.until(lambda: not self.faults.cut)

    def reset(self) -> None:
        """Reset the target's end of each connection."""
        for connection in list(self.connections):
            connection.reset(self)

    @property
    def held_bytes_max(self) -> int:
        """How much of one connection may be under way."""
        faults = self.faults
        if not faults.delay_ms:
            return HELD_BYTES_MAX
        if not faults.rate_kbps:
            return PIPE_BYTES_MAX
        return min(PIPE_BYTES_MAX, HELD_BYTES_MAX + faults.rate_kbps * faults.delay_ms // 8)

    @property
    def piece_bytes_max(self) -> int:
        """How much may pass at once."""
        rate_kbps = self.faults.rate_kbps
        return max(1, int(rate_kbps * 125 * PIECE_SECONDS)) if rate_kbps else READ_BYTES

    def note_passed(self, byte_count: int) -> None:
        """Take what has passed off a limited rate."""
        rate_kbps = self.faults.rate_kbps
        if rate_kbps:
            self.free_at = max(self.free_at, trio.current_time()) + byte_count / (rate_kbps * 125)


class _Pump:
    """One direction of a connection: a task that reads and a task that writes. Errors of sockets are raised."""

    def __init__(self, link: FaultLink, back: FaultLink, source: socket.socket, sink: socket.socket) -> None:
        self.link = link
        self.held_bytes = 0
        self._back = back
        self._source = source
        self._sink = sink
        self._queue: deque[tuple[float, memoryview]] = deque()  # when it may be written, and what; nothing: the end

    async def read(self) -> None:
        """Read to the end of the stream. Writes by itself what nothing holds back: a switch of tasks would cost as much again."""
        link = self.link
        while True:
            await link.until(self._may_read)
            await trio.lowlevel.wait_readable(self._source)
            if not self._may_read():
                continue
            try:
                data = memoryview(self._source.recv(min(READ_BYTES, link.held_bytes_max - self.held_bytes)))
            except BlockingIOError:
                continue
            if not data:
                self._hold(data)
                return
            if not self._queue and link.faults == NO_FAULTS:
                data = data[await self._pass_on(data) :]
            if data:
                self._hold(data)

    def _may_read(self) -> bool:
        return not self.link.faults.cut and self.held_bytes < self.link.held_bytes_max

    def _hold(self, data: memoryview) -> None:
        self._queue.append((trio.current_time() + self.link.faults.delay_ms / 1_000, data))
        self.held_bytes += len(data)
        self.link.tell()

    async def write(self) -> None:
        """Write what is held when it is due, to the end of the stream."""
        link = self.link
        while True:
            await link.until(self._may_write)
            due_at, data = self._queue[0]
            due_at = max(due_at, link.free_at if link.faults.rate_kbps else 0)
            if due_at > trio.current_time():
                with trio.move_on_at(due_at):
                    await link.change()
                continue
            if not data:
                self._sink.shutdown(socket.SHUT_WR)
                return
            passed = await self._pass_on(data[: link.piece_bytes_max])
            if not passed:
                await trio.lowlevel.wait_writable(self._sink)
                continue
            if passed == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (due_at, data[passed:])
            self.held_bytes -= passed
            link.note_passed(passed)
            link.tell()

    def _may_write(self) -> bool:
        return bool(self._queue) and not self.link.faults.cut and not self.link.faults.stall

    async def _pass_on(self, data: memoryview) -> int:
        """Give the kernel what it takes, and return how much that was."""
        try:
            return self._sink.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The other end has gone. That has to travel back before this end may know.
            await self._back.until_whole()
            raise


class Connection:
    """A connection of two nodes through their two directed links. `there` leads from the dialler to the one who was dialled."""

    def __init__(self, there: FaultLink, back: FaultLink, near: socket.socket, far: socket.socket) -> None:
        self._ends = {there: far, back: near}  # by the link that leads to it
        self._pumps = (_Pump(there, back, near, far), _Pump(back, there, far, near))
        self._reset: set[FaultLink] = set()
        self._scope = trio.CancelScope()

    @property
    def held_bytes(self) -> int:
        """How much is held of both directions, the kernel's part left out."""
        return sum(pump.held_bytes for pump in self._pumps)

    def reset(self, *links: FaultLink) -> None:
        """Reset the ends to which these links lead; both, if none is named."""
        self._reset.update(links or self._ends)
        self._scope.cancel()

    async def run(self) -> None:
        """Relay until both directions have ended, or one end has failed or was reset; then both sockets are closed."""
        for link in self._ends:
            link.connections.append(self)
        try:
            await self._relay()
            if len(self._reset) == 1:
                await self._outlive(*self._reset)
        finally:
            for link, end in self._ends.items():
                link.connections.remove(self)
                close(end, by_reset=bool(self._reset))

    async def _relay(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for pump in self._pumps:
                        nursery.start_soon(pump.read)
                        nursery.start_soon(pump.write)
        except* OSError:
            self._reset.update(self._ends)

    async def _outlive(self, reset: FaultLink) -> None:
        """Let the end that was not reset find out: its next bytes meet no connection any more, and the answer to them is a reset."""
        close(self._ends[reset], by_reset=True)
        (back,) = (link for link in self._ends if link is not reset)
        with trio.CancelScope() as self._scope:
            await reset.until_whole()
            await trio.lowlevel.wait_readable(self._ends[back])
            await back.until_whole()
        self._reset.update(self._ends)


def tune(end: socket.socket) -> socket.socket:
    """Set what all sockets of the proxy have, before bytes arrive: no waiting for more to send, small buffers."""
    end.setblocking(False)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES_MAX)
    return end


def close(end: socket.socket, *, by_reset: bool) -> None:
    """Close a socket; once is enough."""
    if end.fileno() < 0:
        return
    if by_reset:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    trio.lowlevel.notify_closing(end)
    end.close()


def is_established(end: socket.socket) -> bool:
    """Tell whether the other end has neither closed nor reset the connection, read or unread."""
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1  # tcp_info.tcpi_state, TCP_ESTABLISHED
