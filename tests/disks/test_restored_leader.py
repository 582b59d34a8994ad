"""A leader that was restored from a backup: it waits, catches up, leads, and nothing acknowledged is lost [I2]."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from tests.disks.nodes import Nodes, running_nodes, until

MIB = 1 << 20
pytestmark = pytest.mark.slow


def kvp2p(*arguments: str | Path) -> None:
    command = [sys.executable, "-c", "from kvp2p.cli.main import main; main()", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


class Writer:
    """Writes one key after the other until it is stopped; `acked` is what was acknowledged."""

    def __init__(self, nodes: Nodes) -> None:
        self.acked: dict[str, bytes] = {}
        self._nodes = nodes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        number = 0
        while not self._stop.is_set():
            key, value = f"key-{number % 40}", b"value %d " % number + bytes(5_000)
            if self._nodes.put(key, value).status == 200:
                self.acked[key] = value
            number += 1


def test_restored_leader_catches_up_before_it_leads_and_loses_nothing(short_tmp_path: Path) -> None:
    with running_nodes(short_tmp_path, 3) as nodes:
        place, file = nodes.directory / "n1", short_tmp_path / "backup"
        with (place / "kvp2p.toml").open("a") as settings:
            settings.write("[replica]\nfirst_contact_ms = 500\n")  # so that the test need not wait for 3 s
        assert nodes.put("early", b"before the backup").status == 200
        assert nodes.put("goes", os.urandom(MIB)).status == 200
        assert nodes.put("large", os.urandom(2 * MIB)).status == 200
        ends = {f"ends-{number}": b"in ten minutes" for number in range(2)}
        assert nodes.put("ends-0", ends["ends-0"], KV_Expires_In="600").status == 200
        term = nodes.status()["term"]
        with Writer(nodes) as writer:
            until(lambda: len(writer.acked) >= 10)
            kvp2p("backup", place, file)
            at_backup = len(writer.acked)
            until(lambda: len(writer.acked) >= min(40, at_backup + 10))
        late = {f"late-{number}": b"after the backup %d" % number for number in range(20)}
        late["large"], late["larger"] = os.urandom(MIB), os.urandom(3 * MIB)
        assert {nodes.put(key, value).status for key, value in late.items()} == {200}
        assert nodes.ask("DELETE", "/v1/things/goes").status == 204
        assert nodes.put("ends-1", ends["ends-1"], KV_Expires_In="600").status == 200
        acked = {"early": b"before the backup", **writer.acked, **late, **ends}
        until(lambda: all(nodes.get(key, node).body == late[key] for key in ("large", "larger") for node in (2, 3)))
        until(lambda: len({nodes.status(node)["state_hash"] for node in (1, 2, 3)}) == 1)
        for name in ("n1", "n2", "n3"):
            nodes.run("kill", name, "--signal", "TERM")
        place.rename(nodes.directory / "n1-lost")
        kvp2p("restore", file, place)

        nodes.run("restart", "n1")
        assert nodes.get("early").body == b"before the backup"
        assert nodes.get("late-1").status == 404
        until(lambda: "leader_waits_restored" in nodes.log())
        refused = nodes.put("alone", b"by the restored leader")
        assert (refused.status, refused.code) == (503, "no_leader")
        assert "made by restore" in refused.document["error"]["message"]
        assert (nodes.status()["role"], nodes.status()["restored"]) == ("hearing", True)

        nodes.run("restart", "n2")
        nodes.run("restart", "n3")
        until(lambda: nodes.put("newest", b"after the restore").status == 200)
        wrong = {key for key, value in acked.items() if nodes.get(key).body != value}
        assert wrong == set()
        assert nodes.get("goes").status == 404, "what was deleted after the backup does not come back with it"
        keys = nodes.ask("GET", "/v1/things?prefix=ends").document["keys"]
        assert keys == nodes.ask("GET", "/v1/things?prefix=ends", node=2).document["keys"]
        assert [key["expiration"] > time.time() + 500 for key in keys] == [True, True]
        until(lambda: len({nodes.status(node)["state_hash"] for node in (1, 2, 3)}) == 1)
        assert nodes.get("newest", node=3).body == b"after the restore"
        assert nodes.get("alone", node=2).status == 404
        status = nodes.status()
        assert (status["leader"], status["restored"], status["waiting"]) == (True, False, "")
        assert status["term"] == term + 1, "what its backup had forgotten may be of its last term"
        until(lambda: [nodes.damage(node) for node in (1, 2, 3)] == [[], [], []])
        log = nodes.log()
        assert log.index("leader_waits_restored") < log.index("leader_catching_up") < log.index(" leading ")
