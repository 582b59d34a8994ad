"""From received bytes to requests: what httptools does not check, and what is kept of a body.

Decides: where one request ends, which requests are refused while they are read, which bodies are kept and which are uploads: those of
    keys that have more than INLINE_VALUE_BYTES_MAX. These requests are handed over before their bodies, which they are given as they come.
Keeps true: I9, target, header, chunk extensions, trailers and body are limited while they are parsed. After a fault of
    framing nothing more of the connection is understood as a request.
In and out: `feed(bytes)` in; `take_plain_get` (may answer at once), `take(exchange)` and `take_large(exchange)` out, in the order of the bytes.
    `rejection` is set when the connection must end after what was taken.
Source: RFC 9112 (2022). llhttp refuses Content-Length with Transfer-Encoding, two lengths, bare LF, folded headers. It lets
    through 1 MB targets, `TE: gzip, chunked`, a missing Host, 60 KB of chunk extensions, HTTP/0.9 and 2.0.

Chunk extensions have no callback and no limit in llhttp. So a size line is fed in slices shorter than the limit: a slice
that begins and ends inside one line, without an event, is an extension over the limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import httptools

from kvp2p.errors import RequestError
from kvp2p.gateway.exchange import Exchange
from kvp2p.gateway.fields import Fields, Pairs
from kvp2p.limits import (
    HTTP_CHUNK_EXTENSION_BYTES_MAX,
    HTTP_DISCARDED_BODY_BYTES_MAX,
    HTTP_HEADER_BYTES_MAX,
    HTTP_HEADERS_MAX,
    HTTP_URL_BYTES_MAX,
    INLINE_VALUE_BYTES_MAX,
    VALUE_BYTES_MAX,
)

# A size line: 16 hex digits, CR LF, and the extension.
_SLICE_BYTES: Final = HTTP_CHUNK_EXTENSION_BYTES_MAX + 20
_HTTP_VERSIONS: Final = frozenset({"1.1", "1.0"})
_CHUNKED: Final = re.compile(rb"chunked", re.IGNORECASE)


class Phase(Enum):
    """Where in a request the bytes end."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


class Taker(Protocol):
    """Whom requests are handed to."""

    def take_plain_get(self, target: bytes, fields: Fields) -> bool:
        """Answer a GET with plain fields at once, if possible and if it is its turn."""
        ...

    def take(self, exchange: Exchange) -> None:
        """Take a request."""
        ...

    def take_large(self, exchange: Exchange) -> None:
        """Take a request whose body is to come, and give it an upload."""
        ...

    def end_large(self, exchange: Exchange) -> None:
        """Take note that the body of that request is whole."""
        ...

    def hold(self, count: int) -> bool:
        """Make room for a part of a body; False when the process has none left."""
        ...

    def release(self, count: int) -> None:
        """Take back room for parts that were dropped."""
        ...

    def send_continue(self) -> None:
        """Ask for the body of the request that is being received."""
        ...


class _LastRequest(Exception):
    """Stops the parser: what follows a request that ends its connection is nobody's business."""


