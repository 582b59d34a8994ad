"""The parser: where one response ends and the next begins, at every way to split the bytes."""

import pytest

from kvp2p.client.response import InvalidBytes, Response, ResponseParser

STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKV-Version: abc\r\n\r\nhello"
    b"HTTP/1.1 204 No Content\r\nkv-version: def\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
    b'HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: "v"\r\n\r\n'
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n."
)
MEANING = [
    (200, b"hello", False),
    (204, b"", False),
    (200, b"abcde", False),
    (304, b"", False),
    (404, b"", False),
    (200, b".", True),
]


def parser_into(responses: list[Response], response_bytes_max: int = 1000) -> ResponseParser:
    return ResponseParser(responses.append, response_bytes_max=response_bytes_max)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 50, 1000])
def test_responses_are_the_same_however_the_bytes_are_split(piece_bytes: int) -> None:
    responses: list[Response] = []
    parser = parser_into(responses)
    for start in range(0, len(STREAM), piece_bytes):
        parser.feed(STREAM[start : start + piece_bytes])
    assert [(response.status, response.body, response.closes) for response in responses] == MEANING
    assert responses[0].headers == {b"content-length": b"5", b"kv-version": b"abc"}
    assert responses[1].headers == {b"kv-version": b"def"}
    assert responses[4].headers == {b"content-length": b"0"}, "a trailer of another response got in"


def test_a_repeated_header_is_joined_and_its_name_lowered() -> None:
    responses: list[Response] = []
    parser_into(responses).feed(b"HTTP/1.1 200 OK\r\nAllow: GET\r\nContent-Length: 0\r\nALLOW: PUT\r\n\r\n")
    assert responses[0].headers[b"allow"] == b"GET, PUT"
    assert repr(responses[0]) == "Response(status=200, body_bytes=0)"


def test_the_response_to_head_ends_with_its_headers_and_the_next_one_has_its_body() -> None:
    responses: list[Response] = []
    parser = parser_into(responses)
    parser.expect_head()
    parser.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Len")
    assert responses == []
    parser.feed(b"gth: 200\r\nConnection: Close\r\n\r\n")
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert [(response.status, response.body, response.closes) for response in responses] == [
        (200, b"", True),
        (200, b"ok", False),
    ]


@pytest.mark.parametrize("length_header", [b"", b"Content-Length: 0\r\n"])
def test_the_response_to_head_comes_out_once_when_it_announces_no_body(length_header: bytes) -> None:
    responses: list[Response] = []
    parser = parser_into(responses)
    parser.expect_head()
    parser.feed(b"HTTP/1.1 404 Not Found\r\n" + length_header + b"\r\n")
    assert [response.status for response in responses] == [404]


@pytest.mark.parametrize(
    ("after_head", "complaint"),
    [
        (b"Content-Length: 2\r\n\r\nno", "a body in the response to HEAD"),
        (b"Content-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "more bytes after the response to HEAD"),
    ],
)
def test_bytes_behind_the_response_to_head_are_refused(after_head: bytes, complaint: str) -> None:
    parser = parser_into([])
    parser.expect_head()
    with pytest.raises(InvalidBytes, match=complaint):
        parser.feed(b"HTTP/1.1 200 OK\r\n" + after_head)


@pytest.mark.parametrize(
    "bad",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_what_is_not_a_response_is_refused(bad: bytes) -> None:
    responses: list[Response] = []
    with pytest.raises(InvalidBytes):
        parser_into(responses).feed(bad)
    assert responses == []


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 2000,
    ],
)
def test_an_unfinished_response_over_its_limit_is_refused(endless: bytes) -> None:
    parser = parser_into([])
    with pytest.raises(InvalidBytes, match="a response of more than 1000 bytes"):
        for start in range(0, len(endless), 100):
            parser.feed(endless[start : start + 100])


def test_the_limit_is_of_one_response_and_not_of_the_stream() -> None:
    responses: list[Response] = []
    parser = parser_into(responses)
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"x" * 500
    for _ in range(20):
        parser.feed(one)
    assert len(responses) == 20


def test_the_error_of_the_sink_ends_the_parse() -> None:
    def refuse(response: Response) -> None:
        raise InvalidBytes(f"nobody asked for {response.status}")

    with pytest.raises(InvalidBytes, match="nobody asked for 200"):
        ResponseParser(refuse, response_bytes_max=1000).feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
