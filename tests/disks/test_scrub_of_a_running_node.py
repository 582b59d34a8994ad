"""`kvp2p scrub` beside a node that is written to: no damage where there is none, and none is missed."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.disks.nodes import Nodes, running_nodes, until

pytestmark = pytest.mark.slow

PROGRAM = "from kvp2p.cli.main import main; main()"
KEYS = 60


def scrub(directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-c", PROGRAM, "scrub", str(directory), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


class Writer(threading.Thread):
    """Writes and deletes keys until it is told to stop; `shown` is what each key has then, None for nothing."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__()
        self._nodes = nodes
        self._stop_it = threading.Event()
        self.shown: dict[str, bytes | None] = {}
        self.wrong: list[object] = []

    def run(self) -> None:
        number = 0
        while not self._stop_it.is_set() and not self.wrong:
            key = f"key-{number % KEYS}" + "/long" * (90 if number % 3 else 0)
            value = None if number % 7 == 0 else b"%d " % number * 1_000
            answer = self._nodes.ask("DELETE", f"/v1/things/{key}") if value is None else self._nodes.put(key, value)
            if answer.status != (204 if value is None else 200):
                self.wrong.append((key, answer))
            self.shown[key] = value
            number += 1

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


def test_node_that_is_written_to_is_scrubbed_without_a_false_alarm(short_tmp_path: Path) -> None:
    with running_nodes(short_tmp_path, 1) as nodes:
        directory = nodes.directory / "n1"
        writer = Writer(nodes)
        writer.start()
        try:
            until(lambda: len(writer.shown) == KEYS)
            slow, fast = (scrub(directory, "--mib-per-second", str(rate)) for rate in (1, 0))
            at_once = scrub(directory, "--consistent")
        finally:
            writer.stop()
        assert writer.wrong == []
        for status, document in (slow, fast, at_once):
            assert (status, document["damage"]) == (0, [])
            assert document["rows"] > KEYS / 2
        assert slow[1]["not_compared"], "nothing was written while the rows were read"
        assert at_once[1]["not_compared"] == []
        for key, value in writer.shown.items():
            answer = nodes.get(key)
            assert (answer.status, answer.body if value is not None else b"") == (
                404 if value is None else 200,
                value or b"",
            )


def test_damage_in_the_file_of_a_running_node_is_found(short_tmp_path: Path) -> None:
    value = b"a value whose bytes stand nowhere else in the file"
    with running_nodes(short_tmp_path, 1) as nodes:
        assert nodes.put("sound", b"good").status == 200
        assert nodes.put("spoilt", value).status == 200
        stored = nodes.data_file().read_bytes()
        with nodes.data_file().open("r+b") as file:
            place = stored.find(value)
            while place >= 0:  # in pages that are free again, too
                os.pwrite(file.fileno(), b"A", place)
                place = stored.find(value, place + 1)
        for options in ((), ("--consistent",)):
            status, document = scrub(nodes.directory / "n1", *options)
            assert (status, [one["key"] for one in document["damage"]]) == (1, ["spoilt"])
        assert nodes.get("sound").body == b"good"
