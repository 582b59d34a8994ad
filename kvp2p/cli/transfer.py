"""`kvp2p import` and `kvp2p export`: many keys, in Cloudflare's bulk format.

Decides: the format, a JSON array of {"key", "value", "metadata"?, "expiration"?, "base64"?}, and how much goes on at once. Entries that have
    expired by this machine's clock are left out of an import.
Keeps true: I9, so many writes are under way, with so many bytes, and no more; an export has one value in memory. I10, each is sent once; after some failures no more are begun, and the
    report, which an import that is interrupted gives as well, says how many were acknowledged, refused, unknown and not begun.
    The whole file is checked before the first write. An export takes the place of an older file when it is whole, not before.
Source: shared Cloudflare API, bulk write of Workers KV.
"""

from __future__ import annotations

import base64
import binascii
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import typer

from kvp2p.cli.failures import REFUSED, UNKNOWN, Failure, refused, usage
from kvp2p.cli.keys import Namespace
from kvp2p.cli.output import say, shown
from kvp2p.cli.session import Json, Token, Url, print_json, session_of
from kvp2p.limits import EXPIRES_AT_MAX, EXPIRES_IN_MAX, TTL_SECONDS_MIN, VALUE_BYTES_MAX
from kvp2p.replacement import replacement

if TYPE_CHECKING:
    from kvp2p.client import Client, Found, KeyInfo

