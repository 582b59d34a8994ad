"""Reads: values, listings of keys and of namespaces, from this machine's disk.

Decides: the answers to GET of the native API, and which values are streamed: those of more than one chunk.
Keeps true: a read never leaves this process, unless it names a version (KV-Min-Version) that this node does not cover yet.
    I9: one listing looks at a bounded number of rows (`Replica.list`); an answer that is not streamed has one chunk at most.
In and out: a view and the request's fields in, answers out; RequestError for what is refused.
"""

from __future__ import annotations

import json
from binascii import hexlify
from typing import Final

import structlog

from kvp2p.core.entry import FLAG_METADATA, ROW_HEAD_BYTES, Kind, is_chunked, row_expires_at, row_version
from kvp2p.core.messages import RowKey
from kvp2p.core.system_rows import Permission
from kvp2p.errors import RequestError, StoreCorrupt
from kvp2p.gateway.access import Access
from kvp2p.gateway.answers import (
    HEADS,
    VALUE,
    error_answer,
    json_answer,
    not_modified_answer,
    value_answer,
    version_lines,
)
from kvp2p.gateway.fields import Fields, ascii_metadata
from kvp2p.gateway.streams import Streams, ValueStream
from kvp2p.gateway.target import Target, decode_key, parse_query, refuse_query
from kvp2p.gateway.views import Views
from kvp2p.ids import Version
from kvp2p.limits import KEY_BYTES_MAX, LIST_KEYS_MAX
from kvp2p.store.chunked import chunk_list_of, read_chunk
from kvp2p.store.reader import ListedKey, View

# The first 12 bytes of a row that has neither metadata nor expiry: kind, flags, metadata length, expires_at.
_PLAIN_VALUE: Final = bytes([Kind.VALUE]) + bytes(11)
_LIST_PARAMETERS: Final = frozenset({b"prefix", b"limit", b"cursor"})
_DOT: Final = ord(".")  # "." and ".." are no keys; all that begins so takes the longer way
_KEY_NOT_FOUND: Final = "there is no value under this key"
_SCRUB: Final = (
    "look with `kvp2p scrub` what else is damaged; restore a backup, or let a new node take the place of this one"
)

_LOG = structlog.get_logger("kvp2p.gateway")


