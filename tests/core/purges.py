"""Purges made by hand, for the tests of what a store makes of them."""

from __future__ import annotations

from kvp2p.core import system_rows
from kvp2p.core.batches import BatchResult, FrameBatch, PurgeBatch
from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.messages import Frame, KeyedRow, Purge, WalkPart
from kvp2p.core.purge import PLACE_BYTES
from kvp2p.core.vector import VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, VERSION_ZERO, Issuer, Stamp, Version, make_version
from kvp2p.store.memory import MemoryStore
from tests.core.harness import apply, issuer_of, node_id, tombstone_row, value_row, vector, version

NOBODY = Issuer(bytes(8))
NOTHING = bytes(PLACE_BYTES)  # the place before every row that expires


def below(stamp: int) -> Version:
    """Return a fence: everything of term 1 before a stamp is below it."""
    return make_version(1, Stamp(stamp), NOBODY)


def upto(second: int) -> bytes:
    """Return the last place in the index of expiries of rows that expire at a second, or before."""
    return second.to_bytes(8, "big") + b"\xff" * (PLACE_BYTES - 8)


def purge_of(
    fence: Version, floor: VersionVector, base: Version = VERSION_ZERO, expired_upto: bytes = NOTHING
) -> Purge:
    return Purge(expired_upto, floor, fence, base)


def purge_frame(after: int, at: int, purge: Purge, issuer: str = "x") -> Frame:
    return Frame(1, issuer_of(issuer), Stamp(after), Stamp(at), (), (), purge)


def give(store: MemoryStore, after: int, at: int, purge: Purge) -> BatchResult:
    """Let a replica receive a Purge that stands at a position of issuer x."""
    return apply(store, FrameBatch(purge_frame(after, at, purge)))


def order(
    store: MemoryStore, at: int, fence_max: Version, floor: VersionVector, *, before_s: int = 0, rows_max: int = 100
) -> BatchResult:
    """Let the leader of issuer x order a Purge at a position."""
    return apply(store, PurgeBatch(1, issuer_of("x"), Stamp(at), floor, fence_max, before_s, rows_max))


def frame(*rows: bytes, after: int = 0, first: int = 1, issuer: str = "x") -> Frame:
    """Make a frame of rows at positions that follow on each other, each at a key of its own."""
    keyed = tuple((SYSTEM_NAMESPACE, b"key%d" % stamp, row) for stamp, row in enumerate(rows, first))
    positions = tuple((Stamp(stamp), index) for index, stamp in enumerate(range(first, first + len(rows))))
    return Frame(1, issuer_of(issuer), Stamp(after), Stamp(first + len(rows) - 1), positions, keyed)


def expiring_row(stamp: int, expires_at: int) -> bytes:
    return encode_row(Kind.VALUE, b"value", None, expires_at, version(stamp))


def filled(store: MemoryStore) -> MemoryStore:
    """Fill a store with ten positions of issuer x: tombstones at even ones, values at odd ones, of which 3 and 9 expire at 100 and 200."""
    rows = [tombstone_row(stamp) if stamp % 2 == 0 else value_row(stamp) for stamp in range(1, 11)]
    rows[2], rows[8] = expiring_row(3, 100), expiring_row(9, 200)
    apply(store, FrameBatch(frame(*rows)))
    return store


def issuer_row(stamp: int, issuer: str, closed: int | None) -> KeyedRow:
    """Make the row of an issuer, written by x at a stamp."""
    ended = None if closed is None else Stamp(closed)
    key, text = system_rows.encode_issuer(system_rows.IssuerRow(issuer_of(issuer), node_id("a"), 1, ended))
    return SYSTEM_NAMESPACE, key, encode_row(Kind.VALUE, text, None, 0, version(stamp))


def part_of(has: VersionVector, *rows: KeyedRow, to: bytes | None = None) -> WalkPart:
    """Make the first part of a walk over the system namespace, up to a key, or all of it."""
    return WalkPart(1, None, None if to is None else (SYSTEM_NAMESPACE, to), rows, has)


def fenced(fence: Version, **stamps: int) -> VersionVector:
    return vector(**stamps).fenced(fence)
