"""The operations of the data port, over one or a few pipelined connections.

Decides: how a key becomes a path, and which connection a call takes.
Keeps true: [I10] a write is sent at most once, whatever happens; only reads may be asked again, and only when
    `read_attempts_max` says so. [I9] `connections` times `pipeline_depth_max` requests are unanswered at most.
In and out: keys and values in, outcomes (`outcomes`) out; reads raise `ClientError`.
Source: DESIGN §7, native protocol. Paths are built raw: what a key holds travels as it is, `.`, `..` and `//` included.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_from_bytes

import trio

from .connection import Connection, ConnectionConfig, Request
from .failures import ConnectionLost, NotSent
from .outcomes import (
    Found,
    KeyInfo,
    KeyPage,
    Namespace,
    Refused,
    Unknown,
    WriteOutcome,
    created,
    is_missing_key,
    read_failure,
    written,
)
from .request import Headers
from .response import Response
from .streaming import StreamedValue, streamed_get, streamed_put


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How many connections a client keeps and what it does when one is lost.

    `connects_at_once`: the client opens them before it is used, otherwise each with the first call that it is for.
    `reconnects`: a *new* call opens a connection that was lost; otherwise it fails as not sent until `reconnect`.
    `read_attempts_max`: how often a read is asked before its loss is reported; more than 1 needs `reconnects`.
    """

    connections: int = 1
    connects_at_once: bool = True
    reconnects: bool = False
    read_attempts_max: int = 1
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)

    def __post_init__(self) -> None:
        if self.connections < 1 or self.read_attempts_max < 1:
            raise ValueError("connections and read_attempts_max must be at least 1")
        if self.read_attempts_max > 1 and not self.reconnects:
            raise ValueError("a read can be asked again only by a client that reconnects")


