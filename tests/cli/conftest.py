"""A fake node for the command line: data port and API port in one, in a thread; and a way to run commands in this process."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

import pytest

from kvp2p.cli.main import main

TOKEN = "kv_secret"
CLOCK = 4_000_000_000  # of the fake node, unix seconds
NAMESPACE_ID = "0123456789abcdef0123456789abcdef"


@dataclass
class FakeNode:
    """What the node holds and was asked. `refusal` answers every write, `cuts_writes` ends the connection instead.

    `page` answers every write as a proxy does whose node is gone. After `writes_answered_max` writes no more are answered.
    """

    values: dict[bytes, tuple[bytes, str | None]] = field(default_factory=dict)
    expiries: dict[bytes, int] = field(default_factory=dict)  # of these
    value_bytes_sent_max: int | None = None  # then the connection is cut
    requests: list[tuple[str, str]] = field(default_factory=list)
    refusal: tuple[int, str, str] | None = None
    cuts_writes: bool = False
    page: tuple[int, bytes] | None = None
    writes_answered_max: int | None = None
    is_silent: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)
    page_keys_max: int = 1000
    members: list[dict[str, Any]] = field(default_factory=list)
    says: dict[str, Any] = field(default_factory=dict)  # in its status, besides the usual
    is_status_late: bool = False
    has_writes_between_answers: bool = False  # so that each `status` shows another vector
    has_other_hash_each_time: bool = False
    tokens: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"id": "1" * 16, "name": "ops", "permissions": ["read"], "namespaces": None, "expires_at": None}
        ]
    )
    created_tokens: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    @property
    def targets(self) -> list[str]:
        return [target for _, target in self.requests]

    def writes(self) -> list[tuple[str, str]]:
        return [request for request in self.requests if request[0] != "GET"]


def version_of(number: int) -> str:
    return f"{number:040x}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    node: FakeNode

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(
        self, status: int, document: Any = None, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        if document is not None:
            body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.node.value_bytes_sent_max is not None and len(body) > self.node.value_bytes_sent_max:
            body = body[: self.node.value_bytes_sent_max]
            self.close_connection = True
        self.wfile.write(body)

    def error(self, status: int, code: str, message: str = "the fake says so") -> None:
        applied = "unknown" if status == 504 else "no"
        self.answer(status, {"error": {"code": code, "message": message, "retryable": False, "applied": applied}})

    def handle_one(self) -> None:
        node = self.node
        node.requests.append((self.command, self.path))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client left in the middle: no node acts on that
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        if parts.path == "/healthz":
            self.answer(200, {"name": "n1", "api_url": node.url, "cluster_id": "c" * 32})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.error(401, "unauthorized")
        elif self.command != "GET" and node.writes_answered_max is not None and self.is_one_too_many():
            node.is_silent.set()
            node.is_over.wait(30)
            self.close_connection = True
        elif self.command != "GET" and node.page is not None:
            self.answer(node.page[0], body=node.page[1])
        elif self.command != "GET" and node.cuts_writes:
            self.close_connection = True
        elif self.command != "GET" and node.refusal is not None:
            self.error(*node.refusal)
        elif parts.path.startswith("/admin/v1/"):
            self.admin(parts.path, body)
        elif parts.path == "/v1":
            self.answer(200, {"namespaces": [{"id": NAMESPACE_ID, "title": "settings"}]})
        else:
            namespace, slash, raw_key = self.path.removeprefix("/v1/").partition("?")[0].partition("/")
            if namespace not in {"settings", NAMESPACE_ID}:
                self.error(404, "namespace_not_found")
            elif slash:
                self.key(unquote_to_bytes(raw_key), body)
            else:
                self.namespace(parse_qs(parts.query))

    def is_one_too_many(self) -> bool:
        return len(self.node.writes()) > (self.node.writes_answered_max or 0)

    do_GET = do_PUT = do_DELETE = do_POST = handle_one  # noqa: N815  http.server names them

    def key(self, key: bytes, body: bytes) -> None:
        values = self.node.values
        if self.command == "PUT":
            if self.headers.get("If-None-Match") == "*" and key in values:
                self.error(412, "precondition_failed")
                return
            values[key] = (body, self.headers.get("KV-Metadata"))
            self.node.expiries.pop(key, None)
            if expires_in := self.headers.get("KV-Expires-In"):
                self.node.expiries[key] = CLOCK + int(expires_in)
            elif expires_at := self.headers.get("KV-Expires-At"):
                self.node.expiries[key] = int(expires_at)
            self.answer(200, {"version": version_of(len(values))})
        elif self.command == "DELETE":
            values.pop(key, None)
            self.answer(204, headers={"KV-Version": version_of(99)})
        elif key in values:
            value, metadata = values[key]
            headers = {"KV-Version": version_of(7)} | ({"KV-Metadata": metadata} if metadata else {})
            if key in self.node.expiries:
                headers["KV-Expires-At"] = str(self.node.expiries[key])
            self.answer(200, body=value, headers=headers)
        else:
            self.error(404, "key_not_found")

    def namespace(self, query: dict[str, list[str]]) -> None:
        if self.command == "PUT":
            self.answer(201, {"id": NAMESPACE_ID, "title": "settings"})
            return
        if self.command == "DELETE":
            self.answer(204, headers={"KV-Version": version_of(5)})
            return
        after = query.get("cursor", [""])[0].encode()
        prefix = query.get("prefix", [""])[0].encode()
        limit = min(int(query["limit"][0]), self.node.page_keys_max)
        names = [key for key in sorted(self.node.values) if key > after and key.startswith(prefix)]
        keys = []
        for name in names[:limit]:
            metadata = self.node.values[name][1]
            one: dict[str, Any] = {"name": name.decode("utf-8", "replace"), "version": version_of(7)}
            if name in self.node.expiries:
                one["expiration"] = self.node.expiries[name]
            keys.append(one if metadata is None else {**one, "metadata": json.loads(metadata)})
        more = {"cursor": names[limit - 1].decode()} if len(names) > limit else {}
        self.answer(200, {"keys": keys, "list_complete": not more, **more})

    def admin(self, path: str, body: bytes) -> None:
        match self.command, path.removeprefix("/admin/v1/").split("/"):
            case "POST", ["tokens"]:
                asked = json.loads(body)
                self.node.created_tokens.append(asked)
                self.answer(201, {"id": "1" * 16, "token": "kv_new", **asked})
            case "GET", ["tokens"]:
                self.answer(200, {"tokens": self.node.tokens})
            case "DELETE", ["tokens", token_id]:
                if token_id == "1" * 16:
                    self.answer(204)
                else:
                    self.error(404, "token_not_found")
            case "GET", ["members"]:
                self.answer(200, {"members": self.node.members})
            case "GET", ["status"]:
                if self.node.is_status_late:
                    self.node.is_over.wait(30)
                    self.close_connection = True
                    return
                status = {
                    "leader": True,
                    "ready": True,
                    "lag_ms": 0,
                    "skew_ms": 3,
                    "state_hash": "ab" * 16,
                    "node_id": "1" * 32,
                    **self.node.says,
                }
                namespaces = [{"keys": len(self.node.values)}]
                if self.node.has_other_hash_each_time:
                    status["state_hash"] = f"{len(self.node.requests):032x}"
                position = f"{len(self.node.requests):016x}" if self.node.has_writes_between_answers else "22" * 8
                self.answer(200, {**status, "vector": {"11" * 8: position}, "namespaces": namespaces})
            case _:
                self.error(404, "route_not_found")


class Server(ThreadingMixIn, TCPServer):
    """A thread per connection. http.server's own class asks for the machine's name first, which may take long."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


class Result(NamedTuple):
    status: int
    out: bytes
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def node() -> Iterator[FakeNode]:
    """Run a fake node."""
    fake = FakeNode()
    handler = type("FakeHandler", (Handler,), {"node": fake})
    server = Server(("127.0.0.1", 0), handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield fake
    fake.is_over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def kvp2p(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., Result]:
    """Give a function that runs a command against the fake node, with its token."""
    monkeypatch.setenv("KVP2P_URL", node.url)
    monkeypatch.setenv("KVP2P_TOKEN", TOKEN)

    def run(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["kvp2p", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status: Any = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return Result(status, captured.out, captured.err.decode())

    return run
