"""Whole: what of a replica's vector its readers are shown.

Decides: whether a covered version is shown, and up to where everything is.
Keeps true: I3, whole is stronger than covered: a row that lacks chunks counts for the vector, and readers see an older one of its key. Whoever
promises a client or a peer that something *is there* (KV-Min-Version, a held reply, readiness, the floor of I8) asks here.
In and out: the durable vector, the log floor and what the store tells of its pending rows in; claims out. Where not all pending rows are told,
nothing is claimed. A row that a walk brought may hide whatever came without a log: all that the floor covers, and so all behind that.
"""

from __future__ import annotations

from kvp2p.core.chunk_rows import NOTHING_PENDING, Pending
from kvp2p.core.port import Hidden
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import Issuer, Stamp, Version, make_version, version_issuer, version_stamp, version_term


class Whole:
    """A vector, and what pending rows hide of it. Made anew when one of them changes; cheap when nothing is pending."""

    __slots__ = ("_floor", "_hidden", "_pending", "_vector")

    def __init__(self, vector: VersionVector, floor: VersionVector, pending: Pending = NOTHING_PENDING) -> None:
        self._vector = vector
        self._floor = floor
        self._pending = pending
        self._hidden: dict[Issuer, list[Hidden]] = {}
        for hidden in pending.hidden:
            self._hidden.setdefault(version_issuer(hidden.first), []).append(hidden)

    def at(self, vector: VersionVector, floor: VersionVector) -> Whole:
        """Return the same of another vector and floor."""
        if not self._pending.versions:
            return Whole(vector, floor)
        moved = Whole.__new__(Whole)
        moved._vector, moved._floor = vector, floor  # noqa: SLF001  the same class
        moved._pending, moved._hidden = self._pending, self._hidden  # noqa: SLF001  the same class
        return moved

    def covers(self, version: Version) -> bool:
        """Tell whether everything up to `version` of its issuer is shown."""
        pending, issuer = self._pending, version_issuer(version)
        if not pending.versions or not self._vector.covers(version):
            return self._vector.covers(version)
        if pending.has_more or (pending.is_walked and self._floor.reach(version_term(version), issuer)):
            return False
        return all(version < hidden.first for hidden in self._hidden.get(issuer, ()))

    def shows(self, version: Version, count: int = 1) -> bool:
        """Tell whether a write is shown whose `count` operations end at `version`, whatever else is hidden."""
        pending, issuer = self._pending, version_issuer(version)
        if not pending.versions or not self._vector.covers(version):
            return self._vector.covers(version)
        if pending.has_more or (pending.is_walked and self._floor.covers(version)):
            return False
        first = _moved(version, 1 - count)
        return all(hidden.last < first or version < hidden.first for hidden in self._hidden.get(issuer, ()))

    def vector(self) -> VersionVector:
        """Return the vector of what is shown: each issuer up to before the first version that is hidden, empty when not all is told."""
        pending, fence = self._pending, self._vector.fence
        if not pending.versions:
            return self._vector
        if pending.has_more or pending.is_walked or any(hidden.first < fence for hidden in pending.hidden):
            return EMPTY_VECTOR
        tops = [self._lowered(top) for top in self._vector.tops()]
        return VersionVector((top for top in tops if version_stamp(top)), fence)

    def _lowered(self, top: Version) -> Version:
        hidden = self._hidden.get(version_issuer(top))
        return top if hidden is None else min(top, _moved(min(one.first for one in hidden), -1))


def _moved(version: Version, by: int) -> Version:
    """Return the version so many positions on, at least the one of stamp 0."""
    stamp = Stamp(max(0, version_stamp(version) + by))
    return make_version(version_term(version), stamp, version_issuer(version))
