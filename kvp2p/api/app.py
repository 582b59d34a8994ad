"""The routes of the API port.

Decides: which path leads where, and what each document holds.
Keeps true: what is answered from the store is answered while the node process is down; what only the node knows is 503 then.
In and out: Starlette's requests and responses; the node by `NodePort`, the store by `Replica`.

    GET    /healthz                    no token    the same document as the data port's
    GET    /metrics                    read        all processes of this node, summed by the node; Prometheus text
    GET    /admin/v1/status            admin       the node's own document, and the totals of each namespace
    GET    /admin/v1/members           admin       the roster as this node has it
    GET    /admin/v1/leader            admin       the newest designation that this node has heard of
    GET    /admin/v1/tokens            admin       POST creates; DELETE /admin/v1/tokens/{id} revokes
"""

from __future__ import annotations

import json
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvp2p import __version__
from kvp2p.api.access import ApiAccess
from kvp2p.api.answers import Endpoints, json_response
from kvp2p.api.tokens import Tokens
from kvp2p.core.messages import Designation, Member
from kvp2p.core.system_rows import Permission
from kvp2p.errors import NodeUnavailable, RemoteProtocolError
from kvp2p.runtime.node_port import NodePort
from kvp2p.store.reader import Replica


class Api:
    """Everything that the API port answers. `api_url` is how others are told to reach it."""

    def __init__(self, replica: Replica, port: NodePort, api_url: str) -> None:
        self._replica = replica
        self._port = port
        self._api_url = api_url
        self._access = ApiAccess(replica)
        self.endpoints = Endpoints()
        self.tokens = Tokens(self._access, port)

    def application(self) -> Starlette:
        """Return the ASGI application."""

        def route(path: str, handler: Any, method: str = "GET") -> Route:
            return Route(path, self.endpoints.endpoint(path, handler), methods=[method])

        async def change_tokens(request: Request) -> Response:
            return await (self.tokens.list(request) if request.method == "GET" else self.tokens.create(request))

        tokens = "/admin/v1/tokens"
        routes = [
            route("/healthz", self.health),
            route("/metrics", self.metrics),
            route("/admin/v1/status", self.status),
            route("/admin/v1/members", self.members),
            route("/admin/v1/leader", self.leader),
            Route(tokens, self.endpoints.endpoint(tokens, change_tokens), methods=["GET", "POST"]),
            route("/admin/v1/tokens/{token_id}", self.tokens.revoke, "DELETE"),
        ]
        handlers: dict[Any, Any] = {HTTPException: self.endpoints.refuse, 500: self.endpoints.refuse}
        application = Starlette(routes=routes, exception_handlers=handlers)
        application.router.redirect_slashes = False
        return application

    async def health(self, _request: Request) -> Response:  # async by protocol: Starlette
        """Say who this node is; no token needed."""
        with self._replica.view() as view:
            identity = view.transaction.identity
        return json_response(
            {
                "name": identity.name,
                "node_id": identity.node.hex(),
                "cluster_id": identity.cluster.hex(),
                "version": __version__,
                "api_url": self._api_url,
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Answer the samples of all processes of this node."""
        from prometheus_client import CONTENT_TYPE_LATEST  # when it is first asked for: many nodes are never scraped

        from kvp2p.api.metrics import exposition

        self._access.require(request, Permission.READ)
        samples = await self._ask("metrics")
        try:
            return Response(exposition(samples), media_type=CONTENT_TYPE_LATEST)
        except RemoteProtocolError as error:
            raise NodeUnavailable(f"the node's samples cannot be read: {error}") from error

    async def status(self, request: Request) -> Response:
        """Answer what the node says of itself, with the totals of each namespace."""
        self._access.require(request, Permission.ADMIN)
        document = await self._ask("status")
        namespaces = []
        known = self._replica.namespaces()
        with self._replica.view() as view:
            for one in known:
                totals = view.transaction.totals(one.namespace)
                namespaces.append(
                    {
                        "id": one.namespace.hex(),
                        "title": one.title,
                        "account": one.account.hex(),
                        "keys": 0 if totals is None else totals.live,
                        "rows": 0 if totals is None else totals.rows,
                        "state_hash": f"{0 if totals is None else totals.state_hash:032x}",
                    }
                )
        return json_response({**document, "namespaces": namespaces})

    async def members(self, request: Request) -> Response:  # async by protocol: Starlette
        """Answer the roster."""
        with self._access.view(request, Permission.ADMIN) as (view, _):
            members, designation = view.transaction.members, view.transaction.designation
        return json_response({"members": [_shown_member(one, designation) for one in members]})

    async def leader(self, request: Request) -> Response:  # async by protocol: Starlette
        """Answer who was designated last, as far as this node has heard; null before it has heard anything."""
        with self._access.view(request, Permission.ADMIN) as (view, _):
            members, designation = view.transaction.members, view.transaction.designation
        if designation is None:
            return json_response({"term": 0, "leader": None})
        known = next((one for one in members if one.node == designation.node), None)
        shown = {"node_id": designation.node.hex()} if known is None else _shown_member(known, designation)
        return json_response({"term": designation.term, "leader": shown})

    async def _ask(self, what: str) -> dict[str, Any]:
        body = await self._port.query(what)
        try:
            document = json.loads(body)
        except ValueError as error:
            raise NodeUnavailable(f"the node's {what} is no JSON") from error
        if not isinstance(document, dict):
            raise NodeUnavailable(f"the node's {what} is no JSON object")
        return document


def _shown_member(member: Member, designation: Designation | None) -> dict[str, object]:
    return {
        "node_id": member.node.hex(),
        "name": member.name,
        "incarnation": member.incarnation,
        "data_url": member.data_url,
        "api_url": member.api_url,
        "mesh_url": member.mesh_url,
        "leader": designation is not None and member.node == designation.node,
    }
