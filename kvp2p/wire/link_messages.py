"""What the two ends of a link say to each other about the link itself, as values.

Decides: the vocabulary of liveness and credit; `wire/mesh.py` makes the bytes, `net/link.py` speaks it.
Keeps true: I9, bytes sent on a lane and not yet given back by a `Credit` never exceed the lane's window.
In and out: values; they travel on the control lane and no machine ever sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvp2p.core.messages import Lane


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a Pong of the same number."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer a Ping. `clock_ns` is the answerer's CLOCK_MONOTONIC, read after the Ping came."""

    number: int
    clock_ns: int


@dataclass(frozen=True, slots=True)
class Credit:
    """The consumer has taken so many payload bytes of a lane (DATA or CHUNKS): as many may follow."""

    lane: Lane
    taken_bytes: int


LinkMessage = Ping | Pong | Credit
LINK_MESSAGES: Final = (Ping, Pong, Credit)
