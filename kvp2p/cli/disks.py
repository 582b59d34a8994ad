"""`kvp2p backup`, `restore`, `scrub`: what an operator does with data directories, on the machine that has them.

Decides: the flags, and what people are told afterwards.
Keeps true: nothing that is there is overwritten unasked; work that may take long shows how far it is on a terminal.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from kvp2p.cli.failures import DAMAGED, REFUSED, Failure
from kvp2p.cli.output import byte_progress, say, shown
from kvp2p.cli.session import Json, print_json

_FILES_FAULT: Final = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGSEGV,
}  # of LMDB, and of a mapped file that ends too early

DataDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="Data directory of a node.", show_default=False)]


def backup(
    directory: DataDirectory,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.", show_default=False)],
    without_key: Annotated[bool, typer.Option("--without-key", help="Leave the cluster's key out of FILE.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write all that a node needs to be made again into one file. The node may run meanwhile.

    FILE has the data as they were at one moment, the node's identity, kvp2p.toml and cluster.key.
    It is secret: whoever has it can read every value and join the cluster. --without-key leaves the
    key out, and restore then asks for it. FILE is a tar whose manifest.json has digests of the rest;
    it is there only when it is whole and synced. While the copy is made, the node's own file grows
    by what is written meanwhile.
    Examples:
      kvp2p backup ./n1 n1-monday.backup
      kvp2p backup ./n1 /mnt/backups/n1 --overwrite
    """
    from kvp2p.supervisor.backup import make_backup

    with byte_progress("copying") as on_progress:
        made = make_backup(directory, file, has_key=not without_key, overwrites=overwrite, on_progress=on_progress)
    if as_json:
        print_json({"file": str(made.file), "bytes": made.file_bytes, **made.manifest.document()})
        return
    say(f"{made.file}: {_size(made.file_bytes)} of node {made.manifest.name} ({made.manifest.node_id})")
    if not without_key:
        say("It is secret: it has the data and the key of the cluster.")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File that `kvp2p backup` made.", show_default=False)],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory to make; new or empty.", show_default=False)
    ],
    lead_alone: Annotated[
        bool,
        typer.Option("--lead-alone", help="Let it lead without having heard a peer. May lose writes: see below."),
    ] = False,
    cluster_key_file: Annotated[
        Path | None,
        typer.Option(
            "--cluster-key-file", help="Copy of a member's cluster.key, if FILE has none.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a data directory of a backup. It is the node that was backed up, with the same id.

    That node must not run anywhere else: two with one id refuse each other.
    If it is the leader, it first waits for a peer that has the cluster's data, however long, and
    catches up with it; until then it is read and refuses writes. So nothing is lost that was
    acknowledged after the backup and that any reachable peer has.
    WARNING: --lead-alone gives that up. Use it only if all other nodes are gone for good, or there
    never were any: what was written after the backup and stands on other nodes may then be lost
    to newer writes of this one.
    Examples:
      kvp2p restore n1-monday.backup ./n1
      kvp2p restore --lead-alone n1-monday.backup ./n1
    """
    from kvp2p.supervisor.restore import restore_backup

    with byte_progress("restoring") as on_progress:
        made = restore_backup(
            file, directory, leads_alone=lead_alone, cluster_key_file=cluster_key_file, on_progress=on_progress
        )
    manifest = made.manifest
    if as_json:
        print_json({"directory": str(made.directory), "waits_for_a_peer": made.is_marked, **manifest.document()})
        return
    say(f"{made.directory}: node {manifest.name} ({manifest.node_id}) as of {manifest.made_at}")
    if made.is_marked and not manifest.other_members:
        say(
            "Its cluster had no other node when the backup was made. If there is none now, it will wait for one in vain, and "
            "refuse writes: remove the directory and restore with --lead-alone."
        )
    elif made.is_marked:
        say("If it is the leader, it refuses writes until it has caught up with a peer.")
    say(f"Next: kvp2p serve --dir {shlex.quote(str(directory))}")


def scrub(
    directory: DataDirectory,
    mib_per_second: Annotated[
        int, typer.Option("--mib-per-second", min=0, help="How fast to read; 0 for as fast as can be.")
    ] = 16,
    consistent: Annotated[
        bool, typer.Option("--consistent", help="Read all in one transaction, and compare all totals and counts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read a node's whole store and look for damage: rows, chunks, indexes, log, totals. The node may run.

    Each row and chunk is compared with its digest, each index with the rows, the totals and the state
    hash of each namespace with the sum of its rows. It reads in short transactions. What a running
    node writes meanwhile is not taken for damage; the totals of a namespace that is written to, and
    how many rows name each chunk, are not compared then. --consistent compares those, too, in one
    long transaction: until it ends, the file of a node that is written to grows.
    Damage is printed with namespace and key, and the exit code is 1. Nothing is changed: damage is
    not handed to the node for repair yet. Restore a backup, or let a new node take its place.
    Examples:
      kvp2p scrub ./n1
      kvp2p scrub ./n1 --mib-per-second 4 --json
    """
    from kvp2p.config import CONFIG_FILE, STORE_DIRECTORY, load_config

    load_config(directory / CONFIG_FILE)
    found: list[dict[str, Any]] = []
    done: dict[str, Any] | None = None
    mode = "consistent" if consistent else "slices"
    arguments = [str(directory / STORE_DIRECTORY), str(mib_per_second << 20), mode]
    with byte_progress("scrubbing") as on_progress:
        for told in _scrubbed(arguments):
            if "error" in told:
                raise Failure(REFUSED, "refused", told["error"], "")
            if "damage" in told:
                found.append(told["damage"])
                if not as_json:
                    _print_damage(told["damage"])
            elif "progress" in told:
                on_progress(told["progress"]["bytes_seen"], told["progress"]["bytes_total"])
            done = told.get("done", done)
    summary = done or {"damaged": len(found), "rows": None, "positions": None, "not_compared": []}
    if as_json:
        print_json({"damage": found, **summary})
    else:
        _say_summary(summary)
    if found:
        raise typer.Exit(DAMAGED)


def _scrubbed(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Run the walk in a process of its own; one that the file has ended is damage, too."""
    command = [sys.executable, "-P", "-m", "kvp2p.store.scrub", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
            complaint = process.stderr.read().strip()
            status = process.wait()
        except BaseException:
            process.kill()
            raise
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    if -status in _FILES_FAULT:
        message = f"reading the file ended the process with {how}: it is shorter than it says, or its pages are torn"
        yield {"damage": {"what": "file", "namespace": None, "title": "", "key": None, "message": message}}
    elif status:
        raise Failure(
            REFUSED, "interrupted", f"the scrub was ended by {how} before it was through. {complaint}".strip(), ""
        )


def _print_damage(damage: dict[str, Any]) -> None:
    place = [] if damage["namespace"] is None else [shown(damage["title"] or damage["namespace"])]
    place += [] if damage["key"] is None else [shown(damage["key"])]
    sys.stdout.write(f"{damage['what']}\t{'/'.join(place) or '-'}\t{damage['message']}\n")
    sys.stdout.flush()


def _say_summary(summary: dict[str, Any]) -> None:
    skipped = len(summary["not_compared"])
    if skipped:
        what = "1 namespace was" if skipped == 1 else f"{skipped} namespaces were"
        say(f"The totals of {what} not compared, since the node wrote to them meanwhile; --consistent compares all.")
    read = (
        "" if summary["rows"] is None else f"{summary['rows']} rows and {summary['positions']} positions of the log: "
    )
    count = summary["damaged"]
    if not count:
        say(f"{read}no damage found.")
    else:
        say(f"{read}{'1 place is' if count == 1 else f'{count} places are'} damaged.")
        say("Restore a backup or, if other nodes have the data, let a new node take the place of this one.")


def _size(count: int) -> str:
    if count < 1 << 20:
        return f"{count} bytes"
    return f"{count / (1 << 20):.1f} MiB"