class Reads:
    """The answers to reads."""

    def __init__(self, views: Views, access: Access, streams: Streams) -> None:
        self._views = views
        self._access = access
        self._readable = access.readable
        self._streams = streams

    def plain_value(self, target: bytes, authorization: bytes) -> bytes | None:
        """Answer a GET of a value that needs nothing but the row; None for every other case. Raises StoreError.

        This is the hot path: it takes only keys that need no decoding, in namespaces that `value` has been asked for before
        with the same token, and rows without metadata and expiry.
        """
        # "/v1/" is four bytes; a target without a third slash ends up with a prefix that was never allowed.
        slash = target.find(b"/", 4)
        view = self._views.view or self._views.current()  # before the look at `readable`, which it may empty
        namespace = self._readable.get((authorization, target[:slash]))
        key = target[slash + 1 :]
        if (
            namespace is None
            or b"%" in key
            or b"?" in key
            or b"#" in key
            or not 1 <= len(key) <= KEY_BYTES_MAX
            or key[0] == _DOT
        ):
            return None
        row = view.raw_row(namespace, key)
        if row is None or not row.startswith(_PLAIN_VALUE):
            return None
        version = hexlify(row[12:32])
        return VALUE % (HEADS[200], len(row) - ROW_HEAD_BYTES, version, version, memoryview(row)[ROW_HEAD_BYTES:])

    def value_head(self, target: Target, fields: Fields) -> bytes:
        """Answer HEAD of a key; a value in its row may follow the head."""
        answer = self.value(target, fields, wants_body=False)
        assert isinstance(answer, bytes)
        return answer

    def value(self, target: Target, fields: Fields, *, wants_body: bool = True) -> bytes | ValueStream:
        """Answer GET of a key."""
        view = self._views.current()
        token = self._access.token(view, fields.authorization)
        refuse_query(target)
        key = decode_key(target.key)
        namespace = self._access.namespace(view, token, target.namespace, Permission.READ).namespace
        self._access.allow_reading(fields.authorization, b"/v1/" + target.namespace, namespace)
        expected = fields.if_match()
        row = view.shown_row(namespace, key)
        if row is None or view.hides(row):
            code = "key_not_found" if expected is None else "precondition_failed"
            return error_answer(code, _KEY_NOT_FOUND)
        stands = row_version(row)
        if isinstance(expected, bytes) and expected != stands:
            return error_answer("precondition_failed", "another version stands there", lines=version_lines(stands))
        if fields.if_none_match(hexlify(stands)):
            return not_modified_answer(hexlify(stands))
        try:
            return self._found(view, (namespace, key), row, wants_body=wants_body)
        except StoreCorrupt as error:
            _LOG.error("value_damaged", namespace=namespace.hex(), key=key, error=str(error), advice=_SCRUB)
            return error_answer("unavailable", "the copy of this value at this node is damaged; ask another node")

    def _found(self, view: View, at: RowKey, row: bytes, *, wants_body: bool) -> bytes | ValueStream:
        value_at = ROW_HEAD_BYTES + int.from_bytes(row[2:4], "big")
        version = hexlify(row[12:32])
        metadata = ascii_metadata(row[ROW_HEAD_BYTES:value_at]) if row[1] & FLAG_METADATA else None
        expires_at = row_expires_at(row)
        if not is_chunked(row):
            value = memoryview(row)[value_at:]
            return value_answer(version, metadata, expires_at, value, len(value))
        chunks = chunk_list_of(row)
        if not wants_body or len(chunks.ids) == 1:
            content = read_chunk(view.transaction, chunks, 0) if wants_body else b""
            return value_answer(version, metadata, expires_at, content, chunks.value_bytes)
        stream = self._streams.open(view, at, chunks)
        self._views.hand_over()
        stream.read_ahead()
        stream.head = value_answer(version, metadata, expires_at, b"", chunks.value_bytes)
        return stream

    def keys(self, target: Target, fields: Fields) -> bytes:
        """Answer GET of a namespace: a page of its keys in byte order."""
        view = self._views.current()
        token = self._access.token(view, fields.authorization)
        namespace = self._access.namespace(view, token, target.namespace, Permission.READ).namespace
        query = parse_query(target.query, _LIST_PARAMETERS)
        prefix = query.get(b"prefix", b"")
        if len(prefix) > KEY_BYTES_MAX:
            raise RequestError(
                "prefix_too_long", f"the prefix has {len(prefix)} bytes; {KEY_BYTES_MAX} are the limit", KEY_BYTES_MAX
            )
        cursor = query.get(b"cursor", b"").decode("utf-8", "replace") or None
        page = self._views.replica.list(namespace, prefix, _limit(query.get(b"limit")), cursor)
        end = b"" if page.cursor is None else b',"cursor":"%b"' % page.cursor.encode("ascii")
        complete = b"true" if page.list_complete else b"false"
        keys = b",".join([_listed(one) for one in page.keys])
        return json_answer(b'{"keys":[%b],"list_complete":%b%b}' % (keys, complete, end))

    def namespaces(self, target: Target, fields: Fields) -> bytes:
        """Answer GET of /v1: the namespaces that the token sees, by id."""
        view = self._views.current()
        token = self._access.token(view, fields.authorization)
        refuse_query(target)
        if token.permissions.isdisjoint({Permission.READ, Permission.ADMIN}):
            raise RequestError("forbidden", f"the token {token.name!r} has no permission to read")
        seen = self._access.namespaces(view, token)
        listed = [{"id": one.namespace.hex(), "title": one.title} for one in seen]
        return json_answer(json.dumps({"namespaces": listed}, separators=(",", ":")).encode("ascii"))

    def covers(self, version: Version) -> bool:
        """Tell whether this node's store has everything up to a version, values in chunks whole [I3]."""
        return self._views.current().shows(version)


def _listed(one: ListedKey) -> bytes:
    """Return a key of a listing as JSON."""
    parts = [b'{"name":%b' % json.dumps(one.key.decode("utf-8", "replace")).encode("ascii")]
    if one.expires_at:
        parts.append(b'"expiration":%d' % one.expires_at)
    if one.metadata is not None:
        parts.append(b'"metadata":' + one.metadata)  # stored as compact JSON in UTF-8, which is what it is here
    parts.append(b'"version":"%b"}' % hexlify(one.version))
    return b",".join(parts)


def _limit(raw: bytes | None) -> int:
    if raw is None:
        return LIST_KEYS_MAX
    if not (raw.isdigit() and len(raw) <= 9 and 1 <= int(raw) <= LIST_KEYS_MAX):
        raise RequestError("bad_limit", f"limit must be a number from 1 to {LIST_KEYS_MAX}", LIST_KEYS_MAX)
    return int(raw)
