"""Writes: from a request to operations, and from an outcome to an answer.

Decides: what is refused before anything is sent, and how each outcome is told.
Keeps true: I10, an answer repeats the outcome and adds nothing to it: acked, refused (not applied), or unknown.
In and out: a parsed target, the fields and the body in, one Operation out; an Outcome in, an answer out.
"""

from __future__ import annotations

import json
import secrets
from binascii import hexlify
from collections.abc import Callable
from typing import Final

from kvp2p.core.operations import Condition, CreateNamespace, Delete, DeleteNamespace, Ending, Operation, Outcome, Put
from kvp2p.core.system_rows import Permission
from kvp2p.errors import RequestError, StoreError
from kvp2p.gateway.access import Access
from kvp2p.gateway.answers import CODES, error_answer, json_answer, no_content_answer, version_lines
from kvp2p.gateway.fields import Fields
from kvp2p.gateway.intake import value_too_large
from kvp2p.gateway.target import Target, decode_key, decode_title, refuse_query
from kvp2p.gateway.views import Views
from kvp2p.ids import ID_BYTES, SYSTEM_NAMESPACE, NamespaceId, Version
from kvp2p.limits import VALUE_BYTES_MAX

_UNCONDITIONAL: Final = (b"if-match", b"if-none-match")


class Writes:
    """Makes operations of requests. `random_bytes` draws the ids of namespaces."""

    def __init__(
        self, views: Views, access: Access, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._views = views
        self._access = access
        self._random_bytes = random_bytes

    def is_known(self, authorization: bytes) -> bool:
        """Tell whether a request's body is worth keeping: it comes with a token that may write somewhere."""
        try:
            token = self._access.token(self._views.current(), authorization)
        except (RequestError, StoreError):
            return False  # the route tells it
        return not {Permission.WRITE, Permission.ADMIN}.isdisjoint(token.permissions)

    def put(self, target: Target, fields: Fields, value: bytes | None, value_bytes: int) -> Put:
        """Return what PUT of a key asks for. `value` is None when the body was too large, or not kept; empty for one that is uploaded."""
        namespace, key = self._place(target, fields)
        if value_bytes > VALUE_BYTES_MAX:
            raise value_too_large(value_bytes)
        if value is None:
            # The token became valid between the head and the end of the body.
            raise RequestError("not_ready", "the token was not known when the request began; send it again")
        if fields.is_plain:
            return Put(namespace, key, value)
        expires_at, expires_in = fields.expiry()
        metadata = fields.metadata()
        condition, version = _condition(fields)
        return Put(namespace, key, value, metadata, expires_at, condition, version, expires_in)

    def delete(self, target: Target, fields: Fields) -> Operation:
        """Return what DELETE of a key asks for."""
        namespace, key = self._place(target, fields)
        fields.refuse_unless_absent((b"if-none-match",), "has no meaning for DELETE")
        condition, version = _condition(fields)
        return Delete(namespace, key, condition, version)

    def _place(self, target: Target, fields: Fields) -> tuple[NamespaceId, bytes]:
        access, authorization = self._access, fields.authorization
        view = self._views.current()  # before the look at `writable`, which it may empty
        known = access.writable.get((authorization, target.namespace))
        if known is not None:
            refuse_query(target)
            return known, decode_key(target.key)
        token = access.token(view, authorization)
        refuse_query(target)
        key = decode_key(target.key)
        namespace = access.namespace(view, token, target.namespace, Permission.WRITE).namespace
        access.allow_writing(authorization, target.namespace, namespace)
        return namespace, key

    def create_namespace(self, target: Target, fields: Fields) -> Operation:
        """Return what PUT of a namespace asks for; the id is drawn here and used if the title is new."""
        view = self._views.current()
        token = self._access.token(view, fields.authorization)
        refuse_query(target)
        fields.refuse_unless_absent(_UNCONDITIONAL, "has no meaning for a namespace")
        title = decode_title(target.namespace)
        if not token.allows(Permission.ADMIN, None, token.account):
            raise RequestError("forbidden", f"the token {token.name!r} has no permission to create namespaces")
        return CreateNamespace(NamespaceId(self._random_bytes(ID_BYTES)), token.account, title)

    def delete_namespace(self, target: Target, fields: Fields) -> Operation:
        """Return what DELETE of a namespace asks for."""
        view = self._views.current()
        token = self._access.token(view, fields.authorization)
        refuse_query(target)
        fields.refuse_unless_absent(_UNCONDITIONAL, "has no meaning for a namespace")
        return DeleteNamespace(self._access.namespace(view, token, target.namespace, Permission.ADMIN).namespace)


def _condition(fields: Fields) -> tuple[Condition, Version | None]:
    match = fields.if_match()
    absent = fields.values.get(b"if-none-match")
    if absent is not None:
        if match is not None:
            raise RequestError("bad_condition", "If-Match and If-None-Match exclude each other")
        if absent != b"*":
            raise RequestError("bad_condition", "If-None-Match on a write takes only *")
        return Condition.ABSENT, None
    if match is None:
        return Condition.ALWAYS, None
    return (Condition.PRESENT, None) if isinstance(match, bool) else (Condition.VERSION_IS, match)


SOME_PUT: Final = Put(SYSTEM_NAMESPACE, b"", b"")


def without_value(operation: Operation) -> Operation:
    """Return what `outcome_answer` needs of an operation: values are not kept until the answer [I9]."""
    return SOME_PUT if isinstance(operation, Put) else operation


def outcome_answer(operation: Operation, outcome: Outcome) -> bytes:
    """Answer a write that has ended."""
    if outcome.ending != Ending.ACKED:
        return _not_acked_answer(outcome)
    lines = version_lines(outcome.version, visible=outcome.visible)
    match operation:
        case Put():
            assert outcome.version is not None
            return json_answer(b'{"version":"%b"}' % hexlify(outcome.version), 200, lines)
        case CreateNamespace(namespace=drawn, title=title):
            namespace = drawn if outcome.namespace is None else outcome.namespace
            body = json.dumps({"id": namespace.hex(), "title": title}, separators=(",", ":")).encode("ascii")
            return json_answer(body, 201 if outcome.created else 200, lines)
        case _:
            return no_content_answer(lines)


def _not_acked_answer(outcome: Outcome) -> bytes:
    meaning = CODES.get(outcome.code)
    if outcome.ending == Ending.UNKNOWN:
        return error_answer("outcome_unknown", outcome.message)
    if meaning is None or meaning.applied != "no":
        # A newer leader's word for a refusal: what is certain is that nothing was applied.
        return error_answer("unavailable", f"{outcome.code}: {outcome.message}")
    lines = version_lines(outcome.version) if outcome.code == "precondition_failed" else b""
    return error_answer(outcome.code, outcome.message, lines=lines)
