"""What commands print for people: tables on a terminal, tab-separated lines elsewhere; and how far work has come that takes long.

Decides: how a table looks; when progress is shown; which characters of a name are shown escaped (a terminal is not to be steered by a key).
In and out: columns and rows of text in. `add_command` makes help of a docstring: its paragraphs after the first keep their lines.
"""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kvp2p.supervisor.backup import OnProgress


def shown(text: str) -> str:
    """Return a name as one printable line."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def say(text: str) -> None:
    """Print a remark to stderr, so that stdout holds the result alone."""
    sys.stderr.write(text + "\n")


def columns_shown() -> int | None:
    """Return the width of the terminal that stdout is, None when it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, folds: str) -> None:
    """Print rows under column heads. On a terminal that is too narrow the column `folds` is given several lines."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            sys.stdout.write("\t".join(map(shown, row)) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != folds)
    for row in rows:
        table.add_row(*(Text(shown(one)) for one in row))
    Console(highlight=False).print(table)


@contextmanager
def byte_progress(word: str, *, is_long: bool = True) -> Iterator[OnProgress]:
    """Show on stderr, when that is a terminal and the work `is_long`, how far it has come; give the function to tell it to."""
    if not is_long or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(word), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(word, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def add_command(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Add a command whose help is the docstring of its function, examples and all."""
    first, *others = (inspect.getdoc(function) or "").split("\n\n")
    # A paragraph that begins with a backspace keeps its lines: that is how the help formatter is told.
    app.command(name, help="\n\n".join([first, *(f"\b\n{one}" for one in others)]))(function)