class Intake:
    """Reads the requests of one connection. `keeps_body_of` says which Authorization fields are worth a buffer."""

    def __init__(self, taker: Taker, keeps_body_of: Callable[[bytes], bool], clock: Callable[[], float]) -> None:
        self._taker = taker
        self._keeps_body_of = keeps_body_of
        self._clock = clock
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._pairs: Pairs = []
        self._known_pairs: Pairs = []
        self._fields = Fields([])
        self._body: bytes | bytearray | None = None  # one piece, however many parts it came in [I9]
        self._body_bytes = 0
        self._large: Exchange | None = None  # whose body is being received
        self._refusal: RequestError | None = None  # of the request that is being received
        self._head_bytes = 0  # received of an unfinished head, whole reads only
        self._events = 0  # of a chunked body
        self._quiet_bytes = 0  # of a chunked body since its last event
        self._is_in_size_line = False
        self.phase = Phase.BETWEEN
        self.heads_begun = 0  # tells one head from the next
        self.is_last = False  # the request that was taken last ends the connection
        self.rejection: RequestError | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more of this connection will be understood as a request."""
        return self.is_last or self.rejection is not None

    # --- bytes

    def feed(self, data: bytes) -> None:
        """Read on. Stops for good when `is_last` or `rejection` is set."""
        if self._plain_body_bytes_left() >= len(data):
            self._feed(data)  # nothing in it is a head
            return
        head_before = self.heads_begun if self.phase is Phase.HEAD else -1
        if self.phase is Phase.HEAD or self._is_chunked_body() or _CHUNKED.search(data):
            self._feed_sliced(data)
        else:
            self._feed(data)
        if self.phase is Phase.HEAD and self.rejection is None:
            self._head_bytes = self._head_bytes + len(data) if head_before == self.heads_begun else 0
            if self._head_bytes > HTTP_URL_BYTES_MAX + HTTP_HEADER_BYTES_MAX or len(self._pairs) > HTTP_HEADERS_MAX:
                self.rejection = _headers_too_large()

    def _plain_body_bytes_left(self) -> int:
        """Return how many of the next bytes belong to a body of known length."""
        if self.phase is not Phase.BODY or self._fields.is_chunked:
            return 0
        return self._fields.content_length - self._body_bytes

    def _is_chunked_body(self) -> bool:
        return self.phase is Phase.BODY and self._fields.is_chunked

    def _feed(self, data: bytes | memoryview) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # An upgrade that is not accepted is a plain request (RFC 9110 section 7.8); the rest is the next one.
                self._parser = httptools.HttpRequestParser(self)
                data = data[upgrade.args[0] :]
            except httptools.HttpParserCallbackError as error:
                cause = error.__context__
                if isinstance(cause, RequestError):
                    self.rejection = cause
                elif not isinstance(cause, _LastRequest):
                    raise
                return
            except httptools.HttpParserError as error:
                self.rejection = RequestError("malformed_request", f"the request is not HTTP/1.1: {error}")
                return

    def _feed_sliced(self, data: bytes) -> None:
        """Feed heads and chunked bodies in slices; all else whole."""
        view = memoryview(data)
        at = 0
        while at < len(data) and not self.is_over:
            was_chunked_body = self._is_chunked_body()
            if was_chunked_body or self.phase is Phase.HEAD:
                end = at + _SLICE_BYTES
            elif left := self._plain_body_bytes_left():
                end = at + left
            else:
                match = _CHUNKED.search(data, at)
                end = max(match.start(), at + 1) if match else len(data)
            events = self._events
            part = view[at:end]
            self._feed(part)
            at = end
            is_quiet = was_chunked_body and self._is_chunked_body() and events == self._events
            self._quiet_bytes = self._quiet_bytes + len(part) if is_quiet else 0
            if self._quiet_bytes >= (_SLICE_BYTES if self._is_in_size_line else HTTP_HEADER_BYTES_MAX):
                where = "a chunk extension" if self._is_in_size_line else "the trailer"
                limit = HTTP_CHUNK_EXTENSION_BYTES_MAX if self._is_in_size_line else HTTP_HEADER_BYTES_MAX
                self.rejection = RequestError("malformed_request", f"{where} has more than {limit} bytes", limit)

    # --- callbacks of httptools; what they raise comes back as HttpParserCallbackError

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self.phase = Phase.HEAD
        self.heads_begun += 1

    def on_url(self, part: bytes) -> None:
        """Collect the target."""
        self._target = self._target + part if self._target else part
        if len(self._target) > HTTP_URL_BYTES_MAX:
            raise RequestError(
                "url_too_long", f"the request target has more than {HTTP_URL_BYTES_MAX} bytes", HTTP_URL_BYTES_MAX
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header field, or one of a trailer, which is dropped."""
        self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head, before the body."""
        pairs = self._pairs
        if pairs != self._known_pairs:
            self._known_pairs = pairs
            self._fields = Fields(pairs)
        self._pairs = []
        self.phase = Phase.BODY
        self._body_bytes = 0
        fields = self._fields
        if not fields.is_plain or fields.content_length or fields.has_keep_alive:
            self._judge(fields)

    def _judge(self, fields: Fields) -> None:
        parser = self._parser
        if fields.refusal is not None:
            raise fields.refusal
        version = parser.get_http_version()
        if version not in _HTTP_VERSIONS:
            raise _version_not_supported()
        if version == "1.1" and not fields.has_host:
            raise RequestError("malformed_request", "a request of HTTP/1.1 needs a Host header")
        has_body = fields.is_chunked or fields.content_length > 0
        if version == "1.0" and fields.is_chunked:
            raise RequestError("malformed_request", "HTTP/1.0 has no Transfer-Encoding")
        if has_body and parser.should_upgrade():
            # llhttp would take the body for the other protocol's bytes.
            raise RequestError(
                "not_implemented", "a request with a body cannot be upgraded: leave out the Upgrade header"
            )
        self._is_in_size_line = fields.is_chunked
        if fields.content_length > VALUE_BYTES_MAX and (
            fields.expects_continue or fields.content_length > HTTP_DISCARDED_BODY_BYTES_MAX
        ):
            raise value_too_large(fields.content_length)
        is_put = parser.get_method() == b"PUT"
        keeps = (
            is_put
            and has_body
            and fields.content_length <= VALUE_BYTES_MAX
            and self._keeps_body_of(fields.authorization)
        )
        self._body = b"" if keeps else None
        if is_put and fields.content_length > INLINE_VALUE_BYTES_MAX and (keeps or fields.expects_continue):
            # Who asks first is told at once, whatever the token.
            self._begin_large(b"")
        if fields.expects_continue and has_body:
            self._taker.send_continue()

    def on_body(self, part: bytes) -> None:
        """Keep a part of a body while it may still be a value."""
        self._events += 1
        self._body_bytes += len(part)
        if self._body_bytes > VALUE_BYTES_MAX:
            self._drop_body()
            if self._body_bytes > HTTP_DISCARDED_BODY_BYTES_MAX:
                raise value_too_large(self._body_bytes, is_all=False)
        elif self._large is not None:
            self._large.feed(part)
        elif self._body is not None:
            if self._body_bytes > INLINE_VALUE_BYTES_MAX:
                self._begin_large(part)
            elif self._taker.hold(len(part)):
                self._append(part)
            else:
                self._drop_body()
                self._refusal = _overloaded()

    def _append(self, part: bytes) -> None:
        body = self._body
        if isinstance(body, bytearray):
            body += part
        else:  # most bodies come in one part, which is not copied
            self._body = bytearray(body) + part if body else part

    def _begin_large(self, part: bytes) -> None:
        """Hand the request over, with what there is of its body; drop the body where it means nothing."""
        early = self._body
        self._drop_body()
        exchange = Exchange(self._parser.get_method(), self._target, self._fields, self._clock())
        if exchange.is_key_write:
            self._large = exchange
            self._taker.take_large(exchange)
            for one in (early, part):
                if one:
                    exchange.feed(bytes(one))

    def _drop_body(self) -> None:
        if self._large is not None:
            self._large.drop_body()
        body, self._body = self._body, None
        if body:
            self._taker.release(len(body))

    def on_chunk_header(self) -> None:
        """Note the end of a size line."""
        self._events += 1
        self._is_in_size_line = False

    def on_chunk_complete(self) -> None:
        """Note the end of a chunk."""
        self._events += 1
        self._is_in_size_line = True

    def on_message_complete(self) -> None:
        """Hand the request over."""
        self.phase = Phase.BETWEEN
        target, self._target = self._target, b""
        if self._pairs:
            self._pairs = []  # of a trailer
        fields, parser = self._fields, self._parser
        method = parser.get_method()
        # HTTP/1.0 keeps a connection only when the answer says so, which ours do not.
        is_kept_alive = parser.should_keep_alive() and not (
            fields.has_keep_alive and parser.get_http_version() == "1.0"
        )
        if is_kept_alive and fields.is_plain and method == b"GET" and self._taker.take_plain_get(target, fields):
            return
        if not is_kept_alive and parser.get_http_version() not in _HTTP_VERSIONS:
            raise _version_not_supported()
        if self._large is not None:
            self._complete_large(self._large, is_kept_alive=is_kept_alive)
            return
        body_bytes, kept, self._body = self._body_bytes, self._body, None
        body = b"" if not body_bytes else None if kept is None else bytes(kept)
        refusal, self._refusal = self._refusal, None
        exchange = Exchange(method, target, fields, self._clock(), body, body_bytes, refusal)
        exchange.closes = self.is_last = not is_kept_alive or method == b"CONNECT"
        self._taker.take(exchange)
        if self.is_last:
            raise _LastRequest

    def _complete_large(self, exchange: Exchange, *, is_kept_alive: bool) -> None:
        self._large = self._body = None
        exchange.body_bytes = self._body_bytes
        exchange.received_at = self._clock()
        if self._body_bytes > VALUE_BYTES_MAX:
            exchange.refusal = value_too_large(self._body_bytes)
        self.is_last = not is_kept_alive
        exchange.closes = exchange.closes or self.is_last
        self._taker.end_large(exchange)
        if self.is_last:
            raise _LastRequest


def _version_not_supported() -> RequestError:
    return RequestError("version_not_supported", "the data port speaks HTTP/1.1")


def _overloaded() -> RequestError:
    return RequestError(
        "overloaded", "this gateway holds too many values on their way, nothing was stored; retry later"
    )


def _headers_too_large() -> RequestError:
    return RequestError(
        "headers_too_large",
        f"the header has more than {HTTP_HEADER_BYTES_MAX} bytes or {HTTP_HEADERS_MAX} fields",
        HTTP_HEADER_BYTES_MAX,
    )


def value_too_large(value_bytes: int, *, is_all: bool = True) -> RequestError:
    """Return the refusal of a value; `is_all` is False when more of it may follow."""
    more = "" if is_all else " or more"
    return RequestError(
        "value_too_large",
        f"the value has {value_bytes} bytes{more}; {VALUE_BYTES_MAX} are the limit",
        VALUE_BYTES_MAX,
    )
