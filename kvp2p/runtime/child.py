"""A child's life under the supervisor: it says when it is ready, drains when it is told, and never outlives its parent.

Decides: how the processes of a node hang together.
Keeps true: a child ends within a second of its supervisor, however that one died. The supervisor alone holds the
writing end of a pipe; when it is gone, by any signal, every child reads end of file. (`PR_SET_PDEATHSIG` is no use: it tells of
the end of the *thread* that forked.) A thread watches the pipe, so that a busy or stuck event loop changes nothing.
In and out: the supervisor makes a `ChildLife` at the fork and calls `watch_parent`; the process's `run` calls `announce_ready`
once it serves, and does its work inside `supervised()`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

EXIT_ORPHANED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the child
EXIT_FATAL = 78  # EX_CONFIG: starting again cannot help, the supervisor gives up
EXIT_FAILED = 70  # EX_SOFTWARE: the supervisor starts the child again


@dataclass(frozen=True, slots=True)
class Drain:
    """`requested` is set when the process should finish what it has in hand and return, within 4 s."""

    requested: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class ChildLife:
    """The child's ends of two pipes: `parent_fd` reads end of file when the supervisor is gone, `ready_fd` is written once."""

    parent_fd: int
    ready_fd: int

    def announce_ready(self) -> None:
        """Tell the supervisor that this process serves; later calls do nothing."""
        descriptor, self.ready_fd = self.ready_fd, -1
        if descriptor < 0:
            return
        try:
            os.write(descriptor, b"\x01")
        except BrokenPipeError:
            return  # the supervisor is gone, and so is this process in a moment
        finally:
            os.close(descriptor)

    def watch_parent(self) -> None:
        """End this process, at once and without clean-up, when the supervisor is gone. Needs no event loop."""
        threading.Thread(target=_exit_at_end_of_file, args=(self.parent_fd,), name="parent-watch", daemon=True).start()

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[Drain]:
        """Listen to SIGTERM while the body runs. Only in the main thread's trio run."""
        drain = Drain()
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_request_drain, signals, drain)
                yield drain
                nursery.cancel_scope.cancel()


async def _request_drain(signals: AsyncIterator[int], drain: Drain) -> None:
    async for _ in signals:
        drain.requested.set()


def _exit_at_end_of_file(descriptor: int) -> None:
    # Crash-only: the store is whole at every instant, so there is nothing to save [I4].
    while os.read(descriptor, 1):
        pass
    os._exit(EXIT_ORPHANED)
