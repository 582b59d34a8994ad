"""Tokens: list, create, revoke.

Decides: what a new token may be; its text is drawn here and shown once.
Keeps true: a token is stored as a hash, and neither hash nor text is ever shown again. Each change is one write to the system
    namespace, so revocation reaches every node like any write; I10, its outcome is told as it came. The last token that
    may administer the cluster is not revoked.
In and out: requests of an admin, JSON out; writes go to the node.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from kvp2p.api.access import ApiAccess
from kvp2p.api.answers import expect_write, json_response, outcome_response, read_object
from kvp2p.core.entry import ROW_HEAD_BYTES, is_value
from kvp2p.core.operations import Condition, Delete, Ending, Put
from kvp2p.core.system_rows import (
    TOKEN_PREFIX,
    Permission,
    Token,
    account_key,
    decode_token,
    encode_token,
    hash_token,
    rows_under,
    token_key,
)
from kvp2p.errors import RequestError
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, NamespaceId, parse_id
from kvp2p.limits import NAMESPACES_PER_ACCOUNT_MAX, TOKEN_NAME_CHARS_MAX, TOKENS_MAX, WRITE_DEADLINE_MS
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.reader import View

_FIELDS: Final = frozenset({"name", "permissions", "namespaces", "account", "expires_at"})
_EXPIRES_AT_MAX: Final = 1 << 40  # a far future that is still an exact number in JSON


class Tokens:
    """The routes under /admin/v1/tokens."""

    def __init__(self, access: ApiAccess, port: NodePort) -> None:
        self._access = access
        self._port = port

    async def list(self, request: Request) -> Response:  # async by protocol: Starlette
        """Answer all tokens, oldest first, without anything that could be used as one."""
        with self._access.view(request, Permission.ADMIN) as (view, _):
            tokens = sorted(_tokens(view), key=lambda one: (one.created_ms, one.token_id))
        return json_response({"tokens": [_shown(one) for one in tokens]})

    async def create(self, request: Request) -> Response:
        """Create a token and answer its text: the only time that it is shown."""
        self._access.require(request, Permission.ADMIN)  # before the body is read
        fields = await read_object(request)
        text = f"kv_{secrets.token_urlsafe(32)}"
        with self._access.view(request, Permission.ADMIN) as (view, creator):
            if sum(1 for _ in _tokens(view)) >= TOKENS_MAX:
                raise RequestError("bad_request", f"there are {TOKENS_MAX} tokens; revoke some first", TOKENS_MAX)
            token = _token_of(fields, text, creator, view, self._access)
        key, value = encode_token(token)
        put = Put(SYSTEM_NAMESPACE, key, value, condition=Condition.ABSENT)
        expect_write(request)
        outcome = await self._port.submit([put], WRITE_DEADLINE_MS)
        if outcome.ending is not Ending.ACKED:
            return outcome_response(outcome)
        version = "" if outcome.version is None else outcome.version.hex()
        return json_response({**_shown(token), "token": text, "version": version}, 201)

    async def revoke(self, request: Request) -> Response:
        """Revoke a token by its id, unless nobody could administer the cluster afterwards.

        That is judged by this node's store and not again by the leader: of two admin tokens, two nodes that are asked at the
        same moment may each revoke one. Nor does it look ahead: a token that is left may expire.
        """
        with self._access.view(request, Permission.ADMIN) as (view, _):
            named = request.path_params["token_id"]
            tokens = list(_tokens(view))
            account = view.transaction.identity.account
        found = [one for one in tokens if one.token_id == named]
        if not found:
            raise RequestError("token_not_found", f"there is no token with the id {named[:80]!r}")
        now = time.time()
        if any(_administers(one, account, now) for one in found) and not any(
            _administers(one, account, now) for one in tokens if one.token_id != named
        ):
            raise RequestError(
                "last_admin_token",
                "this is the last token that may administer the whole cluster; create another one first, then revoke this",
            )
        deletes = [Delete(SYSTEM_NAMESPACE, token_key(one.token_hash)) for one in found]
        expect_write(request)
        outcome = await self._port.submit(deletes, WRITE_DEADLINE_MS)
        if outcome.ending is not Ending.ACKED:
            return outcome_response(outcome)
        headers = {} if outcome.version is None else {"KV-Version": outcome.version.hex()}
        return Response(status_code=204, headers=headers)


def _tokens(view: View) -> Iterator[Token]:
    for key, row in rows_under(view.transaction, TOKEN_PREFIX):
        if is_value(row):
            yield decode_token(key, bytes(row[ROW_HEAD_BYTES:]))


def _administers(token: Token, account: AccountId, now: float) -> bool:
    return token.allows(Permission.ADMIN, None, account) and not 0 < token.expires_at <= now


def _shown(token: Token) -> dict[str, object]:
    return {
        "id": token.token_id,
        "name": token.name,
        "account": token.account.hex(),
        "permissions": sorted(token.permissions),
        "namespaces": None if token.namespaces is None else sorted(one.hex() for one in token.namespaces),
        "expires_at": token.expires_at or None,
        "created_ms": token.created_ms,
    }


def _token_of(fields: Mapping[str, object], text: str, creator: Token, view: View, access: ApiAccess) -> Token:
    """Check what was asked for; raises RequestError."""
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise RequestError(
            "bad_request", f"{unknown[0][:80]!r} is no field of a token; there are {', '.join(sorted(_FIELDS))}"
        )
    token_hash = hash_token(text)
    return Token(
        token_hash=token_hash,
        token_id=token_hash.hex()[:16],
        name=_name(fields.get("name")),
        account=_account(fields.get("account"), creator, view),
        permissions=_permissions(fields.get("permissions")),
        namespaces=_namespaces(fields.get("namespaces"), access),
        expires_at=_expires_at(fields.get("expires_at")),
        created_ms=time.time_ns() // 1_000_000,
    )


def _name(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= TOKEN_NAME_CHARS_MAX or not value.isprintable():
        raise RequestError(
            "bad_request", f"name must be 1 to {TOKEN_NAME_CHARS_MAX} printable characters", TOKEN_NAME_CHARS_MAX
        )
    return value


def _permissions(value: object) -> frozenset[Permission]:
    known = [one.value for one in Permission]
    if not isinstance(value, list) or not value or any(one not in known for one in value):
        raise RequestError("bad_request", f"permissions must be a list of one or more of {', '.join(known)}")
    return frozenset(map(Permission, value))


def _account(value: object, creator: Token, view: View) -> AccountId:
    if value is None:
        return creator.account
    try:
        account = AccountId(parse_id(value if isinstance(value, str) else "", "account"))
    except ValueError as error:
        raise RequestError("bad_request", str(error)) from error
    row = view.raw_row(SYSTEM_NAMESPACE, account_key(account))
    if row is None or not is_value(row):
        raise RequestError("bad_request", f"there is no account {account.hex()}")
    return account


def _namespaces(value: object, access: ApiAccess) -> frozenset[NamespaceId] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= NAMESPACES_PER_ACCOUNT_MAX:
        raise RequestError(
            "bad_request",
            f"namespaces must be a list of 1 to {NAMESPACES_PER_ACCOUNT_MAX} ids or titles, or null for all",
        )
    if any(not isinstance(one, str) for one in value):
        raise RequestError("bad_request", "namespaces must be ids or titles")
    return frozenset(access.replica.resolve(one) for one in value)


def _expires_at(value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or not time.time() < value < _EXPIRES_AT_MAX:
        raise RequestError("bad_request", "expires_at must be unix seconds in the future")
    return value
