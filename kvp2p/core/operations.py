"""What a write asks for, and how it ended.

Decides: the vocabulary of writes, shared by gateway, node, wire and the leader's machine.
Keeps true: I10, an outcome is acked, refused or unknown, never a guess.
Operations and outcomes are made for every write in every process it passes: a NamedTuple takes a third of the time of a frozen
dataclass to make, and a match that only asks for the class a fifth of one that takes the fields apart.
In and out: validated operations (the gateway has checked sizes and permissions; the leader checks again what a peer could
have forged), outcomes with a code of DESIGN §7.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from kvp2p.core.entry import ROW_HEAD_BYTES, ChunkId, decode_chunk_list
from kvp2p.ids import AccountId, NamespaceId, Version


class Condition(IntEnum):
    """What must hold at the leader for an operation to be applied (HTTP `If-Match`, `If-None-Match: *`)."""

    ALWAYS = 0
    VERSION_IS = 1
    ABSENT = 2
    PRESENT = 3


class Put(NamedTuple):
    """Store a value; `metadata` is compact UTF-8 JSON.

    It expires `expires_in` seconds after the leader's clock takes it, else at `expires_at` in unix seconds, else (both 0) never. With `is_chunked`
    the value is a chunk list (`core.entry.encode_chunk_list`), and its chunks are staged where the write was handed in.
    """

    namespace: NamespaceId
    key: bytes
    value: bytes
    metadata: bytes | None = None
    expires_at: int = 0
    condition: Condition = Condition.ALWAYS
    if_version: Version | None = None
    expires_in: int = 0
    is_chunked: bool = False


class Delete(NamedTuple):
    """Store a tombstone, whether or not there is anything to delete."""

    namespace: NamespaceId
    key: bytes
    condition: Condition = Condition.ALWAYS
    if_version: Version | None = None


class CreateNamespace(NamedTuple):
    """Make a namespace under a title that is unique in its account; `namespace` is the id to use if the title is new."""

    namespace: NamespaceId
    account: AccountId
    title: str


class DeleteNamespace(NamedTuple):
    """Put a tombstone over a namespace and all its entries, as one log entry [I7]."""

    namespace: NamespaceId


Operation = Put | Delete | CreateNamespace | DeleteNamespace


def operation_bytes(operation: Operation) -> int:
    """Return about how many bytes an operation takes in a queue, a row or a frame."""
    match operation:
        case Put():
            return ROW_HEAD_BYTES + len(operation.key) + len(operation.value) + len(operation.metadata or b"")
        case Delete():
            return 2 * ROW_HEAD_BYTES + len(operation.key)
        case CreateNamespace():
            return ROW_HEAD_BYTES + 4 * len(operation.title)
        case _:
            return 2 * ROW_HEAD_BYTES


def is_large(operations: tuple[Operation, ...]) -> bool:
    """Tell whether a write stores a value in chunks."""
    return any(isinstance(operation, Put) and operation.is_chunked for operation in operations)


def chunks_of(operations: tuple[Operation, ...]) -> tuple[ChunkId, ...]:
    """Return the chunks that a write names, each once, in the order of their first use."""
    chunks: dict[ChunkId, None] = {}
    for operation in operations:
        if isinstance(operation, Put) and operation.is_chunked:
            chunks.update(dict.fromkeys(decode_chunk_list(operation.value).ids))
    return tuple(chunks)


def chunked_value_bytes(operations: tuple[Operation, ...]) -> int:
    """Return how many bytes the values have that a write stores in chunks."""
    return sum(
        decode_chunk_list(operation.value).value_bytes
        for operation in operations
        if isinstance(operation, Put) and operation.is_chunked
    )


class Ending(IntEnum):
    """How a write ended [I10]."""

    ACKED = 0
    REFUSED = 1
    UNKNOWN = 2


class Outcome(NamedTuple):
    """The end of one write.

    `code` is "" when acked, else a code of DESIGN §7: `precondition_failed`, `namespace_not_found`, `no_leader`, `overloaded`,
    `deadline_passed`, `disk_full`, `outcome_unknown`, `bad_request`, `bad_expiry`, `namespace_limit`. `version` is the greatest version written; for
    `precondition_failed` it is the version that stands, None if nothing does. `namespace` answers CreateNamespace,
    `created` says whether it is new. `visible` is False when the hold for read-your-writes ran out: KV-Visible pending.
    """

    ending: Ending
    code: str = ""
    message: str = ""
    version: Version | None = None
    namespace: NamespaceId | None = None
    created: bool = False
    visible: bool = True


def refused(code: str, message: str, version: Version | None = None) -> Outcome:
    """Return the outcome of a write that was not applied."""
    return Outcome(Ending.REFUSED, code, message, version)


def unknown(message: str) -> Outcome:
    """Return the outcome of a write that was sent and not confirmed."""
    return Outcome(Ending.UNKNOWN, "outcome_unknown", message)
