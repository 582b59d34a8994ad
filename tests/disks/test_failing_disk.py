"""A disk that fails: the node process ends and is started again from what is synced, and reads go on meanwhile."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.disks.nodes import running_nodes, until
from tests.store.disk_shim import shim_environment

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("fault", "number", "told"),
    [
        ("sync", errno.EIO, "has failed: mdb_txn_commit: Input/output error. Look at the kernel's log"),
        ("write", errno.EIO, "has failed: mdb_txn_commit: Input/output error. Look at the kernel's log"),
        ("open", errno.EROFS, "Read-only file system. Give it to the user that kvp2p runs as"),
    ],
)
def test_node_whose_disk_fails_is_started_again_until_it_works_and_reads_go_on(
    short_tmp_path: Path, disk_shim: Path, fault: str, number: int, told: str
) -> None:
    faults = short_tmp_path / "faults"
    environment = shim_environment(disk_shim, "/store/data.mdb", faults=faults)
    with running_nodes(short_tmp_path, 1, environment) as nodes:
        assert nodes.put("early", b"acknowledged").status == 200
        before = nodes.pids()
        faults.write_text(f"{fault} {number}\n")
        if fault == "open":
            os.kill(before["node"], signal.SIGKILL)
        else:
            lost = nodes.put("lost", b"value")
            assert (lost.status, lost.document["error"]["applied"]) == (504, "unknown")
        until(lambda: nodes.log().count("child_failed") >= 2)
        assert nodes.get("early").body == b"acknowledged"
        assert nodes.put("refused", b"value").status in {503, 504}
        assert told in nodes.log()
        assert "Traceback" not in nodes.log()
        faults.unlink()
        until(lambda: nodes.put("late", b"value").status == 200)
        after = nodes.pids()
        assert after["node"] != before["node"]
        assert (after["supervisor"], after["gateways"]) == (before["supervisor"], before["gateways"])
        assert nodes.get("early").body == b"acknowledged"
        assert nodes.get("lost").status == 404, "its write, or its sync, failed"
        assert nodes.get("refused").status == 404
        assert nodes.damage() == []