FAILURES_MAX: Final = 10  # then no more writes are begun: a leader that is gone refuses them all
EXPORT_BATCH: Final = 64  # values asked for at a time; they come one after the other
UNDERWAY_BYTES_MAX: Final = 64 * 1024 * 1024  # of the values of writes under way: two of the largest; guess
_HOPELESS_CODES: Final = frozenset({"namespace_not_found"})
_FIELDS: Final = frozenset({"key", "value", "metadata", "expiration", "expiration_ttl", "base64"})


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a file, checked."""

    key: str
    value: bytes
    metadata: Any
    expires_at: int | None
    expires_in_s: int | None


@dataclass(slots=True)
class Tally:
    """How the writes of an import ended. `last_key` is that of the write that was begun last, in the order of the file.

    When `is_over` no more are begun; `hopeless` is a refusal that all others would meet as well.
    """

    begun: int = 0
    acked: int = 0
    refused: int = 0
    unknown: int = 0
    last_key: str | None = None
    failures: list[str] = field(default_factory=list)
    is_over: bool = False
    hopeless: Failure | None = None

    @property
    def failed(self) -> int:
        return self.refused + self.unknown

    def end(self) -> None:
        """Count what was begun and has no answer: nobody will hear of it any more."""
        self.unknown = self.begun - self.acked - self.refused


def import_file(
    context: typer.Context,
    namespace: Namespace,
    file: Annotated[
        Path, typer.Argument(help="JSON file in Cloudflare's bulk format; - is stdin.", show_default=False)
    ],
    parallel: Annotated[int, typer.Option(help="Writes under way at once.", min=1, max=1024)] = 128,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Store every entry of a JSON file, each by a write of its own.

    The file is an array of objects: "key", "value" (a string), and if wanted
    "metadata" (any JSON), "base64": true, "expiration" (unix seconds) or
    "expiration_ttl" (seconds, 60 or more; it counts when both are there). Entries
    that have expired are left out.
    Examples:
      kvp2p import settings dump.json
      kvp2p export settings | kvp2p import copy -
    """
    session = session_of(context, url, token, as_json)
    items = parse_bulk(_read_json(file), time.time())
    tally = Tally()

    with _progress(len(items)) as advance:

        async def load(client: Client) -> None:
            import trio

            waiting = iter(items)
            room = _Room()

            async def work(count: int) -> None:
                for item in islice(waiting, count):
                    async with room.held(len(item.value)):
                        if tally.is_over:
                            return
                        await _write(client, namespace, item, tally)
                    advance()

            async def heed_interruption(signals: AsyncIterator[int]) -> None:
                async for _ in signals:
                    # Raised here and not in a worker or a connection, where others would begin writes before they hear of it.
                    tally.is_over = True
                    raise KeyboardInterrupt

            with trio.open_signal_receiver(signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(heed_interruption, signals)
                    await work(1)  # alone: with a wrong namespace or token it is the only one
                    async with trio.open_nursery() as workers:
                        for _ in range(min(parallel, len(items))):
                            workers.start_soon(work, len(items))
                    nursery.cancel_scope.cancel()

        cut_short: Failure | None = None
        if items:
            try:
                session.run(load, connections=min(4, parallel))
            except Failure as failure:
                cut_short = failure
    tally.end()
    _report(tally, len(items), cut_short or tally.hopeless, as_json=session.as_json)


class _Room:
    """Bounds the bytes of the writes under way. A value that is larger than all of it goes alone."""

    def __init__(self) -> None:
        import trio

        self._waiting = trio.lowlevel.ParkingLot()
        self._bytes = 0

    @asynccontextmanager
    async def held(self, count: int) -> AsyncIterator[None]:
        """Have room for a value, for the length of a block."""
        while self._bytes and self._bytes + count > UNDERWAY_BYTES_MAX:
            await self._waiting.park()
        self._bytes += count
        try:
            yield
        finally:
            self._bytes -= count
            self._waiting.unpark_all()


async def _write(client: Client, namespace: str, item: Item, tally: Tally) -> None:
    from kvp2p.client import Acked, Refused

    tally.begun += 1
    tally.last_key = item.key
    outcome = await client.put(
        namespace, item.key, item.value, item.metadata, expires_in_s=item.expires_in_s, expires_at=item.expires_at
    )
    match outcome:
        case Acked():
            tally.acked += 1
        case Refused(code=code, message=message):
            tally.refused += 1
            if code in _HOPELESS_CODES or outcome.status in (401, 403):
                tally.is_over = True
                tally.hopeless = refused(code or f"http_{outcome.status}", message)
            tally.failures.append(f"{shown(item.key)}: refused, {code}: {message}")
        case _:
            tally.unknown += 1
            tally.failures.append(f"{shown(item.key)}: unknown, {outcome.reason}")
    tally.is_over = tally.is_over or tally.failed >= FAILURES_MAX


def _report(tally: Tally, total: int, cut_short: Failure | None, *, as_json: bool) -> None:
    """Say how it went; raises Failure unless all was acknowledged. `cut_short` is what ended the import before its end."""
    document: dict[str, object] = {
        "total": total,
        "acked": tally.acked,
        "refused": tally.refused,
        "unknown": tally.unknown,
        "not_begun": total - tally.begun,
        "last_key": tally.last_key,
    }
    say("{acked} of {total} written, {refused} refused, {unknown} unknown, {not_begun} not begun".format(**document))
    if cut_short is None and not tally.failed:
        if as_json:
            print_json(document)
        return
    if tally.last_key is not None:
        say(f"The last key that was begun, in the order of the file: {shown(tally.last_key)}")
    for one in tally.failures[:FAILURES_MAX]:
        say(f"  {one}")
    if cut_short is not None and not tally.begun:
        raise Failure(cut_short.status, cut_short.code, cut_short.message, cut_short.advice, document)
    code, message = ("incomplete", "the import is not complete")
    status = REFUSED
    if cut_short is not None:
        code, message, status = cut_short.code, f"{message}: {cut_short.message}", cut_short.status
    advice = "Importing a file again writes all its keys again."
    if cut_short is not None and cut_short.advice:
        advice = f"{cut_short.advice} {advice}"
    raise Failure(UNKNOWN if tally.unknown else status, code, message, advice, document)


def export(
    context: typer.Context,
    namespace: Namespace,
    prefix: Annotated[str, typer.Option(help="Only keys that start so.", show_default=False)] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.", show_default=False)
    ] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Print all keys and values as a JSON file that `kvp2p import` reads.

    Values that are no UTF-8 are written in base64. It is a walk in key order, not a
    snapshot: a key that changes meanwhile is written as it was found.
    Examples:
      kvp2p export settings > dump.json
      kvp2p export logs --prefix 2026-11- --output november.json
    """
    session = session_of(context, url, token, as_json=False)

    async def walk(client: Client, stream: TextIO) -> int:
        count, cursor, head = 0, None, "["
        while True:
            page = await client.list_keys(namespace, prefix, 1000, cursor)
            stream.write(head)  # only now: of a namespace that is not there nothing is printed
            head = ""
            for start in range(0, len(page.keys), EXPORT_BATCH):
                batch = page.keys[start : start + EXPORT_BATCH]

                def write(index: int, found: Found | None, batch: tuple[KeyInfo, ...] = batch) -> None:
                    nonlocal count
                    if found is not None:  # deleted between the list and the read
                        text = json.dumps(_exported(batch[index], found), ensure_ascii=False)
                        stream.write((",\n" if count else "\n") + text)
                        count += 1

                await client.get_each(namespace, [one.name for one in batch], write)
            cursor = page.cursor
            if cursor is None:
                stream.write("\n]\n" if count else "]\n")
                return count

    try:
        if output is None:
            count = session.run(lambda client: walk(client, sys.stdout))
        else:
            with replacement(output) as raw:
                stream = TextIOWrapper(raw, encoding="utf-8", write_through=True)
                count = session.run(lambda client: walk(client, stream))
                stream.detach()
    except BrokenPipeError:
        raise
    except OSError as error:
        usage(f"{output or 'stdout'} cannot be written: {error.strerror}")
    say("1 key" if count == 1 else f"{count} keys")


def _exported(info: KeyInfo, found: Found) -> dict[str, Any]:
    document: dict[str, Any] = {"key": info.name}
    try:
        document["value"] = found.value.decode("utf-8")
    except UnicodeDecodeError:
        document |= {"value": base64.b64encode(found.value).decode("ascii"), "base64": True}
    if found.metadata is not None:
        document["metadata"] = found.metadata
    if found.expires_at is not None:
        document["expiration"] = found.expires_at
    return document


def _read_json(file: Path) -> object:
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        usage(f"{file} cannot be read: {error.strerror}")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        usage(f"{file} is no JSON: {error}")


def parse_bulk(document: object, now: float) -> list[Item]:
    """Check a bulk document. Of a key that stands there twice the last entry counts, as at Cloudflare.

    Entries that have expired at `now` are left out: there is nothing to see of them.
    """
    if not isinstance(document, list):
        usage("the file must hold a JSON array of objects with key and value")
    items: dict[str, Item] = {}
    for number, entry in enumerate(document):
        if not isinstance(entry, dict):
            usage(f"entry {number} is no object")
        item = _parse_item(number, entry)
        items.pop(item.key, None)
        items[item.key] = item
    if len(items) < len(document):
        left_out = len(document) - len(items)
        count = "1 entry is" if left_out == 1 else f"{left_out} entries are"
        say(f"{count} followed by a later one for the same key and left out")
    alive = [one for one in items.values() if one.expires_in_s is not None or (one.expires_at or EXPIRES_AT_MAX) > now]
    if len(alive) < len(items):
        left_out = len(items) - len(alive)
        count = "1 entry has expired and is" if left_out == 1 else f"{left_out} entries have expired and are"
        say(f"{count} left out")
    return alive


def _parse_item(number: int, entry: Mapping[str, Any]) -> Item:
    where = f"entry {number}"
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        usage(f"{where} has the field {shown(str(unknown[0]))!r}, which the bulk format does not know")
    key, value = entry.get("key"), entry.get("value")
    if not isinstance(key, str) or not key or not isinstance(value, str):
        usage(f"{where} needs a key (a string, not empty) and a value (a string)")
    if any("\ud800" <= one <= "\udfff" for one in key):
        usage(f"{where}, key {shown(key)!r}: half of a surrogate pair is no character")
    if entry.get("base64"):
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            usage(f"{where}, key {shown(key)!r}: the value is no base64: {error}")
    else:
        raw = value.encode("utf-8", "surrogatepass")
    if len(raw) > VALUE_BYTES_MAX:
        usage(f"{where}, key {shown(key)!r}: the value has {len(raw)} bytes; {VALUE_BYTES_MAX} are the limit")
    for name, least, most in (("expiration", 1, EXPIRES_AT_MAX), ("expiration_ttl", TTL_SECONDS_MIN, EXPIRES_IN_MAX)):
        seconds = entry.get(name)
        if seconds is not None and (type(seconds) is not int or not least <= seconds <= most):
            usage(f"{where}, key {shown(key)!r}: {name} must be a whole number of seconds from {least} to {most}")
    return Item(key, raw, entry.get("metadata"), entry.get("expiration"), entry.get("expiration_ttl"))


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Show progress on stderr when that is a terminal; give a function to call once per write."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("writing", total=total)
        yield lambda: progress.advance(task)
