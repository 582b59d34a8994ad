"""Settings of the replica machine, times in milliseconds.

Decides: how patient the machine is. Presets: the default is for LAN and WAN alike, `for_tests` makes simulated time short.
Keeps true: values that contradict each other are refused at construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvp2p.errors import ConfigError

_YEAR_MS: Final = 365 * 86_400_000
_GREATEST: Final = {
    "purge_after_ms": _YEAR_MS,
    "log_age_ms": _YEAR_MS,
    "promote_skew_ms_max": _YEAR_MS,
    "log_positions_max": 1_000_000_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """What a replica machine may be told by configuration."""

    digest_busy_ms: int = 250  # DESIGN §5: while anything changed in the last `busy_ms`
    digest_idle_ms: int = 2_000
    busy_ms: int = 2_000
    pull_grace_ms: int = 200  # how long a frame seen in a digest may still be on its way; guess
    pull_timeout_ms: int = 5_000  # without one frame
    walk_timeout_ms: int = 10_000  # without one part
    first_contact_ms: int = 3_000  # I2: with no peer reachable for so long the own store counts
    hold_ms: int = 1_000
    hold_ms_per_mib: int = 1_000
    skew_alarm_ms: int = 1_000
    promote_skew_ms_max: int = (
        60_000  # a node whose wall clock is further off than this leads by an operator's override only; guess
    )
    purge_interval_ms: int = 10_000
    # Deletes and expired values of the last hour can be fetched from the log by a node that was away; one that was away longer walks. Guess.
    purge_after_ms: int = 3_600_000
    purge_skew_ms: int = 1_000  # a value goes so long after it expired: for clocks that are estimated; guess
    log_age_ms: int = 86_400_000  # a day, and as many positions as take about 100 MB; guesses
    log_positions_max: int = 1_000_000

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            greatest = _GREATEST.get(name, 3_600_000)
            what = "" if name == "log_positions_max" else " of milliseconds"
            if not isinstance(value, int) or not 1 <= value <= greatest:
                raise ConfigError(f"{name} must be a whole number{what} from 1 to {greatest}, not {value!r}")
        if self.digest_busy_ms > self.digest_idle_ms:
            raise ConfigError("digest_busy_ms must not exceed digest_idle_ms")
