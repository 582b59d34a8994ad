"""One integer seed becomes a tree of independent random generators.

Decides: which generator a part of the simulation draws from. A generator is named by its path, and its seed is a hash of
the run's seed and that path.
Keeps true: what one part draws never depends on how much another drew, so adding a fault does not reshuffle the network, and adding
a node does not reshuffle the other nodes. The same on every machine and under every PYTHONHASHSEED.
In and out: a seed in, `random.Random` out.
Source: the splitting of FoundationDB's and TigerBeetle's simulators, with names in place of an order.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random


class Seeds:
    """A node of the tree."""

    __slots__ = ("_path",)

    def __init__(self, seed: int) -> None:
        self._path = str(seed)

    def child(self, name: str) -> Seeds:
        """Return the subtree of that name."""
        child = Seeds(0)
        child._path = f"{self._path}/{name}"
        return child

    def random(self, name: str) -> Random:
        """Return a new generator for that name; asked twice, it starts anew."""
        digest = blake2b(f"{self._path}/{name}".encode(), digest_size=16).digest()
        return Random(int.from_bytes(digest, "big"))
