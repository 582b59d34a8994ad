"""Ending, stopping and continuing nodes.

Keeps true: the supervisor is signalled first, then its whole group; a call returns when the signal has had its effect,
and may be repeated.
"""

from __future__ import annotations

import os
import signal
import time

from kvp2p.supervisor.group import signal_group, wait_for_group
from scripts.local_cluster.state import CannotError, Node

STOP_SECONDS = 8.0  # a supervisor takes 5 s at most, then it kills
SIGNALS = {name: signal.Signals[f"SIG{name}"] for name in ("KILL", "TERM", "STOP", "CONT")}


def end(node: Node) -> None:
    """Stop a node: an orderly drain, and SIGKILL for what is left."""
    if node.pid is None:
        return
    if node.is_alive():
        os.kill(node.pid, signal.SIGTERM)
        signal_group(node.pid, node.directory, signal.SIGCONT)
        wait_for_group(node.pid, node.directory, lambda members: not members, STOP_SECONDS)
    send(node, signal.SIGKILL)


def send(node: Node, number: signal.Signals) -> None:
    """Signal the supervisor first, then its group, and wait until that has had its effect."""
    if node.pid is None:
        return
    deadline = time.monotonic() + STOP_SECONDS
    members = signal_group(node.pid, node.directory, number)
    while members:
        if number is signal.SIGSTOP:
            left = wait_for_group(node.pid, node.directory, lambda now: all(one.is_stopped for one in now), 0.5)
            members = [one for one in left if not one.is_stopped]
        elif number is signal.SIGCONT:
            left = wait_for_group(node.pid, node.directory, lambda now: not any(one.is_stopped for one in now), 0.5)
            members = [one for one in left if one.is_stopped]
        else:
            members = wait_for_group(node.pid, node.directory, lambda now: not now, 0.5)
        if members and time.monotonic() > deadline:
            told = ", ".join(f"{one.process_id} ({one.state})" for one in members)
            raise CannotError(f"{number.name} had no effect on {told} of {node.name} within {STOP_SECONDS:.0f} s")
        if members and number is not signal.SIGTERM:  # a child that was forked in between; a second TERM is no drain
            signal_group(node.pid, node.directory, number)
