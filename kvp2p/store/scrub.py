"""Walking a store file to find damage, whole or in slices.

Decides: how long a read transaction stays open, and at which rate the file is read.
Keeps true: a node may write meanwhile: no slice pins pages for long, and none is taken for damage that was read in another one.
In and out: a directory in, `Damage` out.
"""

from __future__ import annotations

from pathlib import Path

from kvp2p.errors import StoreError
from kvp2p.store.check import Damage, StoreCheck
from kvp2p.store.lmdb_store import LmdbStore


def check_store(path: Path | str) -> list[Damage]:
    """Check a whole store in one transaction; return what is wrong. Raises StoreError when it cannot be opened."""
    check = StoreCheck()
    with LmdbStore.open(path, readonly=True) as store:
        try:
            with store.read() as reader:
                return check.go_on(reader).damage
        except StoreError as error:
            return [*check.damage, unreadable(error)]


def unreadable(error: StoreError) -> Damage:
    """Return the damage of a file that LMDB itself cannot read any further."""
    return Damage("file", None, None, f"the file cannot be read any further: {error}")
