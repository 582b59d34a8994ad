"""From a request to whoever answers it.

Decides: which route and method is served by what; what is sent to the node, and when a read waits for it. A large value is checked before
    anything of it is sent to the node, and once more before its write is, because a token may have been revoked meanwhile.
Keeps true: I10, each write is submitted once and its outcome becomes its answer. A request with `X-KV-Namespace` is binding
    protocol whatever its path, and `/proxy/` is Miniflare's: until those are served, both are 501 and never 404, because
    their clients read 404 as "there is no value".
In and out: `start(exchange)` ends the exchange before it returns, or later when the node has answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from kvp2p import __version__
from kvp2p.core.operations import Ending, Operation
from kvp2p.errors import RequestError, StoreError
from kvp2p.gateway.answers import error_answer, json_answer, refusal_answer
from kvp2p.gateway.exchange import Exchange
from kvp2p.gateway.fields import Fields
from kvp2p.gateway.reads import Reads
from kvp2p.gateway.streams import ValueStream
from kvp2p.gateway.target import Route, Target
from kvp2p.gateway.uploads import Upload
from kvp2p.gateway.views import Views
from kvp2p.gateway.writes import SOME_PUT, Writes, outcome_answer, without_value
from kvp2p.ids import Version
from kvp2p.limits import WRITE_DEADLINE_MS
from kvp2p.runtime.node_port import NodePort

_LOG = structlog.get_logger("kvp2p.gateway")

_ALLOWED: Final = {
    Route.KEY: (b"GET", b"HEAD", b"PUT", b"DELETE"),
    Route.NAMESPACE: (b"GET", b"HEAD", b"PUT", b"DELETE"),
    Route.NAMESPACES: (b"GET", b"HEAD"),
    Route.HEALTH: (b"GET", b"HEAD"),
    Route.READINESS: (b"GET", b"HEAD"),
}
_BINDING: Final = "X-KV-Namespace: this version of kvp2p does not speak the Workers binding protocol yet"
_PROXY: Final = "/proxy/: this version of kvp2p does not speak the Miniflare remote-binding envelope yet"


@dataclass(frozen=True, slots=True)
class Routes:
    """Answers requests. Reads that wait for a version wait in `nursery`, up to `min_version_wait_ms`, and then call `resume`."""

    reads: Reads
    writes: Writes
    views: Views
    node: NodePort
    nursery: trio.Nursery
    resume: Callable[[], None]
    api_url: str
    min_version_wait_ms: int
    ready_lag_ms_max: int | None

    def start(self, exchange: Exchange) -> None:
        """Answer an exchange, or send what will answer it. The caller releases the view afterwards."""
        answer: bytes | ValueStream | None
        try:
            answer = self._answer(exchange)
        except (RequestError, StoreError) as error:
            answer = _refused(error)
        if answer is not None:
            if exchange.upload is not None:
                exchange.upload.close()
            exchange.end(answer)

    def _answer(self, exchange: Exchange) -> bytes | ValueStream | None:
        """Return the answer, None when it comes later."""
        fields, target = exchange.fields, exchange.target
        assert fields is not None
        if b"x-kv-namespace" in fields.values:
            raise RequestError("not_implemented", _BINDING)
        if target.route is Route.PROXY:
            raise RequestError("not_implemented", _PROXY)
        allowed = _ALLOWED.get(target.route)
        if allowed is None:
            raise RequestError("route_not_found", "the data port has /v1, /healthz and /readyz")
        if exchange.method not in allowed:
            return error_answer(
                "method_not_allowed",
                "this path does not take this method",
                lines=b"Allow: %b\r\n" % b", ".join(allowed),
            )
        if exchange.method in {b"GET", b"HEAD"}:
            return self._read(exchange, fields, target)
        if exchange.refusal is not None:
            raise exchange.refusal
        operation = self._operation(exchange, fields, target)
        if exchange.upload is not None:
            exchange.upload.begin()
        else:
            self._submit(exchange, operation)
        return None

    def drive(self, exchange: Exchange) -> None:
        """Go on with a large value that has begun: send chunks, submit its write, or answer that it failed."""
        upload = exchange.upload
        assert upload is not None, "only a large value is driven"
        upload.drive()
        if exchange.answer is not None or upload.is_submitted:
            return
        if upload.failure is not None:
            exchange.end(outcome_answer(SOME_PUT, upload.failure))
        elif exchange.refusal is not None:
            exchange.end(refusal_answer(exchange.refusal))
        elif upload.is_ready:
            self._submit_large(exchange, upload)

    def _submit_large(self, exchange: Exchange, upload: Upload) -> None:
        fields, target = exchange.fields, exchange.target
        assert fields is not None
        try:
            put = self.writes.put(target, fields, b"", 0)
        except (RequestError, StoreError) as error:
            upload.close()
            exchange.end(_refused(error))
        else:
            upload.submit(put, lambda outcome: exchange.end(outcome_answer(SOME_PUT, outcome)))

    def _read(self, exchange: Exchange, fields: Fields, target: Target) -> bytes | ValueStream | None:
        if target.route is Route.HEALTH:
            return self._health()
        if target.route is Route.READINESS:
            return self._readiness()
        read: Callable[[Target, Fields], bytes | ValueStream]
        if target.route is Route.KEY:
            read = self.reads.value if exchange.method == b"GET" else self.reads.value_head
        else:
            read = self.reads.keys if target.route is Route.NAMESPACE else self.reads.namespaces
        version = fields.min_version()
        if version is None or self.reads.covers(version):
            return read(target, fields)
        # Whoever may not read must not make this node wait. What stands here meanwhile is not read, and no stream opened, for that.
        (self.reads.value_head if target.route is Route.KEY else read)(target, fields)
        self.nursery.start_soon(self._read_covered, exchange, version, read, target, fields)
        return None

    async def _read_covered(
        self,
        exchange: Exchange,
        version: Version,
        read: Callable[[Target, Fields], bytes | ValueStream],
        target: Target,
        fields: Fields,
    ) -> None:
        answer: bytes | ValueStream
        try:
            outcome = await self.node.await_version(version, self.min_version_wait_ms)
            # The node's word counts for its own store, and this is the same file: the view opened now covers it.
            if outcome.ending == Ending.ACKED or self.reads.covers(version):
                answer = read(target, fields)
            else:
                answer = error_answer(
                    "not_caught_up",
                    f"this node has not caught up with KV-Min-Version in {self.min_version_wait_ms} ms, or cannot tell: {outcome.message}",
                )
        except (RequestError, StoreError) as error:
            answer = _refused(error)
        except Exception:  # noqa: BLE001  one request met a bug of ours: this task shares its nursery with all the others
            _LOG.exception("read_failed")
            answer = error_answer("internal_error", "this is a fault of kvp2p; the log of the gateway process has more")
        finally:
            self.views.release()
        exchange.end(answer)
        self.resume()

    def _readiness(self) -> bytes:
        is_ready, reason = self.node.readiness.ready, self.node.readiness.reason
        lost_ms, lag_ms_max = self.node.lost_ms(), self.ready_lag_ms_max
        if is_ready and lag_ms_max is not None and lost_ms > lag_ms_max:
            # Nothing has been applied since: this much it lags at least, if there was anything to apply.
            is_ready, reason = False, f"the node process is gone for {lost_ms} ms, ready_lag_ms_max is {lag_ms_max}"
        body = json.dumps({"ready": is_ready, "reason": reason}).encode("ascii")
        return json_answer(body, 200 if is_ready else 503)

    def _health(self) -> bytes:
        identity = self.views.current().transaction.identity
        document = {
            "name": identity.name,
            "node_id": identity.node.hex(),
            "cluster_id": identity.cluster.hex(),
            "version": __version__,
            "api_url": self.api_url,
        }
        return json_answer(json.dumps(document).encode("ascii"))

    def _operation(self, exchange: Exchange, fields: Fields, target: Target) -> Operation:
        is_put = exchange.method == b"PUT"
        if target.route is Route.KEY:
            if is_put:
                body = exchange.body if exchange.upload is None else b""
                return self.writes.put(target, fields, body, exchange.body_bytes)
            return self.writes.delete(target, fields)
        return (self.writes.create_namespace if is_put else self.writes.delete_namespace)(target, fields)

    def _submit(self, exchange: Exchange, operation: Operation) -> None:
        asked = without_value(operation)
        self.node.submit_nowait(
            (operation,), WRITE_DEADLINE_MS, lambda outcome: exchange.end(outcome_answer(asked, outcome))
        )


def _refused(error: RequestError | StoreError) -> bytes:
    if isinstance(error, RequestError):
        return refusal_answer(error)
    _LOG.warning("store_failed", error=str(error))
    return error_answer("unavailable", "this node cannot read its store, nothing was applied; see its log")
