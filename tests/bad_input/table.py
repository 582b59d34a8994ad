"""The whole table of bad input, and the Markdown that the README shows of it: `scripts/bad_input_table` prints that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.bad_input.abuse_table import ABUSE
from tests.bad_input.config_table import CONFIG
from tests.bad_input.http_table import HTTP_GROUPS
from tests.bad_input.mesh_table import MESH_GROUPS
from tests.bad_input.rows import PlayRow

BEGIN, END = "<!-- bad input: begin -->", "<!-- bad input: end -->"


def markdown() -> str:
    """Return the table as it stands in the README, between the two markers."""
    return "\n".join(["", *_http(), "", *_abuse(), "", *_mesh(), "", *_config(), "", ""])


def put_into(text: str) -> str:
    """Return a document with the table in the place of what stands between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no {BEGIN} with an {END} behind it")
    return f"{before}{BEGIN}\n{markdown()}{END}{after}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*("---" for _ in cells))]


def _http() -> Iterator[str]:
    yield from _head("over HTTP", "answer", "connection")
    for group, rows in HTTP_GROUPS.items():
        yield _row(f"**{group}**", "", "")
        for row in rows:
            yield _row(row.what, row.shown, "closed" if row.closes else "kept")


def _abuse() -> Iterator[str]:
    yield from _head("slow clients and crowds", "how it ends", "")
    yield from (_row(row.what, _ending(row), row.note) for row in ABUSE)


def _mesh() -> Iterator[str]:
    yield from _head("over the mesh port", "what the other end is told", "in the log, and what else there is to say")
    for group, rows in MESH_GROUPS.items():
        yield _row(f"**{group}**", "", "")
        for row in rows:
            logged = f"`{row.log.removeprefix('n2: ')}`" if row.log else ""
            yield _row(row.what, _ending(row), _joined(logged, row.note))


def _config() -> Iterator[str]:
    yield from _head("in `kvp2p.toml`", "the node does not start, and says")
    yield from (_row(row.what, f"`{row.says}`") for row in CONFIG)


def _ending(row: PlayRow) -> str:
    return f"`{row.ends}`" if row.is_told else row.ends


def _joined(*parts: str) -> str:
    return "; ".join(_kept(parts))


def _kept(parts: Iterable[str]) -> Iterator[str]:
    return (part for part in parts if part)
