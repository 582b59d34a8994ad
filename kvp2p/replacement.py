"""Files that take their place when they are whole, or not at all.

Decides: where a file stands while it is written (beside its place, under a hidden name with the process's id), and who may read it.
Keeps true: at every moment, after a crash too, the place has what it had before or all of the new file. Which of them a crash leaves is settled
when `sync_directory` has returned: who promises that the file lasts calls it before.
In and out: a path in, a stream to write to out. OSError as the system gives it; who asked says what it means.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacement(path: Path, *, is_secret: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when the block ends well; otherwise `path` stays as it was.

    It may be read and written anywhere. Of a link, what it points to is replaced. A new file has the mode of the old one, or the usual mode; with
    `is_secret` only its owner may read it. A pipe or a device is written to as it is, since there is no old content to keep.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            yield stream
        return
    beside = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if is_secret else 0o666)
        with os.fdopen(descriptor, "w+b") as stream:
            if target.exists() and not is_secret:
                shutil.copymode(target, beside)
            yield stream
            stream.flush()
            os.fsync(descriptor)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Let the names in a directory be durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
