"""Restoring: a data directory made of a backup file.

Decides: when a backup file is taken for whole, and what is different in a directory that was made of one.
Keeps true
* Nothing is restored of a file that is not what `backup.py` wrote: each member has its length and its digest, and the store is of the node
  and has the state hash that the manifest tells.
* A directory is whole or not there, as with `init`.
* I2: the store is marked as restored, so that it does not lead by itself: others may have newer writes that were acknowledged. Whoever
  asks for a directory without the mark vouches that nobody has.
* I7: it forgets how far this machine's clock was off the leader's, which was true at another moment, and perhaps on another machine.
In and out: a backup file in, a data directory out.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kvp2p.cluster_key import ClusterKey, read_cluster_key, write_cluster_key
from kvp2p.config import CONFIG_FILE, KEY_FILE, STORE_DIRECTORY, load_config
from kvp2p.core.apply import mark_restored
from kvp2p.core.port import ReadTransaction
from kvp2p.errors import ConfigError, StoreCorrupt, StoreError, StoreFormatError
from kvp2p.replacement import sync_directory
from kvp2p.store.environment import DATA_FILE
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.supervisor.backup import OnProgress
from kvp2p.supervisor.directory import making
from kvp2p.supervisor.manifest import (
    DIGEST_BYTES,
    MANIFEST_BYTES,
    MANIFEST_FILE,
    STORE_FILE,
    Manifest,
    StoredFile,
    decode_manifest,
    describe_store,
)

_CHUNK_BYTES = 1 << 20
_PLACES = {CONFIG_FILE: CONFIG_FILE, KEY_FILE: KEY_FILE, STORE_FILE: f"{STORE_DIRECTORY}/{DATA_FILE}"}


@dataclass(frozen=True, slots=True)
class Restored:
    """A data directory that was made. `is_marked`: it will not lead before it has heard a peer."""

    directory: Path
    manifest: Manifest
    is_marked: bool


def restore_backup(
    file: Path,
    directory: Path,
    *,
    leads_alone: bool = False,
    cluster_key_file: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Restored:
    """Make a data directory of a backup file.

    `cluster_key_file` is for a backup that was made without the cluster's key. Raises ConfigError when there is something in the
    directory already or the key is missing or another cluster's, StoreFormatError for a file whose manifest cannot be read or is of a newer
    format, StoreCorrupt when the rest is damaged or was cut off, StoreError when the disk does not give it. Nothing is left of a directory that was not finished.
    """
    with _open(file) as archive:
        manifest = _read_manifest(archive, file)
        key = None if cluster_key_file is None else read_cluster_key(cluster_key_file)
        if key is not None:
            _require_key(key, manifest)
        elif KEY_FILE not in manifest.files:
            raise ConfigError(
                f"{file} was made without {KEY_FILE}; give a copy of any member's with --cluster-key-file"
            )
        with making(directory) as new:
            (new / STORE_DIRECTORY).mkdir(mode=0o700)
            _unpack(archive, file, manifest, new, on_progress)
            if key is not None:
                (new / KEY_FILE).unlink(missing_ok=True)
                write_cluster_key(new / KEY_FILE, key)
            _mark(new, file, manifest, leads_alone=leads_alone)
            _require_key(read_cluster_key(new / KEY_FILE), manifest)  # after it: the manifest is the store's now
    return Restored(directory.absolute(), manifest, not leads_alone)


def _require_key(key: ClusterKey, manifest: Manifest) -> None:
    if key.cluster.hex() != manifest.cluster_id:
        raise ConfigError(
            f"the backup is of cluster {manifest.cluster_id}, the key of {key.cluster.hex()}; give the {KEY_FILE} of any member of the former "
            "with --cluster-key-file"
        )


def _open(file: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(file, "r:")
    except tarfile.TarError as error:
        raise StoreFormatError(
            f"{file} is no backup of kvp2p, or it is damaged: {error}. Use another backup"
        ) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


@contextmanager
def _reading(file: Path, what: str) -> Iterator[None]:
    """Translate what goes wrong while a backup file is read, so that it is not taken for a fault of the directory that is made."""
    try:
        yield
    except tarfile.TarError as error:
        raise StoreCorrupt(
            f"{file} is damaged or was cut off: {what} cannot be read of it ({error}). Use another backup"
        ) from error
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from error


def _read_manifest(archive: tarfile.TarFile, file: Path) -> Manifest:
    with _reading(file, MANIFEST_FILE):
        try:
            name, content = _next_file(archive)
            raw = content.read(MANIFEST_BYTES)
        except tarfile.TarError as error:
            raise StoreFormatError(
                f"{file} is no backup of kvp2p, or it is damaged or was cut off: it has no manifest ({error}). Use another backup"
            ) from error
    if name != MANIFEST_FILE:
        raise StoreFormatError(
            f"{file} is no backup of kvp2p: its first member is {name!r}. Name a file that `kvp2p backup` made"
        )
    return decode_manifest(raw, str(file))


def _next_file(archive: tarfile.TarFile) -> tuple[str, IO[bytes]]:
    """Return the next member; raises TarError when there is none or it is no plain file."""
    member = archive.next()
    content = archive.extractfile(member) if member is not None and member.isreg() else None
    if member is None or content is None:
        raise tarfile.ReadError("a member is missing")
    return member.name, content


def _unpack(
    archive: tarfile.TarFile, file: Path, manifest: Manifest, new: Path, on_progress: OnProgress | None
) -> None:
    left = dict(manifest.files)
    total = sum(one.bytes for one in left.values())
    done = 0
    while left:
        with _reading(file, ", ".join(left)):
            name, content = _next_file(archive)
        expected = left.pop(name, None)
        if expected is None:
            raise StoreCorrupt(
                f"{file} is damaged: it holds {name!r}, which its manifest does not tell of. Use another backup"
            )
        digest, length = hashlib.blake2b(digest_size=DIGEST_BYTES), 0
        descriptor = os.open(new / _PLACES[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            for chunk in _chunks(content, file, name):
                target.write(chunk)
                digest.update(chunk)
                length += len(chunk)
                if on_progress is not None:
                    on_progress(done + length, total)
            target.flush()
            os.fsync(descriptor)
        done += length
        if StoredFile(bytes=length, blake2b=digest.hexdigest()) != expected:
            raise StoreCorrupt(f"{file} is damaged: {name} does not match its digest. Use another backup")


def _chunks(content: IO[bytes], file: Path, name: str) -> Iterator[bytes]:
    while True:
        with _reading(file, name):
            chunk = content.read(_CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def _mark(new: Path, file: Path, manifest: Manifest, *, leads_alone: bool) -> None:
    config = load_config(new / CONFIG_FILE)
    with (
        LmdbStore.open(new / STORE_DIRECTORY, map_bytes=config.store.map_bytes) as store,
        store.write(into_reserve=True) as writer,
    ):
        _compare(file, manifest, writer)
        mark_restored(writer, leads_alone=leads_alone)
    sync_directory(new / STORE_DIRECTORY)


def _compare(file: Path, manifest: Manifest, txn: ReadTransaction) -> None:
    """Raise StoreCorrupt unless the store is the one that the manifest tells of."""
    told = manifest.document()
    stored = describe_store(txn, made_by=manifest.made_by, made_at=manifest.made_at, files=manifest.files).document()
    differing = ", ".join(name for name in told if told[name] != stored[name])
    if differing:
        raise StoreCorrupt(f"{file} is damaged: its manifest and its store differ in {differing}. Use another backup")
