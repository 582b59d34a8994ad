"""The frame of a program that tries something on a cluster of its own: from its directory to its exit status.

Keeps true: the cluster is stopped however the trial ends, and its directory stays when something is to be looked at: after a violation, or when
it was asked for.
In and out: options and a measurement that returns a document in; what it found, on stdout, and an exit status out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import trio

VIOLATIONS_SHOWN = 10
CLUSTER_PROGRAM = Path(__file__).resolve().parents[1] / "cluster"


def cluster(*arguments: str) -> str:
    """Run scripts/cluster and return its stdout."""
    done = subprocess.run([str(CLUSTER_PROGRAM), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def cluster_document(*arguments: str) -> dict[str, Any]:
    """Run scripts/cluster and return the document that it prints."""
    document: dict[str, Any] = json.loads(cluster(*arguments))
    return document


def text_of(error: Exception) -> str:
    """Return what a program that failed has said, or what an error says."""
    return error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)


def make_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return a parser for scripts/`name`, described by its module's text, with the options that all trials have."""
    summary, _, rest = (text or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog=f"scripts/{name}",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="a new directory (a temporary one, removed at the end)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running and the directory in place")
    return parser


def print_lines(lines: Iterable[tuple[str, object]], violations: Sequence[str]) -> None:
    """Print figures for people, each with its name, and how many violations there are with the first of them."""
    for name, told in (*lines, ("violations", len(violations))):
        print(f"{name:<22} {told}")
    for violation in violations[:VIOLATIONS_SHOWN]:
        print(f"    {violation}")


def run_trial(
    name: str,
    arguments: argparse.Namespace,
    measure: Callable[[Path], Awaitable[dict[str, Any]]],
    show: Callable[[dict[str, Any]], None],
) -> int:
    """Let `measure` run a cluster in the directory that it is given, `show` its document, and return the exit status.

    The document's `violations` say what was not kept: 1 when there are any, or when the cluster could not be had, else 0.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the nodes are stopped then, too
    parent = arguments.dir.resolve() if arguments.dir else Path(tempfile.mkdtemp(prefix=f"kvp2p-{name}-"))
    directory = parent / "cluster"
    document: dict[str, Any] | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        document = trio.run(measure, directory)
    except subprocess.CalledProcessError as error:
        print(f"{name}: {text_of(error)}", file=sys.stderr)
    finally:
        if directory.exists() and not arguments.keep:
            cluster("stop", "--dir", str(directory))
        # What went wrong must stay to be looked at.
        if not arguments.keep and not arguments.dir and document is not None and not document["violations"]:
            shutil.rmtree(parent)
    if document is None:
        return 1
    if arguments.json:
        print(json.dumps(document, indent=1))
    else:
        show(document)
        if parent.exists():
            print(parent)
    return 1 if document["violations"] else 0
