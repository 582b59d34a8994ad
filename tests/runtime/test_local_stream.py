"""One end of the unix socket: bytes leave in the call that has them, and wait only for the kernel."""

import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing

from kvp2p.runtime.local_stream import LocalStream

PIECE = b"0123456789abcdef" * 4_096


@contextmanager
def connected() -> Iterator[tuple[LocalStream, deque[bytes], trio.SocketStream]]:
    """Give a stream, what it is to send, and the other end."""
    near, far = socket.socketpair(socket.AF_UNIX)
    queue: deque[bytes] = deque()
    other = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    with far, LocalStream(near, lambda: queue.popleft() if queue else b"") as stream:
        yield stream, queue, other


@asynccontextmanager
async def pushing(stream: LocalStream) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.push)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(65_536)
    return data


async def test_flush_sends_all_there_is_without_any_other_task() -> None:
    with connected() as (stream, queue, other):
        queue.extend([b"one ", b"two"])
        stream.flush()
        assert not queue
        assert await other.receive_some() == b"one two"


async def test_what_is_queued_for_soon_leaves_with_what_comes_until_then() -> None:
    with connected() as (stream, queue, other):
        async with pushing(stream):
            queue.append(b"one ")
            stream.flush_soon()
            queue.append(b"two")
            assert await other.receive_some() == b"one two"


async def test_what_is_queued_before_the_task_runs_leaves_when_it_does() -> None:
    with connected() as (stream, queue, other):
        queue.append(b"early")
        stream.flush_soon()
        async with pushing(stream):
            assert await other.receive_some() == b"early"


async def test_what_the_kernel_does_not_take_follows_in_order_and_nothing_more_is_taken_meanwhile() -> None:
    with connected() as (stream, queue, other):
        pieces = [bytes([number]) * len(PIECE) for number in range(32)]
        async with pushing(stream):
            queue.extend(pieces)
            stream.flush()
            left = len(queue)
            assert 0 < left < len(pieces)
            stream.flush()
            stream.flush_soon()
            await trio.testing.wait_all_tasks_blocked()
            assert len(queue) == left
            assert await receive_exactly(other, len(pieces) * len(PIECE)) == b"".join(pieces)


async def test_end_and_bytes_of_the_other_side_are_told_apart() -> None:
    with connected() as (stream, _, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.send_all, b"told")
            assert await stream.receive() == b"told"
        await other.send_eof()
        assert await stream.receive() == b""


@pytest.mark.parametrize("is_full", [False, True], ids=["at once", "while it waits for room"])
async def test_a_broken_connection_is_told_by_the_task_that_pushes(is_full: bool) -> None:
    with connected() as (stream, queue, other):
        with trio.fail_after(5), pytest.raises(ExceptionGroup) as raised:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.push)
                await trio.testing.wait_all_tasks_blocked()
                queue.extend([PIECE] * 32 if is_full else [])
                stream.flush()
                await other.aclose()
                queue.append(PIECE)
                stream.flush()  # says nothing
        assert raised.group_contains(BrokenPipeError)
