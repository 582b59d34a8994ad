"""Forking one child, and what becomes of an error that leaves it.

Decides: what a child inherits, and with which status it ends.
Keeps true: a child has none of the supervisor's pipe ends or signal handlers; it ends with its supervisor; an error that starting
again cannot mend ends with EXIT_FATAL, any other with EXIT_FAILED. A reader that meets an older format is started again: the node
process is bringing the store to the present one meanwhile, which takes as long as it has rows.
In and out: a `ChildSpec` in, process id and ready pipe out. The caller has one thread and runs no event loop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvp2p.errors import ConfigError, StoreError, StoreFormatError
from kvp2p.runtime import logs
from kvp2p.runtime.child import EXIT_FAILED, EXIT_FATAL, ChildLife

FATAL = (ConfigError, StoreFormatError)


def _nothing_to_prepare() -> None:
    """Leave everything to the child."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child to keep running. `role` is node, api or gateway; `run` returns when it was asked to drain and has.

    `prepare` is called by the supervisor before each fork, to import what several children, or restarts of one, share.
    """

    name: str
    role: str
    run: Callable[[ChildLife], None]
    prepare: Callable[[], None] = _nothing_to_prepare


def fork_child(spec: ChildSpec, parent_fd: int, close_fds: tuple[int, ...]) -> tuple[int, int]:
    """Fork; return the child's process id and the reading end of its ready pipe.

    `parent_fd` is the reading end of the life pipe, `close_fds` are the supervisor's own descriptors.
    """
    ready_reader, ready_writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that reached the child before it has let go of the wake-up pipe would be taken for the supervisor's own.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
    process_id = os.fork()
    if process_id:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(ready_writer)
        return process_id, ready_reader
    status = EXIT_FAILED
    try:
        status = _run(spec, ChildLife(parent_fd, ready_writer), (*close_fds, ready_reader))
    finally:
        # Not sys.exit: nothing of the supervisor that was copied by the fork may run in the child.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _run(spec: ChildSpec, life: ChildLife, close_fds: tuple[int, ...]) -> int:
    logger = logs.get_logger("kvp2p.supervisor")
    try:
        _leave_supervisor(close_fds)
        life.watch_parent()
        spec.run(life)
    except Exception as error:  # the edge of the process: everything ends here, in a status
        leaves = list(_leaves(error))
        reason = "; ".join(map(str, leaves))
        if all(isinstance(leaf, FATAL) and not leaf.retryable for leaf in leaves):
            logger.error("child_cannot_start", child=spec.name, reason=reason)
            return EXIT_FATAL
        if all(isinstance(leaf, StoreError) for leaf in leaves):  # foreseen: its message says it all
            logger.error("child_failed", child=spec.name, reason=reason)
            return EXIT_FAILED
        logger.exception("child_failed", child=spec.name)
        return EXIT_FAILED
    return 0


def _leave_supervisor(close_fds: tuple[int, ...]) -> None:
    signal.set_wakeup_fd(-1)
    for descriptor in close_fds:
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C goes to the whole foreground group; the supervisor alone answers it, by draining.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
