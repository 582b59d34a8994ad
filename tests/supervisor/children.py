"""Dummy children for the supervisor's tests, run as `python children.py DIRECTORY PLAY`.

Each play is a supervisor of real forked processes; the children write what happens to them to DIRECTORY/story.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trio

from kvp2p.errors import StoreFormatError
from kvp2p.runtime import logs
from kvp2p.runtime.child import ChildLife
from kvp2p.supervisor.spawn import ChildSpec
from kvp2p.supervisor.supervisor import Supervisor

STORY = Path("story")


def tell(line: str) -> None:
    """Add a line to the story; one write, so that processes do not mix."""
    with STORY.open("a", encoding="ascii") as file:
        file.write(f"{line}\n")


def obedient(name: str, drain_seconds: float = 0.0) -> Callable[[ChildLife], None]:
    """Return a child that drains when it is told."""

    async def main(life: ChildLife) -> None:
        async with life.supervised() as drain:
            tell(f"{name} up {os.getpid()}")
            life.announce_ready()
            await drain.requested.wait()
            tell(f"{name} draining")
            await trio.sleep(drain_seconds)
        tell(f"{name} done")

    return lambda life: trio.run(main, life)


def deaf(life: ChildLife) -> None:
    """Ignore SIGTERM, and keep the event loop and the interpreter busy."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(f"deaf up {os.getpid()}")
    life.announce_ready()
    while True:
        time.sleep(0.001)


def failing(_life: ChildLife) -> None:
    """Fail at once, each time."""
    tell(f"failing up {time.monotonic()}")
    raise RuntimeError("a planted failure")


def of_another_format(_life: ChildLife) -> None:
    """Fail as a node does that finds a directory it cannot ever read."""
    tell("fatal up")
    try:
        raise StoreFormatError("the store has format 9; this program reads 1")
    except StoreFormatError as error:
        raise ExceptionGroup("as trio does", [error]) from error


PLAYS: dict[str, list[ChildSpec]] = {
    "obedient": [
        ChildSpec("node", "node", obedient("node")),
        ChildSpec("api", "api", obedient("api", 0.2)),
        ChildSpec("gateway-1", "gateway", obedient("gateway-1", 0.3)),
        ChildSpec("gateway-2", "gateway", obedient("gateway-2")),
    ],
    "deaf": [ChildSpec("node", "node", obedient("node")), ChildSpec("gateway-1", "gateway", deaf)],
    "failing": [
        ChildSpec("node", "node", failing, prepare=lambda: tell(f"prepared {os.getpid()}")),
        ChildSpec("gateway-1", "gateway", obedient("gateway-1")),
    ],
    "fatal": [ChildSpec("node", "node", of_another_format), ChildSpec("gateway-1", "gateway", obedient("gateway-1"))],
}


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    logs.configure("info", "json", "supervisor")
    sys.exit(Supervisor(PLAYS[sys.argv[2]], Path("pids.json")).run())
