"""`kvp2p get`, `put`, `delete`, `list`: single keys.

Decides: what is printed where: a value goes to stdout byte for byte, remarks and progress go to stderr.
Keeps true: I10, a write is sent once and its outcome is the exit code. A key is taken as it stands: `..x`, `a//b` and `%41` mean what
    they say, unless --encoded is given. Bytes that are no UTF-8 are sent as they are, and the node refuses them. A large value is not kept in
    memory, and what is interrupted before its last part leaves is not stored.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import unquote_to_bytes

import typer

from kvp2p.cli.failures import NOT_FOUND, Failure, usage
from kvp2p.cli.output import byte_progress, print_table, say, shown
from kvp2p.cli.session import Json, Session, Token, Url, failed, print_json, session_of
from kvp2p.cli.values import LARGE_BYTES, open_sink, open_source
from kvp2p.limits import EXPIRES_AT_MAX, EXPIRES_IN_MAX, TTL_SECONDS_MIN

if TYPE_CHECKING:
    from kvp2p.client import Client, Found, KeyInfo, KeyPage, WriteOutcome

_BAD_ENCODING: Final = re.compile("%(?![0-9A-Fa-f]{2})")

Namespace = Annotated[str, typer.Argument(help="Namespace: its title or its id.", show_default=False)]
Key = Annotated[str, typer.Argument(help="Key, 1 to 512 bytes of UTF-8, as it is; see --encoded.", show_default=False)]
Encoded = Annotated[bool, typer.Option("--encoded", help="KEY is percent-encoded, as in a URL: a%20b, %00.")]
IfMatch = Annotated[
    str | None,
    typer.Option("--if-match", help="Only if this version stands there.", metavar="VERSION", show_default=False),
]


def get(
    context: typer.Context,
    namespace: Namespace,
    key: Key,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the value to this file.", show_default=False)
    ] = None,
    min_version: Annotated[
        str | None,
        typer.Option(help="Wait until the node has this version.", metavar="VERSION", show_default=False),
    ] = None,
    encoded: Encoded = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Print a value, byte for byte and with nothing added.

    Examples:
      kvp2p get settings theme
      kvp2p get images logo.png > logo.png
      kvp2p get settings theme --json     value, metadata, version and expiry
      kvp2p get notes 'shopping list'     the key as it is: %20 would be three characters
      kvp2p get notes --encoded shopping%20list%0A
      kvp2p get notes -- -draft           a key that begins with a dash
    """
    session = session_of(context, url, token, as_json)
    _check_version("--min-version", min_version)
    key_bytes = _key_bytes(key, encoded=encoded)

    kept = BytesIO()  # the value, when it is printed as JSON

    async def read(client: Client) -> Found | None:
        async with client.open_value(namespace, key_bytes, min_version=min_version) as value:
            if value is None:
                return None
            is_printed = session.as_json and output is None
            sink = nullcontext(kept.write) if is_printed else open_sink(output)
            is_long = value.value_bytes > LARGE_BYTES
            done = 0
            with sink as take, byte_progress("reading", is_long=is_long) as on_progress:
                while part := await value.next_part():
                    take(part)
                    done += len(part)
                    on_progress(done, value.value_bytes)
            return value.head

    try:
        found = session.run(read, connects_at_once=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        usage(f"{output or 'stdout'} cannot be written: {error.strerror}")
    if found is None:
        raise Failure(NOT_FOUND, "key_not_found", f"there is no value under the key {shown(key)!r}", "")
    if session.as_json:
        print_json(_described(key, found, kept.getvalue() if output is None else None))


def put(
    context: typer.Context,
    namespace: Namespace,
    key: Key,
    value: Annotated[
        str | None, typer.Argument(help="Value. Without it and without --file, stdin is read.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Store this file's bytes; - is stdin.", show_default=False)
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help="Any JSON value, up to 1024 bytes.", metavar="JSON", show_default=False)
    ] = None,
    expires_in: Annotated[
        int | None,
        typer.Option(
            help="Seconds until it ends; 60 or more.", min=TTL_SECONDS_MIN, max=EXPIRES_IN_MAX, show_default=False
        ),
    ] = None,
    expires_at: Annotated[
        int | None,
        typer.Option(
            help="Unix seconds at which it ends, a minute from now or later.",
            min=1,
            max=EXPIRES_AT_MAX,
            show_default=False,
        ),
    ] = None,
    if_match: IfMatch = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if the key has no value.")] = False,
    encoded: Encoded = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Store a value and print its version, once it is synced on the leader's disk.

    Examples:
      kvp2p put settings theme dark
      kvp2p put images logo.png --file logo.png --metadata '{"type":"image/png"}'
      date | kvp2p put settings started
      kvp2p put locks job-7 mine --if-absent --expires-in 3600
      kvp2p put videos intro --file intro.mp4      up to 25 MiB
      kvp2p put settings offset -- -5              a value or key that begins with a dash
    """
    session = session_of(context, url, token, as_json)
    if value is not None and file is not None:
        usage("give a value or --file, not both")
    if if_match is not None and if_absent:
        usage("give --if-match or --if-absent, not both")
    if expires_in is not None and expires_at is not None:
        usage("give --expires-in or --expires-at, not both")
    _check_version("--if-match", if_match)
    key_bytes = _key_bytes(key, encoded=encoded)
    parsed = _parse_metadata(metadata)
    told: dict[str, Any] = {"if_match": if_match, "if_none_match": if_absent}
    told |= {"expires_in_s": expires_in, "expires_at": expires_at}
    is_sent = False

    def note_sent() -> None:
        nonlocal is_sent
        is_sent = True

    with open_source(value, file) as source:
        if source.is_large:

            async def write(client: Client) -> WriteOutcome:
                with byte_progress("writing") as on_progress:
                    parts = source.parts(on_progress)
                    return await client.put_from(
                        namespace, key_bytes, parts, source.value_bytes, parsed, on_sent=note_sent, **told
                    )

            try:
                outcome = session.run(write, writes=lambda: is_sent, connects_at_once=False)
            except ValueError:
                usage(f"{source.name} became shorter while it was read; nothing was stored")
        else:
            body = source.read()
            outcome = session.run(lambda client: client.put(namespace, key_bytes, body, parsed, **told), writes=True)
    _print_outcome(session, outcome)


def delete(
    context: typer.Context,
    namespace: Namespace,
    key: Key,
    if_match: IfMatch = None,
    encoded: Encoded = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Delete a key, whether or not it has a value, and print the version of that.

    Examples:
      kvp2p delete settings theme
      kvp2p delete settings theme --if-match 000000010193...
    """
    session = session_of(context, url, token, as_json)
    _check_version("--if-match", if_match)
    key_bytes = _key_bytes(key, encoded=encoded)

    async def write(client: Client) -> WriteOutcome:
        return await client.delete(namespace, key_bytes, if_match=if_match)

    _print_outcome(session, session.run(write, writes=True))


def list_keys(
    context: typer.Context,
    namespace: Namespace,
    prefix: Annotated[str, typer.Option(help="Only keys that start so.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(help="Keys to ask for, 1 to 1000.", min=1, max=1000)] = 1000,
    cursor: Annotated[
        str | None, typer.Option(help="Go on where a list with this cursor has ended.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Go on to the end, page by page.")] = False,
    is_long: Annotated[bool, typer.Option("--long", "-l", help="Versions, expiry and metadata too.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List keys in byte order, one in a line.

    Examples:
      kvp2p list settings
      kvp2p list logs --prefix 2026-11- --all
      kvp2p list settings --long          versions, expiry and metadata too
    """
    session = session_of(context, url, token, as_json)
    listed: list[KeyInfo] = []

    async def read(client: Client) -> KeyPage:
        at = cursor
        while True:
            page = await client.list_keys(namespace, os.fsencode(prefix), limit, at)
            listed.extend(page.keys)
            at = page.cursor
            if at is None or not everything:
                return page
            if not (session.as_json or is_long):
                _print_names(listed)
                listed.clear()

    last = session.run(read)
    if session.as_json:
        document: dict[str, Any] = {
            "keys": [_listed(one) for one in listed],
            "list_complete": last.cursor is None,
        }
        print_json(document if last.cursor is None else {**document, "cursor": last.cursor})
        return
    if is_long:
        _print_details(listed)
    else:
        _print_names(listed)
    if last.cursor is not None:
        say(f"There are more keys: --all, or --cursor {last.cursor}")


def _print_names(listed: list[KeyInfo]) -> None:
    for one in listed:
        sys.stdout.write(shown(one.name) + "\n")


def _print_details(listed: list[KeyInfo]) -> None:
    rows = [
        (
            one.name,
            one.version,
            "never" if one.expires_at is None else _moment(one.expires_at),
            "" if one.metadata is None else json.dumps(one.metadata, ensure_ascii=False),
        )
        for one in listed
    ]
    print_table(("NAME", "VERSION", "EXPIRES", "METADATA"), rows, folds="NAME")


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _listed(one: KeyInfo) -> dict[str, Any]:
    document: dict[str, Any] = {"name": one.name, "version": one.version}
    if one.metadata is not None:
        document["metadata"] = one.metadata
    if one.expires_at is not None:
        document["expiration"] = one.expires_at
    return document


def _described(key: str, found: Found, value: bytes | None) -> dict[str, Any]:
    document: dict[str, Any] = {"key": key}
    if value is not None:
        try:
            document["value"] = value.decode("utf-8")
        except UnicodeDecodeError:
            document |= {"value": base64.b64encode(value).decode("ascii"), "base64": True}
    return {**document, "version": found.version, "metadata": found.metadata, "expires_at": found.expires_at}


def _print_outcome(session: Session, outcome: WriteOutcome) -> None:
    from kvp2p.client import Acked

    if not isinstance(outcome, Acked):
        raise failed(outcome)
    if session.as_json:
        print_json({"version": outcome.version, "visible": outcome.is_visible})
        return
    sys.stdout.write(outcome.version + "\n")
    if not outcome.is_visible:
        say("The write is durable, but this node does not show it yet; read with --min-version to wait for it.")


def _key_bytes(key: str, *, encoded: bool) -> bytes:
    if not key:
        usage("a key may not be empty")
    if not encoded:
        return os.fsencode(key)
    if _BAD_ENCODING.search(key):
        usage(f"{shown(key)!r} has a bad encoding: after each % there must be two hex digits (%25 is the % itself)")
    return unquote_to_bytes(os.fsencode(key))


def _parse_metadata(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        usage(f"--metadata must be JSON: {error}")


def _check_version(option: str, version: str | None) -> None:
    if version is not None and (len(version) != 40 or set(version) - set("0123456789abcdef")):
        usage(f"{option} must be a version, 40 lower-case hex digits, as put and list print them")
