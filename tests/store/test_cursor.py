"""Cursors: they lead where they say, and nothing else is taken for one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvp2p.errors import RequestError
from kvp2p.ids import NamespaceId
from kvp2p.store.cursor import CURSOR_CHARS_MAX, decode_cursor, encode_cursor

SPACE = NamespaceId(b"1" * 16)
URL_SAFE = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.binary(min_size=1, max_size=512))
def test_cursor_leads_back_to_its_key(key: bytes) -> None:
    cursor = encode_cursor(SPACE, key)
    assert set(cursor) <= URL_SAFE
    assert len(cursor) <= CURSOR_CHARS_MAX
    assert decode_cursor(SPACE, cursor) == key


@settings(max_examples=300)
@given(st.text(max_size=60) | st.text("ABCabc012-_+/= \n", max_size=60))
def test_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_cursor(SPACE, text)
    assert caught.value.code == "bad_cursor"


@given(st.binary(min_size=1, max_size=30), st.data())
def test_cursor_with_one_character_changed_is_refused(key: bytes, data: st.DataObject) -> None:
    cursor = encode_cursor(SPACE, key)
    at = data.draw(st.integers(0, len(cursor) - 1))
    put = data.draw(
        st.sampled_from([*sorted(URL_SAFE | {"", "=", "é", "\n"}), "AA"]).filter(lambda one: one != cursor[at])
    )
    with pytest.raises(RequestError):
        decode_cursor(SPACE, cursor[:at] + put + cursor[at + 1 :])


@pytest.mark.parametrize("key", [b"", b"k" * 513])
def test_cursor_to_an_impossible_key_is_refused(key: bytes) -> None:
    with pytest.raises(RequestError):
        decode_cursor(SPACE, encode_cursor(SPACE, key))


def test_cursor_of_another_namespace_says_so() -> None:
    with pytest.raises(RequestError, match="another namespace"):
        decode_cursor(NamespaceId(b"2" * 16), encode_cursor(SPACE, b"key"))
