"""LMDB environments: opening the file, sharing it within a process, and turning its errors into ours.

Decides: the options that every process opens the file with, and which of our errors an LMDB error is.
Keeps true: I5, full sync is never switched off (`metasync=False` lost one acknowledged write in 309 rebuilt crash images,
`sync=False` left files that kill the interpreter). One process maps a file once, as LMDB demands.
In and out: a directory in, an open `Environment` with its tables out.

The map is 1 TiB of address space by default: the file is sparse below it, and growing a map raises MapResizedError in every
reader process. LMDB 0.9 (data format 1) is named explicitly, so that no environment variable changes what is on disk.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import lmdb

from kvp2p.errors import StoreError, StoreFormatError, StoreFull
from kvp2p.limits import SPARE_TRANSACTIONS_MAX, STORE_READERS_MAX
from kvp2p.store.meta import FORMAT_KEY, OLD_FORMAT, check_format
from kvp2p.store.migration import migrate
from kvp2p.store.tables import META, TABLE_NAMES

DATA_FILE: Final = "data.mdb"
MAP_BYTES_DEFAULT: Final = 1 << 40
TABLES_MAX: Final = 16  # ten now
LIB_VERSION: Final = 0  # LMDB 0.9
# guess: a commit that failed below this much free space failed for lack of it
DISK_FULL_BYTES: Final = 16 * 1024 * 1024

FileKey = tuple[int, int]
Migrating = Callable[[], AbstractContextManager[object]]
"""Makes what a store is brought to the present format in: entered before, left after."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


def free_bytes(directory: Path) -> int:
    """Return the bytes that are left to the store of a directory: on its file system, and below the limit on file sizes."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    below_limit = _bytes_below_limit(directory)
    return free if below_limit is None else min(free, below_limit)


def _bytes_below_limit(directory: Path) -> int | None:
    """Return by how much the data file may grow before it meets RLIMIT_FSIZE, None without such a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)  # asked each time: prlimit(1) can change it
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        size = (directory / DATA_FILE).stat().st_size
    except OSError:
        size = 0
    return max(0, limit - size)


def fullness(directory: Path) -> str:
    """Say of a full store what is full, and what to do: what follows on `the store in DIRECTORY`."""
    below_limit = _bytes_below_limit(directory)
    if below_limit is not None and below_limit <= free_bytes(directory):
        return "has reached the limit on the size of a file (RLIMIT_FSIZE): raise it, with prlimit or ulimit -f"
    return "is on a disk that is full: make room there"


def translate(error: lmdb.Error, where: Path, free: Callable[[], int]) -> StoreError:
    """Return what an LMDB error means. The transaction it struck is not applied.

    A full disk shows as `Input/output error` when LMDB's write comes back short, so the space that is left decides. A limit
    on the size of files is a full disk to us.
    """
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(f"the store in {where} has used its map: raise store.map_bytes and restart the node")
    if code in _FULL or (code == errno.EIO and free() < DISK_FULL_BYTES):
        return StoreFull(f"the store in {where} {fullness(where)}. The node goes on by itself ({error})")
    if code == errno.EIO:
        return StoreError(
            f"the disk of the store in {where} has failed: {error}. Look at the kernel's log, and move the directory "
            "to another disk if it happens again. The node starts again from what is synced"
        )
    if code in _FORBIDDEN:
        return StoreError(
            f"the store in {where} cannot be written: {error}. Give it to the user that kvp2p runs as, and see that its "
            "file system is not mounted read-only"
        )
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError):
        return StoreFormatError(f"{where} holds a {DATA_FILE} that is not an LMDB 0.9 file: {error}")
    if isinstance(error, lmdb.ReadersFullError):
        return StoreError(f"all {STORE_READERS_MAX} reader slots of {where} are taken: {error}")
    return StoreError(f"the store in {where} failed: {error}")


@dataclass(slots=True, eq=False)
class Environment:
    """An open file with its tables. `users` counts who has it open in this process."""

    directory: Path
    file: FileKey
    handle: lmdb.Environment
    is_readonly: bool
    tables: dict[str, Any] = field(default_factory=dict)  # table name → LMDB's handle, which has no public type
    users: int = 1

    def bytes_in_use(self, transaction: lmdb.Transaction[Any]) -> int:
        """Return what the pages take that a transaction's trees have: the file without the pages that are free."""
        trees = [transaction.stat(), *(transaction.stat(table) for table in self.tables.values())]
        pages = sum(tree["branch_pages"] + tree["leaf_pages"] + tree["overflow_pages"] for tree in trees)
        return pages * trees[0]["psize"]

    def release(self) -> None:
        """Close the file when nobody in this process uses it any more."""
        with _lock:
            self.users -= 1
            if self.users == 0:
                _open.pop(self.file, None)
                self.handle.close()


