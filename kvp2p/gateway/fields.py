"""What the header fields of one request say.

Decides: which fields mean something here, which may not be repeated, and which requests are refused for their head alone.
Keeps true: I9, count and bytes of the fields; the message length has one meaning (what httptools lets through and we do
    not: `TE: gzip, chunked`, a missing or repeated Host).
In and out: the pairs as httptools gives them, in; a `Fields`, out. Clients send the same fields with each request, so a
    connection keeps its last `Fields` and compares the pairs.
Source: RFC 9112 (2022) sections 3.2 and 6; RFC 9110 sections 10.1.1 and 13.
"""

from __future__ import annotations

import json
import re
from typing import Final, NoReturn

from kvp2p.errors import RequestError
from kvp2p.ids import Version
from kvp2p.limits import (
    EXPIRES_AT_MAX,
    EXPIRES_IN_MAX,
    HTTP_HEADER_BYTES_MAX,
    HTTP_HEADERS_MAX,
    METADATA_BYTES_MAX,
    TTL_SECONDS_MIN,
)

Pairs = list[tuple[bytes, bytes]]

_KNOWN: Final = frozenset(
    {
        *(b"host", b"authorization", b"content-length", b"transfer-encoding", b"expect", b"connection"),
        *(b"if-match", b"if-none-match", b"kv-metadata", b"kv-min-version", b"kv-expires-in", b"kv-expires-at"),
        b"x-kv-namespace",
    }
)
# Lists by RFC 9110: repeated lines are one list.
_LISTS: Final = frozenset({b"connection", b"if-none-match", b"if-match"})
# A request with one of these is not answered by the hot path.
_SPECIAL: Final = _KNOWN - {b"host", b"authorization", b"content-length", b"connection"}

