"""The document of a run as text for a terminal. It says nothing that the document does not hold, and leaves out nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 120
_Row = Mapping[str, Any]


def text_of(document: Mapping[str, Any]) -> str:
    """Return the whole document as lines."""
    here = document["machine"]
    lines = [
        f"machine   {here['processor']}, {here['cores']} cores, {here['system']}, Python {here['python']}",
        f"load      {here['load_average']:.1f} at the start (anything above 0 takes from these figures)",
        f"commit    {document['commit']}, {document['at']}",
    ]
    for figure in document["figures"]:
        lines += ["", *_figure_lines(figure)]
    for name, reason in document["not_measured"].items():
        lines += ["", f"{name}: not measured. {reason}"]
    return "\n".join(lines)


def shown(number: float) -> str:
    """Return a number with about three digits that count."""
    size = abs(number)
    return f"{number:,.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.2f}"


def _figure_lines(figure: Mapping[str, Any]) -> Iterator[str]:
    method = f"{figure['method']} Median of {figure['repetitions']} repetitions (least–greatest)."
    yield from textwrap.wrap(
        f"{figure['name']}: {method}", WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    for table in _tables(figure["rows"]):
        yield from _table_lines(table)
    for row in figure["rows"]:
        for budget in row["budgets"]:
            limit = f"≤ {budget['at_most']:g}" if "at_most" in budget else f"≥ {budget['at_least']:g}"
            verdict = "kept" if budget["is_kept"] else "NOT kept"
            median = shown(row["cells"][budget["column"]]["median"])
            yield f"  budget: {row['what']}, {budget['column'].replace('_', ' ')} {limit}: {verdict} ({median})"


def _tables(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Return the rows in groups that share columns: where none is shared, a new table begins."""
    tables: list[list[_Row]] = []
    for row in rows:
        if tables and any(column in one["cells"] for one in tables[-1] for column in row["cells"]):
            tables[-1].append(row)
        else:
            tables.append([row])
    return tables


def _table_lines(rows: Sequence[_Row]) -> Iterator[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row["cells"]))
    table = [["", *(column.replace("_", " ") for column in columns)]]
    table += [[row["what"], *(_cell(row["cells"].get(column)) for column in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = "".join(f"  {cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield f"  {first:<{widths[0]}}{cells}".rstrip()


def _cell(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    return f"{shown(spread['median'])} ({shown(spread['least'])}–{shown(spread['greatest'])})"
