"""Version vectors: what a replica has everything of.

Decides: whether a version or a log position is covered.
Keeps true: the word *covered* of I1 and I3; `join` is the least upper bound, `minimum` the greatest lower bound. Equal vectors cover the same
versions and unequal ones do not: what the fence covers has no entry of its own.
In and out: immutable values; 20 bytes of fence ‖ 20 bytes per issuer (its greatest covered version), issuers in byte order.
Source: Parker et al., *Detection of Mutual Inconsistency* (1983); positions are stamps of one issuer's log, and a fence
stands for everything below it (DESIGN.md §2).

An issuer belongs to one term, so its greatest covered version says all: (term, stamp, issuer). With a stamp alone an issuer that the
fence has dropped could not be told from one that was never heard of, and *absent* would be read as 0: what such a replica lacks, or may
drop, depends on the term.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import (
    VERSION_BYTES,
    VERSION_ZERO,
    Issuer,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
    version_term,
)
from kvp2p.limits import VECTOR_ISSUERS_MAX

EVERY_STAMP = Stamp((1 << 64) - 1)


class VersionVector:
    """An immutable vector: `fence`, below which everything is covered, and the greatest covered version of each issuer beyond it."""

    __slots__ = ("_tops", "fence")

    def __init__(self, tops: Iterable[Version] = (), fence: Version = VERSION_ZERO) -> None:
        """Make a vector of versions, one an issuer."""
        kept = sorted((version_issuer(top), top) for top in tops if top >= fence)
        self._tops: dict[Issuer, Version] = dict(kept)
        self.fence = fence

    @classmethod
    def _of_sorted(cls, tops: dict[Issuer, Version], fence: Version) -> VersionVector:
        """Return a vector that keeps `tops`, which are in order and beyond the fence already."""
        made = cls.__new__(cls)
        made._tops = tops  # noqa: SLF001  the same class
        made.fence = fence
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionVector) and self._tops == other._tops and self.fence == other.fence

    def __hash__(self) -> int:
        return hash((self.fence, tuple(self._tops.values())))

    def __repr__(self) -> str:
        inner = " ".join(
            f"{issuer.hex()[:4]}:{version_term(top)}.{version_stamp(top):x}" for issuer, top in self._tops.items()
        )
        return f"<{inner or 'empty'}{'' if self.fence == VERSION_ZERO else ' fence ' + self.fence.hex()}>"

    def __len__(self) -> int:
        return len(self._tops)

    @property
    def is_empty(self) -> bool:
        """Tell whether it covers nothing at all."""
        return not self._tops and self.fence == VERSION_ZERO

    def tops(self) -> Iterator[Version]:
        """Iterate over the greatest covered versions beyond the fence, in byte order of their issuers."""
        return iter(self._tops.values())

    def items(self) -> Iterator[tuple[Issuer, Stamp]]:
        """Iterate over the issuers that have an entry, and their stamps: for people and records. An issuer may be covered without one."""
        for issuer, top in self._tops.items():
            yield issuer, version_stamp(top)

    def top_of(self, issuer: Issuer) -> Version | None:
        """Return an issuer's entry, None when it has none: never heard of, or dropped. `reach` tells which."""
        return self._tops.get(issuer)

    def only(self, issuer: Issuer) -> VersionVector:
        """Return what this vector has an entry for of one issuer."""
        top = self._tops.get(issuer)
        return VersionVector() if top is None else VersionVector((top,))

    def reach(self, term: int, issuer: Issuer) -> Stamp:
        """Return the stamp up to which all of an issuer's positions are covered, by its entry or by the fence; 0 for none."""
        top = self._tops.get(issuer)
        if top is not None:
            return version_stamp(top)
        fence = self.fence
        fence_term = version_term(fence)
        if term != fence_term:
            return EVERY_STAMP if term < fence_term else Stamp(0)
        stamp = version_stamp(fence)
        return stamp if issuer < version_issuer(fence) else Stamp(max(0, stamp - 1))

    def covers(self, version: Version) -> bool:
        """Tell whether everything up to `version` of its issuer is known."""
        return version <= self._tops.get(version_issuer(version), VERSION_ZERO) or version < self.fence

    def covers_vector(self, other: VersionVector) -> bool:
        """Tell whether this vector covers whatever `other` covers."""
        if self is other:
            return True
        if self.fence < other.fence:
            return False
        tops, fence = self._tops, self.fence
        return all(top <= tops.get(issuer, VERSION_ZERO) or top < fence for issuer, top in other._tops.items())

    def raised(self, version: Version) -> VersionVector:
        """Return this vector with an issuer covered at least up to `version`; a stamp of 0 is before everything and adds nothing."""
        if self.covers(version) or not version_stamp(version):
            return self
        issuer = version_issuer(version)
        raised = {**self._tops, issuer: version}
        # A known issuer keeps its place; only a new one, which is rare, has to be put in order.
        if issuer in self._tops:
            return self._of_sorted(raised, self.fence)
        return VersionVector(raised.values(), self.fence)

    def fenced(self, fence: Version) -> VersionVector:
        """Return this vector with everything below `fence` covered, too."""
        return self if fence <= self.fence else VersionVector(self._tops.values(), fence)

    def join(self, other: VersionVector) -> VersionVector:
        """Return the least vector that covers both."""
        tops = self._tops
        higher = [top for issuer, top in other._tops.items() if top > tops.get(issuer, VERSION_ZERO)]
        fence = max(self.fence, other.fence)
        if fence == self.fence and all(top < fence for top in higher):
            return self
        joined = {**tops, **{version_issuer(top): top for top in higher}}
        return VersionVector(joined.values(), fence)

    def minimum(self, other: VersionVector) -> VersionVector:
        """Return the greatest vector that both cover."""
        tops: list[Version] = []
        for issuer, top in {**self._tops, **other._tops}.items():
            term = version_term(top)
            stamp = min(self.reach(term, issuer), other.reach(term, issuer))
            tops.append(make_version(term, stamp, issuer))
        fence = min(self.fence, other.fence)
        return VersionVector((top for top in tops if version_stamp(top)), fence)

    def latest_stamp(self) -> Stamp:
        """Return the greatest stamp in the vector, the fence's included, 0 when there is none."""
        return max([version_stamp(self.fence), *map(version_stamp, self._tops.values())])

    def encode(self) -> bytes:
        """Return fence (20 bytes) ‖ greatest version of each issuer (20 bytes each)."""
        return self.fence + b"".join(self._tops.values())

    @classmethod
    def decode(cls, data: bytes) -> VersionVector:
        """Read what `encode` wrote.

        Raises RemoteProtocolError when the bytes are not exactly such an encoding.
        """
        if len(data) % VERSION_BYTES or not VERSION_BYTES <= len(data) <= VERSION_BYTES * (1 + VECTOR_ISSUERS_MAX):
            raise RemoteProtocolError(f"a version vector cannot have {len(data)} bytes")
        fence = Version(data[:VERSION_BYTES])
        tops: dict[Issuer, Version] = {}
        before = b""
        for at in range(VERSION_BYTES, len(data), VERSION_BYTES):
            top = Version(data[at : at + VERSION_BYTES])
            issuer = version_issuer(top)
            if tops and issuer <= before:
                raise RemoteProtocolError("the issuers of a version vector are not in order")
            if top < fence or not version_stamp(top):
                raise RemoteProtocolError("a version vector has an entry that says nothing")
            tops[issuer] = top
            before = issuer
        return cls._of_sorted(tops, fence)


EMPTY_VECTOR = VersionVector()
