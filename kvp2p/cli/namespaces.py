"""`kvp2p namespace create | list | delete`.

Decides: what is printed: the id of a new namespace, a table of all.
Keeps true: I7, a deletion is one entry of the log, so it is asked for once and cannot be half done.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvp2p.cli.failures import REFUSED, Failure, interrupted, usage
from kvp2p.cli.output import add_command, print_table, say
from kvp2p.cli.session import Json, Token, Url, failed, print_json, session_of

if TYPE_CHECKING:
    from kvp2p.client import Client, Namespace, Refused, Unknown, WriteOutcome

app = typer.Typer(no_args_is_help=True, help="Create, list and delete namespaces.", rich_markup_mode=None)


def create(
    context: typer.Context,
    title: Annotated[str, typer.Argument(help="Title, unique in the account.", show_default=False)],
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Create a namespace and print its id; one of this title that is there already is found instead.

    Example:
      kvp2p namespace create settings
    """
    session = session_of(context, url, token, as_json)

    async def write(client: Client) -> Namespace | Refused | Unknown:
        return await client.create_namespace(title)

    from kvp2p.client import Namespace

    outcome = session.run(write, writes=True)
    if not isinstance(outcome, Namespace):
        raise failed(outcome)
    if session.as_json:
        print_json({"id": outcome.id, "title": outcome.title, "created": outcome.created})
        return
    sys.stdout.write(outcome.id + "\n")
    if not outcome.created:
        say("It was there already.")


def list_namespaces(context: typer.Context, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """List the namespaces that the token may see.

    Example:
      kvp2p namespace list
    """
    session = session_of(context, url, token, as_json)

    async def read(client: Client) -> tuple[Namespace, ...]:
        return await client.list_namespaces()

    found = session.run(read)
    if session.as_json:
        print_json({"namespaces": [{"id": one.id, "title": one.title} for one in found]})
    else:
        print_table(("ID", "TITLE"), [(one.id, one.title) for one in found], folds="TITLE")


def delete(
    context: typer.Context,
    namespace: Annotated[str, typer.Argument(help="Title or id.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Delete a namespace with all its keys. This cannot be undone.

    Example:
      kvp2p namespace delete settings --yes
    """
    session = session_of(context, url, token, as_json)
    if not yes:
        _ask(namespace)

    async def write(client: Client) -> WriteOutcome:
        return await client.delete_namespace(namespace)

    from kvp2p.client import Acked

    outcome = session.run(write, writes=True)
    if not isinstance(outcome, Acked):
        raise failed(outcome)
    if session.as_json:
        print_json({"version": outcome.version})
    else:
        say("Deleted.")


def _ask(namespace: str) -> None:
    """Ask whether to delete a namespace; raises Failure unless the answer is yes."""
    if not sys.stdin.isatty():
        usage("nothing was deleted: without a terminal to ask at, give --yes")
    sys.stderr.write(f"Delete {namespace!r} with all its keys? [y/N]: ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt as error:
        sys.stderr.write("\n")
        raise interrupted() from error
    if answer.strip().lower() not in ("y", "yes"):
        raise Failure(REFUSED, "declined", "nothing was deleted", "")


add_command(app, "create", create)
add_command(app, "list", list_namespaces)
add_command(app, "delete", delete)
