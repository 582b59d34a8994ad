"""The shim between LMDB and the kernel (`disk_shim.c`): compiling it, letting calls fail, reading its traces."""

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_suffix(".c")
WRITE, SYNC, TRUNCATE = 1, 2, 3
_HEAD = struct.Struct("=IIQQ")


class Call(NamedTuple):
    """A call of a trace. `number` is one of the above, or a higher one that a program added of itself with `add_mark`."""

    number: int
    is_synced: bool
    offset: int
    data: bytes


def compile_shim(directory: Path) -> Path:
    """Compile the shim; return the library to preload."""
    library = directory / "disk_shim.so"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def shim_environment(
    library: Path, file: str, *, trace: Path | None = None, faults: Path | None = None
) -> dict[str, str]:
    """Return the environment of a process whose files that end in `file` are watched."""
    chosen = {"DISK_SHIM_TRACE": trace, "DISK_SHIM_FAULTS": faults}
    paths = {name: str(path) for name, path in chosen.items() if path is not None}
    return {**os.environ, "LD_PRELOAD": str(library), "DISK_SHIM_FILE": file, **paths}


def add_mark(trace: Path, number: int, value: int) -> None:
    """Add a record of one's own, from the thread that makes the calls."""
    with trace.open("ab", buffering=0) as file:
        file.write(_HEAD.pack(number, 0, value, 0))


def read_trace(trace: Path) -> Iterator[Call]:
    """Iterate over the calls of a trace."""
    data = trace.read_bytes()
    at = 0
    while at < len(data):
        number, is_synced, offset, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield Call(number, bool(is_synced), offset, data[at : at + length])
        at += length
