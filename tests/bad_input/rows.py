"""What a row of the table is: what is sent, and the one answer that it has.

A message is bytes with words in it that only a running cluster knows (`$admin`, `$cursor`); `Cluster.spell` puts them in. Nothing here runs
anything: the same rows are sent by the tests and printed for the README.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VALUE_BYTES_MAX = 26_214_400  # written out: the table must not follow the product if that forgets a digit


@dataclass(frozen=True, slots=True)
class Large:
    """A message with a long body: `head`, then `filler` bytes of an `x` each, as chunks of so many bytes if `chunk` is not 0, then `tail`."""

    head: bytes
    filler: int
    chunk: int = 0
    tail: bytes = b""


Message = bytes | Large


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRow:
    """Requests that are refused, each in the same way. `what` and `shown` are for the README.

    `limit` and `says` are of the error's JSON (`says` is a part of its message), `headers` are some of the answer's. `closes`: the connection
    ends with the answer, and nothing that follows on it is understood.
    """

    what: str
    sends: tuple[Message, ...]
    status: int
    code: str
    limit: int | None = None
    says: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    closes: bool = False
    api: bool = False
    before: int = 0  # good answers that come first, to what was sent before on the same connection

    @property
    def shown(self) -> str:
        """The answer in a word or two."""
        return f"{self.status} `{self.code}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """Writes that look bad and are none: each is stored as it is. `reads` are (key, value, headers) that another node then shows."""

    what: str
    sends: tuple[Message, ...]
    reads: tuple[
        tuple[str, bytes | int, Mapping[str, str]], ...
    ]  # the target's key; a number: so many bytes of an `x` each
    closes: bool = False
    note: str = ""

    @property
    def shown(self) -> str:
        """The answer in a word or two."""
        return f"200, {self.note or 'stored as it is'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayRow:
    """Something that takes more than a request: `play` names it in the module that acts it out, which finds `ends` at the other end.

    In `ends` and `log` an ellipsis stands for anything. `is_told`: the other end is told `ends`, word by word. `log` is how a line of the log begins, its event
    and reason, of the leader or (`n2: …`) of the other node; "" when nothing is logged.
    """

    what: str
    play: str
    ends: str
    is_told: bool = True
    log: str = ""
    note: str = ""


def request(
    method: str,
    target: str | bytes,
    body: bytes | None = None,
    *,
    token: str | None = "$admin",
    headers: tuple[tuple[str, str | bytes], ...] = (),
) -> bytes:
    """Return a request. The target is sent as it is given."""
    raw_target = target.encode("utf-8") if isinstance(target, str) else target
    lines = [method.encode() + b" " + raw_target + b" HTTP/1.1", b"Host: kv"]
    if token is not None:
        lines.append(b"Authorization: Bearer " + token.encode())
    lines += [name.encode() + b": " + (one if isinstance(one, bytes) else one.encode()) for name, one in headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def put(key: str, *headers: tuple[str, str | bytes], body: bytes = b"v") -> bytes:
    """Return a PUT of a key of the namespace `words`."""
    return request("PUT", f"/v1/words/{key}", body, headers=headers)


def raw(*lines: bytes, body: bytes = b"") -> bytes:
    """Return a request of the lines given, whatever they are."""
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


HOST = b"Host: kv"
AUTHORIZATION = b"Authorization: Bearer $admin"
PUT_LINES = (b"PUT /v1/words/bad HTTP/1.1", HOST, AUTHORIZATION)
GET_LINES = (b"GET /v1/words/good HTTP/1.1", HOST, AUTHORIZATION)


def large(length: int, *, chunk: int = 0, expects: bool = False, sent: int | None = None, key: str = "bad") -> Large:
    """Return a PUT with a body of `length` bytes, of which `sent` are sent (all)."""
    framing = b"Transfer-Encoding: chunked" if chunk else b"Content-Length: %d" % length
    lines = [f"PUT /v1/words/{key} HTTP/1.1".encode(), HOST, AUTHORIZATION, framing]
    if expects:
        lines.append(b"Expect: 100-continue")
    return Large(raw(*lines), length if sent is None else sent, chunk, b"0\r\n\r\n" if chunk else b"")
