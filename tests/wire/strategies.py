"""Hypothesis strategies: every message that may be sent, valid by construction."""

from hypothesis import strategies as st

from kvp2p.core.entry import ChunkId, ChunkList, Kind, encode_chunk_list, encode_row
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
    Purge,
    Roster,
    RowKey,
    WalkPart,
    WalkRequest,
)
from kvp2p.core.operations import (
    Condition,
    CreateNamespace,
    Delete,
    DeleteNamespace,
    Ending,
    Operation,
    Outcome,
    Put,
)
from kvp2p.core.vector import VersionVector
from kvp2p.ids import (
    AccountId,
    Issuer,
    NamespaceId,
    NodeId,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
)
from kvp2p.limits import (
    CHUNK_BYTES,
    CHUNK_PART_BYTES,
    CHUNK_PART_BYTES_MIN,
    CLOCK_OFFSET_MS_MAX,
    EXPIRES_AT_MAX,
    EXPIRES_IN_MAX,
    PULL_BYTES_MAX,
    STAMP_MAX,
    WALL_MS_MAX,
)
from kvp2p.wire.link_messages import Credit, LinkMessage, Ping, Pong
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

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
id16 = st.binary(min_size=16, max_size=16)
namespaces = id16.map(NamespaceId)
nodes = id16.map(NodeId)
issuers = st.binary(min_size=8, max_size=8).map(Issuer)
counted_on = st.integers(0, (1 << 63) - 1)
readings = st.integers(0, STAMP_MAX)
stamps = readings.map(Stamp)
placed_versions = st.builds(make_version, u32, stamps, issuers)  # of rows and fences
versions = st.binary(min_size=20, max_size=20).map(Version)
keys = st.binary(min_size=1, max_size=512)
metadata = st.none() | st.binary(max_size=1024)
texts = st.text(max_size=64)


@st.composite
def vectors(draw: st.DrawFn) -> VersionVector:
    tops = draw(st.lists(placed_versions.filter(version_stamp), max_size=4, unique_by=version_issuer))
    return VersionVector(tops, draw(placed_versions))


@st.composite
def purges(draw: st.DrawFn, at: Version) -> Purge | None:
    """Make a Purge that may stand at a position, if one can."""
    fences = sorted({version for version in (draw(placed_versions), draw(placed_versions), at) if version <= at})
    if len(fences) < 2:
        return None
    return Purge(draw(st.binary(min_size=24, max_size=24)), draw(vectors()), fences[1], fences[0])


chunk_ids = st.binary(min_size=32, max_size=32).map(ChunkId)
chunk_lists = st.lists(chunk_ids, min_size=1, max_size=5).map(lambda ids: ChunkList(len(ids) * 7 - 3, 7, tuple(ids)))


@st.composite
def rows(draw: st.DrawFn) -> bytes:
    expires_at, version = draw(u64), draw(placed_versions.filter(version_stamp))
    if draw(st.booleans()):
        return encode_row(Kind.TOMBSTONE, b"", None, expires_at, version)
    if draw(st.booleans()):
        return encode_row(Kind.CHUNKED, encode_chunk_list(draw(chunk_lists)), draw(metadata), expires_at, version)
    return encode_row(Kind.VALUE, draw(st.binary(max_size=300)), draw(metadata), expires_at, version)


keyed_rows: st.SearchStrategy[KeyedRow] = st.tuples(namespaces, keys, rows())
row_keys: st.SearchStrategy[RowKey] = st.tuples(namespaces, st.binary(max_size=512))


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    marks = sorted(draw(st.sets(readings, min_size=2, max_size=9)))
    after, *inner, upto = marks
    if draw(st.booleans()):
        inner.append(upto)  # a position may stand at the very end
    held = draw(st.lists(keyed_rows, min_size=min(1, len(inner)), max_size=len(inner)))
    # Every row is used once at least; the positions that are left share them.
    indexes = list(range(len(held))) + draw(
        st.lists(
            st.integers(0, max(0, len(held) - 1)), min_size=len(inner) - len(held), max_size=len(inner) - len(held)
        )
    )
    positions = tuple(zip(map(Stamp, inner), draw(st.permutations(indexes)), strict=True))
    term, issuer = draw(u32), draw(issuers)
    purge = None
    if upto not in inner and draw(st.booleans()):
        purge = draw(purges(make_version(term, Stamp(upto), issuer)))
    return Frame(term, issuer, Stamp(after), Stamp(upto), positions, tuple(held), purge)


@st.composite
def walk_parts(draw: st.DrawFn) -> WalkPart:
    places = sorted(draw(st.sets(st.tuples(namespaces, keys), min_size=2, max_size=6)))
    start, *inner, end = places
    part = tuple((namespace, key, draw(rows())) for namespace, key in inner)
    after = draw(st.sampled_from([None, start]))
    upto = draw(st.sampled_from([None, end]))
    return WalkPart(draw(u64), after, upto, part, draw(vectors()), draw(vectors()))


