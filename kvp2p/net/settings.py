"""Settings of the mesh, all times in milliseconds.

Decides: how patient links are, and from which address they are dialled. The default is for LAN and WAN alike; tests make it short.
Keeps true: values that contradict each other are refused at construction.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kvp2p.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """What a mesh may be told by configuration. All nodes of a cluster should have the same."""

    ping_interval_ms: int = 1_000
    link_timeout_ms: int = 5_000  # without one whole message from the peer, or much of one; five pings
    handshake_timeout_ms: int = 5_000  # from the first packet to an open link, on both sides
    backoff_ms_min: int = 100  # before the second attempt to dial; doubles with each attempt
    backoff_ms_max: int = 5_000
    link_settled_ms: int = 10_000  # a link that lived longer makes the next attempt begin at backoff_ms_min again
    dial_from: str | None = None  # the own address that peers are dialled from; None: the one that the route has

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in (one for one in self.__dataclass_fields__ if one != "dial_from"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= 3_600_000:
                raise ConfigError(f"{name} must be a whole number of milliseconds from 1 to 3600000, not {value!r}")
        if self.link_timeout_ms < 2 * self.ping_interval_ms:
            raise ConfigError("link_timeout_ms must be at least twice ping_interval_ms")
        if self.backoff_ms_min > self.backoff_ms_max:
            raise ConfigError("backoff_ms_min must not exceed backoff_ms_max")
        if self.dial_from is not None and not _is_address_of_one(self.dial_from):
            raise ConfigError(
                f"dial_from must be one IP address of this machine, such as 10.0.0.1, not {self.dial_from!r}"
            )


def _is_address_of_one(text: str) -> bool:
    """Tell whether a text is an address that one machine can have; whether this one has it, the supervisor finds out."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast)
