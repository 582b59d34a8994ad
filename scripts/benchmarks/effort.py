"""How long and how often a figure is measured, and lines that tell how far a run is."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """`seconds` are those of each repetition; figures that have a size instead choose it with `pick`."""

    seconds: float = 3.0
    repetitions: int = 5
    clients: int = 1
    is_quick: bool = False
    began: float = field(default_factory=time.monotonic)

    def pick(self, quick: int, whole: int) -> int:
        """Return the one for a first look, or the one for figures to be told."""
        return quick if self.is_quick else whole

    def tell(self, what: str) -> None:
        """Say on stderr what comes now: stdout is for the figures alone."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {what}", file=sys.stderr, flush=True)
