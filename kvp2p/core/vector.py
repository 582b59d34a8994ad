"""Version vectors: what a replica has everything of.

Decides: whether a version or a log position is covered.
Keeps true: the word *covered* of I1 and I3; `join` is the least upper bound, `minimum` the greatest lower bound.
In and out: immutable values; 20 bytes of fence ‖ 16 bytes per issuer (issuer ‖ stamp), issuers in byte order.
Source: Parker et al., *Detection of Mutual Inconsistency* (1983); positions are stamps of one issuer's log, and a fence
stands for everything below it (DESIGN.md §2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import ISSUER_BYTES, VERSION_BYTES, VERSION_ZERO, Issuer, Stamp, Version, version_position, version_stamp
from kvp2p.limits import VECTOR_ISSUERS_MAX

_ROW_BYTES = ISSUER_BYTES + 8
_NO_STAMP = Stamp(0)


class VersionVector:
    """An immutable vector: `fence`, and the stamp up to which everything of each issuer is covered."""

    __slots__ = ("_stamps", "fence")

    def __init__(self, stamps: Mapping[Issuer, Stamp] | None = None, fence: Version = VERSION_ZERO) -> None:
        self._stamps: dict[Issuer, Stamp] = dict(sorted(stamps.items())) if stamps else {}
        self.fence = fence

    @classmethod
    def _of_sorted(cls, stamps: dict[Issuer, Stamp], fence: Version) -> VersionVector:
        """Return a vector that keeps `stamps`, which are in order already."""
        made = cls.__new__(cls)
        made._stamps = stamps  # noqa: SLF001  the same class
        made.fence = fence
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionVector) and self._stamps == other._stamps and self.fence == other.fence

    def __hash__(self) -> int:
        return hash((self.fence, tuple(self._stamps.items())))

    def __repr__(self) -> str:
        inner = " ".join(f"{issuer.hex()[:4]}:{stamp:x}" for issuer, stamp in self._stamps.items())
        return f"<{inner or 'empty'}{'' if self.fence == VERSION_ZERO else ' fence ' + self.fence.hex()}>"

    def __len__(self) -> int:
        return len(self._stamps)

    def items(self) -> Iterator[tuple[Issuer, Stamp]]:
        """Iterate over issuers and stamps in byte order of the issuer."""
        return iter(self._stamps.items())

    def stamp_of(self, issuer: Issuer) -> Stamp:
        """Return the stamp up to which `issuer` is covered by its own row, 0 when it has none."""
        return self._stamps.get(issuer, _NO_STAMP)

    def covers(self, version: Version) -> bool:
        """Tell whether everything up to `version` of its issuer is known."""
        stamp, issuer = version_position(version)
        return stamp <= self._stamps.get(issuer, _NO_STAMP) or version < self.fence

    def covers_vector(self, other: VersionVector) -> bool:
        """Tell whether this vector covers whatever `other` covers."""
        if self is other:
            return True
        stamps = self._stamps
        for issuer, stamp in other._stamps.items():
            if stamps.get(issuer, _NO_STAMP) < stamp:
                return False
        return self.fence >= other.fence

    def raised(self, issuer: Issuer, stamp: Stamp) -> VersionVector:
        """Return this vector with `issuer` covered at least up to `stamp`."""
        stamps = self._stamps
        if stamp <= stamps.get(issuer, _NO_STAMP):
            return self
        raised = {**stamps, issuer: stamp}
        # A known issuer keeps its place; only a new one, which is rare, has to be put in order.
        return self._of_sorted(raised, self.fence) if issuer in stamps else VersionVector(raised, self.fence)

    def join(self, other: VersionVector) -> VersionVector:
        """Return the least vector that covers both."""
        stamps = self._stamps
        higher = {issuer: stamp for issuer, stamp in other._stamps.items() if stamp > stamps.get(issuer, -1)}
        fence = max(self.fence, other.fence)
        if not higher and fence == self.fence:
            return self
        joined = {**stamps, **higher}
        return self._of_sorted(joined, fence) if len(joined) == len(stamps) else VersionVector(joined, fence)

    def latest_stamp(self) -> Stamp:
        """Return the greatest stamp in the vector, the fence's included, 0 when there is none."""
        return max([version_stamp(self.fence), *self._stamps.values()])

    def encode(self) -> bytes:
        """Return fence (20 bytes) ‖ issuer ‖ stamp (16 bytes each)."""
        return self.fence + b"".join([issuer + stamp.to_bytes(8, "big") for issuer, stamp in self._stamps.items()])

    @classmethod
    def decode(cls, data: bytes) -> VersionVector:
        """Read what `encode` wrote.

        Raises RemoteProtocolError when the bytes are not exactly such an encoding.
        """
        rows = data[VERSION_BYTES:]
        if len(data) < VERSION_BYTES or len(rows) % _ROW_BYTES or len(rows) > VECTOR_ISSUERS_MAX * _ROW_BYTES:
            raise RemoteProtocolError(f"a version vector cannot have {len(data)} bytes")
        stamps: dict[Issuer, Stamp] = {}
        before = b""
        for at in range(0, len(rows), _ROW_BYTES):
            issuer = Issuer(rows[at : at + ISSUER_BYTES])
            if issuer <= before:
                raise RemoteProtocolError("the issuers of a version vector are not in order")
            stamps[issuer] = Stamp(int.from_bytes(rows[at + ISSUER_BYTES : at + _ROW_BYTES], "big"))
            before = issuer
        return cls._of_sorted(stamps, Version(data[:VERSION_BYTES]))


EMPTY_VECTOR = VersionVector()
