"""Operations and outcomes as CBOR: the part of the vocabulary that the mesh and the unix socket share.

Decides: their fields, bounds and order:

    Put              [0, namespace 16, key 1..512, value, metadata | null, expiry, condition]
    Delete           [1, namespace 16, key 1..512, condition]
    CreateNamespace  [2, namespace 16, account 16, title]
    DeleteNamespace  [3, namespace 16]
    chunked Put      [4, …]: as Put, the value is a chunk list
    Outcome          [ending, code, message, version 20 | null, namespace 16 | null, created, visible]

    condition        null always | version 20 must stand | false absent | true present
    expiry           null never | unix seconds | [seconds from the moment that the leader takes it]

Keeps true: I9 for what one write holds; I10, an outcome is acked, refused or unknown.
In and out: values to decoded CBOR and back; RemoteProtocolError when a field is wrong, with nothing changed.
"""

from __future__ import annotations

from typing import assert_never

from kvp2p.core.entry import decode_chunk_list
from kvp2p.core.operations import (
    Condition,
    CreateNamespace,
    Delete,
    DeleteNamespace,
    Ending,
    Operation,
    Outcome,
    Put,
    operation_bytes,
)
from kvp2p.errors import LocalProtocolError, RemoteProtocolError
from kvp2p.ids import ID_BYTES, VERSION_BYTES, AccountId, NamespaceId, Version
from kvp2p.limits import (
    CODE_CHARS_MAX,
    EXPIRES_AT_MAX,
    EXPIRES_IN_MAX,
    EXPLANATION_CHARS_MAX,
    KEY_BYTES_MAX,
    METADATA_BYTES_MAX,
    NAMESPACE_TITLE_CHARS_MAX,
    OPS_PER_WRITE_MAX,
    ROW_VALUE_BYTES_MAX,
    WRITE_BYTES_MAX,
)
from kvp2p.wire.cbor import CborValue
from kvp2p.wire.fields import blob, fixed, flag, items, number, record, text


def encode_operations(operations: tuple[Operation, ...]) -> list[CborValue]:
    """Return the operations of one write."""
    return [_encode_operation(one) for one in operations]


def decode_operations(value: CborValue) -> tuple[Operation, ...]:
    """Read the operations of one write; together they are at most WRITE_BYTES_MAX."""
    operations = tuple(map(_decode_operation, items(value, "operations", OPS_PER_WRITE_MAX, 1)))
    total = sum(map(operation_bytes, operations))
    if total > WRITE_BYTES_MAX:
        raise RemoteProtocolError(f"a write has {total} bytes; {WRITE_BYTES_MAX} are the limit")
    return operations


def _encode_operation(operation: Operation) -> list[CborValue]:
    match operation:
        case Put(namespace, key, value, metadata, expires_at, condition, if_version, expires_in, is_chunked):
            expiry: CborValue = [expires_in] if expires_in else expires_at or None
            kind = _CHUNKED_PUT if is_chunked else 0
            return [kind, namespace, key, value, metadata, expiry, _encode_condition(condition, if_version)]
        case Delete(namespace, key, condition, if_version):
            return [1, namespace, key, _encode_condition(condition, if_version)]
        case CreateNamespace(namespace, account, title):
            return [2, namespace, account, title]
        case DeleteNamespace(namespace):
            return [3, namespace]
        case _:
            assert_never(operation)


