"""`@value`: a dataclass that nobody changes, as cheap to make as one that could be.

Decides: how messages, events and effects are declared. (Operations and outcomes are NamedTuples: they are made of little, and compared with nothing else.)
Keeps true: equality and hash by fields; mypy refuses an assignment to a field, as with `frozen=True`.
In and out: a class in, the class with its methods out.

A frozen dataclass sets each field through `object.__setattr__`: five times the time of a plain assignment. A node makes about a dozen of them for each write
that it forwards or leads, and spent a tenth of its time in that. So the freezing is the type checker's part here. What is made seldom
(settings, identities) is a frozen dataclass all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True)
def value(cls: type[_Class]) -> type[_Class]:
    """Make a slotted dataclass whose fields are not to be assigned to."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
