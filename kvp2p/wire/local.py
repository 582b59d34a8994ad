"""The bytes on the unix socket between a node and the gateways and api of its own machine.

Decides: the framing, and for each message the number that names it and its fields:

    4 bytes of length, big-endian, then one CBOR array of one or more messages

    1  Hello         role, process_id
    2  SubmitWrite   request, deadline_ns, [operation, …]
    3  AwaitVersion  request, version 20, deadline_ns
    4  Report        [name, value, …]
    5  Query         request, what
    6  LocalOutcome  request, outcome
    7  QueryAnswer   request, body
    8  Readiness     ready, reason, clock_ahead_ms
    9  StageChunk    request, upload, chunk 32, content
   10  EndUpload     upload
    20 SetClock      request, behind, milliseconds

Keeps true: I9, a chunk is at most LOCAL_MESSAGE_BYTES_MAX, and so is what a decoder holds back beside what it was just fed.
In and out: bytes from a stream, in any pieces; RemoteProtocolError ends the connection. Both ends are of one installation, so there is
no version to agree on: the supervisor starts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from kvp2p.core.entry import CHUNK_ID_BYTES, ChunkId
from kvp2p.errors import LocalProtocolError, RemoteProtocolError
from kvp2p.limits import (
    CHUNK_BYTES,
    CLOCK_OFFSET_MS_MAX,
    EXPLANATION_CHARS_MAX,
    LOCAL_COUNTER_NAME_CHARS_MAX,
    LOCAL_COUNTERS_MAX,
    LOCAL_MESSAGE_BYTES_MAX,
    LOCAL_WORD_CHARS_MAX,
)
from kvp2p.wire.cbor import CborValue, array_head, decode, encode
from kvp2p.wire.fields import COUNTED_ON_MAX, U32_MAX, blob, fixed, flag, items, number, record, text
from kvp2p.wire.local_messages import (
    AwaitVersion,
    EndUpload,
    Hello,
    LocalMessage,
    LocalOutcome,
    Query,
    QueryAnswer,
    Readiness,
    Report,
    SetClock,
    StageChunk,
    SubmitWrite,
)
from kvp2p.wire.operations import decode_operations, decode_outcome, encode_operations, encode_outcome, version

_PREFIX_BYTES = 4
_PACK_HEAD_BYTES = 5
_ELEMENT_BYTES_MAX = LOCAL_MESSAGE_BYTES_MAX - _PACK_HEAD_BYTES


def encode_local(messages: Sequence[LocalMessage]) -> bytes:
    """Encode messages for the stream, prefixes included: as few chunks as the limit of a chunk allows, none for no message.

    Raises LocalProtocolError when the other end would have to refuse one. Writes and outcomes, of which there are most, are
    not looked at again: the first were checked by who made them, the second when they came in.
    """
    chunks: list[bytes] = []
    waiting: list[bytes] = []
    waiting_bytes = 0
    for message in messages:
        element = _encode_one(message)
        if waiting_bytes + len(element) > _ELEMENT_BYTES_MAX:
            chunks.append(_chunk(waiting))
            waiting, waiting_bytes = [], 0
        waiting.append(element)
        waiting_bytes += len(element)
    if waiting:
        chunks.append(_chunk(waiting))
    return b"".join(chunks)


class LocalDecoder:
    """Cuts a stream into messages. After an error it is of no more use: the connection has to end."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[LocalMessage]:
        """Take bytes as they came and return the messages that are whole.

        Raises RemoteProtocolError when a chunk is wrong or too long, as soon as that can be seen.
        """
        buffer = self._buffer
        buffer += data
        messages: list[LocalMessage] = []
        at = 0
        while len(buffer) - at >= _PREFIX_BYTES:
            length = int.from_bytes(buffer[at : at + _PREFIX_BYTES], "big")
            if length > LOCAL_MESSAGE_BYTES_MAX:
                raise RemoteProtocolError(f"a chunk has {length} bytes; {LOCAL_MESSAGE_BYTES_MAX} are the limit")
            end = at + _PREFIX_BYTES + length
            if len(buffer) < end:
                break
            value = decode(bytes(buffer[at + _PREFIX_BYTES : end]), LOCAL_MESSAGE_BYTES_MAX)
            messages += map(_from_raw, items(value, "a chunk", LOCAL_MESSAGE_BYTES_MAX, 1))
            at = end
        del buffer[:at]
        return messages


def _chunk(elements: list[bytes]) -> bytes:
    body = array_head(len(elements)) + b"".join(elements)
    return len(body).to_bytes(_PREFIX_BYTES, "big") + body


def _encode_one(message: LocalMessage) -> bytes:
    raw = _to_raw(message)
    if not isinstance(message, (SubmitWrite, LocalOutcome, StageChunk)):
        try:
            _from_raw(raw)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"a {type(message).__name__} that nobody would take: {error}") from error
    element = encode(raw)
    if len(element) > _ELEMENT_BYTES_MAX:
        raise LocalProtocolError(
            f"a {type(message).__name__} has {len(element)} bytes encoded; {_ELEMENT_BYTES_MAX} are the limit"
        )
    return element


