"""What the tests of the store share: both stores behind one fixture, and rows to put in them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.port import Identity
from kvp2p.ids import AccountId, ClusterId, Issuer, NodeId, Stamp, make_version
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.memory import MemoryStore

Store = LmdbStore | MemoryStore
MakeRow = Callable[..., bytes]


@pytest.fixture
def identity() -> Identity:
    """Give an identity."""
    return Identity(ClusterId(b"c" * 16), AccountId(b"a" * 16), NodeId(b"n" * 16), "n1")


@pytest.fixture(params=["lmdb", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, identity: Identity) -> Iterator[Store]:
    """Give an empty store; a test that takes it runs on both kinds."""
    made: Store
    if request.param == "lmdb":
        made = LmdbStore.create(tmp_path / "store", identity, complete=True)
    else:
        made = MemoryStore(identity)
    yield made
    made.close()


@pytest.fixture(scope="session")
def make_row() -> MakeRow:
    """Give a function that makes a row of a value; None makes a tombstone."""

    def make(value: bytes | None, *, metadata: bytes | None = None, expires_at: int = 0, stamp: int = 1) -> bytes:
        version = make_version(1, Stamp(stamp), Issuer(b"issuer-1"))
        if value is None:
            return encode_row(Kind.TOMBSTONE, b"", None, 0, version)
        return encode_row(Kind.VALUE, value, metadata, expires_at, version)

    return make
