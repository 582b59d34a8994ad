"""Values: what every message, event and operation is."""

from dataclasses import replace

import pytest

from kvp2p.core.messages import Pull
from kvp2p.ids import Issuer, Stamp

ISSUER = Issuer(b"issuer00")


def test_values_are_equal_and_hashed_by_their_fields() -> None:
    one, same, other = Pull(1, ISSUER, Stamp(1), 5), Pull(1, ISSUER, Stamp(1), 5), Pull(1, ISSUER, Stamp(2), 5)
    assert one == same != other
    assert len({one, same, other}) == 2
    assert replace(other, after=Stamp(1)) == one


def test_a_value_has_the_fields_it_declares_and_no_others() -> None:
    with pytest.raises(AttributeError):
        Pull(1, ISSUER, Stamp(1), 5).upto = 7  # type: ignore[attr-defined]
    match Pull(1, ISSUER, Stamp(1), 5):
        case Pull(_, issuer, after):
            assert (issuer, after) == (ISSUER, 1)
