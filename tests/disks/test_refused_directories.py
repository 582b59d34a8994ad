"""Data directories that `kvp2p serve` cannot use: exit status 3, and one sentence that says what to do."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from kvp2p.store.meta import FORMAT_KEY
from kvp2p.store.tables import META
from kvp2p.supervisor.claims import lock_directory
from kvp2p.supervisor.directory import create_cluster
from tests.store.disk_shim import shim_environment

pytestmark = pytest.mark.slow


@pytest.fixture
def directory(short_tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Path:
    """Give the directory of a leader that was never started."""
    names = ("data_port", "api_port", "mesh_port")
    return create_cluster(short_tmp_path / "n1", "n1", dict(zip(names, free_ports(3), strict=True))).directory


def serve(directory: Path, environment: dict[str, str] | None = None) -> str:
    """Run `kvp2p serve`, which must refuse, and return what it says."""
    command = [sys.executable, "-c", "from kvp2p.cli.main import main; main()", "serve", "--dir", str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_directory_of_a_newer_format_is_refused_with_the_version_to_use(directory: Path) -> None:
    with lmdb.open(str(directory / "store"), max_dbs=16, lib_version=0) as environment:
        table = environment.open_db(META.encode())
        with environment.begin(write=True) as transaction:
            transaction.put(FORMAT_KEY, b'{"format":99,"made_by":"7.1.0"}', db=table)
    told = serve(directory)
    assert "child_cannot_start" in told
    assert "store has format 99, made by kvp2p 7.1.0" in told
    assert "Start kvp2p 7.1.0 or newer on it" in told


def test_directory_with_the_key_of_another_cluster_is_refused_with_both_clusters(
    directory: Path, short_tmp_path: Path
) -> None:
    other = create_cluster(short_tmp_path / "other", "n1")
    (directory / "cluster.key").write_bytes(other.key_file.read_bytes())
    told = serve(directory)
    assert f"cluster.key beside it to {other.cluster_id.hex()}" in told
    assert "Put the cluster.key of the store's cluster there" in told


def test_directory_that_another_node_has_is_refused_with_its_process(directory: Path) -> None:
    lock = lock_directory(directory / "lock")
    try:
        told = serve(directory)
    finally:
        os.close(lock)
    assert told == (f"kvp2p: {directory} is in use by the node of process {os.getpid()}; stop that one first\n")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_directory_that_cannot_be_written_is_refused_before_anything_starts(
    directory: Path, disk_shim: Path, number: int
) -> None:
    """A shim says no: for the user root nothing is forbidden, and not everybody may mount a file system read-only."""
    faults = directory.with_name("faults")
    faults.write_text(f"open {number}\n")
    told = serve(directory, shim_environment(disk_shim, "/lock", faults=faults))
    assert told.startswith(f"kvp2p: {directory} cannot be written ({os.strerror(number)}): a node writes there.")
    assert "child_started" not in told
