"""Checks of single fields: what cbor.decode let through is not yet what a message may hold.

Decides: how a wrong field is told.
Keeps true: a field that passes has the exact type and is inside its bounds; `True` is no number.
In and out: a decoded value, its bounds and its name in; the value with its type out, or RemoteProtocolError.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvp2p.errors import RemoteProtocolError
from kvp2p.wire.cbor import CborValue

U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1
COUNTED_ON_MAX = (1 << 63) - 1  # for what the receiver goes past: one more must still fit into 64 bits


def number(value: CborValue, what: str, greatest: int = U64_MAX, least: int = 0) -> int:
    """Return an integer from `least` to `greatest`."""
    if type(value) is int and least <= value <= greatest:
        return value
    raise RemoteProtocolError(f"{what} must be a number from {least} to {greatest}, not {_shown(value)}")


def fixed(value: CborValue, count: int, what: str) -> bytes:
    """Return a byte string of exactly `count` bytes."""
    if type(value) is bytes and len(value) == count:
        return value
    raise RemoteProtocolError(f"{what} must be {count} bytes, not {_shown(value)}")


def blob(value: CborValue, what: str, greatest: int, least: int = 0) -> bytes:
    """Return a byte string of `least` to `greatest` bytes."""
    if type(value) is bytes and least <= len(value) <= greatest:
        return value
    raise RemoteProtocolError(f"{what} must be {least} to {greatest} bytes, not {_shown(value)}")


def text(value: CborValue, what: str, greatest: int, least: int = 0) -> str:
    """Return text of `least` to `greatest` characters."""
    if type(value) is str and least <= len(value) <= greatest:
        return value
    raise RemoteProtocolError(f"{what} must be a text of {least} to {greatest} characters, not {_shown(value)}")


def flag(value: CborValue, what: str) -> bool:
    """Return true or false."""
    if type(value) is bool:
        return value
    raise RemoteProtocolError(f"{what} must be true or false, not {_shown(value)}")


def items(value: CborValue, what: str, greatest: int, least: int = 0) -> list[CborValue]:
    """Return an array of `least` to `greatest` items."""
    if type(value) is list and least <= len(value) <= greatest:
        return value
    raise RemoteProtocolError(f"{what} must be an array of {least} to {greatest} items, not {_shown(value)}")


def record(value: CborValue, what: str, fields: Sequence[str]) -> list[CborValue]:
    """Return an array with one item for each of `fields`."""
    if type(value) is list and len(value) == len(fields):
        return value
    raise RemoteProtocolError(f"{what} must be an array of {', '.join(fields)}, not {_shown(value)}")


def _shown(value: CborValue) -> str:
    """Describe a value without repeating it: it may be long, and it may be somebody's data."""
    if value is None or type(value) in {int, bool}:
        return str(value)
    kinds: dict[type, str] = {bytes: "byte string", str: "text", list: "array"}
    length = len(value) if isinstance(value, bytes | str | list) else 0
    return f"a {kinds[type(value)]} of length {length}"
