"""The `Purge`: the log entry that lets tombstones and expired rows go, and with it what a fence is.

Decides: its bytes, and whether a replica may apply one.
Keeps true: I8. Every version below `fence` is under `floor`, by the choice of the leader (`core/purging.py`), so whoever covers `floor` has had all of
them. Once it is applied they count as covered, so nothing below the fence can come back, whoever sends it.
In and out: values and bytes; a replica's vectors in, a word on what it lacks out.
Source: DESIGN.md §3; the fence is the garbage collection's side of a causal stability cut (Baquero, Almeida and Shoker 2014).

In the log a Purge stands where other positions have the key of a row: as a key of the system namespace that no row can have (`PURGE_MARK`), with its bytes:

    mark (1) ‖ expired_upto (24) ‖ fence (20) ‖ base (20) ‖ floor (as `VersionVector.encode`)
"""

from __future__ import annotations

from enum import StrEnum

from kvp2p.core.messages import Purge, RowKey
from kvp2p.core.vector import EVERY_STAMP, VersionVector
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import (
    SYSTEM_NAMESPACE,
    VERSION_BYTES,
    Issuer,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_term,
)

PURGE_MARK = b"\x00"  # system keys are words
PLACE_BYTES = 24  # of a row in the index of expiries: seconds (8) ‖ hash of the key (16)
_BASE_AT = PLACE_BYTES + VERSION_BYTES
_FLOOR_AT = _BASE_AT + VERSION_BYTES
PURGE_BYTES = _FLOOR_AT  # without its floor


class Obstacle(StrEnum):
    """Why a replica does not apply a Purge yet."""

    NONE = ""
    BEHIND = "behind"  # it lacks an earlier Purge, or something under the floor: both can be pulled
    FOREIGN = "foreign"  # it holds versions below the fence that the leader did not know of: only a walk tells what became of them
    SWEEPING = "sweeping"  # rows of a deleted namespace are still to be freed


def encode_purge(purge: Purge) -> bytes:
    """Return the bytes of a Purge, without the mark."""
    return purge.expired_upto + purge.fence + purge.base + purge.floor.encode()


def decode_purge(data: bytes) -> Purge:
    """Read what `encode_purge` wrote.

    Raises RemoteProtocolError when the bytes are not such an encoding, or the fence is not above its base.
    """
    if len(data) < _FLOOR_AT + VERSION_BYTES:
        raise RemoteProtocolError(f"a Purge cannot have {len(data)} bytes")
    fence = Version(data[PLACE_BYTES:_BASE_AT])
    base = Version(data[_BASE_AT:_FLOOR_AT])
    if fence <= base:
        raise RemoteProtocolError("the fence of a Purge is not above its base")
    return Purge(data[:PLACE_BYTES], VersionVector.decode(data[_FLOOR_AT:]), fence, base)


def purge_key(purge: Purge) -> RowKey:
    """Return what stands at the position of a Purge in the log."""
    return SYSTEM_NAMESPACE, PURGE_MARK + encode_purge(purge)


def purge_at(row_key: RowKey) -> Purge | None:
    """Return the Purge that stands at a position of the log, None when it is a row's."""
    namespace, key = row_key
    if namespace != SYSTEM_NAMESPACE or not key.startswith(PURGE_MARK):
        return None
    return decode_purge(key[len(PURGE_MARK) :])


def obstacle(purge: Purge, vector: VersionVector, above: VersionVector) -> Obstacle:
    """Tell what keeps a replica with this vector, and rows up to `above` beyond it, from applying a Purge."""
    if vector.fence < purge.base or not vector.covers_vector(purge.floor):
        return Obstacle.BEHIND
    if least_unknown(purge.floor, vector.join(above)) < purge.fence:
        return Obstacle.FOREIGN
    return Obstacle.NONE


def least_unknown(floor: VersionVector, held: VersionVector) -> Version:
    """Return the least version that may be held and is not under `floor`; all ones when everything held is."""
    least = Version(b"\xff" * VERSION_BYTES)
    for top in held.tops():
        if not floor.covers(top):
            least = min(least, following(floor, version_term(top), version_issuer(top)))
    return least


def following(floor: VersionVector, term: int, issuer: Issuer) -> Version:
    """Return the least version of an issuer that `floor` does not cover."""
    return make_version(term, Stamp(min(EVERY_STAMP, floor.reach(term, issuer) + 1)), issuer)
