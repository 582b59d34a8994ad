"""The manifest of a backup file: what the file holds, of which node, and as of when.

Decides: the fields, and the form that each must have. A manifest that lacks one, or has one in another form, is damaged or none.
Keeps true: what was read is as `Manifest.encode` wrote it, so nobody who has a `Manifest` need look again. A byte that is damaged without
hurting the form shows later: a length or a digest differs from the file's, or what is said of the node from its store (`restore.py`). Only when
and by which version the backup was made is said nowhere else.
In and out: MANIFEST_BYTES bytes in and out, JSON padded with spaces.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from kvp2p.config import CONFIG_FILE, KEY_FILE
from kvp2p.core.port import ReadTransaction
from kvp2p.errors import StoreFormatError
from kvp2p.supervisor.directory import NAME_FORM

BACKUP_FORMAT: Final = 1
MANIFEST_FILE: Final = "manifest.json"
STORE_FILE: Final = "store.mdb"
MANIFEST_BYTES: Final = 8_192
DIGEST_BYTES: Final = 32

_COUNT_MAX: Final = (1 << 63) - 1  # more than any file has; bounded because those who show it make a float of it
_HEX_ID: Final = re.compile("[0-9a-f]{32}"), "32 lower-case hex digits"
_FORMS: Final = {
    "made_by": (re.compile("[0-9A-Za-z.+_-]{1,64}"), "a version"),
    "made_at": (
        re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"),
        "a time like 2026-01-31T23:59:59Z",
    ),
    "cluster_id": _HEX_ID,
    "node_id": _HEX_ID,
    "name": (NAME_FORM, "the name of a node"),
    "state_hash": _HEX_ID,
    "blake2b": (re.compile("[0-9a-f]{64}"), "64 lower-case hex digits"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file in a backup: its length, and its digest (BLAKE2b, 32 bytes, hex)."""

    bytes: int
    blake2b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup says of itself. Ids and hashes are lower-case hex, `made_at` is UTC."""

    backup_format: int
    made_by: str
    made_at: str
    cluster_id: str
    node_id: str
    name: str
    state_hash: str
    other_members: int
    files: dict[str, StoredFile]

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def encode(self) -> bytes:
        """Return it as it stands in the file."""
        text = json.dumps(self.document(), indent=1).encode()
        assert len(text) <= MANIFEST_BYTES, "a manifest has a handful of short fields"
        return text.ljust(MANIFEST_BYTES)


def describe_store(txn: ReadTransaction, *, made_by: str, made_at: str, files: dict[str, StoredFile]) -> Manifest:
    """Return the manifest of a backup whose store is the one of this transaction."""
    identity = txn.identity
    return Manifest(
        backup_format=BACKUP_FORMAT,
        made_by=made_by,
        made_at=made_at,
        cluster_id=identity.cluster.hex(),
        node_id=identity.node.hex(),
        name=identity.name,
        state_hash=f"{txn.state_hash:032x}",
        other_members=sum(member.node != identity.node for member in txn.members),
        files=files,
    )


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """Read what `Manifest.encode` wrote. Raises StoreFormatError for a newer format, and for anything else; `where` is the file to name."""
    try:
        document = _object(json.loads(raw), "the manifest")
        made_format, made_by = _count(document, "backup_format", least=1), _text(document, "made_by")
        if made_format != BACKUP_FORMAT:  # whose other fields may be others
            raise StoreFormatError(
                f"{where} is a backup of format {made_format}, made by kvp2p {made_by}; this one reads format {BACKUP_FORMAT}. "
                f"Restore it with kvp2p {made_by} or newer"
            )
        return Manifest(
            backup_format=made_format,
            made_by=made_by,
            made_at=_text(document, "made_at"),
            cluster_id=_text(document, "cluster_id"),
            node_id=_text(document, "node_id"),
            name=_text(document, "name"),
            state_hash=_text(document, "state_hash"),
            other_members=_count(document, "other_members"),
            files=_files(_object(document.get("files"), "files")),
        )
    except (ValueError, RecursionError) as error:
        raise StoreFormatError(
            f"{where} is no backup of kvp2p, or it is damaged or was not finished: its manifest cannot be read ({error}). Use another backup"
        ) from error


def _files(document: dict[str, Any]) -> dict[str, StoredFile]:
    if not {CONFIG_FILE, STORE_FILE} <= set(document) <= {CONFIG_FILE, KEY_FILE, STORE_FILE}:
        raise ValueError(f"the files {', '.join(map(ascii, document))[:200] or 'none'} make no data directory")
    files = {}
    for name, fields in document.items():
        file = _object(fields, name)
        files[name] = StoredFile(bytes=_count(file, "bytes"), blake2b=_text(file, "blake2b"))
    return files


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object")  # noqa: TRY004  one kind of error for one kind of fault
    return value


def _count(document: dict[str, Any], name: str, least: int = 0) -> int:
    value = document.get(name)
    if type(value) is not int or not least <= value <= _COUNT_MAX:
        raise ValueError(f"{name} {_fault(value)}; it must be a number from {least}")
    return value


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    form, words = _FORMS[name]
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError(f"{name} {_fault(value)}; it must be {words}")
    return value


def _fault(value: object) -> str:
    return "is missing" if value is None else f"is {ascii(value)[:80]}"
