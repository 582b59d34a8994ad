"""The bytes between peers: every message there and back, every field at its bounds."""

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvp2p.core.entry import ChunkId, Kind, encode_row
from kvp2p.core.messages import (
    ChunkPart,
    ChunkPull,
    Designation,
    Digest,
    Forward,
    ForwardOutcome,
    Frame,
    Lane,
    Member,
    Message,
    Pull,
    PullEnd,
    Purge,
    Roster,
    WalkPart,
    WalkRequest,
)
from kvp2p.core.operations import Condition, CreateNamespace, Delete, DeleteNamespace, Operation, Outcome, Put, refused
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.errors import LocalProtocolError, RemoteProtocolError
from kvp2p.ids import VERSION_ZERO, AccountId, Issuer, NamespaceId, NodeId, Stamp, Version, make_version
from kvp2p.limits import (
    CHUNK_BYTES,
    CHUNK_PART_BYTES,
    CHUNK_PART_BYTES_MIN,
    EXPIRES_AT_MAX,
    EXPIRES_IN_MAX,
    KEY_BYTES_MAX,
    MESH_MESSAGE_BYTES_MAX,
    METADATA_BYTES_MAX,
    OPS_PER_WRITE_MAX,
    PULL_BYTES_MAX,
    ROW_VALUE_BYTES_MAX,
    STAMP_MAX,
    TERM_MAX,
    VECTOR_ISSUERS_MAX,
    WALK_ABOVE_ISSUERS_MAX,
    WALL_MS_MAX,
    WRITE_BYTES_MAX,
)
from kvp2p.wire.link_messages import Credit, LinkMessage, Ping, Pong
from kvp2p.wire.mesh import encode_message, pack, unpack, unpack_link
from tests.wire.strategies import link_messages, messages

NAMESPACE = NamespaceId(b"n" * 16)
ISSUER = Issuer(b"issuer00")
VERSION = Version(b"\x07" * 20)
ROW = encode_row(Kind.VALUE, b"value", None, 0, VERSION)
VECTOR = bytes(20)


def issuers(count: int) -> VersionVector:
    """Make a vector of so many issuers, with versions as great as can be."""
    named = (Issuer(number.to_bytes(8, "big")) for number in range(count))
    return VersionVector((make_version(TERM_MAX, Stamp(STAMP_MAX), issuer) for issuer in named), VERSION)


@given(st.lists(messages, min_size=1, max_size=4))
def test_messages_come_back_as_they_were_and_encode_to_the_same_bytes(sent: list[Message]) -> None:
    payload = pack([encode_message(one) for one in sent])
    received = unpack(payload)
    assert received == sent
    assert pack([encode_message(one) for one in received]) == payload


@given(link_messages)
def test_link_messages_come_back_on_links_and_have_no_place_elsewhere(sent: LinkMessage) -> None:
    payload = pack([encode_message(sent)])
    assert unpack_link(payload) == [sent]
    with pytest.raises(RemoteProtocolError, match="no place here"):
        unpack(payload)


@given(messages, st.data())
@settings(max_examples=100)
def test_damaged_messages_are_refused_or_are_other_messages(sent: Message, data: st.DataObject) -> None:
    payload = bytearray(pack([encode_message(sent)]))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        received = unpack_link(bytes(payload))
    except RemoteProtocolError:
        return
    assert pack([encode_message(one) for one in received]) == payload


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 9)
    | st.integers(0, (1 << 64) - 1)
    | st.binary(max_size=20)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9),
    max_leaves=10,
)


@given(st.integers(0, 40), st.lists(anything, max_size=8))
@settings(max_examples=100)
def test_messages_of_anything_are_refused_or_encode_to_the_same_bytes(tag: int, fields: list[Any]) -> None:
    payload = cbor2.dumps([[tag, *fields]])
    try:
        received = unpack_link(payload)
    except RemoteProtocolError:
        return
    assert pack([encode_message(one) for one in received]) == payload


def frame(
    *, after: object = 5, upto: object = 9, positions: object = (), rows: object = (), purge: object = None
) -> list[Any]:
    return [1, 1, ISSUER, after, upto, positions, rows, purge]


def digest(**changes: object) -> list[Any]:
    given = {"vector": VECTOR, "state_hash": bytes(16), "comparable": True, "floor": VECTOR, "designation": None}
    given |= {"leads": None, "complete": True, "wall_ms": 0, "clock_ms": 0, "whole": None}
    return [2, *(given | changes).values()]


