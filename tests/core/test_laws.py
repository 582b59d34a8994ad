"""The laws of values: join, version vectors, the clock, rows and their check, operations and settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.core.entry import (
    FLAG_METADATA,
    FLAG_METADATA_ASCII,
    ROW_HEAD_BYTES,
    Kind,
    check_row,
    decode_row,
    encode_row,
    is_tombstone,
    is_value,
    join_rows,
    row_digest_holds,
    row_expires_at,
    row_kind,
    row_version,
)
from kvp2p.core.hlc import HybridClock, stamp_wall_ms
from kvp2p.core.operations import CreateNamespace, Delete, DeleteNamespace, Put, operation_bytes
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.errors import ConfigError, RemoteProtocolError
from kvp2p.ids import Issuer, Stamp, Version, make_version, version_issuer, version_term
from kvp2p.limits import (
    KEY_BYTES_MAX,
    METADATA_BYTES_MAX,
    ROW_VALUE_BYTES_MAX,
    STAMP_MAX,
    STAMP_OBSERVED_MAX,
    VECTOR_ISSUERS_MAX,
)
from tests.core.harness import ACCOUNT, SPACE, value_row, vector

issuers = st.sampled_from([Issuer(bytes([n]) * 8) for n in range(1, 5)])
stamps = st.integers(1, 5).map(Stamp)
versions = st.builds(make_version, st.integers(0, 3), stamps, issuers)
# An issuer belongs to one term.
issued = st.builds(lambda stamp, issuer: make_version(issuer[0] % 3, stamp, issuer), stamps, issuers)
vectors = st.builds(VersionVector, st.lists(issued), st.one_of(issued, versions))
every_version = [
    make_version(term, Stamp(stamp), Issuer(bytes([n]) * 8))
    for term in range(5)
    for stamp in range(1, 7)
    for n in range(6)
]
metadata = st.one_of(st.none(), st.sampled_from([b"{}", '{"a":"ä"}'.encode()]))
rows = st.one_of(
    st.builds(encode_row, st.just(Kind.VALUE), st.binary(max_size=3), metadata, st.integers(0, 9), versions),
    st.builds(encode_row, st.just(Kind.TOMBSTONE), st.just(b""), st.none(), st.just(0), versions),
)


@given(rows, rows, rows)
def test_join_of_rows_is_commutative_associative_and_idempotent(a: bytes, b: bytes, c: bytes) -> None:
    assert join_rows(a, b) == join_rows(b, a)
    assert join_rows(join_rows(a, b), c) == join_rows(a, join_rows(b, c))
    assert join_rows(a, a) == a
    assert join_rows(None, a) == a


@given(rows, rows)
def test_join_keeps_the_greater_version(a: bytes, b: bytes) -> None:
    assert row_version(join_rows(a, b)) == max(row_version(a), row_version(b))


@given(vectors, vectors, vectors)
def test_join_of_vectors_is_the_least_upper_bound(a: VersionVector, b: VersionVector, c: VersionVector) -> None:
    joined = a.join(b)
    assert joined == b.join(a)
    assert hash(joined) == hash(b.join(a))
    assert joined.join(c) == a.join(b.join(c))
    assert a.join(a) == a
    assert joined.covers_vector(a)
    assert joined.covers_vector(b)
    if c.covers_vector(a) and c.covers_vector(b):
        assert c.covers_vector(joined)


@given(vectors, vectors, versions)
def test_a_vector_that_covers_another_covers_its_versions(a: VersionVector, b: VersionVector, v: Version) -> None:
    if a.covers_vector(b) and b.covers(v):
        assert a.covers(v)
    else:
        assert a.covers_vector(b) == all(map(a.covers, b.tops())) & (a.fence >= b.fence)
    assert not EMPTY_VECTOR.covers(v)


def test_a_vector_is_not_raised_to_a_stamp_of_0_and_reads_back() -> None:
    raised = vector(a=16).raised(make_version(1, Stamp(0), Issuer(b"b" * 8)))
    assert raised == vector(a=16) == VersionVector.decode(raised.encode())


@given(vectors, issued)
def test_a_raised_vector_covers_up_to_the_version(a: VersionVector, version: Version) -> None:
    raised = a.raised(version)
    assert raised.covers_vector(a)
    assert raised.covers(version)
    assert (raised is a) == a.covers(version)
    assert len(raised) == len(list(raised.items())) >= len(a)
    assert list(raised.items()) == sorted(raised.items())


@given(vectors, versions)
def test_a_fenced_vector_covers_everything_below_its_fence(a: VersionVector, fence: Version) -> None:
    fenced = a.fenced(fence)
    for version in every_version:
        assert fenced.covers(version) == (a.covers(version) or version < fence)


@given(vectors)
def test_reach_is_the_last_position_before_the_first_that_is_not_covered(a: VersionVector) -> None:
    """So it is asked for with the term of its entry, or as one that has none."""
    for n in range(6):
        issuer = Issuer(bytes([n]) * 8)
        top = a.top_of(issuer)
        for term in range(5) if top is None else [version_term(top)]:
            stamps_covered = [stamp for stamp in range(1, 7) if a.covers(make_version(term, Stamp(stamp), issuer))]
            assert min(a.reach(term, issuer), 6) == len(stamps_covered)
            assert stamps_covered == list(range(1, len(stamps_covered) + 1))
        assert a.only(issuer) == (EMPTY_VECTOR if top is None else VersionVector([top]))


@given(vectors, vectors)
def test_the_minimum_covers_what_both_cover_and_nothing_else(a: VersionVector, b: VersionVector) -> None:
    least = a.minimum(b)
    for version in every_version:
        if version_term(version) == version_issuer(version)[0] % 3:
            assert least.covers(version) == (a.covers(version) and b.covers(version))


@given(vectors, vectors)
def test_vectors_that_cover_the_same_are_equal(a: VersionVector, b: VersionVector) -> None:
    assert (a == b) == (a.covers_vector(b) and b.covers_vector(a))
    assert a.is_empty == (a == EMPTY_VECTOR)


@given(vectors, vectors)
def test_a_vector_stays_in_order_whatever_made_it(a: VersionVector, b: VersionVector) -> None:
    """Two vectors that are equal have the same bytes: the order is that of the issuers, not that of their coming."""
    joined = a.join(b)
    assert list(joined.items()) == sorted(joined.items())
    assert VersionVector.decode(joined.encode()).join(a) == joined
    assert (joined is a) == (joined == a), "what changes nothing makes nothing"


@given(vectors)
def test_a_vector_reads_back_from_its_bytes(a: VersionVector) -> None:
    assert VersionVector.decode(a.encode()) == a


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(19),
        bytes(21),
        b"".join([bytes(20), *(b"\1" * 16 + n.to_bytes(4, "big") for n in range(VECTOR_ISSUERS_MAX + 1))]),
        bytes(20) + b"\2" * 20 + b"\1" * 20,
        bytes(20) + b"\2" * 20 + b"\2" * 20,
        bytes(20) + b"\2" * 4 + bytes(8) + b"\2" * 8,
        b"\3" * 20 + b"\2" * 20,
    ],
)
def test_malformed_vector_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        VersionVector.decode(data)


def test_a_vector_shows_its_issuers_and_fence() -> None:
    assert repr(EMPTY_VECTOR) == "<empty>"
    assert repr(vector(a=16)) == "<6161:1.10>"
    assert "fence" in repr(VersionVector((), Version(b"\1" * 20)))
    assert EMPTY_VECTOR != "<empty>"


@given(st.lists(st.one_of(st.integers(0, 1 << 40), st.integers(0, STAMP_OBSERVED_MAX).map(lambda n: -n)), min_size=1))
def test_stamps_only_rise_whatever_the_clock_says(readings: list[int]) -> None:
    """A negative reading stands for a stamp that was observed."""
    clock = HybridClock()
    seen = 0
    for reading in readings:
        if reading < 0:
            clock.observe(Stamp(-reading))
            seen = max(seen, -reading)
        else:
            stamp = clock.tick(reading)
            assert stamp > seen
            assert stamp_wall_ms(stamp) >= reading
            seen = stamp


def test_a_clock_does_not_go_past_a_stamp_that_leaves_it_none_to_send() -> None:
    clock = HybridClock()
    for stamp in (STAMP_MAX, STAMP_OBSERVED_MAX + 1):
        clock.observe(Stamp(stamp))
        assert clock.latest == 0
    clock.observe(Stamp(STAMP_OBSERVED_MAX))
    assert STAMP_OBSERVED_MAX < clock.tick(1_000) < STAMP_MAX


@given(st.binary(min_size=1, max_size=9), rows)
def test_a_row_that_was_encoded_passes_its_check_and_reads_back(key: bytes, row: bytes) -> None:
    check_row(key, row)
    assert row_digest_holds(row)
    entry = decode_row(SPACE, key, row)
    assert encode_row(entry.kind, entry.value, entry.metadata, entry.expires_at, entry.version) == row
    assert entry.expires_at == row_expires_at(row)
    assert entry.kind == row_kind(row)
    assert (is_tombstone(row), is_value(row)) == (entry.kind == Kind.TOMBSTONE, entry.kind == Kind.VALUE)


def _with_head(row: bytes, at: int, replaced: bytes) -> bytes:
    return row[:at] + replaced + row[at + len(replaced) :]


ASCII = encode_row(Kind.VALUE, b"v", b"{}", 0, Version(b"\1" * 20))
BAD_ROWS: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "an empty key": lambda: (b"", ASCII),
    "a long key": lambda: (b"k" * (KEY_BYTES_MAX + 1), ASCII),
    "a short row": lambda: (b"k", ASCII[: ROW_HEAD_BYTES - 1]),
    "an unknown kind": lambda: (b"k", _with_head(ASCII, 0, b"\7")),
    "a chunked row": lambda: (b"k", _with_head(ASCII, 0, b"\2")),
    "long metadata": lambda: (
        b"k",
        encode_row(Kind.VALUE, b"", b"m" * (METADATA_BYTES_MAX + 1), 0, Version(bytes(20))),
    ),
    "a long value": lambda: (b"k", encode_row(Kind.VALUE, bytes(ROW_VALUE_BYTES_MAX + 1), None, 0, Version(bytes(20)))),
    "metadata past the end": lambda: (b"k", _with_head(ASCII, 2, b"\0\x09")),
    "metadata denied": lambda: (b"k", _with_head(ASCII, 1, b"\0")),
    "a wrong ascii flag": lambda: (b"k", _with_head(ASCII, 1, bytes([FLAG_METADATA]))),
    "unknown flags": lambda: (b"k", _with_head(ASCII, 1, bytes([FLAG_METADATA | FLAG_METADATA_ASCII | 4]))),
    "a tombstone with contents": lambda: (b"k", _with_head(value_row(1), 0, b"\0")),
    "a damaged value": lambda: (b"k", ASCII[:-1] + b"w"),
    "another expiry": lambda: (b"k", _with_head(ASCII, 4, b"\1")),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_row_with_a_flaw_is_refused(what: str) -> None:
    check_row(b"k", ASCII)
    with pytest.raises(RemoteProtocolError):
        check_row(*BAD_ROWS[what]())


def test_an_operation_tells_its_bytes() -> None:
    assert operation_bytes(Put(SPACE, b"key", b"value", b"{}")) == ROW_HEAD_BYTES + 3 + 5 + 2
    assert operation_bytes(Delete(SPACE, b"key")) > ROW_HEAD_BYTES + 3
    assert operation_bytes(CreateNamespace(SPACE, ACCOUNT, "t")) > ROW_HEAD_BYTES
    assert operation_bytes(DeleteNamespace(SPACE)) > ROW_HEAD_BYTES


@pytest.mark.parametrize(
    "settings", [{"hold_ms": 0}, {"hold_ms": 3_600_001}, {"hold_ms": 1.5}, {"digest_busy_ms": 3_000}]
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        ReplicaSettings(**settings)