@st.composite
def puts(draw: st.DrawFn) -> Put:
    condition, if_version = draw(conditions)
    expires_at, expires_in = draw(st.sampled_from([(0, 0), (1, 0), (EXPIRES_AT_MAX, 0), (0, 1), (0, EXPIRES_IN_MAX)]))
    is_chunked = draw(st.booleans())
    return Put(
        namespace=draw(namespaces),
        key=draw(keys),
        value=encode_chunk_list(draw(chunk_lists)) if is_chunked else draw(st.binary(max_size=300)),
        metadata=draw(metadata),
        expires_at=expires_at,
        condition=condition,
        if_version=if_version,
        expires_in=expires_in,
        is_chunked=is_chunked,
    )


conditions: st.SearchStrategy[tuple[Condition, Version | None]] = st.one_of(
    st.tuples(st.sampled_from([Condition.ALWAYS, Condition.ABSENT, Condition.PRESENT]), st.none()),
    st.tuples(st.just(Condition.VERSION_IS), versions),
)
deletes = st.builds(lambda namespace, key, held: Delete(namespace, key, *held), namespaces, keys, conditions)
creates = st.builds(CreateNamespace, namespaces, id16.map(AccountId), st.text(min_size=1, max_size=512))
operations: st.SearchStrategy[tuple[Operation, ...]] = st.lists(
    st.one_of(puts(), deletes, creates, st.builds(DeleteNamespace, namespaces)), min_size=1, max_size=5
).map(tuple)
outcomes = st.builds(
    Outcome,
    ending=st.sampled_from(Ending),
    code=texts,
    message=st.text(max_size=200),
    version=st.none() | versions,
    namespace=st.none() | namespaces,
    created=st.booleans(),
    visible=st.booleans(),
)
digests = st.builds(
    Digest,
    vector=vectors(),
    state_hash=id16,
    comparable=st.booleans(),
    floor=vectors(),
    designation=st.none() | st.builds(Designation, u32, issuers, nodes),
    leads=st.none() | issuers,
    complete=st.booleans(),
    wall_ms=st.integers(0, WALL_MS_MAX),
    clock_ms=st.integers(0, WALL_MS_MAX),
    whole=st.none() | vectors(),
)
members = st.builds(Member, nodes, counted_on, texts, texts, texts, texts)


@st.composite
def chunk_parts(draw: st.DrawFn) -> ChunkPart:
    data = draw(st.binary(min_size=1, max_size=300))
    offset = draw(st.integers(0, CHUNK_BYTES - len(data)))
    total = draw(st.integers(offset + len(data), CHUNK_BYTES))
    return ChunkPart(draw(chunk_ids), offset, total, data)


messages: st.SearchStrategy[Message] = st.one_of(
    frames(),
    digests,
    st.builds(Pull, u32, issuers, stamps, st.integers(1, PULL_BYTES_MAX)),
    st.builds(PullEnd, issuers, stamps, st.booleans()),
    st.builds(WalkRequest, u64, st.none() | row_keys),
    walk_parts(),
    st.builds(Forward, u64, counted_on, operations),
    st.builds(ForwardOutcome, u64, outcomes),
    st.lists(members, max_size=5).map(tuple).map(Roster),
    st.builds(
        ChunkPull, chunk_ids, st.integers(0, CHUNK_BYTES - 1), st.integers(CHUNK_PART_BYTES_MIN, CHUNK_PART_BYTES)
    ),
    chunk_parts(),
    st.builds(ChunkMissing, chunk_ids),
)
link_messages: st.SearchStrategy[LinkMessage] = st.one_of(
    st.builds(Ping, u64),
    st.builds(Pong, u64, counted_on),
    st.builds(Credit, st.sampled_from([Lane.DATA, Lane.CHUNKS]), st.integers(1, (1 << 32) - 1)),
)
local_messages: st.SearchStrategy[LocalMessage] = st.one_of(
    st.builds(Hello, texts, u32),
    st.builds(SubmitWrite, u64, u64, operations),
    st.builds(AwaitVersion, u64, versions, u64),
    st.lists(st.tuples(st.text(min_size=1, max_size=64), u64), max_size=5).map(tuple).map(Report),
    st.builds(Query, u64, texts),
    st.builds(LocalOutcome, u64, outcomes),
    st.builds(QueryAnswer, u64, st.binary(max_size=300)),
    st.builds(Readiness, st.booleans(), texts, counted_on),
    st.builds(StageChunk, u64, u64, chunk_ids, st.binary(min_size=1, max_size=300)),
    st.builds(EndUpload, u64),
    st.builds(SetClock, u64, st.integers(-CLOCK_OFFSET_MS_MAX, CLOCK_OFFSET_MS_MAX)),
)
