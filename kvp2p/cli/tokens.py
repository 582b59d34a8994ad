"""`kvp2p token create | list | revoke`, through the API port.

Decides: what is printed: the text of a new token on stdout, alone, because it is shown once.
Keeps true: I10, a token whose creation is unknown is not created again by itself.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from kvp2p.cli.failures import USAGE, Failure
from kvp2p.cli.output import add_command, columns_shown, print_table, say
from kvp2p.cli.session import Json, Token, Url, print_json, session_of

EXPIRES_IN_S_MIN: Final = 60  # guess: below it, clocks that differ may end a token before it is used

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke tokens.", rich_markup_mode=None)


def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name for people.", show_default=False)],
    permission: Annotated[
        list[str], typer.Option("--permission", "-p", help="read, write or admin; may be repeated.", show_default=False)
    ],
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", help="Only for this namespace; may be repeated.", show_default=False),
    ] = None,
    account: Annotated[str | None, typer.Option(help="Account id; yours unless given.", show_default=False)] = None,
    expires_in: Annotated[
        int | None, typer.Option(help="Seconds until it ends.", min=EXPIRES_IN_S_MIN, show_default=False)
    ] = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Create a token and print it, this once.

    Permissions: read allows to get and list, and metrics; write allows to put and delete
    and does not include read. admin includes both, and is needed for namespaces, tokens
    and status. A token that is restricted to namespaces cannot administer the cluster.

    Examples:
      kvp2p token create web -p read -n settings
      kvp2p token create worker -p read -p write --expires-in 86400
      kvp2p token create prometheus -p read
    """
    session = session_of(context, url, token, as_json)
    document = {
        "name": name,
        "permissions": sorted(set(permission)),
        "namespaces": namespace or None,
        "account": account,
        "expires_at": None if expires_in is None else int(time.time()) + expires_in,
    }
    created = session.api("POST", "/admin/v1/tokens", document)
    if session.as_json:
        print_json(created)
        return
    say(f"Token {created['id']} ({', '.join(created['permissions'])}). It is not shown again:")
    sys.stdout.write(created["token"] + "\n")


def list_tokens(context: typer.Context, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """List all tokens, without their text.

    A terminal is shown the beginning of a namespace's id and how many more there are; --json has all.
    Example:
      kvp2p token list
    """
    session = session_of(context, url, token, as_json)
    document = session.api("GET", "/admin/v1/tokens")
    if session.as_json:
        print_json(document)
        return
    is_brief = columns_shown() is not None
    rows = [
        (
            one["id"],
            one["name"],
            ",".join(one["permissions"]),
            _namespaces(one["namespaces"], is_brief=is_brief),
            "never" if one["expires_at"] is None else _date(one["expires_at"], is_brief=is_brief),
        )
        for one in document["tokens"]
    ]
    print_table(("ID", "NAME", "PERMISSIONS", "NAMESPACES", "EXPIRES"), rows, folds="NAME")


def revoke(
    context: typer.Context,
    token_id: Annotated[str, typer.Argument(help="Id, as `token list` shows it.", show_default=False)],
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Revoke a token; it stops working on each node as the write arrives there.

    The last token that administers the cluster is not revoked: create another one first.
    Example:
      kvp2p token revoke 3f2a9c0d11e84b57
    """
    session = session_of(context, url, token, as_json)
    _refuse_last_admin(token_id, session.api("GET", "/admin/v1/tokens")["tokens"])
    session.api("DELETE", f"/admin/v1/tokens/{quote(token_id, safe='')}")
    if session.as_json:
        print_json({"revoked": token_id})
    else:
        say("Revoked.")


def _refuse_last_admin(token_id: str, tokens: list[dict[str, Any]]) -> None:
    """Raise Failure when without this token nobody could administer the cluster, as far as the list tells."""
    now = time.time()
    admins = {
        one["id"]
        for one in tokens
        if "admin" in one["permissions"]
        and one["namespaces"] is None
        and (one["expires_at"] is None or one["expires_at"] > now)
    }
    if admins == {token_id}:
        raise Failure(
            USAGE,
            "last_admin_token",
            "this is the last token that administers the cluster: create another admin token first",
            "`kvp2p token create NAME -p admin` does.",
        )


def _namespaces(ids: list[str] | None, *, is_brief: bool) -> str:
    if ids is None:
        return "all"
    if not is_brief:
        return ",".join(ids)
    return ids[0][:8] + ("" if len(ids) == 1 else f" +{len(ids) - 1}")


def _date(seconds: int, *, is_brief: bool) -> str:
    is_over = seconds <= time.time()
    if is_brief:
        return time.strftime("over %Y-%m-%d" if is_over else "%Y-%m-%d %H:%MZ", time.gmtime(seconds))
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds)) + (" (over)" if is_over else "")


add_command(app, "create", create)
add_command(app, "list", list_tokens)
add_command(app, "revoke", revoke)
