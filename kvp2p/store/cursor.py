"""Cursors of key lists: opaque text that says after which key of which namespace a list goes on.

Decides: the bytes of a cursor.
Keeps true: C8, a cursor names a key and not a place, so a list goes on strictly after it whatever was written or removed.
In and out: (namespace, key) in, base64url text without padding out, and back.

    version of the cursor (1) ‖ namespace (16) ‖ key (1..512) ‖ blake2b-64 of all before (8)

The checksum finds damage and guesses, not attacks: a cursor lets nobody see what a list would not show.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Final

from kvp2p.errors import RequestError
from kvp2p.ids import ID_BYTES, NamespaceId
from kvp2p.limits import KEY_BYTES_MAX

_VERSION = b"\x01"
_CHECKSUM_BYTES = 8
_KEY_AT = 1 + ID_BYTES
CURSOR_CHARS_MAX: Final = (4 * (_KEY_AT + KEY_BYTES_MAX + _CHECKSUM_BYTES) + 2) // 3


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


def encode_cursor(namespace: NamespaceId, key: bytes) -> str:
    """Return the cursor of a list that goes on after `key`."""
    body = _VERSION + namespace + key
    return urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()


def decode_cursor(namespace: NamespaceId, cursor: str) -> bytes:
    """Return the key after which a list of `namespace` goes on.

    Raises RequestError `bad_cursor` for text that is no cursor of this namespace.
    """
    raw = b""
    if len(cursor) <= CURSOR_CHARS_MAX:
        try:
            raw = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        except (UnicodeEncodeError, binascii.Error):
            raw = b""
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    key = body[_KEY_AT:]
    if body[:1] != _VERSION or checksum != _checksum(body) or not 1 <= len(key) <= KEY_BYTES_MAX:
        raise RequestError("bad_cursor", "the cursor is damaged: pass the one that the last page gave, unchanged")
    if body[1:_KEY_AT] != namespace:
        raise RequestError("bad_cursor", "the cursor belongs to a list of another namespace")
    if encode_cursor(namespace, key) != cursor:  # the decoder skips characters that are not base64
        raise RequestError("bad_cursor", "the cursor is damaged: pass the one that the last page gave, unchanged")
    return key
