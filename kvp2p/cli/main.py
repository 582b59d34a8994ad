"""The program `kvp2p`: its commands, its exit codes, and how failures are told.

Decides: the list of commands; what goes to stdout (results) and stderr (remarks and failures).
Keeps true: no failure of ours is shown as a traceback; with --json a failure is a JSON document on stdout too.
In and out: `main` is the entry point. Commands import what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvp2p.cli import disks, keys, namespaces, nodes, status, tokens, transfer
from kvp2p.cli.failures import INTERRUPTED, REFUSED, USAGE, Failure
from kvp2p.cli.output import add_command
from kvp2p.cli.session import URL_DEFAULT, Session, print_json
from kvp2p.errors import ConfigError, KvError


class Program(TyperGroup):
    """The tree of commands. typer ends with 1, which means not found here, when whoever reads stdout has gone."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own class is private
        """Run a command; raises `_PipeClosedError` when stdout has been closed, also for what was buffered until the end."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _PipeClosedError from error
        return result


class _PipeClosedError(Exception):
    """Whoever read our stdout has what it wanted."""


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A self-hosted key-value store like Workers KV: write anywhere, read everywhere from the local disk.\n\n"
    "It has an HTTP API of its own; Workers programs cannot be run against it yet.",
    epilog="Exit codes: 0 done, 1 not found (scrub: damage found), 2 usage, 3 refused (nothing was applied), 4 unknown (a write "
    "was sent, and nothing tells whether it was applied; after Ctrl-C, too), 130 interrupted before a write was sent.",
)

add_command(app, "init", nodes.init)
add_command(app, "serve", nodes.serve)
add_command(app, "config", nodes.config)
add_command(app, "backup", disks.backup)
add_command(app, "restore", disks.restore)
add_command(app, "scrub", disks.scrub)
add_command(app, "get", keys.get)
add_command(app, "put", keys.put)
add_command(app, "delete", keys.delete)
add_command(app, "list", keys.list_keys)
add_command(app, "import", transfer.import_file)
add_command(app, "export", transfer.export)
app.add_typer(namespaces.app, name="namespace")
app.add_typer(tokens.app, name="token")
add_command(app, "status", status.status)


def _print_version(*, asked: bool) -> None:
    if asked:
        from kvp2p import __version__

        sys.stdout.write(f"kvp2p {__version__}\n")
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    url: Annotated[str, typer.Option("--url", envvar="KVP2P_URL", help="Data address of any node.")] = URL_DEFAULT,
    token: Annotated[
        str | None, typer.Option("--token", envvar="KVP2P_TOKEN", help="Token to use.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=lambda asked: _print_version(asked=asked), help="Print the version."
        ),
    ] = False,
) -> None:
    """Keep what applies to all commands; each takes the same options after its name, too."""
    del version
    context.obj = Session(url, token or None, as_json)


@cache
def _command() -> Callable[[], None]:
    """Build the tree of commands, once in a process: typer reads every annotation for it."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line and exit."""
    try:
        _command()()
    except Failure as failure:
        _end(failure)
    except ConfigError as error:
        _end(Failure(USAGE, "config", str(error), ""))
    except KvError as error:
        _end(Failure(REFUSED, "refused", str(error), ""))
    except (_PipeClosedError, BrokenPipeError):
        # Python would complain once more at exit, of what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end(failure: Failure) -> None:
    if "--json" in sys.argv[1:]:
        print_json({**failure.document, "error": {"code": failure.code, "message": failure.message}})
    sys.stderr.write(f"kvp2p: {failure.message}\n")
    if failure.advice:
        sys.stderr.write(f"{failure.advice}\n")
    sys.exit(failure.status)
