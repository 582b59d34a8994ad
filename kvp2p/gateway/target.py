"""The request target: which resource a raw path names.

Decides: the route, and the bytes of namespace and key.
Keeps true: everything works on the raw path: split first, percent-decode once, `+` literal, no dot-segment or slash merging,
    so a key is what the caller wrote and one key has one meaning.
In and out: the target as it stood in the request line, in; a `Target`, out, or RequestError.
Source: RFC 9112 section 3.2; RFC 3986 section 2.1; DESIGN §7.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from kvp2p.errors import RequestError
from kvp2p.limits import KEY_BYTES_MAX, NAMESPACE_TITLE_CHARS_MAX

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
LOOKS_LIKE_ID: Final = re.compile(r"[0-9A-Fa-f]{32}")


class Route(Enum):
    """What the data port has."""

    KEY = auto()
    NAMESPACE = auto()
    NAMESPACES = auto()
    HEALTH = auto()
    READINESS = auto()
    PROXY = auto()
    NONE = auto()


class Target(NamedTuple):
    """A parsed target. `namespace` and `key` are still percent-encoded, `query` is None when there was no `?`."""

    route: Route
    namespace: bytes = b""
    key: bytes = b""
    query: bytes | None = None


_FIXED: Final = {
    b"/healthz": Route.HEALTH,
    b"/readyz": Route.READINESS,
    b"/v1": Route.NAMESPACES,
    b"/proxy": Route.PROXY,
}


def parse_target(raw: bytes) -> Target:
    """Split a target into route, namespace, key and query."""
    if not raw.startswith(b"/") and (absolute := _ABSOLUTE.match(raw)):
        raw = raw[absolute.end() :] or b"/"
    path, mark, rest = raw.partition(b"?")
    query = rest if mark else None
    route = _FIXED.get(path)
    if route is not None:
        return Target(route, query=query)
    parts = path.split(b"/", 3)
    if parts[:2] == [b"", b"v1"]:
        if len(parts) == 3:
            return Target(Route.NAMESPACE, parts[2], query=query)
        return Target(Route.KEY, parts[2], parts[3], query)
    return Target(Route.PROXY if parts[:2] == [b"", b"proxy"] else Route.NONE)


def _decode(raw: bytes, code: str, what: str) -> bytes:
    if b"#" in raw:
        raise RequestError(code, f"the {what} holds a bare #; it is written %23")
    if b"%" not in raw:
        return raw
    if bad := _BAD_ESCAPE.search(raw):
        escape = raw[bad.start() : bad.start() + 3].decode("ascii", "replace")
        raise RequestError(code, f"the {what} holds the invalid percent escape {escape!r}; a bare % is written %25")
    return unquote_to_bytes(raw)


def decode_key(raw: bytes) -> bytes:
    """Return the bytes of a key; raises RequestError `bad_key` or `key_too_long`."""
    key = _decode(raw, "bad_key", "key")
    if not key:
        raise RequestError("bad_key", "the key is empty: the path ends with a slash")
    if len(key) > KEY_BYTES_MAX:
        raise RequestError(
            "key_too_long", f"the key has {len(key)} bytes; {KEY_BYTES_MAX} are the limit", KEY_BYTES_MAX
        )
    if key in {b".", b".."}:
        raise RequestError("bad_key", 'a key may not be "." or ".."')
    _require_utf8(key, "bad_key", "key")
    return key


def _require_utf8(text: bytes, code: str, what: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(code, f"the {what} is not valid UTF-8 at byte {error.start}") from error


def decode_name(raw: bytes) -> str:
    """Return the id or title that a path names; raises RequestError `bad_namespace`."""
    text = _require_utf8(_decode(raw, "bad_namespace", "namespace"), "bad_namespace", "namespace")
    if not text:
        raise RequestError("bad_namespace", "the namespace is empty")
    return text


def decode_title(raw: bytes) -> str:
    """Return the title of a namespace that is to be made; raises RequestError `bad_namespace`."""
    title = decode_name(raw)
    if len(title) > NAMESPACE_TITLE_CHARS_MAX:
        raise RequestError(
            "bad_namespace",
            f"the title has {len(title)} characters; {NAMESPACE_TITLE_CHARS_MAX} are the limit",
            NAMESPACE_TITLE_CHARS_MAX,
        )
    if LOOKS_LIKE_ID.fullmatch(title):
        raise RequestError("bad_namespace", "a title may not look like an id (32 hex digits)")
    if title in {".", ".."}:
        raise RequestError("bad_namespace", 'a title may not be "." or ".."')
    return title


def parse_query(raw: bytes | None, names: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the query's parameters, decoded, `+` literal; raises RequestError `bad_query` for any but `names`."""
    result: dict[bytes, bytes] = {}
    for part in (raw or b"").split(b"&"):
        if not part:
            continue
        raw_name, _, raw_value = part.partition(b"=")
        name = _decode(raw_name, "bad_query", "query")
        if name not in names or name in result:
            fault = "is given twice" if name in result else "is not known here"
            raise RequestError("bad_query", f"the query parameter {name[:80].decode('utf-8', 'replace')!r} {fault}")
        result[name] = _decode(raw_value, "bad_query", "query")
    return result


def refuse_query(target: Target) -> None:
    """Refuse a query where none has a meaning: mostly a key with a bare question mark, which would be cut off."""
    if target.query is not None:
        raise RequestError("bad_query", "this path takes no query; a ? that belongs to a key is written %3F")
