"""What all links of a mesh have carried, since the mesh began.

Keeps true: the sums never go back: what an ended link has carried stays in them.
In and out: links as they begin and end; sums by lane.
"""

from __future__ import annotations

from dataclasses import fields

from kvp2p.core.messages import Lane
from kvp2p.net.link import Link, Traffic


class MeshTraffic:
    """Sums of `Link.traffic`."""

    def __init__(self) -> None:
        self._ended = {lane: Traffic() for lane in Lane}
        self._links: list[Link] = []

    def begin(self, link: Link) -> None:
        """Count a link in."""
        self._links.append(link)

    def end(self, link: Link) -> None:
        """Keep what a link has carried; it carries nothing more."""
        self._links.remove(link)
        for lane, ended in self._ended.items():
            self._ended[lane] = _sum(ended, link.traffic[lane])

    def sums(self) -> dict[Lane, Traffic]:
        """Return what the links that are there and those that have ended have carried."""
        return {lane: _sum(ended, *(link.traffic[lane] for link in self._links)) for lane, ended in self._ended.items()}


def _sum(*parts: Traffic) -> Traffic:
    return Traffic(**{one.name: sum(getattr(part, one.name) for part in parts) for one in fields(Traffic)})
