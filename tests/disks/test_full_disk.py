"""Nodes whose disk is full: what is refused, what goes on, and that all is well again when there is room."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.disks.nodes import RESERVE_BYTES, ROOT, Answer, Nodes, request, running_nodes, until

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


def large(key: str) -> bytes:
    """Return a value that no other key has: equal chunks are stored once."""
    return key.encode().ljust(190_000, b".")


def small(key: str) -> bytes:
    """Return a value that has no chunks."""
    return key.encode().ljust(20_000, b".")


def fill(nodes: Nodes, value_of: Callable[[str], bytes]) -> tuple[dict[str, bytes], Answer]:
    """Write until a write is refused; return what was acknowledged, and the refusal."""
    acked: dict[str, bytes] = {}
    while True:
        key = f"{value_of.__name__}-{len(acked)}"
        answer = nodes.put(key, value_of(key))
        if answer.status != 200:
            return acked, answer
        acked[key] = value_of(key)
        assert len(acked) < 200, "the limit on the size of the file was to end this"


def test_leader_with_a_full_disk_refuses_with_507_and_deletes_and_reads_until_there_is_room(
    short_tmp_path: Path,
) -> None:
    with running_nodes(short_tmp_path, 1) as nodes:
        before = nodes.pids()
        assert nodes.put("early", large("early")).status == 200
        nodes.leave_room(1, RESERVE_BYTES + MIB)
        acked = {"early": large("early")}
        for value_of in (large, small):  # what is left for a large one may do for small ones
            more, answer = fill(nodes, value_of)
            assert (answer.status, answer.code, answer.document["error"]["applied"]) == (507, "disk_full", "no")
            assert "limit on the size of a file" in answer.document["error"]["message"]
            acked |= more
        assert len(acked) > 3, "there was room for some"
        assert nodes.ask("GET", "/readyz").status == 200, "it has all that there is"
        assert "RLIMIT_FSIZE" in nodes.status()["disk_full"]
        deleted, _ = acked.popitem()
        assert nodes.ask("DELETE", f"/v1/things/{deleted}").status == 204, "the reserve is there for it"

        nodes.lift_limit(1)
        assert nodes.put("late", large("late")).status == 200, "it goes on by itself"
        assert nodes.pids() == before
        assert all(nodes.get(key).body == value for key, value in acked.items())
        assert nodes.get(deleted).status == 404
        assert nodes.status()["disk_full"] == ""
        assert 1 <= nodes.log().count("disk_full") == nodes.log().count("disk_has_room")
        assert nodes.damage() == []


def test_replica_with_a_full_disk_stays_up_serves_and_is_unready_until_it_has_caught_up(short_tmp_path: Path) -> None:
    with running_nodes(short_tmp_path, 2) as nodes:
        assert nodes.put("early", large("early")).status == 200
        until(lambda: nodes.get("early", node=2).body == large("early"))
        before = nodes.pids(2)
        nodes.leave_room(2, RESERVE_BYTES + MIB)
        keys = [f"key-{number}" for number in range(12)]
        assert {nodes.put(key, large(key)).status for key in keys} == {200}
        until(lambda: nodes.ask("GET", "/readyz", node=2).status == 503)
        reason = nodes.ask("GET", "/readyz", node=2).document["reason"]
        assert "disk is full" in reason
        assert str(nodes.directory) not in reason
        assert nodes.get("early", node=2).body == large("early")
        assert nodes.get(keys[-1], node=2).status == 404
        assert nodes.ask("GET", "/readyz", node=1).status == 200
        assert nodes.put("through", b"the replica", node=2).status == 200, "it forwards"
        nodes.lift_limit(2)
        until(lambda: nodes.ask("GET", "/readyz", node=2).status == 200)
        assert all(nodes.get(key, node=2).body == large(key) for key in keys)
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
        assert disk.ask("PUT", "/early", large("early")).status == 200
        disk.fill()
        assert disk.ask("PUT", "/full", large("full")).code == "disk_full"
        deleted = 0
        while (answer := disk.ask("DELETE", f"/{deleted:0490}")).status == 204:
            deleted += 1
            assert deleted < 1_000, "the pages that the file has were to be used up"
        assert (answer.code, answer.document["error"]["applied"]) == ("disk_full", "no")
        assert disk.ask("GET", "/early").body == large("early")
        disk.empty()
        assert disk.ask("PUT", "/late", large("late")).status == 200
        assert disk.ask("DELETE", "/late").status == 204
        assert disk.ask("GET", "/early").body == large("early")
        assert "child_died" not in disk.log()