def _decode_operation(value: CborValue) -> Operation:
    kind = number(items(value, "an operation", 7, 2)[0], "the kind of an operation")
    if kind in (0, _CHUNKED_PUT):
        _, namespace, key, body, metadata, expiry, condition = record(value, "a Put", _PUT)
        held, if_version = _decode_condition(condition)
        expires_at, expires_in = _decode_expiry(expiry)
        if kind == _CHUNKED_PUT:
            decode_chunk_list(blob(body, "value", ROW_VALUE_BYTES_MAX))
        return Put(
            namespace=_namespace(namespace),
            key=blob(key, "key", KEY_BYTES_MAX, 1),
            value=blob(body, "value", ROW_VALUE_BYTES_MAX),
            metadata=None if metadata is None else blob(metadata, "metadata", METADATA_BYTES_MAX),
            expires_at=expires_at,
            condition=held,
            if_version=if_version,
            expires_in=expires_in,
            is_chunked=kind == _CHUNKED_PUT,
        )
    if kind == 1:
        _, namespace, key, condition = record(value, "a Delete", _DELETE)
        held, if_version = _decode_condition(condition)
        return Delete(_namespace(namespace), blob(key, "key", KEY_BYTES_MAX, 1), held, if_version)
    if kind == 2:
        _, namespace, account, title = record(value, "a CreateNamespace", _CREATE)
        return CreateNamespace(
            namespace=_namespace(namespace),
            account=AccountId(fixed(account, ID_BYTES, "account")),
            title=text(title, "title", NAMESPACE_TITLE_CHARS_MAX, 1),
        )
    if kind == 3:
        _, namespace = record(value, "a DeleteNamespace", _DROP)
        return DeleteNamespace(_namespace(namespace))
    raise RemoteProtocolError("an operation is of an unknown kind")


_CHUNKED_PUT = 4
_PUT = ("kind", "namespace", "key", "value", "metadata", "expiry", "condition")
_DELETE = ("kind", "namespace", "key", "condition")
_CREATE = ("kind", "namespace", "account", "title")
_DROP = ("kind", "namespace")
_OUTCOME = ("ending", "code", "message", "version", "namespace", "created", "visible")
_ENDINGS = tuple(Ending)  # by number; an Enum takes several calls to look one up
_CONDITIONS: dict[Condition, CborValue] = {Condition.ALWAYS: None, Condition.ABSENT: False, Condition.PRESENT: True}


def _encode_condition(condition: Condition, if_version: Version | None) -> CborValue:
    if (condition is Condition.VERSION_IS) is (if_version is None):
        raise LocalProtocolError(f"condition {condition.name} contradicts if_version {if_version!r}")
    return if_version if condition is Condition.VERSION_IS else _CONDITIONS[condition]


def _decode_condition(value: CborValue) -> tuple[Condition, Version | None]:
    if value is None:
        return Condition.ALWAYS, None
    if type(value) is bool:
        return (Condition.PRESENT if value else Condition.ABSENT), None
    return Condition.VERSION_IS, version(value, "condition")


def _decode_expiry(value: CborValue) -> tuple[int, int]:
    """Return `expires_at` and `expires_in`, at least one of them 0."""
    if value is None:
        return 0, 0
    if isinstance(value, list):
        (seconds,) = record(value, "an expiry", ("seconds",))
        return 0, number(seconds, "expires_in", EXPIRES_IN_MAX, 1)
    return number(value, "expires_at", EXPIRES_AT_MAX, 1), 0


def encode_outcome(outcome: Outcome) -> list[CborValue]:
    """Return an outcome; a message for people that is too long is cut."""
    return [
        int(outcome.ending),
        outcome.code,
        outcome.message[:EXPLANATION_CHARS_MAX],
        outcome.version,
        outcome.namespace,
        outcome.created,
        outcome.visible,
    ]


def decode_outcome(value: CborValue) -> Outcome:
    """Read an outcome."""
    ending, code, message, written, namespace, created, visible = record(value, "an Outcome", _OUTCOME)
    return Outcome(
        ending=_ENDINGS[number(ending, "ending", len(_ENDINGS) - 1)],
        code=text(code, "code", CODE_CHARS_MAX),
        message=text(message, "message", EXPLANATION_CHARS_MAX),
        version=None if written is None else version(written, "version"),
        namespace=None if namespace is None else _namespace(namespace),
        created=flag(created, "created"),
        visible=flag(visible, "visible"),
    )


def version(value: CborValue, what: str) -> Version:
    """Return a version."""
    return Version(fixed(value, VERSION_BYTES, what))


def _namespace(value: CborValue) -> NamespaceId:
    return NamespaceId(fixed(value, ID_BYTES, "namespace"))
