"""Whom to dial: targets, and how long to wait between attempts.

Decides: what a mesh URL is, when the next attempt may be made, and how targets without a node id (seeds) turn into ones with.
Keeps true: I9, at most MEMBERS_MAX targets; attempts to one target are never closer than half of `backoff_ms_min`.
In and out: no I/O; randomness is injected, so that nodes which lost the same peer do not come back in step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

import trio

from kvp2p.ids import NodeId
from kvp2p.limits import MEMBERS_MAX
from kvp2p.net.settings import MeshSettings


def parse_mesh_url(url: str) -> tuple[str, int] | None:
    """Return host and port of `ws://host:port`, None when the URL is anything else."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    is_bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or parts.username)
    return (host, port) if parts.scheme == "ws" and host and port and is_bare else None


class Backoff:
    """Waits that double from `backoff_ms_min` to `backoff_ms_max`, each of them shortened by up to a half at random."""

    def __init__(self, settings: MeshSettings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._next_ms = settings.backoff_ms_min

    def next_seconds(self) -> float:
        """Return how long to wait before the next attempt."""
        wait_ms = self._next_ms
        self._next_ms = min(2 * wait_ms, self._settings.backoff_ms_max)
        return wait_ms * self._random.uniform(0.5, 1.0) / 1_000

    def reset(self) -> None:
        """Begin at the shortest wait again."""
        self._next_ms = self._settings.backoff_ms_min


@dataclass(slots=True)
class Target:
    """Something to dial until it is linked, and whenever it is not. `node` is None until a seed's owner is known."""

    node: NodeId | None
    url: str
    backoff: Backoff
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)  # of the task that dials it


class Targets:
    """All targets, by node id or, for seeds, by URL."""

    def __init__(self) -> None:
        self._by_key: dict[NodeId | str, Target] = {}

    def all(self) -> list[Target]:
        """Return the targets there are."""
        return list(self._by_key.values())

    def add(self, target: Target) -> bool:
        """Add a target, or give the known one a new URL; True when it is new and somebody has to dial it."""
        known = self._by_key.get(target.url if target.node is None else target.node)
        if known is not None:
            if known.url != target.url:
                known.url = target.url
                known.backoff.reset()
            return False
        is_known_by_node = target.node is None and any(one.url == target.url for one in self._by_key.values())
        if is_known_by_node or len(self._by_key) >= MEMBERS_MAX:
            return False
        self._by_key[target.url if target.node is None else target.node] = target
        return True

    def adopt(self, target: Target, node: NodeId) -> bool:
        """Name the owner of a seed; False when that node is a target already, so this one is not needed any more."""
        self._by_key.pop(target.url, None)
        if node in self._by_key:
            return False
        target.node = node
        self._by_key[node] = target
        return True

    def remove(self, key: NodeId | str) -> Target | None:
        """Forget a target and return it."""
        return self._by_key.pop(key, None)
