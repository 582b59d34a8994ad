"""Who may ask the API port what: the gateway's rules, applied to a request of Starlette's.

Decides: which permission a route needs. All that the API port has is of the whole cluster, so it takes a token of the cluster's own account: an
    admin of another account could otherwise make himself a token for any.
Keeps true: a revoked token acts at once; until the cluster's tokens have arrived the answer is 503, not 401. A view never
    lives over an await: handlers take what they need and close it.
In and out: a request in; an open view and its token out; RequestError `unauthorized`, `forbidden`, `not_ready`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from kvp2p.core.system_rows import Permission, Token
from kvp2p.errors import RequestError
from kvp2p.gateway.access import Access
from kvp2p.store.reader import Replica, View


class ApiAccess:
    """Opens views for requests that may have them."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._access = Access()

    @contextmanager
    def view(self, request: Request, permission: Permission) -> Iterator[tuple[View, Token]]:
        """Open a view for a request whose token has `permission` on the cluster itself (not on some namespaces only)."""
        with self.replica.view() as view:
            self._access.refresh(view)
            token = self._access.token(view, request.headers.get("authorization", "").encode("latin-1"))
            if not token.allows(permission, None, view.transaction.identity.account):
                raise RequestError(
                    "forbidden", f"the token {token.name!r} has not the permission {permission} on the whole cluster"
                )
            yield view, token

    def require(self, request: Request, permission: Permission) -> Token:
        """Check a request's token and return it."""
        with self.view(request, permission) as (_, token):
            return token
