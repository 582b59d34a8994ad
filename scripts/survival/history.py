"""What is known of a run, and all that it is judged by. Times are seconds since the start of the load.

Keeps true: nothing here is derived; a history that was written by hand is as good as a real one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Write:
    """One write as its client saw it. `due_s` and `ended_s` count from the start of the load."""

    number: int
    key: str
    value: str
    node: str
    due_s: float
    ended_s: float
    outcome: str  # acked, refused, unknown
    version: str  # 40 hex when acked
    code: str


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill of a node; `ready_s` is when it was ready again."""

    node: str
    killed_s: float
    ready_s: float


@dataclass(slots=True)
class Cut:
    """A partition: asked for at `asked_s`, whole from `cut_s` to `heal_s`, over by `healed_s`."""

    groups: tuple[tuple[str, ...], ...]
    asked_s: float
    cut_s: float = math.inf
    heal_s: float = math.inf
    healed_s: float = math.inf

    def side_of(self, node: str) -> tuple[str, ...]:
        """Return the group of a node."""
        return next(group for group in self.groups if node in group)


@dataclass(slots=True)
class History:
    """All of a run."""

    leader: str
    rate: float
    seconds: float
    leader_kills_wanted: int
    cuts_wanted: int = 0
    writes: list[Write] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    # node -> key -> (value, version), as read over HTTP after the end
    standing: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    equal_after_s: float | None = (
        None  # counted from the end of the load, or from the heal of the last cut, which is later
    )
    told: list[str] = field(default_factory=list)  # what went wrong on the way
