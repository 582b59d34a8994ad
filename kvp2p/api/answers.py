"""What every route of the API port has in common: JSON answers, errors as on the data port, counting.

Decides: how an error of ours becomes an answer; the codes and statuses are those of `gateway/answers.py`.
Keeps true: I10, an outcome is told as it came, and when our own fault hides it, it is unknown. No error text in the reason phrase: hypercorn sends an empty one.
In and out: a handler in, an endpoint out; `samples` for the node's sum.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from kvp2p.core.operations import Ending, Outcome
from kvp2p.errors import NodeUnavailable, RequestError, StoreError
from kvp2p.gateway.answers import CODES, RETRY_AFTER_SECONDS
from kvp2p.limits import API_BODY_BYTES_MAX

_WRITE_SENT: Final = "kvp2p.write_sent"

Handler = Callable[[Request], Awaitable[Response]]

_LOG = structlog.get_logger("kvp2p.api")


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer a JSON document."""
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, media_type="application/json")


def error_response(code: str, message: str, limit: int | None = None, *, applied: str | None = None) -> Response:
    """Answer an error of the table in `gateway/answers.py`, which says what was applied unless `applied` does."""
    meaning = CODES[code]
    error: dict[str, object] = {"code": code, "message": message}
    if limit is not None:
        error["limit"] = limit
    error |= {"retryable": meaning.retryable, "applied": applied or meaning.applied}
    headers = {}
    if meaning.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if meaning.status in {429, 503}:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return json_response({"error": error}, meaning.status, headers)


def expect_write(request: Request) -> None:
    """Note that from here on a write of this request may have left: an internal error must not say that nothing was applied."""
    request.scope[_WRITE_SENT] = True


def outcome_response(outcome: Outcome) -> Response:
    """Answer a write that was not acked."""
    if outcome.ending is Ending.UNKNOWN:
        return error_response("outcome_unknown", outcome.message)
    code = outcome.code if outcome.code in CODES else "unavailable"
    return error_response(code, outcome.message or outcome.code)


async def read_object(request: Request) -> dict[str, object]:
    """Read a JSON object from a request's body; raises RequestError."""
    parts: list[bytes] = []
    size = 0
    async with aclosing(request.stream()) as stream:
        async for part in stream:
            size += len(part)
            if size > API_BODY_BYTES_MAX:
                raise RequestError(
                    "value_too_large", f"the body has more than {API_BODY_BYTES_MAX} bytes", API_BODY_BYTES_MAX
                )
            parts.append(part)
    try:
        document = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise RequestError("bad_request", "the body must be a JSON object") from error
    if not isinstance(document, dict):
        raise RequestError("bad_request", "the body must be a JSON object")
    return document


class Endpoints:
    """Turns handlers into endpoints, and counts what they answer."""

    def __init__(self) -> None:
        self._answered: Counter[tuple[str, int]] = Counter()

    def endpoint(self, route: str, handler: Handler) -> Handler:
        """Return `handler` with our errors answered and its answers counted under `route`."""

        async def answer(request: Request) -> Response:
            try:
                response = await handler(request)
            except RequestError as error:
                response = error_response(error.code, error.message, error.limit)
            except NodeUnavailable as error:
                response = error_response("node_unavailable", str(error))
            except StoreError as error:
                _LOG.error("store_unreadable", route=route, reason=str(error))
                response = error_response("unavailable", "this node's store cannot be read at the moment")
            self._answered[route, response.status_code] += 1
            return response

        return answer

    async def refuse(self, request: Request, error: Exception) -> Response:  # async by protocol: Starlette
        """Answer what Starlette itself refuses: an unknown route, a method that a route has not."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        code, message = {
            404: ("route_not_found", "the API port has /healthz, /metrics and /admin/v1"),
            405: ("method_not_allowed", "this route does not have that method, see Allow"),
        }.get(status, ("internal_error", "this is a fault of kvp2p; the log of the api process has more"))
        applied = "unknown" if code == "internal_error" and request.scope.get(_WRITE_SENT) else None
        response = error_response(code, message, applied=applied)
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})
        self._answered["other", response.status_code] += 1
        return response

    def samples(self) -> dict[str, int]:
        """Return what was counted, by Prometheus sample."""
        return {
            f'kvp2p_api_requests_total{{route="{route}",status="{status}"}}': count
            for (route, status), count in sorted(self._answered.items())
        }