class Client:
    """A data port's client. Any number of tasks may use one; `open_client` makes it."""

    def __init__(self, nursery: trio.Nursery, data_url: str, token: str | None, config: ClientConfig) -> None:
        self._nursery = nursery
        self._data_url = data_url
        self._token = token
        self._config = config
        self._connections: list[Connection | None] = [None] * config.connections
        self._opening = [trio.Lock() for _ in range(config.connections)]
        self._next = 0
        self._paths: dict[str, bytes] = {}

    async def reconnect(self) -> None:
        """Open every connection that is not open. Raises `NotSent` when the server cannot be reached."""
        for slot in range(len(self._connections)):
            await self._open(slot)

    def close(self) -> None:
        """Close all connections; unanswered writes end as unknown, or refused when they had not left."""
        for connection in self._connections:
            if connection is not None:
                connection.close()

    async def get(self, namespace: str, key: bytes | str, *, min_version: str | None = None) -> Found | None:
        """Return the value of `key`, None when it has none.

        With `min_version` the node waits until it has caught up to that version, or answers 503: `ReadUnavailable`.
        """
        return _found(await self._read(_get(self._key_path(namespace, key), min_version)))

    async def get_many(
        self, namespace: str, keys: Sequence[bytes | str], *, min_version: str | None = None
    ) -> list[Found | None]:
        """Return the value of each key, in order. They share one connection and one wake-up; the first failure is raised.

        Under half the cost of as many `get`s. Not repeated by `read_attempts_max`.
        """
        requests = [_get(self._key_path(namespace, key), min_version) for key in keys]
        found: list[Found | None] = []
        for result in await (await self._connection()).request_many(requests):
            if isinstance(result, ConnectionLost):
                raise result
            found.append(_found(result))
        return found

    async def get_each(
        self, namespace: str, keys: Sequence[bytes | str], take: Callable[[int, Found | None], None]
    ) -> None:
        """Give the value of each key to `take` with its index, in order and as it comes, so that no more than one is in memory.

        They share one connection. The first failure is raised, after the others have been read and dropped.
        """
        requests = [_get(self._key_path(namespace, key), None) for key in keys]

        def take_result(index: int, result: Response | ConnectionLost) -> None:
            if isinstance(result, ConnectionLost):
                raise result
            take(index, _found(result))

        await (await self._connection()).request_each(requests, take_result)

    async def head(self, namespace: str, key: bytes | str, *, min_version: str | None = None) -> Response:
        """Ask HEAD for `key` and return the bare answer, whatever its status: 404 carries no text that names its cause."""
        target = self._key_path(namespace, key)
        return await self._read(_get(target, min_version)._replace(method=b"HEAD"))

    async def put(
        self,
        namespace: str,
        key: bytes | str,
        value: bytes,
        metadata: Any = None,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        expires_in_s: int | None = None,
        expires_at: int | None = None,
    ) -> WriteOutcome:
        """Write `value`, with JSON `metadata` unless None.

        `if_match` is the version that must stand there, `if_none_match` asks for none to stand there; 412 otherwise.
        `expires_in_s` (at least 60) goes before `expires_at` (unix seconds).
        """
        headers = _put_headers(metadata, if_match, if_none_match, expires_in_s, expires_at)
        return written(await self._write(b"PUT", self._key_path(namespace, key), headers, value))

    async def put_from(
        self,
        namespace: str,
        key: bytes | str,
        source: Iterable[bytes],
        value_bytes: int,
        metadata: Any = None,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        expires_in_s: int | None = None,
        expires_at: int | None = None,
        on_sent: Callable[[], None] = lambda: None,
    ) -> WriteOutcome:
        """Write a value of `value_bytes` bytes, at least one, that `source` gives part by part; the rest as in `put`.

        Over a connection of its own. `on_sent` is called before the last part leaves: until then nothing can have been stored, and the
        outcome is `Refused` when the connection is lost. Raises ValueError when `source` has not so many bytes; nothing is stored then.
        """
        headers = _put_headers(metadata, if_match, if_none_match, expires_in_s, expires_at)
        target, config = self._key_path(namespace, key), self._config.connection
        result = await streamed_put(self._data_url, self._token, target, headers, source, value_bytes, on_sent, config)
        return result if isinstance(result, Refused) else written(result)

    @asynccontextmanager
    async def open_value(
        self, namespace: str, key: bytes | str, *, min_version: str | None = None
    ) -> AsyncIterator[StreamedValue | None]:
        """Read a value part by part, for the length of a block; None when the key has none. `min_version` as in `get`.

        Over a connection of its own. `next_part` raises `ConnectionLost` when the node cuts it: what has come is not the whole value then.
        """
        request = _get(self._key_path(namespace, key), min_version)
        reading = streamed_get(self._data_url, self._token, request.target, request.headers, self._config.connection)
        async with reading as value:
            if isinstance(value, StreamedValue):
                yield value
            else:
                _found(value)  # which raises, unless the key has no value
                yield None

    async def delete(self, namespace: str, key: bytes | str, *, if_match: str | None = None) -> WriteOutcome:
        """Delete `key`; acknowledged also when it has no value. `if_match` as in `put`."""
        headers: Headers = () if if_match is None else ((b"If-Match", b'"%s"' % if_match.encode("ascii")),)
        return written(await self._write(b"DELETE", self._key_path(namespace, key), headers, b""))

    async def list_keys(
        self, namespace: str, prefix: bytes | str = b"", limit: int = 1000, cursor: str | None = None
    ) -> KeyPage:
        """Return up to `limit` keys that start with `prefix`, from where `cursor` of the page before points."""
        target = self._namespace_path(namespace) + b"?limit=%d" % limit
        if prefix:
            target += b"&prefix=" + _quoted(prefix, safe="")
        if cursor is not None:
            target += b"&cursor=" + _quoted(cursor, safe="")
        document = await self._read_json(target)
        keys = tuple(
            KeyInfo(key["name"], key["version"], key.get("metadata"), key.get("expiration")) for key in document["keys"]
        )
        return KeyPage(keys, None if document["list_complete"] else document["cursor"])

    async def create_namespace(self, title: str) -> Namespace | Refused | Unknown:
        """Create a namespace, or find the one that has this title already."""
        return created(await self._write(b"PUT", self._namespace_path(title), (), b""))

    async def delete_namespace(self, namespace: str) -> WriteOutcome:
        """Delete a namespace, by id or title, with all its keys."""
        return written(await self._write(b"DELETE", self._namespace_path(namespace), (), b""))

    async def list_namespaces(self) -> tuple[Namespace, ...]:
        """Return all namespaces that the token may see."""
        document = await self._read_json(b"/v1")
        return tuple(Namespace(item["id"], item["title"]) for item in document["namespaces"])

    def _namespace_path(self, namespace: str) -> bytes:
        path = self._paths.get(namespace)
        if path is None:
            path = b"/v1/" + _quoted(namespace, safe="")
            if len(self._paths) < 1024:  # a program uses a handful; the bound is for one that makes names up
                self._paths[namespace] = path
        return path

    def _key_path(self, namespace: str, key: bytes | str) -> bytes:
        return self._namespace_path(namespace) + b"/" + _quoted(key, safe="/")

    async def _connection(self) -> Connection:
        """Return the connection whose turn it is."""
        slot = self._next = (self._next + 1) % len(self._connections)
        connection = self._connections[slot]
        if connection is not None and not (connection.is_closed and self._config.reconnects):
            return connection
        return await self._open(slot)

    async def _open(self, slot: int) -> Connection:
        async with self._opening[slot]:
            connection = self._connections[slot]
            if connection is None or connection.is_closed:
                connection = await Connection.open(
                    self._nursery, self._data_url, self._token, config=self._config.connection
                )
                self._connections[slot] = connection
            return connection

    async def _write(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> Response | ConnectionLost:
        """Send a write, once [I10], and return what came of it."""
        try:
            return await (await self._connection()).request(method, target, headers, body)
        except ConnectionLost as lost:
            return lost

    async def _read(self, request: Request) -> Response:
        for _ in range(self._config.read_attempts_max - 1):
            try:
                return await (await self._connection()).request(*request)
            except ConnectionLost:
                continue  # safe to ask again: a read changes nothing
        return await (await self._connection()).request(*request)

    async def _read_json(self, target: bytes) -> Any:
        response = await self._read(Request(b"GET", target))
        if response.status != 200:
            raise read_failure(response)
        return json.loads(response.body)


@asynccontextmanager
async def open_client(
    data_url: str, token: str | None = None, *, config: ClientConfig | None = None
) -> AsyncIterator[Client]:
    """Open a client of `data_url` (`http://host:port`) for the length of a block, and close it at its end.

    Raises `NotSent` when the server cannot be reached, except for a client that reconnects: it may start before its server.
    """
    config = config or ClientConfig()
    try:
        async with trio.open_nursery() as nursery:
            client = Client(nursery, data_url, token, config)
            try:
                if config.connects_at_once:
                    await client.reconnect()
            except NotSent:
                if not config.reconnects:
                    raise
            yield client
            client.close()
    except BaseExceptionGroup as group:
        # The connections' own tasks raise nothing, so the group holds what the block raised; unwrapped, the block
        # behaves as if it stood alone. (Cancelled comes here too, and goes on.)
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


def _quoted(text: bytes | str, *, safe: str) -> bytes:
    """Percent-encode all but the unreserved characters of RFC 3986 and `safe`."""
    return (quote(text, safe) if isinstance(text, str) else quote_from_bytes(text, safe)).encode("ascii")


def _put_headers(
    metadata: Any, if_match: str | None, if_none_match: bool, expires_in_s: int | None, expires_at: int | None
) -> Headers:
    headers: list[tuple[bytes, bytes]] = []
    if metadata is not None:
        headers.append((b"KV-Metadata", json.dumps(metadata, separators=(",", ":")).encode("ascii")))
    if if_match is not None:
        headers.append((b"If-Match", b'"%s"' % if_match.encode("ascii")))
    if if_none_match:
        headers.append((b"If-None-Match", b"*"))
    if expires_in_s is not None:
        headers.append((b"KV-Expires-In", b"%d" % expires_in_s))
    if expires_at is not None:
        headers.append((b"KV-Expires-At", b"%d" % expires_at))
    return tuple(headers)


def _get(target: bytes, min_version: str | None) -> Request:
    return Request(b"GET", target, () if min_version is None else ((b"KV-Min-Version", min_version.encode("ascii")),))


def _found(response: Response) -> Found | None:
    if response.status == 200:
        return Found(response)
    if is_missing_key(response):
        return None
    raise read_failure(response)
