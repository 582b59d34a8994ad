"""`kvp2p serve`: claim the directory and the ports, then run node, api and gateways until told to stop.

Decides: the order of a start, and which children a node has.
Keeps true: everything that can be refused is refused before the first fork, with an error of the tree in `errors.py`.
In and out: a `NodeConfig` in, an exit status out.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
from pathlib import Path

from kvp2p.config import LOCK_FILE, PIDS_FILE, STORE_DIRECTORY, NodeConfig
from kvp2p.errors import StoreFormatError
from kvp2p.runtime import logs
from kvp2p.runtime.child import ChildLife
from kvp2p.supervisor.claims import (
    check_dial_from,
    check_ports,
    lead_process_group,
    lock_directory,
    raise_open_files_limit,
)
from kvp2p.supervisor.spawn import ChildSpec
from kvp2p.supervisor.supervisor import Supervisor

# In the order of their start: the node first, since nobody can write before it serves. The supervisor imports each before it
# forks, so that children share the pages and one that is restarted is there in milliseconds; it runs none of it. What is
# heavy in the api's is imported by the api process itself, when the others are already at work.
CHILD_MODULES = {"node": "kvp2p.node.main", "gateway": "kvp2p.gateway.main", "api": "kvp2p.api.main"}


def serve(config: NodeConfig) -> int:
    """Run a node in the foreground; return 0 after a drain, 3 when a child cannot run at all.

    Raises StoreLocked when another node has the directory, StoreError when it cannot be written, ConfigError when a port is
    taken, StoreFormatError when there is no store; nothing was started then.
    """
    if not (config.directory / STORE_DIRECTORY).is_dir():
        raise StoreFormatError(
            f"{config.directory} has no {STORE_DIRECTORY}; `kvp2p init --dir {config.directory}` makes a node"
        )
    os.chdir(config.directory)
    logs.configure(config.log_level, config.log_format, "supervisor")
    lead_process_group()
    lock = lock_directory(config.directory / LOCK_FILE)
    try:
        check_ports(config)
        check_dial_from(config)
        open_files = raise_open_files_limit()
        specs = child_specs(config)
        logs.get_logger("kvp2p.supervisor").info(
            "starting",
            pid=os.getpid(),
            data_url=config.data_url,
            api_url=config.api_url,
            mesh_url=config.mesh_url,
            open_files=open_files,
        )
        return Supervisor(specs, Path(PIDS_FILE)).run()
    finally:
        os.close(lock)


def child_specs(config: NodeConfig) -> list[ChildSpec]:
    """Return what there is to run: one node, the gateways, one api."""
    gateways = [_spec(config, f"gateway-{number}", "gateway", number) for number in range(1, config.gateways + 1)]
    return [_spec(config, "node", "node"), *gateways, _spec(config, "api", "api")]


def _spec(config: NodeConfig, name: str, role: str, *arguments: int) -> ChildSpec:
    def run(life: ChildLife) -> None:
        logs.configure(config.log_level, config.log_format, name)
        importlib.import_module(CHILD_MODULES[role]).run(config, life, *arguments)

    return ChildSpec(name, role, run, prepare=lambda: _import_before_fork(CHILD_MODULES[role]))


def _import_before_fork(module: str) -> None:
    if module in sys.modules:
        return
    gc.disable()  # nearly all that an import makes stays: looking for garbage in it is a tenth of its time
    try:
        importlib.import_module(module)
    finally:
        gc.enable()
    gc.freeze()  # a collection in a child then leaves the shared pages alone
    assert threading.active_count() == 1, "a thread would not survive the forks"
