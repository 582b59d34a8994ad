"""`kvp2p init`, `serve`, `config`: a node of this machine.

Decides: the flags, and what `init` tells people to do next.
Keeps true: a flag goes above the file and is checked like it; nothing is made or started when a setting is wrong.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kvp2p.cli.failures import usage
from kvp2p.cli.output import say
from kvp2p.cli.session import Json, print_json

Directory = Annotated[Path, typer.Option("--dir", "-d", help="Data directory.", show_default=False)]
Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]", show_default=False)]
Advertise = Annotated[
    str | None, typer.Option(help="Host that peers and clients are told. [default: --host]", show_default=False)
]
DataPort = Annotated[int | None, typer.Option(help="Port of the data. [default: 8787]", show_default=False)]
ApiPort = Annotated[int | None, typer.Option(help="Port of the API. [default: 8788]", show_default=False)]
MeshPort = Annotated[int | None, typer.Option(help="Port for the other nodes. [default: 8789]", show_default=False)]
Gateways = Annotated[int | None, typer.Option(help="Gateway processes. [default: 2]", show_default=False)]
LogLevel = Annotated[
    str | None, typer.Option(help="debug, info, warning or error. [default: info]", show_default=False)
]
LogFormat = Annotated[str | None, typer.Option(help="console or json. [default: console]", show_default=False)]
# Not in --help: a clock that is wrong is of use to tests alone.
ClockOffset = Annotated[
    int | None, typer.Option("--clock-offset-ms", hidden=True, help="For tests: shift the clock of the node process.")
]


def init(
    directory: Directory,
    name: Annotated[str, typer.Option("--name", help="Name of the node.", show_default=False)],
    join: Annotated[
        str | None,
        typer.Option(
            "--join", help="Mesh URL of any member of the cluster to join.", metavar="URL", show_default=False
        ),
    ] = None,
    cluster_key_file: Annotated[
        Path | None,
        typer.Option("--cluster-key-file", help="Copy of a member's cluster.key, with --join.", show_default=False),
    ] = None,
    host: Host = None,
    advertise: Advertise = None,
    data_port: DataPort = None,
    api_port: ApiPort = None,
    mesh_port: MeshPort = None,
    gateways: Gateways = None,
    as_json: Json = False,
) -> None:
    """Make a data directory: the first node of a new cluster, or with --join a member of one.

    Examples:
      kvp2p init --dir ./n1 --name n1
      kvp2p init --dir ./n2 --name n2 --join ws://10.0.0.1:8789 --cluster-key-file cluster.key
    """
    from kvp2p.supervisor.directory import create_cluster, create_member

    settings: dict[str, object] = {
        "host": host,
        "advertise": advertise,
        "data_port": data_port,
        "api_port": api_port,
        "mesh_port": mesh_port,
        "gateways": gateways,
    }
    if (join is None) != (cluster_key_file is None):
        usage("--join and --cluster-key-file belong together: a member needs a peer's mesh URL and the cluster's key")
    if join is None or cluster_key_file is None:
        created = create_cluster(directory, name, settings)
    else:
        created = create_member(directory, name, join, cluster_key_file, settings)
    document: dict[str, Any] = {
        "cluster_id": created.cluster_id.hex(),
        "account_id": created.account_id.hex(),
        "node_id": created.node_id.hex(),
        "directory": str(created.directory),
        "cluster_key_file": str(created.key_file),
        "admin_token": created.admin_token or None,
    }
    if as_json:
        print_json(document)
        return
    lines = [
        f"cluster id        {document['cluster_id']}",
        f"node id           {document['node_id']}  ({name})",
        f"cluster key file  {created.key_file}  (secret: whoever has it can join)",
    ]
    if created.admin_token:
        lines.append(f"admin token       {created.admin_token}  (shown once)")
    sys.stdout.write("\n".join(lines) + "\n")
    say(f"Next: kvp2p serve --dir {shlex.quote(str(directory))}")


def serve(
    directory: Directory,
    host: Host = None,
    advertise: Advertise = None,
    data_port: DataPort = None,
    api_port: ApiPort = None,
    mesh_port: MeshPort = None,
    gateways: Gateways = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    clock_offset_ms: ClockOffset = None,
) -> None:
    """Run a node in the foreground until SIGTERM or Ctrl-C. Flags go above kvp2p.toml.

    Examples:
      kvp2p serve --dir ./n1
      kvp2p serve --dir ./n1 --log-format json --log-level warning
    """
    from kvp2p.config import CONFIG_FILE, load_config
    from kvp2p.supervisor.main import serve as run

    config = load_config(
        directory / CONFIG_FILE,
        {
            "host": host,
            "advertise": advertise,
            "data_port": data_port,
            "api_port": api_port,
            "mesh_port": mesh_port,
            "gateways": gateways,
            "log_level": log_level,
            "log_format": log_format,
            "clock_offset_ms": clock_offset_ms,
        },
    )
    raise typer.Exit(run(config))


def config(directory: Directory, as_json: Json = False) -> None:
    """Print the configuration that `kvp2p serve` would run with, defaults included, as TOML.

    Example:
      kvp2p config --dir ./n1
    """
    import tomllib

    from kvp2p.config import CONFIG_FILE, dump, load_config

    text = dump(load_config(directory / CONFIG_FILE))
    sys.stdout.write(json.dumps(tomllib.loads(text), indent=2) + "\n" if as_json else text)