def _to_raw(message: LocalMessage) -> CborValue:
    match message:
        case Hello(role, process_id):
            return [1, role, process_id]
        case SubmitWrite(request, deadline_ns, operations):
            return [2, request, deadline_ns, encode_operations(operations)]
        case AwaitVersion(request, awaited, deadline_ns):
            return [3, request, awaited, deadline_ns]
        case Report(counters):
            return [4, [part for counter in counters for part in counter]]
        case Query(request, what):
            return [5, request, what]
        case LocalOutcome(request, outcome):
            return [6, request, encode_outcome(outcome)]
        case QueryAnswer(request, body):
            return [7, request, body]
        case Readiness(ready, reason, clock_ahead_ms):
            return [8, ready, reason[:EXPLANATION_CHARS_MAX], clock_ahead_ms]
        case StageChunk(request, upload, chunk, content):
            return [9, request, upload, chunk, content]
        case EndUpload(upload):
            return [10, upload]
        case SetClock(request, offset_ms):
            return [20, request, offset_ms < 0, abs(offset_ms)]
        case _:
            assert_never(message)


def _from_raw(value: CborValue) -> LocalMessage:
    fields = items(value, "a message", 5, 2)
    tag = fields[0]
    # True == 1 for a dictionary, but not for the protocol.
    decoder = _DECODERS.get(tag) if type(tag) is int else None
    if decoder is None:
        raise RemoteProtocolError("a message of an unknown kind")
    return decoder(fields)


def _decode_hello(value: CborValue) -> Hello:
    _, role, process_id = record(value, "a Hello", ("1", "role", "process_id"))
    return Hello(text(role, "role", LOCAL_WORD_CHARS_MAX), number(process_id, "process_id", U32_MAX))


def _decode_submit_write(value: CborValue) -> SubmitWrite:
    _, request, deadline_ns, operations = record(value, "a SubmitWrite", ("2", "request", "deadline_ns", "operations"))
    deadline = number(deadline_ns, "deadline_ns")
    return SubmitWrite(number(request, "request"), deadline, decode_operations(operations))


def _decode_await_version(value: CborValue) -> AwaitVersion:
    _, request, awaited, deadline_ns = record(value, "an AwaitVersion", ("3", "request", "version", "deadline_ns"))
    deadline = number(deadline_ns, "deadline_ns")
    return AwaitVersion(number(request, "request"), version(awaited, "version"), deadline)


def _decode_report(value: CborValue) -> Report:
    _, counters = record(value, "a Report", ("4", "counters"))
    flat = items(counters, "counters", 2 * LOCAL_COUNTERS_MAX)
    if len(flat) % 2:
        raise RemoteProtocolError("counters do not come in pairs")
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return Report(
        tuple((text(name, "name", LOCAL_COUNTER_NAME_CHARS_MAX, 1), number(count, "value")) for name, count in pairs)
    )


def _decode_query(value: CborValue) -> Query:
    _, request, what = record(value, "a Query", ("5", "request", "what"))
    return Query(number(request, "request"), text(what, "what", LOCAL_WORD_CHARS_MAX))


def _decode_local_outcome(value: CborValue) -> LocalOutcome:
    _, request, outcome = record(value, "a LocalOutcome", ("6", "request", "outcome"))
    return LocalOutcome(number(request, "request"), decode_outcome(outcome))


def _decode_query_answer(value: CborValue) -> QueryAnswer:
    _, request, body = record(value, "a QueryAnswer", ("7", "request", "body"))
    return QueryAnswer(number(request, "request"), blob(body, "body", LOCAL_MESSAGE_BYTES_MAX))


def _decode_readiness(value: CborValue) -> Readiness:
    _, ready, reason, clock_ahead_ms = record(value, "a Readiness", ("8", "ready", "reason", "clock_ahead_ms"))
    ahead_ms = number(clock_ahead_ms, "clock_ahead_ms", COUNTED_ON_MAX)
    return Readiness(flag(ready, "ready"), text(reason, "reason", EXPLANATION_CHARS_MAX), ahead_ms)


def _decode_stage_chunk(value: CborValue) -> StageChunk:
    _, request, upload, chunk, content = record(value, "a StageChunk", ("9", "request", "upload", "chunk", "content"))
    return StageChunk(
        number(request, "request"),
        number(upload, "upload"),
        ChunkId(fixed(chunk, CHUNK_ID_BYTES, "chunk")),
        blob(content, "content", CHUNK_BYTES, 1),
    )


def _decode_end_upload(value: CborValue) -> EndUpload:
    return EndUpload(number(record(value, "an EndUpload", ("10", "upload"))[1], "upload"))


def _decode_set_clock(value: CborValue) -> SetClock:
    _, request, behind, milliseconds = record(value, "a SetClock", ("20", "request", "behind", "milliseconds"))
    is_behind = flag(behind, "behind")
    # There is one zero.
    offset_ms = number(milliseconds, "milliseconds", CLOCK_OFFSET_MS_MAX, least=int(is_behind))
    return SetClock(number(request, "request"), -offset_ms if is_behind else offset_ms)


_DECODERS: dict[int, Callable[[CborValue], LocalMessage]] = {
    1: _decode_hello,
    2: _decode_submit_write,
    3: _decode_await_version,
    4: _decode_report,
    5: _decode_query,
    6: _decode_local_outcome,
    7: _decode_query_answer,
    8: _decode_readiness,
    9: _decode_stage_chunk,
    10: _decode_end_upload,
    20: _decode_set_clock,  # 20 and above: for tests
}