_SECONDS_DIGITS_MAX: Final = 32  # of a number that is looked at: any that is in bounds, and leading zeros
_VERSION: Final = re.compile(rb"[0-9a-f]{40}")
_ENTITY_TAG: Final = re.compile(rb'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


class Fields:
    """The fields of one request that kvp2p reads, each at most once; b"" or None where it was not sent."""

    __slots__ = (
        "authorization",
        "content_length",
        "expects_continue",
        "has_host",
        "has_keep_alive",
        "is_chunked",
        "is_plain",
        "refusal",
        "values",
    )

    def __init__(self, pairs: Pairs) -> None:
        self.values: dict[bytes, bytes] = {}
        self.refusal: RequestError | None = None  # framing is lost: answer it and close
        try:
            self._read(pairs)
        except RequestError as refusal:
            self.refusal = refusal
        values = self.values
        self.authorization = values.get(b"authorization", b"")
        self.content_length = int(values.get(b"content-length", b"0")) if self.refusal is None else 0
        self.is_chunked = b"transfer-encoding" in values
        self.expects_continue = b"expect" in values
        self.has_host = b"host" in values
        self.has_keep_alive = b"keep-alive" in values.get(b"connection", b"").lower()
        self.is_plain = self.refusal is None and self.has_host and values.keys().isdisjoint(_SPECIAL)

    def _read(self, pairs: Pairs) -> None:
        if len(pairs) > HTTP_HEADERS_MAX:
            raise RequestError(
                "headers_too_large",
                f"the request has {len(pairs)} header fields; {HTTP_HEADERS_MAX} are the limit",
                HTTP_HEADERS_MAX,
            )
        total = sum(len(name) + len(value) + 4 for name, value in pairs)
        if total > HTTP_HEADER_BYTES_MAX:
            raise RequestError(
                "headers_too_large",
                f"the header has {total} bytes; {HTTP_HEADER_BYTES_MAX} are the limit",
                HTTP_HEADER_BYTES_MAX,
            )
        values = self.values
        for mixed_name, value in pairs:
            name = mixed_name.lower()
            if name not in _KNOWN:
                continue
            if name not in values:
                values[name] = value
            elif name in _LISTS:
                values[name] += b", " + value
            else:
                raise RequestError("malformed_request", f"the header {name.decode('ascii')} is sent more than once")
        coding = values.get(b"transfer-encoding", b"chunked")
        if coding.lower() != b"chunked":
            raise RequestError("not_implemented", "of the transfer codings only chunked is supported")
        expectation = values.get(b"expect", b"100-continue")
        if expectation.lower() != b"100-continue":
            raise RequestError("expectation_failed", "of the expectations only 100-continue is supported")

    @property
    def has_condition(self) -> bool:
        """Whether the request is conditional."""
        return b"if-match" in self.values or b"if-none-match" in self.values

    def min_version(self) -> Version | None:
        """Return KV-Min-Version; raises RequestError when it is no version."""
        text = self.values.get(b"kv-min-version")
        if text is None:
            return None
        if not _VERSION.fullmatch(text):
            raise RequestError(
                "bad_version", "KV-Min-Version must be a version as KV-Version gives it: 40 lower-case hex digits"
            )
        return Version(bytes.fromhex(text.decode("ascii")))

    def if_match(self) -> Version | bool | None:
        """Return the version that If-Match names, True for `*`, None when it was not sent."""
        text = self.values.get(b"if-match")
        if text is None or text == b"*":
            return None if text is None else True
        if len(text) != 42 or text[:1] != b'"' or text[-1:] != b'"' or not _VERSION.fullmatch(text[1:-1]):
            raise RequestError(
                "bad_condition", 'If-Match must be * or one version in quotes: "40 lower-case hex digits"'
            )
        return Version(bytes.fromhex(text[1:-1].decode("ascii")))

    def if_none_match(self, version: bytes) -> bool:
        """Tell whether If-None-Match names what stands there; `version` is 40 hex digits."""
        text = self.values.get(b"if-none-match")
        if text is None:
            return False
        return text.strip() == b"*" or any(one[1] == version for one in _ENTITY_TAG.finditer(text))

    def refuse_unless_absent(self, names: tuple[bytes, ...], why: str) -> None:
        """Refuse a condition where it would be ignored, which is worse than refused."""
        for name in names:
            if name in self.values:
                raise RequestError("bad_condition", f"{name.decode('ascii')} {why}")

    def expiry(self) -> tuple[int, int]:
        """Return KV-Expires-At, in unix seconds, and KV-Expires-In, in seconds; 0 for what was not sent, or does not count.

        KV-Expires-In counts when both are sent. Raises RequestError `bad_expiry`; whether a moment is near enough to be refused is for
        the leader's clock to say.
        """
        expires_in = self._seconds(b"kv-expires-in", TTL_SECONDS_MIN, EXPIRES_IN_MAX)
        expires_at = self._seconds(b"kv-expires-at", 1, EXPIRES_AT_MAX)
        return 0 if expires_in else expires_at, expires_in

    def _seconds(self, name: bytes, least: int, most: int) -> int:
        text = self.values.get(name)
        if text is None:
            return 0
        seconds = int(text) if text.isdigit() and len(text) <= _SECONDS_DIGITS_MAX else -1
        if not least <= seconds <= most:
            shown = text[:40].decode("ascii", "backslashreplace")
            what = "seconds from now" if name == b"kv-expires-in" else "unix seconds"
            raise RequestError(
                "bad_expiry",
                f"{name.decode('ascii')} must be {what}, a whole number from {least} to {most} in decimal digits, not {shown!r}",
                most if seconds > most else least,
            )
        return seconds

    def metadata(self) -> bytes | None:
        """Return KV-Metadata as compact UTF-8 JSON; JSON null is no metadata.

        Raises RequestError: `bad_metadata`, or `metadata_too_large` by its compact length.
        """
        text = self.values.get(b"kv-metadata")
        if text is None:
            return None
        try:
            value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
            # 0x7f is legal in JSON and not in a header field, where the stored bytes will stand.
            compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise RequestError("bad_metadata", "KV-Metadata must be JSON, as UTF-8 or ASCII-escaped") from error
        if len(compact) > METADATA_BYTES_MAX:
            raise RequestError(
                "metadata_too_large",
                f"the metadata has {len(compact)} bytes as compact JSON; {METADATA_BYTES_MAX} are the limit",
                METADATA_BYTES_MAX,
            )
        return None if value is None else compact


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def ascii_metadata(metadata: bytes) -> bytes:
    """Return stored metadata as it may stand in a header field: ASCII, without DEL."""
    if metadata.isascii():
        return metadata.replace(b"\x7f", b"\\u007f")
    return json.dumps(json.loads(metadata), separators=(",", ":")).encode("ascii").replace(b"\x7f", b"\\u007f")
