"""Bytes in, responses out: the sans-IO half of the client.

Decides: where one response ends and the next begins.
Keeps true: [I9] one unfinished response holds at most `response_bytes_max`; responses come out in the order of the
    bytes, each once; interim (1xx) responses are dropped.
In and out: `feed(bytes)` calls the sink once per finished response; `expect_head()` says the next one has no body.
Source: RFC 9112 (2022) sections 6 and 9, as llhttp reads them. It differs in one place: a response delimited by the
    end of the connection is never finished, because a cut and an end look the same there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import httptools


class InvalidBytes(Exception):
    """The peer sent what is not a valid response; the parser must be thrown away."""


class Response:
    """One answer. Headers are kept as they came and put into a dict only when somebody asks."""

    def __init__(self, status: int, raw_headers: list[tuple[bytes, bytes]], body: bytes, *, closes: bool) -> None:
        self.status = status
        self.raw_headers = raw_headers
        self.body = body
        self.closes = closes

    @cached_property
    def headers(self) -> dict[bytes, bytes]:
        """Header values by lower-case name; values of a repeated name are joined with a comma and a space."""
        headers: dict[bytes, bytes] = {}
        for raw_name, value in self.raw_headers:
            name = raw_name.lower()
            headers[name] = headers[name] + b", " + value if name in headers else value
        return headers

    def __repr__(self) -> str:
        return f"Response(status={self.status}, body_bytes={len(self.body)})"


class ResponseParser:
    """Cut a stream of bytes into responses.

    The sink must not raise for a response that it expected; what it raises ends the parse as `InvalidBytes`.
    """

    def __init__(self, sink: Callable[[Response], None], *, response_bytes_max: int) -> None:
        self._sink = sink
        self._response_bytes_max = response_bytes_max
        self._head_expected = False
        self._start_stream()

    def _start_stream(self) -> None:
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._unfinished_bytes = 0
        self._is_head_answered = False
        self._llhttp = httptools.HttpResponseParser(self)

    def expect_head(self) -> None:
        """Take the next final response as the answer to a HEAD request. Call only between two responses."""
        self._head_expected = True

    def feed(self, data: bytes | memoryview) -> None:
        """Parse the next bytes of the stream. Raises `InvalidBytes`; the parser is useless afterwards."""
        # Counted before parsing, so a response that ends inside `data` resets it and one that does not is bounded.
        self._unfinished_bytes += len(data)
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            raise InvalidBytes("the server switched protocols") from upgrade
        except httptools.HttpParserCallbackError as error:
            # httptools hides what a callback raised in the context of its own error
            raise InvalidBytes(str(error.__context__ or error)) from error
        except httptools.HttpParserError as error:
            raise InvalidBytes(str(error)) from error
        if self._unfinished_bytes > self._response_bytes_max:
            raise InvalidBytes(f"a response of more than {self._response_bytes_max} bytes")
        if self._is_head_answered:
            # llhttp cannot be told that the response to HEAD ends with its headers, so it would wait for the body
            # that Content-Length announces. A fresh parser knows nothing of it.
            self._start_stream()

    # What follows is called by httptools, in the order of the bytes.

    def on_message_begin(self) -> None:
        if self._is_head_answered:
            raise InvalidBytes("more bytes after the response to HEAD")
        self._raw_headers = []
        self._parts = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_expected:
            status = self._llhttp.get_status_code()
            if status >= 200:
                self._head_expected = False
                self._is_head_answered = True
                response = Response(status, self._raw_headers, b"", closes=False)
                response.closes = response.headers.get(b"connection", b"").lower() == b"close"
                self._sink(response)

    def on_body(self, data: bytes) -> None:
        if self._is_head_answered:
            raise InvalidBytes("a body in the response to HEAD")
        self._parts.append(data)

    def on_message_complete(self) -> None:
        self._unfinished_bytes = 0
        if self._is_head_answered:
            return
        llhttp = self._llhttp
        status: int = llhttp.get_status_code()
        if status < 200:
            return
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._sink(Response(status, self._raw_headers, body, closes=not llhttp.should_keep_alive()))
