"""Nodes whose disk is full: what is refused, what goes on, and that all is well again when there is room."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.disks.nodes import RESERVE_BYTES, ROOT, Answer, request, running_nodes, until

pytestmark = pytest.mark.slow

LARGE = b"v" * 190_000
MIB = 1024 * 1024


def test_leader_with_a_full_disk_refuses_with_507_and_deletes_and_reads_until_there_is_room(
    short_tmp_path: Path,
) -> None:
    with running_nodes(short_tmp_path, 1) as nodes:
        before = nodes.pids()
        acked = [f"early-{number}" for number in range(3)]
        assert [nodes.put(key, LARGE).status for key in acked] == [200, 200, 200]
        nodes.leave_room(1, RESERVE_BYTES + MIB)
        while (answer := nodes.put(f"key-{len(acked)}", LARGE)).status == 200:
            acked.append(f"key-{len(acked)}")
            assert len(acked) < 40, "the limit on the size of the file was to end this"
        assert (answer.status, answer.code, answer.document["error"]["applied"]) == (507, "disk_full", "no")
        assert "limit on the size of a file" in answer.document["error"]["message"]
        assert len(acked) > 5, "there was room for some"
        assert nodes.put("small", b"v").code == "disk_full"
        assert nodes.ask("GET", "/readyz").status == 200, "it has all that there is"
        assert "RLIMIT_FSIZE" in nodes.status()["disk_full"]
        assert nodes.ask("DELETE", f"/v1/things/{acked.pop(0)}").status == 204, "the reserve is there for it"

        nodes.lift_limit(1)
        assert nodes.put("late", LARGE).status == 200, "it goes on by itself"
        assert nodes.pids() == before
        assert all(nodes.get(key).body == LARGE for key in [*acked, "late"])
        assert nodes.status()["disk_full"] == ""
        assert (nodes.log().count("disk_full"), nodes.log().count("disk_has_room")) == (1, 1)
        assert nodes.damage() == []


def test_replica_with_a_full_disk_stays_up_serves_and_is_unready_until_it_has_caught_up(short_tmp_path: Path) -> None:
    with running_nodes(short_tmp_path, 2) as nodes:
        assert nodes.put("early", LARGE).status == 200
        until(lambda: nodes.get("early", node=2).body == LARGE)
        before = nodes.pids(2)
        nodes.leave_room(2, RESERVE_BYTES + MIB)
        keys = [f"key-{number}" for number in range(12)]
        assert {nodes.put(key, LARGE).status for key in keys} == {200}
        until(lambda: nodes.ask("GET", "/readyz", node=2).status == 503)
        reason = nodes.ask("GET", "/readyz", node=2).document["reason"]
        assert "disk is full" in reason
        assert str(nodes.directory) not in reason
        assert nodes.get("early", node=2).body == LARGE
        assert nodes.get(keys[-1], node=2).status == 404
        assert nodes.ask("GET", "/readyz", node=1).status == 200
        assert nodes.put("through", b"the replica", node=2).status == 200, "it forwards"
        nodes.lift_limit(2)
        until(lambda: nodes.ask("GET", "/readyz", node=2).status == 200)
        assert all(nodes.get(key, node=2).body == LARGE for key in keys)
        assert nodes.get("through", node=2).body == b"the replica"
        until(lambda: nodes.status(1)["state_hash"] == nodes.status(2)["state_hash"])
        assert nodes.pids(2) == before, "nothing was restarted"
        assert nodes.damage(1) == nodes.damage(2) == []


# --- not a byte is left


class FillingDisk(NamedTuple):
    """One leading node, and how its disk is filled to the last byte and emptied again."""

    url: str
    token: str
    fill: Callable[[], None]
    empty: Callable[[], None]
    log: Callable[[], str]

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        return request(method, f"{self.url}/v1/things{path}", self.token, body)


@contextmanager
def limited(directory: Path, _ports: list[int]) -> Iterator[FillingDisk]:
    """Limit the size of the data file to what it has."""
    with running_nodes(directory, 1) as nodes:
        yield FillingDisk(
            nodes.urls[0], nodes.token, lambda: nodes.leave_room(1, 0), lambda: nodes.lift_limit(1), nodes.log
        )


# A file system of 40 MiB of its own. Each line from outside does the next thing.
SMALL_DISK = """
set -e
mount -t tmpfs -o size=40m tmpfs "$1"
"$2" -c 'from kvp2p.cli.main import main; main()' init --dir "$1/n1" --name n1 --json \\
    --data-port "$3" --api-port "$4" --mesh-port "$5" --gateways 1 | tr -d '\\n'
echo
"$2" -m kvp2p.supervisor "$1/n1" 2> "$1.log" &
read -r _
head -c 100m /dev/zero > "$1/ballast" 2> "$1.head" || echo full
read -r _
rm "$1/ballast"
echo empty
read -r _ || true
kill $!
wait
"""


@contextmanager
def mounted(directory: Path, ports: list[int]) -> Iterator[FillingDisk]:
    """Fill a small file system with something else."""
    place = directory / "disk"
    place.mkdir()
    command = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", str(place), sys.executable, *map(str, ports)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        told, tell = shell.stdout, shell.stdin

        def go_on(expected: str) -> None:
            tell.write("\n")
            assert told.readline() == expected

        try:
            token = json.loads(told.readline())["admin_token"]
            disk = FillingDisk(
                f"http://127.0.0.1:{ports[0]}",
                token,
                lambda: go_on("full\n"),
                lambda: go_on("empty\n"),
                place.with_suffix(".log").read_text,
            )
            until(lambda: is_serving(disk))
            yield disk
        finally:
            tell.close()


def is_serving(disk: FillingDisk) -> bool:
    try:
        return disk.ask("PUT", "").status in {200, 201}
    except OSError:
        return False


def ways_to_fill() -> list[Callable[[Path, list[int]], AbstractContextManager[FillingDisk]]]:
    """Return the ways that there are here: one needs namespaces with mounts of their own, which not every machine allows."""
    trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        is_allowed = subprocess.run(trial, capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        is_allowed = False
    return [limited, mounted] if is_allowed else [limited]


@pytest.mark.parametrize("way", ways_to_fill(), ids=lambda way: way.__name__)
def test_leader_whose_disk_has_not_a_byte_left_refuses_even_deletions_and_recovers(
    short_tmp_path: Path,
    free_ports: Callable[[int], list[int]],
    way: Callable[[Path, list[int]], AbstractContextManager[FillingDisk]],
) -> None:
    with way(short_tmp_path, free_ports(3)) as disk:
        assert disk.ask("PUT", "/early", LARGE).status == 200
        disk.fill()
        assert disk.ask("PUT", "/full", LARGE).code == "disk_full"
        deleted = 0
        while (answer := disk.ask("DELETE", f"/{deleted:0490}")).status == 204:
            deleted += 1
            assert deleted < 1_000, "the pages that the file has were to be used up"
        assert (answer.code, answer.document["error"]["applied"]) == ("disk_full", "no")
        assert disk.ask("GET", "/early").body == LARGE
        disk.empty()
        assert disk.ask("PUT", "/late", LARGE).status == 200
        assert disk.ask("DELETE", "/late").status == 204
        assert disk.ask("GET", "/early").body == LARGE
        assert "child_died" not in disk.log()
