"""Settings of the replica machine, all times in milliseconds.

Decides: how patient the machine is. Presets: the default is for LAN and WAN alike, `for_tests` makes simulated time short.
Keeps true: values that contradict each other are refused at construction.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvp2p.errors import ConfigError


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

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= 3_600_000:
                raise ConfigError(f"{name} must be a whole number of milliseconds from 1 to 3600000, not {value!r}")
        if self.digest_busy_ms > self.digest_idle_ms:
            raise ConfigError("digest_busy_ms must not exceed digest_idle_ms")
