"""`kvp2p scrub` beside a node that is written to: no damage where there is none, and none is missed."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.disks.nodes import running_nodes, until

pytestmark = pytest.mark.slow

PROGRAM = "from kvp2p.cli.main import main; main()"


def scrub(directory: Path, *options: str) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-c", PROGRAM, "scrub", str(directory), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def test_node_that_is_written_to_is_scrubbed_without_a_false_alarm(short_tmp_path: Path) -> None:
    stop = threading.Event()
    with running_nodes(short_tmp_path, 1) as nodes:
        directory = nodes.directory / "n1"

        def write() -> None:
            number = 0
            while not stop.is_set():
                key = f"key-{number % 60}" + "/long" * (90 if number % 3 else 0)
                if number % 7 == 0:
                    nodes.ask("DELETE", f"/v1/things/{key}")
                else:
                    nodes.put(key, b"%d " % number * 1_000)
                number += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            until(lambda: nodes.data_file().stat().st_size > 300_000)
            sliced = [scrub(directory, "--mib-per-second", str(rate)) for rate in (1, 0)]
            at_once = scrub(directory, "--consistent")
        finally:
            stop.set()
            thread.join()
        for status, document in (*sliced, at_once):
            assert (status, document["damage"]) == (0, [])
            assert document["rows"]
        assert at_once[1]["not_compared"] == []
        assert nodes.get("key-1").status in {200, 404}