_open: dict[FileKey, Environment] = {}
_lock = threading.Lock()


def file_key(directory: Path) -> FileKey | None:
    """Return what identifies the data file of a directory, None when there is none."""
    try:
        status = (directory / DATA_FILE).stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the store in {directory} cannot be read: {error}") from error
    return status.st_dev, status.st_ino


def make_environment(directory: Path, map_bytes: int) -> Environment:
    """Open a directory for a store that is to be made. The caller makes the tables and then calls `release`.

    Raises StoreError when there is one already.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = _open_file(directory, map_bytes, readonly=False)
    except OSError as error:
        raise StoreError(f"no store can be made in {directory}: {error}") from error
    file = file_key(directory)
    assert file is not None
    if handle.stat()["entries"]:
        handle.close()
        raise StoreError(f"{directory} holds a store already; nothing was changed")
    return Environment(directory, file, handle, is_readonly=False)


def open_environment(directory: Path, map_bytes: int, *, readonly: bool, migrating: Migrating) -> Environment:
    """Open the store of a directory, or share it with those who have it open in this process.

    Opening for writing rewrites a store of the older format, in one transaction inside `migrating`; kvp2p of that format refuses it
    from then on. Raises StoreFormatError when it is of another format or no store (StoreOutdated when it is of the older format and
    `readonly`), StoreError when it is not there or not complete.
    """
    file = file_key(directory)
    if file is None:
        raise StoreError(f"there is no store in {directory}: make one with `kvp2p init`")
    with _lock:
        shared = _open.get(file)
        if shared is not None:
            if shared.is_readonly and not readonly:
                raise StoreError(f"this process reads {directory} already: open it for writing first")
            shared.users += 1
            return shared
        if (directory / DATA_FILE).stat().st_size == 0:
            raise _not_complete(directory)
        handle = _open_file(directory, map_bytes, readonly=readonly)
        environment = Environment(directory, file, handle, readonly)
        try:
            _open_tables(environment, migrating)
            if file_key(directory) != file:
                raise StoreError(f"the store in {directory} was replaced while it was opened: open it again")
        except StoreError:
            handle.close()
            raise
        _open[file] = environment
        return environment


def _not_complete(directory: Path) -> StoreError:
    return StoreError(f"the store in {directory} is not complete: `kvp2p init` is still at it, or was interrupted")


def _open_file(directory: Path, map_bytes: int, *, readonly: bool) -> lmdb.Environment:
    try:
        return lmdb.open(
            str(directory),
            map_size=0 if readonly else map_bytes,  # 0: what the last writer left in the file
            readonly=readonly,
            create=not readonly,
            mode=0o600,
            max_readers=STORE_READERS_MAX,
            max_dbs=TABLES_MAX,
            max_spare_txns=SPARE_TRANSACTIONS_MAX,
            lib_version=LIB_VERSION,
        )
    except lmdb.Error as error:
        raise translate(error, directory, lambda: free_bytes(directory)) from error


def _open_tables(environment: Environment, migrating: Migrating) -> None:
    handle, where = environment.handle, str(environment.directory)
    try:
        if not handle.stat()["entries"]:
            raise _not_complete(environment.directory)
        try:
            table = handle.open_db(META.encode(), create=False)
        except (lmdb.NotFoundError, lmdb.IncompatibleError) as error:
            raise StoreFormatError(f"{where} is an LMDB file, but not a store of kvp2p") from error
        with handle.begin(db=table) as transaction:
            older = None if environment.is_readonly else OLD_FORMAT
            made = check_format(transaction.get(FORMAT_KEY), where, older=older)
        if made == OLD_FORMAT:
            with migrating():
                migrate(handle)
        environment.tables = {name: handle.open_db(name.encode(), create=False) for name in TABLE_NAMES}
    except lmdb.Error as error:
        raise translate(error, environment.directory, lambda: free_bytes(environment.directory)) from error
