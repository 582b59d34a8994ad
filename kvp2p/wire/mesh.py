"""The bytes between peers: one websocket message is one CBOR array of one or more messages.

Decides: for each message the number that names it, its fields and their bounds:

     1  Frame           term, issuer 8, after, upto, [stamp − stamp before, row index, …], [namespace 16, key, row, …], purge | null
     2  Digest          vector, state hash 16, comparable, floor, [term, tie 8, node 16] | null, leads 8 | null, complete, wall_ms,
                        clock_ms, vector of what is whole | null
     3  Pull            term, issuer 8, after, bytes_max
     4  PullEnd         issuer 8, upto, trimmed
     5  WalkRequest     walk, [namespace 16, key] | null
     6  WalkPart        walk, after, upto, [namespace 16, key, row, …], vector, vector of what stands above it
     7  Forward         request, deadline_ns, [operation, …]
     8  ForwardOutcome  request, outcome
     9  Roster          [[node 16, incarnation, name, mesh_url, data_url, api_url], …]
    10  ChunkPull       chunk 32, offset, part_bytes
    11  ChunkPart       chunk 32, offset, total_bytes, data
    12  ChunkMissing    chunk 32
    32  Ping            number
    33  Pong            number, clock_ns
    34  Credit          lane, taken_bytes

The array of a message begins with its number. Vectors are byte strings as `VersionVector.encode` makes them, a Purge as `core/purge.py` has it; operations and outcomes
are laid out in `wire/operations.py`. Times of a clock (`deadline_ns`, `clock_ns`) are readings of the sender's CLOCK_MONOTONIC; the receiving
link makes its own of them (`net/clock.py`). The positions of a frame are differences, the first one to `after`: at a thousand writes a second
most take one to five bytes instead of nine, and descending positions cannot even be written down.

Stamps and wall clocks end where Linux's clock does, in the year 2262: a greater one is a fault, and who heard of it would go past it for ever [I2].
Incarnations are below 2**63, for the same reason.

Keeps true: I9, bounds come from `limits.py`; a message that decodes re-encodes to the same bytes; a payload is taken whole or not at all.
In and out: `Message` and `LinkMessage` values; RemoteProtocolError for what a peer may not send, LocalProtocolError for what we may not.
How versions evolve: see DESIGN.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, assert_never

from kvp2p.core.entry import CHUNK_ID_BYTES, ChunkId, check_row, row_version
from kvp2p.core.messages import (
    ChunkMissing,
    ChunkPart,
    ChunkPull,
    Designation,
    Digest,
    Forward,
    ForwardOutcome,
    Frame,
    KeyedRow,
    Lane,
    Member,
    Message,
    Pull,
    PullEnd,
    Roster,
    RowKey,
    WalkPart,
    WalkRequest,
)
from kvp2p.core.purge import PURGE_BYTES, decode_purge, encode_purge
from kvp2p.core.vector import VersionVector
from kvp2p.errors import LocalProtocolError, RemoteProtocolError
from kvp2p.ids import (
    ID_BYTES,
    ISSUER_BYTES,
    VERSION_BYTES,
    Issuer,
    NamespaceId,
    NodeId,
    Stamp,
    make_version,
    version_stamp,
)
from kvp2p.limits import (
    CHUNK_BYTES,
    CHUNK_PART_BYTES,
    CHUNK_PART_BYTES_MIN,
    FRAME_POSITIONS_MAX,
    KEY_BYTES_MAX,
    MEMBER_NAME_CHARS_MAX,
    MEMBERS_MAX,
    MESH_MESSAGE_BYTES_MAX,
    PULL_BYTES_MAX,
    STAMP_MAX,
    URL_CHARS_MAX,
    VECTOR_ISSUERS_MAX,
    WALK_ABOVE_ISSUERS_MAX,
    WALL_MS_MAX,
)
from kvp2p.wire.cbor import CborValue, array_head, decode, encode
from kvp2p.wire.fields import COUNTED_ON_MAX, U32_MAX, blob, fixed, flag, items, number, record, text
from kvp2p.wire.link_messages import Credit, LinkMessage, Ping, Pong
from kvp2p.wire.operations import (
    decode_operations,
    decode_outcome,
    encode_operations,
    encode_outcome,
)

WIRE_VERSION: Final = 2
_VOUCHED_FOR: Final = (Frame, WalkPart, Forward, ForwardOutcome, ChunkPart)
STATE_HASH_BYTES: Final = 16
PACK_HEAD_BYTES: Final = 5  # the longest head that `pack` puts before the elements
ELEMENT_BYTES_MAX: Final = MESH_MESSAGE_BYTES_MAX - PACK_HEAD_BYTES
_VECTOR_BYTES_MAX = VERSION_BYTES * (1 + VECTOR_ISSUERS_MAX)


def encode_message(message: Message | LinkMessage) -> bytes:
    """Encode one message, an element for `pack`.

    Raises LocalProtocolError when the peer would have to refuse it. What there is most of is not looked at again: rows come from a
    store that vouches for them, writes and outcomes were checked when they came in (a quarter of a busy node's time went into that).
    """
    raw = _to_raw(message)
    element = encode(raw)
    if len(element) > ELEMENT_BYTES_MAX:
        raise LocalProtocolError(
            f"a {type(message).__name__} has {len(element)} bytes encoded; {ELEMENT_BYTES_MAX} are the limit"
        )
    if not isinstance(message, _VOUCHED_FOR):
        try:
            _from_raw(raw)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"a {type(message).__name__} that no peer would take: {error}") from error
    return element


def pack(elements: Sequence[bytes]) -> bytes:
    """Join encoded messages into the payload of one websocket message."""
    return array_head(len(elements)) + b"".join(elements)


def unpack(payload: bytes) -> list[Message]:
    """Decode a payload that may not hold messages about the link itself.

    Raises RemoteProtocolError, and takes nothing of the payload, when any of it is wrong.
    """
    messages: list[Message] = []
    for message in unpack_link(payload):
        if isinstance(message, Ping | Pong | Credit):
            raise RemoteProtocolError(f"a {type(message).__name__} has no place here")
        messages.append(message)
    return messages


def unpack_link(payload: bytes) -> list[Message | LinkMessage]:
    """Decode a payload from a link.

    Raises RemoteProtocolError, and takes nothing of the payload, when any of it is wrong.
    """
    elements = items(decode(payload, MESH_MESSAGE_BYTES_MAX), "a payload", MESH_MESSAGE_BYTES_MAX, 1)
    return [_from_raw(element) for element in elements]


def _to_raw(message: Message | LinkMessage) -> CborValue:
    match message:
        case Forward(request, deadline_ns, operations):  # first what there is most of
            return [7, request, deadline_ns, encode_operations(operations)]
        case ForwardOutcome(request, outcome):
            return [8, request, encode_outcome(outcome)]
        case Frame(term, issuer, after, upto, positions, rows, purge):
            encoded = None if purge is None else encode_purge(purge)
            return [1, term, issuer, after, upto, _encode_positions(after, positions), _encode_rows(rows), encoded]
        case Digest(vector, state_hash, comparable, floor, designation, leads, complete, wall_ms, clock_ms, whole):
            given: CborValue = None
            if designation is not None:
                given = [designation.term, designation.tie, designation.node]
            told = (vector.encode(), state_hash, comparable, floor.encode(), given, leads, complete, wall_ms, clock_ms)
            return [2, *told, None if whole is None else whole.encode()]
        case Pull(term, issuer, after, bytes_max):
            return [3, term, issuer, after, bytes_max]
        case PullEnd(issuer, upto, trimmed):
            return [4, issuer, upto, trimmed]
        case WalkRequest(walk, after_key):
            return [5, walk, _encode_row_key(after_key)]
        case WalkPart(walk, after_key, upto_key, rows, vector, above):
            ends = (_encode_row_key(after_key), _encode_row_key(upto_key))
            return [6, walk, *ends, _encode_rows(rows), vector.encode(), above.encode()]
        case Roster(members):
            return [9, [_encode_member(member) for member in members]]
        case ChunkPull(chunk, offset, part_bytes):
            return [10, chunk, offset, part_bytes]
        case ChunkPart(chunk, offset, total_bytes, data):
            return [11, chunk, offset, total_bytes, data]
        case ChunkMissing(chunk):
            return [12, chunk]
        case Ping(serial):
            return [32, serial]
        case Pong(serial, clock_ns):
            return [33, serial, clock_ns]
        case Credit(lane, taken_bytes):
            return [34, int(lane), taken_bytes]
        case _:
            assert_never(message)


def _from_raw(value: CborValue) -> Message | LinkMessage:
    fields = items(value, "a message", 11, 2)
    tag = fields[0]
    # True == 1 for a dictionary, but not for the protocol.
    decoder = _DECODERS.get(tag) if type(tag) is int else None
    if decoder is None:
        raise RemoteProtocolError("a message of an unknown kind")
    return decoder(fields)


def _decode_frame(value: CborValue) -> Frame:
    _, term, issuer, after, upto, positions, rows, purge = record(value, "a Frame", _FIELDS[1])
    start, end = _stamp(after, "after"), _stamp(upto, "upto")
    if start >= end:
        raise RemoteProtocolError("a Frame that spans nothing")
    keyed_rows = _decode_rows(rows)
    placed = _decode_positions(positions, start, end, len(keyed_rows))
    own_term = number(term, "term", U32_MAX)
    if purge is None:
        return Frame(own_term, _issuer(issuer), start, end, placed, keyed_rows)
    if placed and placed[-1][0] == end:
        raise RemoteProtocolError("a row and a Purge stand at one position")
    order = decode_purge(blob(purge, "a Purge", PURGE_BYTES + _VECTOR_BYTES_MAX))
    if order.fence > make_version(own_term, end, _issuer(issuer)):
        raise RemoteProtocolError("the fence of a Purge lies behind its own position")
    return Frame(own_term, _issuer(issuer), start, end, placed, keyed_rows, order)


def _encode_positions(after: Stamp, positions: tuple[tuple[Stamp, int], ...]) -> list[CborValue]:
    flat: list[CborValue] = []
    before = after
    for stamp, index in positions:
        if stamp <= before:
            raise LocalProtocolError(f"the positions of a Frame do not ascend: {stamp:x} after {before:x}")
        flat += (stamp - before, index)
        before = stamp
    return flat


def _decode_positions(value: CborValue, after: int, upto: int, rows: int) -> tuple[tuple[Stamp, int], ...]:
    flat = items(value, "the positions of a Frame", 2 * FRAME_POSITIONS_MAX)
    if len(flat) % 2:
        raise RemoteProtocolError("the positions of a Frame do not come in pairs")
    positions: list[tuple[Stamp, int]] = []
    used: set[int] = set()
    stamp = after
    for step, index in zip(flat[::2], flat[1::2], strict=True):
        if type(step) is not int or step < 1 or type(index) is not int or index >= rows:
            raise RemoteProtocolError("a position of a Frame does not ascend, or its row is not in the Frame")
        stamp += step
        positions.append((Stamp(stamp), index))
        used.add(index)
    if stamp > upto:
        raise RemoteProtocolError("a position of a Frame lies behind its end")
    if len(used) != rows:
        raise RemoteProtocolError("a Frame has a row that stands at no position")
    return tuple(positions)


def _encode_rows(rows: tuple[KeyedRow, ...]) -> list[CborValue]:
    return [part for row in rows for part in row]


def _decode_rows(value: CborValue) -> tuple[KeyedRow, ...]:
    flat = items(value, "rows", 3 * FRAME_POSITIONS_MAX)
    if len(flat) % 3:
        raise RemoteProtocolError("rows do not come in threes")
    rows: list[KeyedRow] = []
    for namespace, key, row in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        if type(key) is not bytes or type(row) is not bytes:
            raise RemoteProtocolError("a key or a row is no byte string")
        check_row(key, row)  # their lengths too
        if not _stamp(version_stamp(row_version(row)), "the stamp of a row"):
            raise RemoteProtocolError("a row with the stamp 0, which nobody issues")
        rows.append((NamespaceId(fixed(namespace, ID_BYTES, "namespace")), key, row))
    return tuple(rows)


def _decode_digest(value: CborValue) -> Digest:
    _, vector, state_hash, comparable, floor, designation, leads, complete, wall_ms, clock_ms, whole = record(
        value, "a Digest", _FIELDS[2]
    )
    return Digest(
        vector=_vector(vector),
        state_hash=fixed(state_hash, STATE_HASH_BYTES, "state_hash"),
        comparable=flag(comparable, "comparable"),
        floor=_vector(floor),
        designation=None if designation is None else _decode_designation(designation),
        leads=None if leads is None else _issuer(leads),
        complete=flag(complete, "complete"),
        wall_ms=number(wall_ms, "wall_ms", WALL_MS_MAX),
        clock_ms=number(clock_ms, "clock_ms", WALL_MS_MAX),
        whole=None if whole is None else _vector(whole),
    )


def _decode_designation(value: CborValue) -> Designation:
    term, tie, node = record(value, "a designation", ("term", "tie", "node"))
    return Designation(number(term, "term", U32_MAX), _issuer(tie), _node(node))


def _decode_pull(value: CborValue) -> Pull:
    _, term, issuer, after, bytes_max = record(value, "a Pull", _FIELDS[3])
    wanted = number(bytes_max, "bytes_max", PULL_BYTES_MAX, 1)
    return Pull(number(term, "term", U32_MAX), _issuer(issuer), _stamp(after, "after"), wanted)


def _decode_pull_end(value: CborValue) -> PullEnd:
    _, issuer, upto, trimmed = record(value, "a PullEnd", _FIELDS[4])
    return PullEnd(_issuer(issuer), _stamp(upto, "upto"), flag(trimmed, "trimmed"))


def _decode_walk_request(value: CborValue) -> WalkRequest:
    _, walk, after = record(value, "a WalkRequest", _FIELDS[5])
    return WalkRequest(number(walk, "walk"), _decode_row_key(after))


def _decode_walk_part(value: CborValue) -> WalkPart:
    _, walk, after, upto, rows, vector, above = record(value, "a WalkPart", _FIELDS[6])
    start, end, keyed_rows = _decode_row_key(after), _decode_row_key(upto), _decode_rows(rows)
    before = start
    for namespace, key, _ in keyed_rows:
        if before is not None and (namespace, key) <= before:
            raise RemoteProtocolError("the rows of a WalkPart do not ascend")
        before = (namespace, key)
    # Rows behind the end would be walked twice, and absence in between could not be told [I6].
    if end is not None and ((before is not None and before > end) or (start is not None and end <= start)):
        raise RemoteProtocolError("a WalkPart ends before its rows do, or before it starts")
    stands = _vector(above)
    if len(stands) > WALK_ABOVE_ISSUERS_MAX:
        raise RemoteProtocolError(
            f"a WalkPart has {len(stands)} issuers above its vector; {WALK_ABOVE_ISSUERS_MAX} are allowed"
        )
    return WalkPart(number(walk, "walk"), start, end, keyed_rows, _vector(vector), stands)


def _encode_row_key(row_key: RowKey | None) -> CborValue:
    return None if row_key is None else list(row_key)


def _decode_row_key(value: CborValue) -> RowKey | None:
    if value is None:
        return None
    namespace, key = record(value, "a place in key order", ("namespace", "key"))
    # Also before a namespace's first key, so an empty one is allowed here.
    return NamespaceId(fixed(namespace, ID_BYTES, "namespace")), blob(key, "key", KEY_BYTES_MAX)


def _decode_forward(value: CborValue) -> Forward:
    _, request, deadline_ns, operations = record(value, "a Forward", _FIELDS[7])
    deadline = number(deadline_ns, "deadline_ns", COUNTED_ON_MAX)
    return Forward(number(request, "request"), deadline, decode_operations(operations))


def _decode_forward_outcome(value: CborValue) -> ForwardOutcome:
    _, request, outcome = record(value, "a ForwardOutcome", _FIELDS[8])
    return ForwardOutcome(number(request, "request"), decode_outcome(outcome))


def _decode_roster(value: CborValue) -> Roster:
    _, members = record(value, "a Roster", _FIELDS[9])
    return Roster(tuple(map(_decode_member, items(members, "members", MEMBERS_MAX))))


def _encode_member(member: Member) -> list[CborValue]:
    return [member.node, member.incarnation, member.name, member.mesh_url, member.data_url, member.api_url]


def _decode_member(value: CborValue) -> Member:
    node, incarnation, name, mesh_url, data_url, api_url = record(value, "a member", _MEMBER)
    return Member(
        node=_node(node),
        incarnation=number(incarnation, "incarnation", COUNTED_ON_MAX),
        name=text(name, "name", MEMBER_NAME_CHARS_MAX),
        mesh_url=text(mesh_url, "mesh_url", URL_CHARS_MAX),
        data_url=text(data_url, "data_url", URL_CHARS_MAX),
        api_url=text(api_url, "api_url", URL_CHARS_MAX),
    )


def _decode_chunk_pull(value: CborValue) -> ChunkPull:
    _, chunk, offset, part_bytes = record(value, "a ChunkPull", _FIELDS[10])
    return ChunkPull(
        _chunk(chunk),
        number(offset, "offset", CHUNK_BYTES - 1),
        number(part_bytes, "part_bytes", CHUNK_PART_BYTES, CHUNK_PART_BYTES_MIN),
    )


def _decode_chunk_part(value: CborValue) -> ChunkPart:
    _, chunk, offset, total_bytes, data = record(value, "a ChunkPart", _FIELDS[11])
    total = number(total_bytes, "total_bytes", CHUNK_BYTES, 1)
    start, piece = number(offset, "offset", total - 1), blob(data, "data", CHUNK_PART_BYTES, 1)
    if start + len(piece) > total:
        raise RemoteProtocolError("a ChunkPart goes beyond the end of its chunk")
    return ChunkPart(_chunk(chunk), start, total, piece)


def _decode_chunk_missing(value: CborValue) -> ChunkMissing:
    return ChunkMissing(_chunk(record(value, "a ChunkMissing", _FIELDS[12])[1]))


def _decode_ping(value: CborValue) -> Ping:
    return Ping(number(record(value, "a Ping", _FIELDS[32])[1], "number"))


def _decode_pong(value: CborValue) -> Pong:
    _, serial, clock_ns = record(value, "a Pong", _FIELDS[33])
    return Pong(number(serial, "number"), number(clock_ns, "clock_ns", COUNTED_ON_MAX))


def _decode_credit(value: CborValue) -> Credit:
    _, lane, taken_bytes = record(value, "a Credit", _FIELDS[34])
    return Credit(Lane(number(lane, "lane", Lane.CHUNKS, Lane.DATA)), number(taken_bytes, "taken_bytes", U32_MAX, 1))


def _vector(value: CborValue) -> VersionVector:
    vector = VersionVector.decode(blob(value, "a version vector", _VECTOR_BYTES_MAX))
    _stamp(vector.latest_stamp(), "the latest stamp of a version vector")
    return vector


def _stamp(value: CborValue, what: str) -> Stamp:
    return Stamp(number(value, what, STAMP_MAX))


def _issuer(value: CborValue) -> Issuer:
    return Issuer(fixed(value, ISSUER_BYTES, "issuer"))


def _chunk(value: CborValue) -> ChunkId:
    return ChunkId(fixed(value, CHUNK_ID_BYTES, "chunk"))


def _node(value: CborValue) -> NodeId:
    return NodeId(fixed(value, ID_BYTES, "node"))


_FIELDS: dict[int, tuple[str, ...]] = {
    1: ("1", "term", "issuer", "after", "upto", "positions", "rows", "purge"),
    2: (
        *("2", "vector", "state_hash", "comparable", "floor", "designation", "leads", "complete", "wall_ms"),
        *("clock_ms", "whole"),
    ),
    3: ("3", "term", "issuer", "after", "bytes_max"),
    4: ("4", "issuer", "upto", "trimmed"),
    5: ("5", "walk", "after"),
    6: ("6", "walk", "after", "upto", "rows", "vector", "above"),
    7: ("7", "request", "deadline_ns", "operations"),
    8: ("8", "request", "outcome"),
    9: ("9", "members"),
    10: ("10", "chunk", "offset", "part_bytes"),
    11: ("11", "chunk", "offset", "total_bytes", "data"),
    12: ("12", "chunk"),
    32: ("32", "number"),
    33: ("33", "number", "clock_ns"),
    34: ("34", "lane", "taken_bytes"),
}
_MEMBER = ("node", "incarnation", "name", "mesh_url", "data_url", "api_url")

_DECODERS: dict[int, Callable[[CborValue], Message | LinkMessage]] = {
    1: _decode_frame,
    2: _decode_digest,
    3: _decode_pull,
    4: _decode_pull_end,
    5: _decode_walk_request,
    6: _decode_walk_part,
    7: _decode_forward,
    8: _decode_forward_outcome,
    9: _decode_roster,
    10: _decode_chunk_pull,
    11: _decode_chunk_part,
    12: _decode_chunk_missing,
    32: _decode_ping,
    33: _decode_pong,
    34: _decode_credit,
}
