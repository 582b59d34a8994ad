"""What a client operation came to.

Decides: which answer of the server means what; nothing here does I/O.
Keeps true: [I10] a write is `Acked`, `Refused` (not applied) or `Unknown`. What does not prove one of the first two is
    `Unknown`: never a guess.
In and out: a `Response` or a `ConnectionLost` in, an outcome out. Every outcome has `outcome`, the word that a load run
    counts it under.
Source: DESIGN §7, the error object `{"error": {"code", "message", "retryable", "applied"}}`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from .failures import ConnectionLost, NotSent, ReadRefused, ReadUnavailable
from .response import Response


@dataclass(frozen=True, slots=True)
class Acked:
    """The write is durable at the leader.

    `version` is 40 hex digits, for `if_match` and `min_version`; empty where the server names none. `is_visible` is
    false when the node that was asked had not applied it yet (`KV-Visible: pending`).
    """

    outcome: ClassVar[str] = "acked"
    version: str
    is_visible: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """The write was not applied. `status` is 0 when it never left this process (`code` is then `not_sent`)."""

    outcome: ClassVar[str] = "refused"
    status: int
    code: str
    message: str
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The write was sent and nothing tells whether it was applied. Nobody sends it again."""

    outcome: ClassVar[str] = "unknown"
    reason: str


WriteOutcome = Acked | Refused | Unknown


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace as the server names it. `created` is false when the title existed already, or it was only listed."""

    outcome: ClassVar[str] = "acked"
    id: str
    title: str
    created: bool = False


class Found:
    """A value that was read. Version, metadata and expiry are decoded when they are asked for."""

    outcome: ClassVar[str] = "found"

    def __init__(self, response: Response) -> None:
        self.value = response.body
        self._response = response

    @property
    def version(self) -> str:
        """The entry's version, 40 hex digits."""
        return self._response.headers[b"kv-version"].decode("ascii")

    @cached_property
    def metadata(self) -> Any:
        """The metadata as JSON decodes it, None where there is none."""
        raw = self._response.headers.get(b"kv-metadata")
        return None if raw is None else json.loads(raw)

    @property
    def expires_at(self) -> int | None:
        """Unix seconds at which the entry ends, None where it does not."""
        raw = self._response.headers.get(b"kv-expires-at")
        return None if raw is None else int(raw)

    def __repr__(self) -> str:
        return f"Found(value_bytes={len(self.value)}, version={self.version!r})"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key of a listing."""

    name: str
    version: str
    metadata: Any = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A part of a listing in byte order. `cursor` goes into the next call; None when the listing is complete."""

    outcome: ClassVar[str] = "listed"
    keys: tuple[KeyInfo, ...]
    cursor: str | None


def read_failure(response: Response) -> ReadRefused:
    """Return the exception for a read that was answered with an error status."""
    status = response.status
    error = _error_of(response)
    kind = ReadUnavailable if status >= 500 or status == 429 else ReadRefused
    return kind(status, error["code"], error["message"], _retry_after_s(response))


def is_missing_key(response: Response) -> bool:
    """Tell a missing key from the other 404s, such as a missing namespace."""
    return response.status == 404 and bool(_error_of(response)["code"] == "key_not_found")


def failed_write(result: Response | ConnectionLost) -> Refused | Unknown:
    """Judge the answer to a write that is not 2xx, or the loss of its connection [I10]."""
    if isinstance(result, NotSent):
        return Refused(0, "not_sent", result.reason)
    if isinstance(result, ConnectionLost):
        return Unknown(str(result))
    status = result.status
    error = _error_of(result)
    applied = error["applied"]
    # A 5xx of a node says so in its body; one without may be a proxy's, which may have passed the write on.
    is_certain = applied == "no" or (applied == "" and 400 <= status < 500)
    if status == 504 or not is_certain:
        return Unknown(f"{status} {error['code']}: {error['message']}")
    return Refused(status, error["code"], error["message"], _retry_after_s(result))


def written(result: Response | ConnectionLost) -> WriteOutcome:
    """Judge the answer to a PUT or DELETE of a key, or to the deletion of a namespace."""
    if isinstance(result, Response) and 200 <= result.status < 300:
        headers = result.headers
        version = headers.get(b"kv-version", b"").decode("ascii", "replace")
        if not version and result.body:
            version = _text(_object_of(result.body), "version")
        return Acked(version, is_visible=headers.get(b"kv-visible") != b"pending")
    return failed_write(result)


def created(result: Response | ConnectionLost) -> Namespace | Refused | Unknown:
    """Judge the answer to the creation of a namespace."""
    if isinstance(result, Response) and 200 <= result.status < 300:
        body = _object_of(result.body)
        return Namespace(_text(body, "id"), _text(body, "title"), created=result.status == 201)
    return failed_write(result)


def _error_of(response: Response) -> dict[str, str]:
    """Return code, message and applied of an error answer, empty strings for what it does not say."""
    error = _object_of(response.body).get("error")
    if not isinstance(error, dict):
        return {"code": "", "message": response.body[:200].decode("utf-8", "replace"), "applied": ""}
    return {name: _text(error, name) for name in ("code", "message", "applied")}


def _object_of(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name, "")
    return value if isinstance(value, str) else ""


def _retry_after_s(response: Response) -> int | None:
    raw = response.headers.get(b"retry-after", b"")
    return int(raw) if raw.isdigit() else None
