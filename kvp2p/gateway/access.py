"""Who may do what: tokens and namespaces, resolved from this machine's own system rows.

Decides: which token a request comes with, which namespace it means, and whether that is allowed.
Keeps true: a revoked token and a deleted namespace act at once: everything cached here goes when the state hash of the
    system namespace changes, which is looked at in the transaction that the request itself reads in. I9, caches are bounded.
    Until the system rows have arrived the answer is 503, never 401: this node does not know yet who may do what.
In and out: an open view, the Authorization field and the raw path segment in; Token, NamespaceId or RequestError out.

A token sees the namespaces of its account, or those it is restricted to: any other is `namespace_not_found`, as if it were not
there. One that it sees but may not use so is `forbidden`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from kvp2p.core.entry import ROW_HEAD_BYTES, is_value
from kvp2p.core.system_rows import (
    NAMESPACE_PREFIX,
    TOKEN_PREFIX,
    Namespace,
    Permission,
    Token,
    decode_namespace,
    decode_token,
    hash_token,
    rows_under,
    token_key,
)
from kvp2p.errors import RemoteProtocolError, RequestError, StoreCorrupt
from kvp2p.gateway.target import LOOKS_LIKE_ID, decode_name
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, NamespaceId
from kvp2p.limits import ACCESS_CACHED_MAX
from kvp2p.store.reader import View

_LOG = structlog.get_logger("kvp2p.gateway")

_NOT_ARRIVED = "this node has not received the cluster's namespaces and tokens yet; ask another node or retry"
_NONE_LEFT = "this cluster has no token any more: all were revoked, so nobody can use it or make a new one"


class Access:
    """The cached view of the system rows. `readable` and `writable` are for the hot paths: they hold only what `namespace` has allowed."""

    def __init__(self, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        self._generation = b""
        self._is_complete = False
        self._tokens: dict[bytes, Token] = {}
        self._first_expiry = 0  # of the cached tokens that expire, unix seconds; 0: none does
        self._namespaces: dict[NamespaceId, Namespace] | None = None
        self._titles: dict[tuple[AccountId, str], NamespaceId] = {}
        self._unreadable_rows = 0  # of namespaces
        self._decoded: dict[bytes, Namespace] = {}
        # (Authorization field, target up to the slash before the key) → namespace
        self.readable: dict[tuple[bytes, bytes], NamespaceId] = {}
        # (Authorization field, namespace as the target has it) → namespace
        self.writable: dict[tuple[bytes, bytes], NamespaceId] = {}

    def refresh(self, view: View) -> None:
        """Forget what may have changed. To be called with each new view, before anything else."""
        generation = view.system_generation
        if generation != self._generation:
            self._generation = generation
            self._forget()
            self._namespaces = None
        if not self._is_complete:
            self._is_complete = view.transaction.complete

    def forget_expired(self) -> None:
        """Forget everything once a cached token has expired. To be called each second."""
        if self._first_expiry and self._first_expiry <= self._wall_s():
            self._forget()

    def _forget(self) -> None:
        self.readable.clear()
        self.writable.clear()
        self._tokens.clear()
        self._first_expiry = 0

    def token(self, view: View, authorization: bytes) -> Token:
        """Return the token of an Authorization field.

        Raises RequestError: `unauthorized`, or `not_ready` where this node cannot know.
        """
        if not self._is_complete:
            raise RequestError("not_ready", _NOT_ARRIVED)
        known = self._tokens.get(authorization)
        token = self._look_up(view, authorization) if known is None else known
        if token.expires_at and token.expires_at <= self._wall_s():
            # Not kept: else whoever presents it would make `forget_expired` empty everything each second.
            raise RequestError("unauthorized", "the token has expired")
        if known is None:
            if len(self._tokens) >= ACCESS_CACHED_MAX:
                self._forget()
            self._tokens[authorization] = token
            if token.expires_at:
                self._first_expiry = min(self._first_expiry or token.expires_at, token.expires_at)
        return token

    def _look_up(self, view: View, authorization: bytes) -> Token:
        scheme, _, text = authorization.partition(b" ")
        text = text.strip()
        if scheme.lower() == b"bearer" and text:
            key = token_key(hash_token(text.decode("utf-8", "surrogateescape")))
            row = view.raw_row(SYSTEM_NAMESPACE, key)
            if row is not None and is_value(row):
                try:
                    return decode_token(key, row[ROW_HEAD_BYTES:])
                except RemoteProtocolError as error:
                    raise RequestError(
                        "unauthorized", "the token's row cannot be read; create another token"
                    ) from error
        has_tokens = self._has_tokens(view)
        if has_tokens is None:
            raise RequestError("not_ready", _NOT_ARRIVED)
        if not has_tokens:
            raise RequestError("unauthorized", _NONE_LEFT)
        if not authorization:
            raise RequestError("unauthorized", "a token is needed: Authorization: Bearer <token>")
        if scheme.lower() != b"bearer" or not text:
            raise RequestError("unauthorized", "the Authorization header must be: Bearer <token>")
        raise RequestError("unauthorized", "the token is not known, or was revoked")

    def _has_tokens(self, view: View) -> bool | None:
        """Tell whether there are tokens; None when there is not even one that was revoked: they have not arrived."""
        found = None
        for _, row in rows_under(view.transaction, TOKEN_PREFIX):
            if is_value(row):
                return True
            found = False
        return found

    def namespaces(self, view: View, token: Token) -> list[Namespace]:
        """Return the namespaces that a token sees, by id. Raises StoreCorrupt when some row cannot be read."""
        table = self._table(view)
        self._require_readable()
        return [one for one in table.values() if _sees(token, one)]

    def namespace(self, view: View, token: Token, segment: bytes, permission: Permission) -> Namespace:
        """Return the namespace that a raw path segment names by id or title; an id wins.

        Raises RequestError: `bad_namespace`, `namespace_not_found`, `forbidden`; StoreCorrupt when it may be one whose row
        cannot be read, because "not there" would be a guess.
        """
        text = decode_name(segment)
        table = self._table(view)
        found = table.get(NamespaceId(bytes.fromhex(text))) if LOOKS_LIKE_ID.fullmatch(text) else None
        if found is None:
            by_title = self._titles.get((token.account, text))
            found = None if by_title is None else table[by_title]
        if found is None:
            self._require_readable()
        if found is None or not _sees(token, found):
            raise RequestError("namespace_not_found", f"there is no namespace with the id or title {text[:80]!r}")
        if not token.allows(permission, found.namespace, found.account):
            raise RequestError(
                "forbidden", f"the token {token.name!r} has no permission to {permission} in this namespace"
            )
        return found

    def allow_reading(self, authorization: bytes, prefix: bytes, namespace: NamespaceId) -> None:
        """Let the hot path answer further reads of this token under this prefix of the target."""
        if len(self.readable) >= ACCESS_CACHED_MAX:
            self.readable.clear()
        self.readable[authorization, prefix] = namespace

    def allow_writing(self, authorization: bytes, segment: bytes, namespace: NamespaceId) -> None:
        """Let further writes of this token to this namespace pass without another look."""
        if len(self.writable) >= ACCESS_CACHED_MAX:
            self.writable.clear()
        self.writable[authorization, segment] = namespace

    def _require_readable(self) -> None:
        if self._unreadable_rows:
            raise StoreCorrupt(f"the rows of {self._unreadable_rows} namespaces cannot be read")

    def _table(self, view: View) -> dict[NamespaceId, Namespace]:
        """Return all live namespaces; rows that did not change are not decoded again."""
        if self._namespaces is None:
            known, self._decoded = self._decoded, {}
            table: dict[NamespaceId, Namespace] = {}
            self._titles.clear()
            self._unreadable_rows = 0
            for key, row in rows_under(view.transaction, NAMESPACE_PREFIX):
                if not is_value(row):
                    continue
                try:
                    namespace = known.get(key + row) or decode_namespace(key, row[ROW_HEAD_BYTES:])
                except RemoteProtocolError as error:
                    # The others are served: one bad row must not take all of them away.
                    _LOG.error("namespace_row_unreadable", reason=str(error))
                    self._unreadable_rows += 1
                    continue
                self._decoded[key + row] = namespace
                table[namespace.namespace] = namespace
                self._titles[namespace.account, namespace.title] = namespace.namespace
            self._namespaces = table
        return self._namespaces


def _sees(token: Token, namespace: Namespace) -> bool:
    return namespace.account == token.account and (token.namespaces is None or namespace.namespace in token.namespaces)
