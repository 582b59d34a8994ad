"""The CBOR that kvp2p speaks: a small subset of RFC 8949 in which every value has exactly one encoding.

Decides: which bytes are an item at all. Allowed are unsigned integers below 2**64, byte strings, text, arrays, false, true and null,
all of definite length with the shortest possible head, nested at most 8 deep, and nothing behind the item.
Keeps true: I9, the work and memory for a payload are proportional to its length, which is bounded (an item takes a byte at
least, so the number of items is bounded with it); whatever `decode` accepts, `encode` turns into the same bytes again.
In and out: bytes in, Python values out. `decode` looks over the raw bytes *before* cbor2 sees them, because cbor2 by itself
accepts indefinite lengths, duplicate keys, cyclic references, regular expressions and huge decimals (found by trial, 6.3).
Source: RFC 8949 (2020), section 4.2.1, deterministic encoding, without maps, tags, floats and negative numbers.
"""

from __future__ import annotations

import cbor2

from kvp2p.errors import RemoteProtocolError
from kvp2p.limits import CBOR_DEPTH_MAX

CborValue = int | bytes | str | bool | None | list["CborValue"]

_TRUNCATED = "the payload ends inside an item"


def encode(value: CborValue) -> bytes:
    """Encode a value; lengths and integers get their shortest heads."""
    return cbor2.dumps(value)


def array_head(count: int) -> bytes:
    """Return the bytes that begin an array of `count` items, so that encoded items can be joined without decoding them."""
    if count < 24:
        return bytes((0x80 | count,))
    width = 1 if count < 1 << 8 else 2 if count < 1 << 16 else 4
    return bytes((_ARRAY_OF_WIDTH[width],)) + count.to_bytes(width, "big")


def decode(data: bytes, bytes_max: int) -> CborValue:
    """Decode exactly one item.

    Raises RemoteProtocolError, which says what is wrong and where, when the bytes are anything else or more than `bytes_max`.
    """
    if len(data) > bytes_max:
        raise RemoteProtocolError(f"a payload has {len(data)} bytes; {bytes_max} are the limit")
    _check(data)
    try:
        value: CborValue = cbor2.loads(data)
    except cbor2.CBORDecodeError as error:
        # After _check only text that is no UTF-8 is left to go wrong.
        raise RemoteProtocolError(f"the payload is no valid CBOR: {error}") from error
    return value


def _check(data: bytes) -> None:
    """Walk over the heads of all items; strings are skipped by their lengths."""
    size = len(data)
    at = 0
    left = 1  # items still missing in the innermost open array
    outer: list[int] = []  # the same count for each array around it
    try:
        while True:
            head = data[at]
            width = _WIDTH_OF_HEAD[head]
            if width:
                at += width
            else:
                argument, at = _argument(data, at, head)
                if head >= 0x80:
                    # An item takes a byte at least: a count that cannot be true is refused before anything is made for it.
                    if argument > size - at:
                        raise RemoteProtocolError(_TRUNCATED)
                    if len(outer) >= CBOR_DEPTH_MAX:
                        raise RemoteProtocolError(f"arrays are nested more than {CBOR_DEPTH_MAX} deep")
                    outer.append(left)
                    left = argument + 1
                elif head >= 0x40:
                    at += argument
            left -= 1
            while not left and outer:
                left = outer.pop() - 1
            if not left:
                break
    except IndexError:
        raise RemoteProtocolError(_TRUNCATED) from None
    if at != size:
        raise RemoteProtocolError(_TRUNCATED if at > size else f"{size - at} bytes follow the item")


def _argument(data: bytes, at: int, head: int) -> tuple[int, int]:
    """Return the number that a head holds or that follows it, and where it ends. Raises IndexError behind the end."""
    argument = head & 0x1F
    if head >= 0xA0 or 0x20 <= head < 0x40:
        raise RemoteProtocolError(f"{_FORBIDDEN[head >> 5]} at byte {at} is not allowed")
    if argument < 24:
        return argument, at + 1
    if argument == 24:
        argument = data[at + 1]
        if argument < 24:
            raise RemoteProtocolError(f"the number at byte {at + 1} has a longer head than it needs")
        return argument, at + 2
    return _long_argument(data, at + 1, argument)


def _long_argument(data: bytes, at: int, code: int) -> tuple[int, int]:
    """Read the 2, 4 or 8 bytes behind a head and return the number in them and where they end."""
    if code > 27:
        raise RemoteProtocolError(f"the head at byte {at - 1} is of indefinite length or reserved")
    width = 1 << code - 24
    end = at + width
    argument = int.from_bytes(data[at:end], "big")
    if end > len(data):
        raise RemoteProtocolError(_TRUNCATED)
    if argument < _LEAST_OF_WIDTH[width]:
        raise RemoteProtocolError(f"the number at byte {at} has a longer head than it needs")
    return argument, end


_ARRAY_OF_WIDTH = {1: 0x98, 2: 0x99, 4: 0x9A}
_LEAST_OF_WIDTH = {2: 1 << 8, 4: 1 << 16, 8: 1 << 32}
# What an item takes whose head says all: small numbers, short strings, false, true, null. 0: look closer, which is most.
_WIDTH_OF_HEAD = bytes(
    1 if head < 0x18 or 0xF4 <= head <= 0xF6 else 1 + (head & 0x1F) if head & 0x1F < 24 and 0x40 <= head < 0x80 else 0
    for head in range(256)
)
_FORBIDDEN = {1: "a negative number", 5: "a map", 6: "a tag", 7: "a float or an unknown simple value"}
