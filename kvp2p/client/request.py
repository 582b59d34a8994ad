"""What comes before the body of a request: the way to a data port, and the head.

Decides: how a head is written.
Keeps true: nothing that a caller gives can end a line of a head: such targets, fields and tokens raise ValueError before anything is sent.
In and out: an address in, an open stream out; method, target and fields in, bytes out.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import trio

from .failures import NotSent

Headers = tuple[tuple[bytes, bytes], ...]

_FORBIDDEN_IN_TARGET = re.compile(rb"[\x00-\x20\x7f]")
_FORBIDDEN_IN_HEADER = re.compile(rb"[\x00\r\n]")


async def dial(data_url: str, connect_timeout_ms: int) -> trio.SocketStream:
    """Connect to `http://host:port`. Raises ValueError for any other address, `NotSent` when nobody answers there in time."""
    parts = urlsplit(data_url)
    if parts.scheme != "http" or parts.hostname is None or parts.path not in ("", "/"):
        raise ValueError(f"a data address looks like http://host:port, not {data_url!r}")
    try:
        with trio.fail_after(connect_timeout_ms / 1000):
            return await trio.open_tcp_stream(parts.hostname, parts.port or 80)
    except trio.TooSlowError as error:
        raise NotSent(f"no connection to {data_url} in {connect_timeout_ms} ms") from error
    except OSError as error:
        raise NotSent(f"no connection to {data_url}: {error}") from error


def head_start(data_url: str, token: str | None) -> bytes:
    """Return what follows the target in each head to one data port: version, host and who asks."""
    start = b" HTTP/1.1\r\nHost: " + urlsplit(data_url).netloc.rpartition("@")[2].encode("ascii") + b"\r\n"
    return start if token is None else start + encode_fields(((b"Authorization", b"Bearer " + token.encode("ascii")),))


def checked_target(target: bytes) -> bytes:
    """Return a target that can stand in a request line. Raises ValueError."""
    if _FORBIDDEN_IN_TARGET.search(target):
        raise ValueError(f"a request target holds no spaces and no control characters: {target!r}")
    return target


def encode_fields(fields: Headers) -> bytes:
    """Return the lines of some header fields. Raises ValueError."""
    return b"".join([_checked(name) + b": " + _checked(value) + b"\r\n" for name, value in fields])


def _checked(field: bytes) -> bytes:
    if _FORBIDDEN_IN_HEADER.search(field):
        raise ValueError(f"a header holds no line ends: {field!r}")
    return field