def put(**changes: object) -> list[Any]:
    given = {"namespace": NAMESPACE, "key": b"k", "value": b"v", "metadata": None, "expiry": None, "condition": None}
    return [0, *(given | changes).values()]


def forward(*operations: object) -> list[Any]:
    return [7, 1, 1_000, list(operations)]


TOO_HIGH = STAMP_MAX + 1
HIGH_VERSION = make_version(1, Stamp(TOO_HIGH), ISSUER)
ZERO_ROW = encode_row(Kind.VALUE, b"value", None, 0, make_version(1, Stamp(0), ISSUER))
HIGH_ROW = encode_row(Kind.VALUE, b"value", None, 0, HIGH_VERSION)
HIGH_VECTOR = bytes(20) + HIGH_VERSION
FENCE = make_version(1, Stamp(8), ISSUER)
PURGE = bytes(24) + FENCE + bytes(20) + VECTOR
NEXT = NamespaceId(b"o" * 16)
CHUNK = ChunkId(b"c" * 32)
PLACE = [NAMESPACE, b"m"]
KEYED = [NAMESPACE, b"k", ROW]
MEMBER = [b"i" * 16, 1, "n1", "ws://a:1", "http://a:2", "http://a:3"]
OUTCOME = [0, "", "", None, None, False, True]

