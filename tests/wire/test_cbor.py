"""The subset of CBOR: one encoding a value, everything else refused before cbor2 sees it."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.errors import RemoteProtocolError
from kvp2p.limits import CBOR_DEPTH_MAX
from kvp2p.wire.cbor import CborValue, array_head, decode, encode

BYTES_MAX = 1 << 20

values: st.SearchStrategy[CborValue] = st.recursive(
    st.none() | st.booleans() | st.integers(0, (1 << 64) - 1) | st.binary(max_size=300) | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=30),
    max_leaves=40,
)


def depth(value: CborValue) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(values)
def test_a_value_comes_back_as_it_was_unless_it_is_too_deep(value: CborValue) -> None:
    data = encode(value)
    if depth(value) <= CBOR_DEPTH_MAX:
        assert decode(data, BYTES_MAX) == value
    else:
        with pytest.raises(RemoteProtocolError, match="nested"):
            decode(data, BYTES_MAX)


# Bytes that begin like CBOR reach further into the decoder than arbitrary ones.
crooked = st.lists(
    st.sampled_from([bytes((one,)) for one in range(256)])
    | st.integers(0, 1 << 70).map(cbor2.dumps)
    | st.binary(max_size=30).map(cbor2.dumps)
    | st.text(max_size=30).map(cbor2.dumps),
    max_size=20,
).map(b"".join)


@given(st.binary(max_size=200) | crooked | crooked.map(lambda data: b"\x83" + data))
def test_any_bytes_decode_to_what_encodes_to_them_or_are_refused(data: bytes) -> None:
    try:
        value = decode(data, BYTES_MAX)
    except RemoteProtocolError:
        return
    assert encode(value) == data


REFUSED = {
    "empty": (b"", "ends inside"),
    "two items": (b"\x01\x02", "1 bytes follow"),
    "number cut off": (b"\x19\x01", "ends inside"),
    "number without its bytes": (b"\x1b", "ends inside"),
    "string cut off": (b"\x45abc", "ends inside"),
    "string cut off inside an array": (b"\x82\x45abc", "ends inside"),
    "array cut off": (b"\x82\x01", "ends inside"),
    "array of more items than bytes": (b"\x9b\x00\x00\x00\x01\x00\x00\x00\x00\x00", "ends inside"),
    "number 23 in two bytes": (b"\x18\x17", "longer head"),
    "number 255 in three bytes": (b"\x19\x00\xff", "longer head"),
    "number 65535 in five bytes": (b"\x1a\x00\x00\xff\xff", "longer head"),
    "number 2**32-1 in nine bytes": (b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff", "longer head"),
    "string with a long length": (b"\x58\x01a", "longer head"),
    "array with a long length": (b"\x98\x01\x00", "longer head"),
    "indefinite byte string": (b"\x5f\x41a\xff", "indefinite"),
    "indefinite text": (b"\x7f\x61a\xff", "indefinite"),
    "indefinite array": (b"\x9f\x01\xff", "indefinite"),
    "reserved argument": (b"\x1c", "reserved"),
    "negative": (b"\x20", "a negative number"),
    "long negative": (b"\x3b" + bytes(8), "a negative number"),
    "empty map": (b"\xa0", "a map"),
    "indefinite map": (b"\xbf\xff", "a map"),
    "date": (b"\xc1\x00", "a tag"),
    "big number": (b"\xc2\x49\x01" + bytes(8), "a tag"),
    "regular expression": (b"\xd8\x23\x61a", "a tag"),
    "cyclic reference": (b"\xd8\x1c\x81\xd8\x1d\x00", "a tag"),
    "half float": (b"\xf9\x00\x00", "a float"),
    "double float": (b"\xfb" + bytes(8), "a float"),
    "undefined": (b"\xf7", "a float or an unknown simple value"),
    "simple value": (b"\xf8\x20", "a float or an unknown simple value"),
    "break": (b"\xff", "a float or an unknown simple value"),
    "text that is no UTF-8": (b"\x62\xc3\x28", "no valid CBOR"),
    "text with a surrogate": (b"\x63\xed\xa0\x80", "no valid CBOR"),
    "arrays in arrays in arrays": (b"\x81" * 9 + b"\x00", "nested more than 8"),
    "a hundred thousand arrays": (b"\x81" * 100_000 + b"\x00", "nested more than 8"),
}


@pytest.mark.parametrize(("data", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_other_encodings_are_refused_with_the_reason(data: bytes, told: str) -> None:
    with pytest.raises(RemoteProtocolError, match=told):
        decode(data, BYTES_MAX)


def test_a_payload_over_the_limit_is_refused_unseen() -> None:
    assert decode(b"\x42ab", 3) == b"ab"
    with pytest.raises(RemoteProtocolError, match="3 bytes; 2 are the limit"):
        decode(b"\x42ab", 2)


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 65_535, 65_536])
def test_array_head_is_what_cbor2_writes(count: int) -> None:
    assert array_head(count) + b"\x00" * count == cbor2.dumps([0] * count)


def test_eight_arrays_deep_is_allowed() -> None:
    assert depth(decode(b"\x81" * 8 + b"\x00", BYTES_MAX)) == 8
