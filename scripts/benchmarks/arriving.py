"""When a node that joins or comes back has what it lacked: seen from outside, in its own file and in its log.

The end is read from the node's file, every POLL_SECONDS, through the reader that gateways use: from then on its clients see everything. The
beginning stands in its log, which has microseconds: so the start of its processes does not count.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from kvp2p import Replica
from kvp2p.core.port import ReadTransaction
from kvp2p.errors import StoreError
from scripts.benchmarks.nodes import CLUSTER_PROGRAM, Cluster
from scripts.benchmarks.results import CannotMeasure

POLL_SECONDS = 0.002
ARRIVE_SECONDS_MAX = 300.0


def seconds_until(
    running: Cluster, command: tuple[str, ...], name: str, begin: str, has_all: Callable[[ReadTransaction], bool]
) -> float:
    """Run a command of scripts/cluster that starts node `name`, and return the seconds from `begin` in its log until `has_all`."""
    started = time.time()
    run = [str(CLUSTER_PROGRAM), command[0], "--dir", str(running.directory), *command[1:]]
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL)
    try:
        ended = _time_of_end(running.directory / name, has_all, process)
        if process.wait():
            raise CannotMeasure(f"`scripts/cluster {command[0]}` ended with status {process.returncode}, see above")
    finally:
        process.terminate()
    return ended - time_in_log((running.directory / name / "log").read_text(), begin, started)


def _time_of_end(
    directory: Path, has_all: Callable[[ReadTransaction], bool], process: subprocess.Popen[bytes]
) -> float:
    deadline = time.monotonic() + ARRIVE_SECONDS_MAX
    replica = None
    try:
        while time.monotonic() < deadline and not process.poll():
            if replica is None:
                with suppress(StoreError):  # it is being made
                    replica = Replica(directory)
            else:
                with replica.store.read() as transaction:
                    if has_all(transaction):
                        return time.time()
            time.sleep(POLL_SECONDS)
    finally:
        if replica is not None:
            replica.close()
    raise CannotMeasure(f"{directory.name} did not have everything within {ARRIVE_SECONDS_MAX:g} s")


def time_in_log(log: str, event: str, since: float) -> float:
    """Return when a node's log has an event for the first time since a moment, both as unix seconds."""
    for line in log.splitlines():
        words = line.split()
        if event in words[1:5]:  # time, level (one or two words), event
            with suppress(ValueError):
                at = datetime.fromisoformat(words[0]).timestamp()
                if at >= since:
                    return at
    raise CannotMeasure(f"the log of the node does not have {event}")