WRONG: dict[str, tuple[list[Any], str]] = {
    "no message at all": ([], "a message must be an array"),
    "tag alone": ([3], "a message must be an array"),
    "unknown tag": ([31, 1], "unknown kind"),
    "tag True": ([True, ISSUER, 5, 9, [], []], "unknown kind"),
    "tag that cannot be looked up": ([[], 1], "unknown kind"),
    "field missing": ([1, ISSUER, 5, 9, []], "a Frame must be an array of"),
    "field too many": ([3, 1, ISSUER, 5, 9, 9], "a Pull must be an array of"),
    "issuer too short": ([4, b"issuer0", 5, True], "issuer must be 8 bytes"),
    "stamp of 65 bits is no number": (frame(upto=b"\x01" + bytes(8)), "upto must be a number"),
    "frame over nothing": (frame(after=9), "spans nothing"),
    "positions not in pairs": (frame(positions=[1]), "pairs"),
    "too many positions": (frame(upto=1 << 59, positions=[1, 0] * 4_097, rows=KEYED), "array of 0 to 8192 items"),
    "position twice": (frame(positions=[1, 0, 0, 0], rows=KEYED), "does not ascend"),
    "position that is no number": (frame(positions=[b"\x01", 0], rows=KEYED), "does not ascend"),
    "row index that is no number": (frame(positions=[1, False], rows=KEYED), "row is not in the Frame"),
    "row index behind the rows": (frame(positions=[1, 1], rows=KEYED), "row is not in the Frame"),
    "position behind the end": (frame(positions=[5, 0], rows=KEYED), "behind its end"),
    "row at no position": (frame(rows=KEYED), "stands at no position"),
    "rows not in threes": (frame(positions=[1, 0], rows=[NAMESPACE, b"k"]), "threes"),
    "row of a short namespace": (frame(positions=[1, 0], rows=[b"n", b"k", ROW]), "namespace must be 16 bytes"),
    "row of an empty key": (frame(positions=[1, 0], rows=[NAMESPACE, b"", ROW]), "a key has 0 bytes"),
    "row of a long key": (frame(positions=[1, 0], rows=[NAMESPACE, b"k" * 513, ROW]), "a key has 513 bytes"),
    "row of a key that is text": (frame(positions=[1, 0], rows=[NAMESPACE, "k", ROW]), "is no byte string"),
    "row that is a number": (frame(positions=[1, 0], rows=[NAMESPACE, b"k", 1]), "is no byte string"),
    "row of half a namespace": (frame(positions=[1, 0], rows=[b"n", b"k", ROW]), "namespace must be"),
    "damaged row": (frame(positions=[1, 0], rows=[NAMESPACE, b"k", ROW[:-1] + b"!"]), "does not match its digest"),
    "purge cut": (frame(purge=PURGE[:-1]), "a Purge cannot have"),
    "purge of a damaged floor": (frame(purge=PURGE + b"1"), "a version vector cannot have 21 bytes"),
    "purge without progress": (frame(purge=bytes(24) + FENCE * 2 + VECTOR), "is not above its base"),
    "purge at a row's position": (frame(positions=[4, 0], rows=KEYED, purge=PURGE), "stand at one position"),
    "purge ahead of itself": (frame(upto=7, purge=PURGE), "lies behind its own position"),
    "purge that is no bytes": (frame(purge=1), "a Purge must be"),
    "digest of a clock past all clocks": (digest(wall_ms=WALL_MS_MAX + 1), "wall_ms must be a number"),
    "digest with a clock past all clocks": (digest(clock_ms=WALL_MS_MAX + 1), "clock_ms must be a number"),
    "digest with half a vector of what is whole": (digest(whole=bytes(10)), "version vector cannot have 10 bytes"),
    "vector cut": (digest(vector=bytes(19)), "version vector cannot have 19 bytes"),
    "vector without end": (digest(vector=bytes(70_000)), "version vector must be"),
    "state hash short": (digest(state_hash=bytes(15)), "state_hash must be 16"),
    "flag as number": (digest(comparable=1), "comparable must be true or false"),
    "designation short": (digest(designation=[1, ISSUER]), "designation must be"),
    "term of 33 bits": (digest(designation=[1 << 32, ISSUER, bytes(16)]), "term must be"),
    "pull of nothing": ([3, 1, ISSUER, 5, 0], "bytes_max must be a number from 1"),
    "pull of too much": ([3, 1, ISSUER, 5, PULL_BYTES_MAX + 1], "bytes_max must be a number"),
    "walk from a long key": ([5, 1, [NAMESPACE, b"k" * 513]], "key must be 0 to 512"),
    "walk from half a place": ([5, 1, [NAMESPACE]], "a place in key order must be"),
    "walk out of order": ([6, 1, None, None, [NAMESPACE, b"k", ROW] * 2, VECTOR, VECTOR], "do not ascend"),
    "walk before its start": ([6, 1, PLACE, None, KEYED, VECTOR, VECTOR], "do not ascend"),
    "walk behind its end": ([6, 1, None, [NAMESPACE, b"j"], KEYED, VECTOR, VECTOR], "ends before its rows"),
    "walk that goes backwards": ([6, 1, PLACE, PLACE, [], VECTOR, VECTOR], "before it starts"),
    "forward of nothing": (forward(), "operations must be an array of 1"),
    "forward of too many": (forward(*[[3, NAMESPACE]] * 10_001), f"1 to {OPS_PER_WRITE_MAX}"),
    "forward of too much": (forward(put(value=bytes(ROW_VALUE_BYTES_MAX)), put(value=bytes(40_000))), "229376 are the limit"),
    "forward with a deadline past all clocks": ([7, 1, 1 << 63, [[3, NAMESPACE]]], "deadline_ns"),
    "pong with a clock past all clocks": ([33, 1, 1 << 63], "clock_ns"),
    "operation of an unknown kind": (forward([5, NAMESPACE]), "unknown kind"),
    "operation whose kind is no number": (forward([False, NAMESPACE]), "the kind of an operation"),
    "put that expires never, as a number": (forward(put(expiry=0)), "expires_at must be a number from 1"),
    "put that expires in no time": (forward(put(expiry=[0])), "expires_in must be a number from 1"),
    "put that expires too late": (forward(put(expiry=EXPIRES_AT_MAX + 1)), "expires_at must be a number from 1"),
    "put that expires in too long a time": (forward(put(expiry=[EXPIRES_IN_MAX + 1])), "expires_in must be a number from 1"),
    "put that expires in two times": (forward(put(expiry=[60, 61])), "an expiry must be"),
    "put of chunks that are none": (forward([4, *put()[1:]]), "a chunk list cannot have 1 bytes"),
    "operation that is no array": (forward(3), "an operation must be an array"),
    "put with a field missing": (forward(put()[:-1]), "a Put must be"),
    "put of an empty key": (forward(put(key=b"")), "key must be 1 to 512"),
    "put of a long key": (forward(put(key=bytes(KEY_BYTES_MAX + 1))), "key must be 1 to 512"),
    "put of a long value": (forward(put(value=bytes(ROW_VALUE_BYTES_MAX + 1))), "value must be"),
    "put of long metadata": (forward(put(metadata=bytes(METADATA_BYTES_MAX + 1))), "metadata must be"),
    "put with a condition as number": (forward(put(condition=0)), "condition must be 20 bytes"),
    "put with half a version": (forward(put(condition=bytes(10))), "condition must be 20 bytes"),
    "delete of an empty key": (forward([1, NAMESPACE, b"", None]), "key must be 1 to 512"),
    "delete with a field too many": (forward([1, NAMESPACE, b"k", None, 1]), "a Delete must be"),
    "namespace without a title": (forward([2, NAMESPACE, bytes(16), ""]), "title must be"),
    "namespace with a long title": (forward([2, NAMESPACE, bytes(16), "t" * 513]), "title must be"),
    "namespace of half an account": (forward([2, NAMESPACE, bytes(8), "t"]), "account must be"),
    "deletion of half a namespace": (forward([3, bytes(8)]), "namespace must be"),
    "unknown ending": ([8, 1, [3, *OUTCOME[1:]]], "ending must be"),
    "outcome with a long code": ([8, 1, [1, "c" * 65, *OUTCOME[2:]]], "code must be"),
    "outcome with a long message": ([8, 1, [1, "c", "m" * 1_025, *OUTCOME[3:]]], "message must be"),
    "outcome with half a version": ([8, 1, [1, "c", "", bytes(10), *OUTCOME[4:]]], "version must be"),
    "members that are no array": ([9, b"m"], "members must be"),
    "too many members": ([9, [MEMBER] * 1_025], "members must be"),
    "member with a long URL": ([9, [[*MEMBER[:3], "u" * 513, *MEMBER[4:]]]], "mesh_url must be"),
    "member without a name": ([9, [[*MEMBER[:2], None, *MEMBER[3:]]]], "name must be"),
    "member of half an id": ([9, [[b"i", *MEMBER[1:]]]], "node must be"),
    "chunk of half an id": ([12, bytes(16)], "chunk must be 32 bytes"),
    "chunk pulled from behind its end": ([10, CHUNK, CHUNK_BYTES, CHUNK_PART_BYTES], "offset must be a number"),
    "chunk pulled in crumbs": ([10, CHUNK, 0, 255], "part_bytes must be a number from 256 to 65536"),
    "chunk pulled in lumps": ([10, CHUNK, 0, CHUNK_PART_BYTES + 1], "part_bytes must be"),
    "part of nothing": ([11, CHUNK, 0, 0, b""], "total_bytes must be"),
    "part without data": ([11, CHUNK, 0, 1, b""], "data must be 1 to 65536 bytes"),
    "part of a chunk that is too long": ([11, CHUNK, 0, CHUNK_BYTES + 1, b"d"], "total_bytes must be"),
    "part from behind the end": ([11, CHUNK, 3, 3, b"d"], "offset must be a number from 0 to 2"),
    "part beyond the end": ([11, CHUNK, 2, 3, b"da"], "goes beyond the end of its chunk"),
    "part that is too long": ([11, CHUNK, 0, CHUNK_BYTES, bytes(CHUNK_PART_BYTES + 1)], "data must be"),
    "part that a number stands for": ([11, CHUNK, 0, 1, 1], "data must be"),
    "ping without a number": ([32, None], "number must be"),
    "pong with three numbers": ([33, 1, 2, 3], "a Pong must be"),
    "credit for control": ([34, 0, 1], "lane must be a number from 1 to 2"),
    "credit of nothing": ([34, 1, 0], "taken_bytes must be"),
    "frame to where no stamp is": (frame(upto=TOO_HIGH), "upto must be a number"),
    "frame from where no stamp is": (frame(after=TOO_HIGH, upto=TOO_HIGH + 1), "after must be a number"),
    "pull from where no stamp is": ([3, 1, ISSUER, TOO_HIGH, 1], "after must be a number"),
    "pull ended where no stamp is": ([4, ISSUER, TOO_HIGH, True], "upto must be a number"),
    "row of a stamp that nobody issues": (frame(positions=[1, 0], rows=[NAMESPACE, b"k", ZERO_ROW]), "a row with the stamp 0"),
    "row of too high a stamp": (frame(positions=[1, 0], rows=[NAMESPACE, b"k", HIGH_ROW]), "the stamp of a row must be"),
    "walk with too high a stamp": ([6, 1, None, None, [NAMESPACE, b"k", HIGH_ROW], VECTOR, VECTOR], "the stamp of a row must be"),
    "walk above too high a vector": ([6, 1, None, None, [], VECTOR, HIGH_VECTOR], "the latest stamp of a version vector"),
    "walk above too many issuers": (
        [6, 1, None, None, [], VECTOR, issuers(WALK_ABOVE_ISSUERS_MAX + 1).encode()],
        "has 513 issuers above its vector; 512 are allowed",
    ),
    "walk of too high a vector": ([6, 1, None, None, [], HIGH_VECTOR, VECTOR], "the latest stamp of a version vector"),
    "vector with too high a stamp": (digest(vector=HIGH_VECTOR), "the latest stamp"),
    "fence with too high a stamp": (digest(vector=HIGH_VERSION), "the latest stamp"),
    "floor with too high a stamp": (digest(floor=HIGH_VECTOR), "the latest stamp"),
    "member of too high an incarnation": ([9, [[MEMBER[0], 1 << 63, *MEMBER[2:]]]], "incarnation must be a number"),
}  # fmt: skip


