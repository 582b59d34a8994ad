"""What happened in a run, as records that can be written as JSON lines and checked later.

Decides: what a checker may know. Nothing in a record comes from the inside of a machine: invocations and outcomes as clients saw
them, reads as a gateway would answer them, what disks made durable, and the stores as they stand at the end.
Keeps true: a record holds only numbers, text, booleans, null and lists, so that writing and reading changes nothing.
In and out: records in; `to_line` and `from_line` for files. Ids, keys, versions and contents are lower-case hex, so versions compare as text.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any, Literal

from kvp2p.core.operations import CreateNamespace, Delete, DeleteNamespace, Operation, Put
from kvp2p.ids import Stamp, Version, make_version, version_issuer, version_stamp, version_term

ABSENT_CONTENT = ""  # of a tombstone


def content_of(value: bytes, metadata: bytes | None) -> str:
    """Return 24 hex digits that stand for exactly this value with this metadata."""
    marked = b"\x00" if metadata is None else b"\x01" + len(metadata).to_bytes(4, "big") + metadata
    return blake2b(marked + value, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Asked:
    """One operation of a write. `content` is empty for all but puts; `key` is empty for namespaces; `expires_in_s` 0 means never."""

    kind: Literal["put", "delete", "create", "drop"]
    namespace: str
    key: str
    content: str
    expires_in_s: int = 0


def asked_of(operation: Operation) -> Asked:
    """Return what a history says of an operation."""
    match operation:
        case Put(namespace=namespace, key=key, value=value, metadata=metadata, expires_in=expires_in_s):
            return Asked("put", namespace.hex(), key.hex(), content_of(value, metadata), expires_in_s)
        case Delete(namespace=namespace, key=key):
            return Asked("delete", namespace.hex(), key.hex(), ABSENT_CONTENT)
        case CreateNamespace(namespace=namespace):
            return Asked("create", namespace.hex(), "", ABSENT_CONTENT)
        case DeleteNamespace(namespace=namespace):
            return Asked("drop", namespace.hex(), "", ABSENT_CONTENT)


def version_of_operation(last: Version, index: int, count: int) -> Version:
    """Return the version of a write's n-th operation, of which `last` is the greatest: positions follow on each other."""
    stamp = Stamp(version_stamp(last) - (count - 1 - index))
    return make_version(version_term(last), stamp, version_issuer(last))


@dataclass(frozen=True, slots=True)
class Invoked:
    """A client asked a node for a write."""

    at_ns: int
    write: int
    session: int
    node: str
    operations: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A write ended. `ending`: acked, refused, unknown, or lost when the node's process ended first.

    `covered` says whether the node that acknowledged had the version durably when it did.
    """

    at_ns: int
    write: int
    ending: str
    code: str
    versions: tuple[str, ...]  # one an operation when acked
    visible: bool
    covered: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node's store said of a key. `version` None: no row; `content` empty: a tombstone, or hidden because it has expired.

    `disk` counts how often the node's disk was replaced by an older copy.
    """

    at_ns: int
    node: str
    disk: int
    namespace: str
    key: str
    version: str | None
    content: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A leader's disk made an operation durable at a position. `clock_ms` is the leader's clock: by it the value expires."""

    at_ns: int
    node: str
    issuer: str
    stamp: int
    operation: Asked
    clock_ms: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """A node did or told something that contradicts a claim by itself."""

    at_ns: int
    node: str
    claim: str
    text: str


@dataclass(frozen=True, slots=True)
class StandingRow:
    """A row of a store at the end of a run. `expires_at_s` 0 means never."""

    namespace: str
    key: str
    version: str
    content: str
    is_tombstone: bool
    expires_at_s: int = 0


@dataclass(frozen=True, slots=True)
class StandingPosition:
    """A position of a log at the end of a run, and the key it names (a deleted namespace's: the key of its tombstone)."""

    issuer: str
    stamp: int
    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class StandingIssuer:
    """An issuer's row at the end of a run. `closed` is the position after which nothing more can be added, None while it is open."""

    issuer: str
    node: str
    closed: int | None


@dataclass(frozen=True, slots=True)
class StoreState:
    """One node's store as it stands at the end. Rows of deleted namespaces are left out: they are hidden [I7].

    `state_hash` is what the store says, `recount` what its rows say. `floor` and `vector` are (issuer, stamp) pairs, `namespaces` those that live.
    `chunks` are the chunks as the store counts them: id, references, whether the content is here and right; `chunks_named` how often rows name each
    (those of deleted namespaces too, and rows that readers see in place of pending ones). `staged` and `pending` count chunks kept for writes under way,
    and rows that lack chunks.
    `clock_ms` is what the node believes the leader's clock to be; at the node that `leads` it is that clock. `graves` and `expiring` count the entries of
    those indexes; `is_purged` says that the run waited until all that may go had gone.
    """

    node: str
    complete: bool
    vector: tuple[tuple[str, int], ...]
    fence: str
    floor: tuple[tuple[str, int], ...]
    state_hash: str
    recount: str
    namespaces: tuple[str, ...]
    rows: tuple[StandingRow, ...]
    log: tuple[StandingPosition, ...]
    issuers: tuple[StandingIssuer, ...]
    clock_ms: int = 0
    leads: bool = False
    graves: int = 0
    expiring: int = 0
    is_purged: bool = False
    chunks: tuple[tuple[str, int, bool], ...] = ()
    chunks_named: tuple[tuple[str, int], ...] = ()
    staged: int = 0
    pending: int = 0


Record = Invoked | Ended | Seen | Issued | Told | StoreState
_TYPES: dict[str, type] = {one.__name__: one for one in (Invoked, Ended, Seen, Issued, Told, StoreState)}
_NESTED: dict[str, type] = {
    "operations": Asked,
    "operation": Asked,
    "rows": StandingRow,
    "log": StandingPosition,
    "issuers": StandingIssuer,
}


def to_line(record: Record) -> str:
    """Write a record as one line of JSON."""
    return json.dumps({"record": type(record).__name__, **asdict(record)}, separators=(",", ":"))


def from_line(line: str) -> Record:
    """Read what `to_line` wrote; raises ValueError for anything else."""
    try:
        raw = json.loads(line)
        kind = _TYPES[raw.pop("record")]
        names = {one.name for one in fields(kind)}
        if set(raw) != names:
            raise ValueError(f"a {kind.__name__} has {sorted(names)}, not {sorted(raw)}")
        record: Record = kind(**{name: _restore(name, value) for name, value in raw.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record of a history: {line[:200]!r}") from error
    return record


def _restore(name: str, value: Any) -> Any:
    """Turn lists into tuples and dictionaries into the records that stand inside others."""
    if isinstance(value, list):
        return tuple(_restore(name, one) for one in value)
    return _NESTED[name](**value) if isinstance(value, dict) else value
