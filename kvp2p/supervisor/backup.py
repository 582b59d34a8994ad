"""Backups: one file that has all a node needs to be made again, written while the node runs.

Decides: what a backup file holds, and how it is laid out.
Keeps true
* The store in it is one committed state [I4]: everything that was acknowledged when the copy began is there.
* FILE is whole or not there: it is written beside its place, synced and renamed. It never takes another file's place unasked.
* Nobody but its owner may read it: it has the values, and unless told otherwise the cluster's key.
In and out: a data directory in, a file out.

The file is a tar without compression, of these members, in this order:

    manifest.json   8192 bytes, see `manifest.py`. It is written last: a file that was not finished has none
    kvp2p.toml      the settings
    cluster.key     unless it was left out
    store.mdb       the store, compacted. Not by the name it has in a directory: unpacking is not restoring, because a restored
                    store is marked (see `restore.py`)
"""

from __future__ import annotations

import hashlib
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import kvp2p
from kvp2p.cluster_key import read_cluster_key
from kvp2p.config import CONFIG_FILE, KEY_FILE, STORE_DIRECTORY, load_config
from kvp2p.errors import ConfigError, StoreError
from kvp2p.replacement import replacement, sync_directory
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.snapshot import Snapshot, open_snapshot
from kvp2p.supervisor.manifest import (
    DIGEST_BYTES,
    MANIFEST_BYTES,
    MANIFEST_FILE,
    STORE_FILE,
    Manifest,
    StoredFile,
    describe_store,
)

_SETTINGS_BYTES_MAX: Final = 1 << 20  # a settings or key file that is longer is none; guess

OnProgress = Callable[[int, int], None]
"""Called with the bytes that are done and how many there are in all, about."""


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made."""

    file: Path
    file_bytes: int
    manifest: Manifest


def make_backup(
    directory: Path,
    file: Path,
    *,
    has_key: bool = True,
    overwrites: bool = False,
    on_progress: OnProgress | None = None,
) -> Made:
    """Write a backup of the node in a data directory, running or not, into `file`.

    Raises ConfigError when there is something at `file` (unless `overwrites`), no node in the directory or (with `has_key`) not the key of
    its cluster, StoreError when the store cannot be read or the file cannot be written. Nothing is left of a backup that was not finished;
    one that was stays where only its directory could not be synced.
    """
    file = file.absolute()
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is there already, and is no file; name another place")
    if file.exists() and not overwrites:
        raise ConfigError(f"{file} is there already; name another file, or replace it with --overwrite")
    load_config(directory / CONFIG_FILE)
    key = read_cluster_key(directory / KEY_FILE) if has_key else None
    small = {name: _small_file(directory / name) for name in (CONFIG_FILE, *((KEY_FILE,) if has_key else ()))}
    with LmdbStore.open(directory / STORE_DIRECTORY, readonly=True) as store, open_snapshot(store) as snapshot:
        cluster = snapshot.reader.identity.cluster
        if key is not None and key.cluster != cluster:  # which would be refused when it is restored
            raise ConfigError(
                f"{directory / KEY_FILE} is of cluster {key.cluster.hex()}, the node of {cluster.hex()}; copy that of another member there"
            )
        try:
            with replacement(file, is_secret=True) as stream:
                manifest = _write(stream, small, snapshot, on_progress)
                if file.exists() and not overwrites:
                    raise ConfigError(f"{file} was made by somebody else meanwhile; name another file")
        except OSError as error:
            raise StoreError(f"{file} cannot be written: {error}. Nothing is left of it") from error
        try:
            sync_directory(file.resolve().parent)
        except OSError as error:
            raise StoreError(
                f"{file} is whole, but its directory cannot be synced: {error}. It may be gone after a crash of this machine"
            ) from error
    return Made(file, file.stat().st_size, manifest)


def _write(stream: IO[bytes], small: dict[str, bytes], snapshot: Snapshot, on_progress: OnProgress | None) -> Manifest:
    made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    stream.write(bytes(tarfile.BLOCKSIZE + MANIFEST_BYTES))  # the place of the manifest
    files = {name: _add(stream, name, [content]) for name, content in small.items()}
    files[STORE_FILE] = _add(stream, STORE_FILE, _with_progress(snapshot, on_progress))
    stream.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar
    manifest = describe_store(snapshot.reader, made_by=kvp2p.__version__, made_at=made_at, files=files)
    stream.seek(0)
    stream.write(_head(MANIFEST_FILE, MANIFEST_BYTES) + manifest.encode())
    return manifest


def _with_progress(snapshot: Snapshot, on_progress: OnProgress | None) -> Iterator[bytes]:
    done, total = 0, snapshot.bytes_in_use
    for chunk in snapshot.chunks():
        yield chunk
        done += len(chunk)
        if on_progress is not None:
            on_progress(done, max(done, total))


def _small_file(path: Path) -> bytes:
    content = path.read_bytes()
    if len(content) > _SETTINGS_BYTES_MAX:
        raise ConfigError(f"{path} has {len(content)} bytes, which is too much for what it should hold")
    return content


def _add(stream: IO[bytes], name: str, chunks: Iterable[bytes]) -> StoredFile:
    """Write a member of the tar, whose length is known when it is written: its head is filled in afterwards."""
    head_at = stream.tell()
    stream.write(bytes(tarfile.BLOCKSIZE))
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    length = 0
    for chunk in chunks:
        stream.write(chunk)
        digest.update(chunk)
        length += len(chunk)
    stream.write(bytes(-length % tarfile.BLOCKSIZE))
    end_at = stream.tell()
    stream.seek(head_at)
    stream.write(_head(name, length))
    stream.seek(end_at)
    return StoredFile(bytes=length, blake2b=digest.hexdigest())


def _head(name: str, length: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = length
    info.mode = 0o600
    info.mtime = int(time.time())
    head = info.tobuf(tarfile.GNU_FORMAT)  # which has room for lengths of over 8 GiB
    assert len(head) == tarfile.BLOCKSIZE
    return head
