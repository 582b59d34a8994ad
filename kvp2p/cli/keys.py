"""`kvp2p get`, `put`, `delete`, `list`: single keys.

Decides: what is printed where: a value goes to stdout byte for byte, remarks go to stderr.
Keeps true: I10, a write is sent once and its outcome is the exit code. A key is taken as it stands: `..x`, `a//b` and `%41` mean what
    they say, unless --encoded is given. Bytes that are no UTF-8 are sent as they are, and the node refuses them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import unquote_to_bytes

import typer

from kvp2p.cli.failures import NOT_FOUND, Failure, usage
from kvp2p.cli.output import say, shown
from kvp2p.cli.session import Json, Session, Token, Url, failed, print_json, session_of

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
      kvp2p get settings theme --json     value, metadata and version
      kvp2p get notes 'shopping list'     the key as it is: %20 would be three characters
      kvp2p get notes --encoded shopping%20list%0A
      kvp2p get notes -- -draft           a key that begins with a dash
    """
    session = session_of(context, url, token, as_json)
    _check_version("--min-version", min_version)
    key_bytes = _key_bytes(key, encoded=encoded)

    async def read(client: Client) -> Found | None:
        return await client.get(namespace, key_bytes, min_version=min_version)

    found = session.run(read)
    if found is None:
        raise Failure(NOT_FOUND, "key_not_found", f"there is no value under the key {shown(key)!r}", "")
    if output is not None:
        try:
            output.write_bytes(found.value)
        except OSError as error:
            usage(f"{output} cannot be written: {error.strerror}")
    if session.as_json:
        print_json(_described(key, found, with_value=output is None))
    elif output is None:
        sys.stdout.buffer.write(found.value)
        sys.stdout.buffer.flush()


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
      kvp2p put locks job-7 mine --if-absent
    """
    session = session_of(context, url, token, as_json)
    if value is not None and file is not None:
        usage("give a value or --file, not both")
    if if_match is not None and if_absent:
        usage("give --if-match or --if-absent, not both")
    _check_version("--if-match", if_match)
    key_bytes = _key_bytes(key, encoded=encoded)
    parsed = _parse_metadata(metadata)
    body = os.fsencode(value) if value is not None else _read(file)

    async def write(client: Client) -> WriteOutcome:
        return await client.put(namespace, key_bytes, body, parsed, if_match=if_match, if_none_match=if_absent)

    _print_outcome(session, session.run(write, writes=True))


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
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List keys in byte order, one in a line.

    Examples:
      kvp2p list settings
      kvp2p list logs --prefix 2026-11- --all
      kvp2p list settings --json          versions and metadata too
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
            if not session.as_json:
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
    _print_names(listed)
    if last.cursor is not None:
        say(f"There are more keys: --all, or --cursor {last.cursor}")


def _print_names(listed: list[KeyInfo]) -> None:
    for one in listed:
        sys.stdout.write(shown(one.name) + "\n")


def _listed(one: KeyInfo) -> dict[str, Any]:
    document: dict[str, Any] = {"name": one.name, "version": one.version}
    if one.metadata is not None:
        document["metadata"] = one.metadata
    if one.expires_at is not None:
        document["expiration"] = one.expires_at
    return document


def _described(key: str, found: Found, *, with_value: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"key": key}
    if with_value:
        try:
            document["value"] = found.value.decode("utf-8")
        except UnicodeDecodeError:
            document |= {"value": base64.b64encode(found.value).decode("ascii"), "base64": True}
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


def _read(file: Path | None) -> bytes:
    if file is None or str(file) == "-":
        if file is None and sys.stdin.isatty():
            say("Reading the value from the terminal; end it with Ctrl-D.")
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        usage(f"{file} cannot be read: {error.strerror}")


def _check_version(option: str, version: str | None) -> None:
    if version is not None and (len(version) != 40 or set(version) - set("0123456789abcdef")):
        usage(f"{option} must be a version, 40 lower-case hex digits, as put and list print them")
