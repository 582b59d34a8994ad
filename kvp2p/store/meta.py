"""The facts a store keeps about itself, and how each is written in the `meta` table.

Decides: the bytes of format, identity, vector, floor, above, complete, restored, clock offset, designation and members.
Keeps true: what is written is read back equal, and a value that this code did not write is refused, not guessed at.
In and out: typed values in, bytes out, and back. JSON is compact with sorted keys; integers are big-endian.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Generic, TypeVar

from kvp2p import __version__
from kvp2p.core.messages import Designation, Member
from kvp2p.core.port import Identity
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.errors import RemoteProtocolError, StoreFormatError, StoreOutdated
from kvp2p.ids import ISSUER_BYTES, AccountId, ClusterId, Issuer, NodeId

T = TypeVar("T")

FORMAT_VERSION: Final = 2
OLD_FORMAT: Final = 1  # which `migration.py` brings to this one
FORMAT_KEY: Final = b"format"

_DESIGNATION_BYTES = 4 + ISSUER_BYTES + 16


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    """One fact: its key in `meta`, its bytes, and what holds while it was never written."""

    name: bytes
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    absent: T


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def encode_format() -> bytes:
    """Return the value of `format`: the version of the layout and of the kvp2p that made it."""
    return _compact({"format": FORMAT_VERSION, "made_by": __version__})


def check_format(raw: bytes | None, where: str, *, older: int | None = None) -> int:
    """Return the format of a store; `raw` is its `format`.

    Raises StoreFormatError unless it is the one that this code reads, or `older`: StoreOutdated when opening the store for
    writing would bring it to that.
    """
    try:
        fields = json.loads(raw or b"")
        made, made_by = int(fields["format"]), str(fields["made_by"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreFormatError(
            f"{where} is not a store of kvp2p: it does not say its format. Give the directory that `kvp2p init` made"
        ) from error
    if made not in (FORMAT_VERSION, older):
        if made > FORMAT_VERSION:
            advice = f"Start kvp2p {made_by} or newer on it"
        elif made == OLD_FORMAT:
            advice = "Start its node once (`kvp2p serve`): it brings the store to this format"
        else:
            advice = f"Export it with kvp2p {made_by}, or join the cluster with an empty directory"
        kind = StoreOutdated if made == OLD_FORMAT else StoreFormatError
        raise kind(
            f"{where} has format {made}, made by kvp2p {made_by}; kvp2p {__version__} reads format {FORMAT_VERSION}. {advice}"
        )
    return made


def _encode_identity(identity: Identity) -> bytes:
    return _compact(
        {
            "account": identity.account.hex(),
            "cluster": identity.cluster.hex(),
            "name": identity.name,
            "node": identity.node.hex(),
        }
    )


def _decode_identity(raw: bytes) -> Identity:
    fields = json.loads(raw)
    return Identity(
        ClusterId(bytes.fromhex(fields["cluster"])),
        AccountId(bytes.fromhex(fields["account"])),
        NodeId(bytes.fromhex(fields["node"])),
        str(fields["name"]),
    )


def _encode_designation(designation: Designation | None) -> bytes:
    if designation is None:
        return b""
    return designation.term.to_bytes(4, "big") + designation.tie + designation.node


def _decode_designation(raw: bytes) -> Designation | None:
    if not raw:
        return None
    if len(raw) != _DESIGNATION_BYTES:
        raise ValueError(f"a designation has {len(raw)} bytes, not {_DESIGNATION_BYTES}")
    return Designation(int.from_bytes(raw[:4], "big"), Issuer(raw[4:12]), NodeId(raw[12:]))


def _encode_members(members: tuple[Member, ...]) -> bytes:
    return _compact([{**asdict(member), "node": member.node.hex()} for member in members])


def _decode_members(raw: bytes) -> tuple[Member, ...]:
    return tuple(Member(**{**fields, "node": NodeId(bytes.fromhex(fields["node"]))}) for fields in json.loads(raw))


def _encode_flag(flag: bool) -> bytes:
    return b"\x01" if flag else b"\x00"


def _decode_flag(raw: bytes) -> bool:
    return raw == b"\x01"


def _vector_field(name: bytes) -> Field[VersionVector]:
    return Field(name, VersionVector.encode, VersionVector.decode, EMPTY_VECTOR)


IDENTITY: Final[Field[Identity | None]] = Field(
    b"identity", lambda one: _encode_identity(one) if one else b"", _decode_identity, None
)
VECTOR: Final = _vector_field(b"vector")
FLOOR: Final = _vector_field(b"floor")
ABOVE: Final = _vector_field(b"above")
COMPLETE: Final[Field[bool]] = Field(b"complete", _encode_flag, _decode_flag, False)
CLOCK_OFFSET: Final[Field[int]] = Field(
    b"clock_offset_ms",
    lambda offset_ms: offset_ms.to_bytes(8, "big", signed=True),
    lambda raw: int.from_bytes(raw, "big", signed=True),
    0,
)
RESTORED: Final[Field[bool]] = Field(b"restored", _encode_flag, _decode_flag, False)
DESIGNATION: Final[Field[Designation | None]] = Field(b"designation", _encode_designation, _decode_designation, None)
MEMBERS: Final[Field[tuple[Member, ...]]] = Field(b"members", _encode_members, _decode_members, ())

FIELDS: Final[tuple[Field[Any], ...]] = (
    IDENTITY,
    VECTOR,
    FLOOR,
    ABOVE,
    COMPLETE,
    CLOCK_OFFSET,
    RESTORED,
    DESIGNATION,
    MEMBERS,
)
"""All facts but the format; each is a property of a read transaction, by its name."""


def decode_field(field: Field[T], raw: bytes | None) -> T:
    """Read a fact; raises StoreFormatError when the bytes are not what `field.encode` writes."""
    if raw is None:
        return field.absent
    try:
        return field.decode(raw)
    except (ValueError, KeyError, TypeError, RemoteProtocolError) as error:
        raise StoreFormatError(f"the store's {field.name.decode()} cannot be read: {error}") from error


Decoded = dict[bytes, tuple[bytes | None, Any]]
"""Facts by name, with the bytes they were read from: decoded again only when the bytes are others."""


def cached_field(field: Field[T], raw: bytes | None, decoded: Decoded) -> T:
    """Read a fact through a cache. Entries are replaced whole, so threads may share one."""
    cached = decoded.get(field.name)
    if cached is not None and cached[0] == raw:
        value: T = cached[1]
        return value
    value = decode_field(field, raw)
    decoded[field.name] = (raw, value)
    return value
