"""Checks of single fields."""

from collections.abc import Callable
from typing import Any

import pytest

from kvp2p.errors import RemoteProtocolError
from kvp2p.wire import fields

Check = Callable[..., Any]

# A check, its bounds, what just passes and what just does not.
CASES: list[tuple[Check, tuple[Any, ...], list[Any], list[Any]]] = [
    (fields.number, ("it", 9, 2), [2, 9], [1, 10, True, None, b"5", "5", [5]]),
    (fields.number, ("it",), [0, (1 << 64) - 1], [False]),
    (fields.fixed, (3, "it"), [b"abc"], [b"ab", b"abcd", "abc", 3, None, [1, 2, 3]]),
    (fields.blob, ("it", 3, 1), [b"a", b"abc"], [b"", b"abcd", "abc", True]),
    (fields.text, ("it", 3, 1), ["a", "äöü"], ["", "abcd", b"abc", 7]),
    (fields.flag, ("it",), [True, False], [0, 1, None, b"\x01", []]),
    (fields.items, ("it", 3, 1), [[1], [1, 2, 3]], [[], [1, 2, 3, 4], b"ab", "ab", None]),
    (fields.record, ("it", ("a", "b")), [[1, 2]], [[1], [1, 2, 3], b"ab", None]),
]


@pytest.mark.parametrize(("check", "bounds", "good", "bad"), CASES)
def test_a_field_passes_inside_its_bounds_only(check: Check, bounds: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check(value, *bounds) is value
    for value in bad:
        with pytest.raises(RemoteProtocolError, match="it must be"):
            check(value, *bounds)


def test_an_error_tells_the_kind_and_length_but_not_the_data() -> None:
    with pytest.raises(RemoteProtocolError, match=r"not a byte string of length 6$"):
        fields.number(b"secret", "it")
