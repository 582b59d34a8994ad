"""Where the values of commands come from and go to: an argument, files, stdin, stdout.

Decides: which values are large, so that they are sent part by part and their progress is shown on a terminal.
Keeps true: [I9] a large value is never whole in memory; stdin, whose length nobody knows, is put aside before anything is sent, and no
    further than the limit. A file that is written takes the place of an older one when it is whole, not before.
In and out: paths and streams in; a `Source`, or a function that takes the parts of a value, out. What the system says of a path that cannot be
    used ends the command as wrong usage.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

from kvp2p.cli.failures import refused, usage
from kvp2p.cli.output import say
from kvp2p.limits import VALUE_BYTES_MAX
from kvp2p.replacement import replacement

if TYPE_CHECKING:
    from kvp2p.supervisor.backup import OnProgress

LARGE_BYTES: Final = 1024 * 1024  # guess: up to here a value is a matter of a moment
PART_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """A value that is to be sent. `name` is what messages call it."""

    name: str
    stream: IO[bytes]
    value_bytes: int

    @property
    def is_large(self) -> bool:
        """Whether it is sent part by part."""
        return self.value_bytes > LARGE_BYTES

    def read(self) -> bytes:
        """Return it whole."""
        try:
            return self.stream.read()
        except OSError as error:
            usage(f"{self.name} cannot be read: {error.strerror}")

    def parts(self, on_progress: OnProgress) -> Iterator[bytes]:
        """Give it part by part, and say how far it has come."""
        done = 0
        while True:
            try:
                part = self.stream.read(PART_BYTES)
            except OSError as error:
                usage(f"{self.name} cannot be read: {error.strerror}")
            if not part:
                return
            done += len(part)
            on_progress(done, self.value_bytes)
            yield part


@contextmanager
def open_source(value: str | None, file: Path | None) -> Iterator[Source]:
    """Open the value of a command: the argument, else the file, else stdin."""
    with SpooledTemporaryFile[bytes](max_size=LARGE_BYTES) as aside:
        name = "the value"
        if value is not None:
            aside.write(os.fsencode(value))
        elif file is None or str(file) == "-":
            if file is None and sys.stdin.isatty():
                say("Reading the value from the terminal; end it with Ctrl-D.")
            name = "stdin"
            _put_aside(sys.stdin.buffer, aside, name)
        else:
            name = str(file)
            with _opened(file) as stream:
                status = os.fstat(stream.fileno())
                if stat.S_ISREG(status.st_mode):
                    yield Source(name, stream, status.st_size)
                    return
                _put_aside(stream, aside, name)
        value_bytes = aside.tell()
        aside.seek(0)
        yield Source(name, aside, value_bytes)


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        usage(f"{file} cannot be read: {error.strerror}")


def _put_aside(stream: IO[bytes], aside: IO[bytes], name: str) -> None:
    left = VALUE_BYTES_MAX + 1
    try:
        while left and (part := stream.read(min(left, PART_BYTES))):
            left -= len(part)
            aside.write(part)
    except OSError as error:
        usage(f"{name} cannot be read: {error.strerror}")
    if not left:
        raise refused(
            "value_too_large", f"{name} has more than {VALUE_BYTES_MAX} bytes, which are the limit; nothing was sent"
        )


@contextmanager
def open_sink(output: Path | None) -> Iterator[Callable[[bytes], Any]]:
    """Give a function that takes the parts of a value: for a file, or stdout."""
    if output is None:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    with replacement(output) as stream:
        yield stream.write
