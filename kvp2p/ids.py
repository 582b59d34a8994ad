"""Identifiers and the words for time: fixed-width byte strings and plain integers.

Decides: how wide every identifier is and how it is written for people (lower-case hex).
Keeps true: an identifier is compared and sorted as bytes; nothing here draws randomness, the caller injects it.
In and out: raw bytes in the store and on the wire, hex text in JSON, logs and file names.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NewType

NodeId = NewType("NodeId", bytes)  # 16 bytes, drawn once by `kvp2p init`
ClusterId = NewType("ClusterId", bytes)  # 16 bytes, drawn when the cluster is made
NamespaceId = NewType("NamespaceId", bytes)  # 16 bytes, shown as 32 hex digits, never reused
AccountId = NewType("AccountId", bytes)  # 16 bytes, shown as 32 hex digits
Issuer = NewType("Issuer", bytes)  # 8 bytes, drawn each time a node starts to lead [I2]
Stamp = NewType("Stamp", int)  # 64-bit hybrid logical clock reading: 48 bits of ms, 16 bits of counter
Version = NewType("Version", bytes)  # 20 bytes: term (4) ‖ stamp (8) ‖ issuer (8), big-endian

ID_BYTES = 16
ISSUER_BYTES = 8
VERSION_BYTES = 20

SYSTEM_NAMESPACE = NamespaceId(bytes(ID_BYTES))  # namespaces, tokens and settings are rows in here
_ID_FORM = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)  # bytes.fromhex alone would skip spaces

VERSION_ZERO = Version(bytes(VERSION_BYTES))
_VERSION = struct.Struct(">IQ8s")  # a fifth of the time of slicing and int.from_bytes: it is done for every row
_POSITION = struct.Struct(">Q8s")


@dataclass(frozen=True, slots=True)
class Now:
    """One reading of both clocks: monotonic nanoseconds and wall-clock milliseconds since 1970."""

    mono_ns: int
    wall_ms: int


def make_version(term: int, stamp: Stamp, issuer: Issuer) -> Version:
    """Build the 20 bytes that order a write among all writes."""
    return Version(_VERSION.pack(term, stamp, issuer))


def version_term(version: Version) -> int:
    """Return the term of a version."""
    return int.from_bytes(version[:4], "big")


def version_stamp(version: Version) -> Stamp:
    """Return the stamp of a version."""
    return Stamp(int.from_bytes(version[4:12], "big"))


def version_issuer(version: Version) -> Issuer:
    """Return the issuer of a version."""
    return Issuer(version[12:20])


def version_position(version: Version) -> tuple[Stamp, Issuer]:
    """Return stamp and issuer of a version: where it stands in which log."""
    position: tuple[Stamp, Issuer] = _POSITION.unpack_from(version, 4)
    return position


def parse_id(text: str, what: str) -> bytes:
    """Read an identifier of 16 bytes from 32 hex digits.

    Raises ValueError, naming `what`, when the text is anything else.
    """
    if _ID_FORM.fullmatch(text):
        return bytes.fromhex(text)
    raise ValueError(f"{what} must be 32 hex digits, not {text[:80]!r}")