@pytest.mark.parametrize(("message", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_refused_by_name(message: list[Any], told: str) -> None:
    good = cbor2.loads(encode_message(Pull(1, ISSUER, Stamp(1), 1)))
    with pytest.raises(RemoteProtocolError, match=told):
        unpack_link(cbor2.dumps([good, message]))


@pytest.mark.parametrize("payload", [b"\x80", b"\x01", b"\x41a", b"\xf6", b"", b"\x00" * (MESH_MESSAGE_BYTES_MAX + 1)])
def test_a_payload_is_an_array_of_messages_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(payload)


LAST = Stamp(STAMP_MAX)
EDGES: list[Message] = [
    Frame(1, ISSUER, Stamp(0), LAST, ((LAST, 0),), ((NAMESPACE, b"k" * 512, ROW),)),
    Frame(1, ISSUER, Stamp(0), Stamp(1), (), ()),
    WalkPart(0, None, None, (), EMPTY_VECTOR),
    WalkPart(0, (NAMESPACE, b""), (NEXT, b""), ((NAMESPACE, b"k", ROW),), EMPTY_VECTOR),
    WalkPart(0, (NAMESPACE, b"j"), (NAMESPACE, b"k"), ((NAMESPACE, b"k", ROW),), EMPTY_VECTOR),
    WalkRequest(0, (NAMESPACE, b"")),
    Forward(0, 0, (Put(NAMESPACE, b"k", bytes(ROW_VALUE_BYTES_MAX), bytes(METADATA_BYTES_MAX)),)),
    Forward(0, 0, (Put(NAMESPACE, b"k", b"", b"", 0, Condition.VERSION_IS, VERSION),)),
    Roster(()),
    Roster((Member(NodeId(b"i" * 16), (1 << 63) - 1, "n1", "", "", ""),)),
    PullEnd(ISSUER, LAST, trimmed=False),
    ChunkPull(CHUNK, CHUNK_BYTES - 1, CHUNK_PART_BYTES_MIN),
    ChunkPart(CHUNK, CHUNK_BYTES - CHUNK_PART_BYTES, CHUNK_BYTES, bytes(CHUNK_PART_BYTES)),
    WalkPart(0, None, None, (), VersionVector([make_version(TERM_MAX, LAST, ISSUER)])),
    WalkPart(0, None, None, (), EMPTY_VECTOR, issuers(WALK_ABOVE_ISSUERS_MAX)),
]


@pytest.mark.parametrize("message", EDGES)
def test_a_message_at_its_bounds_passes(message: Message) -> None:
    assert unpack(pack([encode_message(message)])) == [message]


OURS: dict[str, tuple[Message, str]] = {
    "positions that descend": (
        Frame(1, ISSUER, Stamp(0), Stamp(9), ((Stamp(3), 0), (Stamp(2), 0)), ((NAMESPACE, b"k", ROW),)),
        "do not ascend: 2 after 3",
    ),
    "condition without its version": (
        Forward(1, 1, (Delete(NAMESPACE, b"k", Condition.VERSION_IS),)),
        "condition VERSION_IS contradicts if_version None",
    ),
    "version without its condition": (
        Forward(1, 1, (Put(NAMESPACE, b"k", b"", if_version=VERSION),)),
        "condition ALWAYS contradicts",
    ),
    "pull of half a chunk": (ChunkPull(ChunkId(b"c"), 0, 300), "a ChunkPull that no peer would take: chunk must be"),
    "pull of nothing": (Pull(1, ISSUER, Stamp(0), 0), "a Pull that no peer would take: bytes_max"),
    "roster that is too long": (
        Roster((Member(NodeId(bytes(16)), 1, "n", *["u" * 512] * 3),) * 200),
        "a Roster has .* bytes encoded; 262139 are the limit",
    ),
}


@pytest.mark.parametrize(("message", "told"), OURS.values(), ids=OURS.keys())
def test_what_no_peer_would_take_is_our_own_error(message: Message, told: str) -> None:
    with pytest.raises(LocalProtocolError, match=told):
        encode_message(message)


def test_a_message_for_people_is_cut_to_what_a_peer_takes() -> None:
    sent = ForwardOutcome(1, refused("bad_request", "é" * 2_000))
    assert unpack(pack([encode_message(sent)])) == [
        ForwardOutcome(1, Outcome(sent.outcome.ending, "bad_request", "é" * 1_024))
    ]


FULL_WRITES: dict[str, list[Operation]] = {
    "tiny puts": [Put(NAMESPACE, b"k", b"", None, 0)],
    "tiny conditional puts that expire": [Put(NAMESPACE, b"k", b"", b"", 1 << 40, Condition.VERSION_IS, VERSION)],
    "puts of long keys": [Put(NAMESPACE, b"k" * 512, b"v" * 300, b"m" * 300, 1 << 40, Condition.VERSION_IS, VERSION)],
    "deletes of long keys": [Delete(NAMESPACE, b"k" * 512, Condition.VERSION_IS, VERSION)],
    "namespaces with titles of four bytes a character": [
        CreateNamespace(NAMESPACE, AccountId(bytes(16)), "\U0001f600" * 512)
    ],
    "namespaces with short titles": [CreateNamespace(NAMESPACE, AccountId(bytes(16)), "t")],
    "deleted namespaces": [DeleteNamespace(NAMESPACE)],
}


@pytest.mark.parametrize("operations", FULL_WRITES.values(), ids=FULL_WRITES.keys())
def test_every_write_within_the_limits_fits_one_message(operations: list[Operation]) -> None:
    from kvp2p.core.operations import operation_bytes

    count = min(OPS_PER_WRITE_MAX, WRITE_BYTES_MAX // operation_bytes(operations[0]))
    assert len(encode_message(Forward((1 << 64) - 1, 5_000, tuple(operations * count)))) < MESH_MESSAGE_BYTES_MAX


FULL_VECTOR = issuers(VECTOR_ISSUERS_MAX)
FULL_KEY = (NEXT, b"k" * KEY_BYTES_MAX)
FULL_ROW = encode_row(
    Kind.VALUE, bytes(ROW_VALUE_BYTES_MAX), b"m" * METADATA_BYTES_MAX, (1 << 40) - 1, make_version(9, LAST, ISSUER)
)
LARGEST: dict[str, Message] = {
    "part of a walk": WalkPart(
        (1 << 64) - 1,
        (NAMESPACE, FULL_KEY[1]),
        FULL_KEY,
        ((*FULL_KEY, FULL_ROW),),
        FULL_VECTOR,
        issuers(WALK_ABOVE_ISSUERS_MAX),
    ),
    "digest": Digest(
        FULL_VECTOR,
        bytes(16),
        True,
        FULL_VECTOR,
        Designation(TERM_MAX, ISSUER, NodeId(bytes(16))),
        ISSUER,
        True,
        WALL_MS_MAX,
        WALL_MS_MAX,
        FULL_VECTOR,
    ),
    "purge": Frame(TERM_MAX, ISSUER, Stamp(0), LAST, (), (), Purge(bytes(24), FULL_VECTOR, VERSION, VERSION_ZERO)),
}


@pytest.mark.parametrize("message", LARGEST.values(), ids=LARGEST.keys())
def test_the_largest_vector_fits_one_message_with_whatever_travels_along(message: Message) -> None:
    element = encode_message(message)
    assert len(element) < MESH_MESSAGE_BYTES_MAX - 4096, "with room"
    assert unpack(pack([element])) == [message]


def test_credit_and_pings_are_small() -> None:
    # DESIGN §8 allows a node of a hundred 1 KB of idle control traffic a second.
    for message in (Ping(1 << 20), Pong(1 << 20, 1 << 62), Credit(Lane.DATA, 1 << 20)):
        assert len(pack([encode_message(message)])) <= 18


@pytest.mark.parametrize("designation", [None, Designation(3, ISSUER, NodeId(bytes(16)))])
def test_a_digest_tells_the_designation_or_that_there_is_none(designation: Designation | None) -> None:
    vector = VersionVector.decode(VECTOR)
    digest = Digest(vector, bytes(16), True, vector, designation, None, True, 1)
    assert unpack(pack([encode_message(digest)])) == [digest]
