"""A node's processes as seen from outside: who they are, how they are, signals to all of them.

Decides: which processes belong to a node.
Keeps true: a process id that the system has given to somebody else is never taken for ours: a supervisor is known by its id and
the time it started, its children by their process group and their working directory, the node's own.
In and out: /proc in (Linux, proc(5)); `Process` values out.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.02


class Process(NamedTuple):  # no dataclass, whose module takes longer to import than a signal to be sent
    """A living process. `started` is in clock ticks since boot; `state` is the letter of proc(5)."""

    process_id: int
    group: int
    state: str
    started: int

    @property
    def is_stopped(self) -> bool:
        """Tell whether SIGSTOP holds it."""
        return self.state in "Tt"


def read_process(process_id: int) -> Process | None:
    """Return a process, None when there is none; one that has ended and was not reaped is none."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold spaces and parentheses; the fields begin after the last one.
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZXx":
        return None
    return Process(process_id, int(fields[2]), fields[0], int(fields[19]))


def group_members(group: int, directory: Path) -> list[Process]:
    """Return the living processes of a group that work in `directory`, in order of their ids."""
    # PTH208: a Path for each of some hundred names is several times slower.
    numbers = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
    return [member for number in sorted(numbers) if (member := _member(number, group, directory)) is not None]


def signal_group(group: int, directory: Path, number: signal.Signals) -> list[Process]:
    """Signal the supervisor, whose id is the group's, at once, then look for the other members; return who was there."""
    supervisor = _member(group, group, directory)
    members = [] if supervisor is None else [supervisor]
    _signal(members, number)
    others = [one for one in group_members(group, directory) if one.process_id != group]
    _signal(others, number)
    return members + others


def _member(process_id: int, group: int, directory: Path) -> Process | None:
    process = read_process(process_id)
    if process is None or process.group != group:
        return None
    try:
        works_in = Path(f"/proc/{process_id}/cwd").readlink()
    except OSError:
        return None  # it has just ended, or is another user's
    return process if works_in == directory else None


def _signal(processes: list[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.process_id, number)


def wait_for_group(
    group: int, directory: Path, is_done: Callable[[list[Process]], bool], timeout_seconds: float
) -> list[Process]:
    """Wait until the members are as wanted, or the time is over; return them as they are then."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        members = group_members(group, directory)
        if is_done(members) or time.monotonic() > deadline:
            return members
        time.sleep(POLL_SECONDS)
