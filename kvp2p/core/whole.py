"""Whole: what of a replica's vector its readers are shown.

Decides: whether a covered version is shown, and up to where everything is.
Keeps true: I3, whole is stronger than covered: a row that lacks chunks counts for the vector, and readers see an older one of its key. Whoever
promises a client or a peer that something *is there* (KV-Min-Version, a held reply, readiness, the floor of I8) asks here.
In and out: the durable vector, the log floor and what the store tells of its pending rows in; claims out. Where not all pending rows are told,
nothing is claimed.
"""

from __future__ import annotations

from kvp2p.core.chunk_rows import NOTHING_PENDING, Pending
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import VERSION_ZERO, Issuer, Stamp, Version, version_issuer, version_stamp

_NO_STAMP = Stamp(0)


class Whole:
    """A vector, and what pending rows hide of it. Made anew when one of them changes; cheap when nothing is pending."""

    __slots__ = ("_floor", "_hidden", "_pending", "_vector")

    def __init__(self, vector: VersionVector, floor: VersionVector, pending: Pending = NOTHING_PENDING) -> None:
        self._vector = vector
        self._floor = floor
        self._pending = pending
        self._hidden: dict[Issuer, list[tuple[Stamp, Stamp]]] = {}
        for issuer, first, last in pending.hidden:
            self._hidden.setdefault(issuer, []).append((first, last))

    def at(self, vector: VersionVector, floor: VersionVector) -> Whole:
        """Return the same of another vector and floor."""
        if not self._pending.versions:
            return Whole(vector, floor)
        moved = Whole.__new__(Whole)
        moved._vector, moved._floor = vector, floor  # noqa: SLF001  the same class
        moved._pending, moved._hidden = self._pending, self._hidden  # noqa: SLF001  the same class
        return moved

    def stamp_of(self, issuer: Issuer) -> Stamp:
        """Return up to where everything of an issuer is shown."""
        covered = self._vector.stamp_of(issuer)
        if not self._pending.versions:
            return covered
        if self._pending.has_more or (self._pending.is_walked and self._floor.stamp_of(issuer)):
            return _NO_STAMP
        first = min((first for first, _ in self._hidden.get(issuer, ())), default=None)
        return covered if first is None else min(covered, Stamp(max(0, first - 1)))

    def covers(self, version: Version) -> bool:
        """Tell whether everything up to `version` of its issuer is shown."""
        if not self._vector.covers(version):
            return False
        issuer, stamp = version_issuer(version), version_stamp(version)
        if stamp <= self.stamp_of(issuer):
            return True
        # By the fence alone, which no pending row may be below then: whose positions such a one hides is not known for every issuer.
        return stamp > self._vector.stamp_of(issuer) and version < self.fence

    def shows(self, version: Version, count: int = 1) -> bool:
        """Tell whether a write is shown whose `count` operations end at `version`, whatever else is hidden."""
        if not self._vector.covers(version):
            return False
        pending = self._pending
        if not pending.versions:
            return True
        issuer, last = version_issuer(version), version_stamp(version)
        if pending.has_more or (pending.is_walked and last <= self._floor.stamp_of(issuer)):
            return False
        first = last - count + 1
        return not any(low <= last and first <= high for low, high in self._hidden.get(issuer, ()))

    @property
    def fence(self) -> Version:
        """Return the vector's fence, or zero while a pending row is below it."""
        versions, fence = self._pending.versions, self._vector.fence
        return fence if not versions or versions[0] >= fence else VERSION_ZERO

    def vector(self) -> VersionVector:
        """Return the vector of what is shown: each issuer up to before the first position that is hidden, empty when not all is told."""
        if not self._pending.versions:
            return self._vector
        if self._pending.has_more:
            return EMPTY_VECTOR
        stamps = {issuer: self.stamp_of(issuer) for issuer, _ in self._vector.items()}
        return VersionVector({issuer: stamp for issuer, stamp in stamps.items() if stamp}, self.fence)
