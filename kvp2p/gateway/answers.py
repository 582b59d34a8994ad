"""Every answer of the data port as bytes, and the one table of error codes.

Decides: which code is which HTTP status, whether the same request may be sent again, and whether it was applied.
Keeps true: I10, an answer says `applied: unknown` if and only if nobody knows. Every answer has a Content-Length, so
    that framing never depends on the end of a connection.
In and out: a code and a message, or a row's fields, in; one `bytes` object out, head and body together.
Source: DESIGN §7; RFC 9110 (2022) for `Allow`, `Date`, `Retry-After`, `WWW-Authenticate`.

The hot answer (a value without metadata) is one `%` format. The date is part of a ready-made head per status, which
`refresh_heads` rebuilds each second.
"""

from __future__ import annotations

import json
from binascii import hexlify
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from kvp2p.errors import Applied, RequestError
from kvp2p.ids import Version

RETRY_AFTER_SECONDS: Final = 1


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code tells a program. `applied` is about writes; a read never applies anything."""

    status: int
    retryable: bool = False
    applied: Applied = "no"


CODES: Final[dict[str, Meaning]] = {
    # The caller's request is wrong.
    "bad_key": Meaning(400),
    "bad_metadata": Meaning(400),
    "bad_condition": Meaning(400),
    "bad_version": Meaning(400),
    "bad_cursor": Meaning(400),
    "bad_limit": Meaning(400),
    "bad_query": Meaning(400),
    "bad_namespace": Meaning(400),
    "bad_request": Meaning(400),
    "malformed_request": Meaning(400),
    "bad_expiry": Meaning(400),
    "namespace_limit": Meaning(400),
    "unauthorized": Meaning(401),
    "forbidden": Meaning(403),
    "key_not_found": Meaning(404),
    "namespace_not_found": Meaning(404),
    "token_not_found": Meaning(404),
    "route_not_found": Meaning(404),
    "method_not_allowed": Meaning(405),
    "request_timeout": Meaning(408, retryable=True),
    "last_admin_token": Meaning(409),
    "precondition_failed": Meaning(412),
    "value_too_large": Meaning(413),
    "metadata_too_large": Meaning(413),
    "key_too_long": Meaning(414),
    "prefix_too_long": Meaning(414),
    "url_too_long": Meaning(414),
    "expectation_failed": Meaning(417),
    "overloaded": Meaning(429, retryable=True),
    "headers_too_large": Meaning(431),
    # Something on our side cannot serve it. All of these were not applied, but the last.
    "internal_error": Meaning(500),
    "not_implemented": Meaning(501),
    "not_ready": Meaning(503, retryable=True),
    "not_caught_up": Meaning(503, retryable=True),
    "no_leader": Meaning(503, retryable=True),
    "node_unavailable": Meaning(503, retryable=True),
    "deadline_passed": Meaning(503, retryable=True),
    "too_many_connections": Meaning(503, retryable=True),
    "unavailable": Meaning(503, retryable=True),
    "version_not_supported": Meaning(505),
    "disk_full": Meaning(507, retryable=True),
    "outcome_unknown": Meaning(504, applied="unknown"),
}

_STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode("ascii"))
    for status in sorted({200, 201, 204, 304} | {one.status for one in CODES.values()})
}
_EXTRA: Final = {
    401: b"WWW-Authenticate: Bearer\r\n",
    429: b"Retry-After: %d\r\n" % RETRY_AFTER_SECONDS,
    503: b"Retry-After: %d\r\n" % RETRY_AFTER_SECONDS,
}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
# Status line and date of each status, with the CRLF after the date. One dictionary for the life of the process.
HEADS: Final[dict[int, bytes]] = {}

# HEADS[200], length, version in hex, the same, value.
VALUE: Final = (
    b'%bContent-Type: application/octet-stream\r\nContent-Length: %d\r\nETag: "%b"\r\nKV-Version: %b\r\n\r\n%b'
)
# The same with whole header lines before the empty line.
_VALUE_WITH: Final = (
    b'%bContent-Type: application/octet-stream\r\nContent-Length: %d\r\nETag: "%b"\r\nKV-Version: %b\r\n%b\r\n%b'
)
_JSON: Final = b"%bContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"


def refresh_heads() -> None:
    """Rebuild the head of every status with the present date."""
    date = b"Date: %b\r\n" % formatdate(usegmt=True).encode("ascii")
    for status, line in _STATUS_LINES.items():
        HEADS[status] = line + date


refresh_heads()


def value_answer(
    version: bytes, metadata: bytes | None, expires_at: int, value: bytes | memoryview, value_bytes: int
) -> bytes:
    """Answer a value with what is not in every row: metadata (ASCII JSON) and expiry.

    `version` is 40 hex digits. `value` may be less than `value_bytes`: the others follow.
    """
    lines = b"" if metadata is None else b"KV-Metadata: %b\r\n" % metadata
    if expires_at:
        lines += b"KV-Expires-At: %d\r\n" % expires_at
    return _VALUE_WITH % (HEADS[200], value_bytes, version, version, lines, value)


def not_modified_answer(version: bytes) -> bytes:
    """Answer 304; `version` is 40 hex digits."""
    return b'%bETag: "%b"\r\nKV-Version: %b\r\n\r\n' % (HEADS[304], version, version)


def json_answer(body: bytes, status: int = 200, lines: bytes = b"") -> bytes:
    """Answer a JSON document; `lines` are whole header lines."""
    return _JSON % (HEADS[status], len(body), _EXTRA.get(status, b"") + lines, body)


def version_lines(version: Version | None, *, visible: bool = True) -> bytes:
    """Return the header lines that name a written version, and whether this node shows it yet."""
    pending = b"" if visible else b"KV-Visible: pending\r\n"
    if version is None:
        return pending
    text = hexlify(version)
    return b'ETag: "%b"\r\nKV-Version: %b\r\n%b' % (text, text, pending)


def no_content_answer(lines: bytes) -> bytes:
    """Answer 204. RFC 9110 forbids a Content-Length there: nothing follows the head."""
    return b"%b%b\r\n" % (HEADS[204], lines)


def error_answer(code: str, message: str, limit: int | None = None, lines: bytes = b"") -> bytes:
    """Answer an error of the table."""
    meaning = CODES[code]
    error: dict[str, object] = {"code": code, "message": message}
    if limit is not None:
        error["limit"] = limit
    error |= {"retryable": meaning.retryable, "applied": meaning.applied}
    body = json.dumps({"error": error}).encode("ascii")
    return json_answer(body, meaning.status, lines)


def refusal_answer(error: RequestError) -> bytes:
    """Answer a request that was refused while it was read, routed or checked."""
    return error_answer(error.code, error.message, error.limit)


def without_body(answer: bytes) -> bytes:
    """Return the answer to HEAD: the head of the answer to GET, its Content-Length included."""
    return answer[: answer.index(b"\r\n\r\n") + 4]


def with_close(answer: bytes) -> bytes:
    """Announce that the connection ends after this answer."""
    return answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def answer_status(answer: bytes) -> int:
    """Return the status of an answer made here."""
    return int(answer[9:12])
