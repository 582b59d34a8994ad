"""The command line against real nodes, as a newcomer would use it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def cluster(directory: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "cluster.py"), *arguments, "--dir", str(directory)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=90).stdout


@dataclass
class Cli:
    """Runs `kvp2p` as a program against one node after the other."""

    directory: Path
    document: Any

    def __call__(
        self, *arguments: str | bytes, node: int = 1, token: str | None = None, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        environment = {
            **os.environ,
            "KVP2P_URL": self.document["nodes"][node]["data_url"],
            "KVP2P_TOKEN": token or self.document["admin_token"],
        }
        command = [sys.executable, "-c", "from kvp2p.cli.main import main; main()", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False, timeout=60)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    directory = tmp_path_factory.mktemp("cli")
    try:
        yield Cli(directory, json.loads(cluster(directory, "start", "--nodes", "2", "--gateways", "1", "--json")))
    finally:
        cluster(directory, "stop")


def test_values_and_keys_come_back_as_they_were_from_either_node(cli: Cli) -> None:
    assert cli("namespace", "create", "keys").returncode == 0
    for key in ("..x", "../../etc", "a//b", "/", "é", "%", "%2F", "a?b#c", "a+b c", "x" * 512):
        value = os.urandom(3_000)
        put = cli("put", "keys", key, stdin=value)
        assert put.returncode == 0, put.stderr
        got = cli("get", "keys", key, "--min-version", put.stdout.decode().strip(), node=0)
        assert (got.returncode, got.stdout) == (0, value), key
    assert len(cli("list", "keys", "--all").stdout.splitlines()) == 10
    assert cli("delete", "keys", "é").returncode == 0
    assert cli("get", "keys", "é").returncode == 1


def test_an_export_of_one_namespace_imported_into_another_is_the_same(cli: Cli) -> None:
    entries = [{"key": f"k/{number}", "value": f"v{number}", "metadata": {"n": number}} for number in range(2_000)]
    assert cli("namespace", "create", "one").returncode == cli("namespace", "create", "two").returncode == 0
    done = cli("import", "one", "-", stdin=json.dumps(entries).encode())
    assert done.returncode == 0, done.stderr
    exported = cli("export", "one")
    assert cli("import", "two", "-", stdin=exported.stdout).returncode == 0
    assert cli("export", "two").stdout == exported.stdout
    assert {one["key"]: one for one in json.loads(exported.stdout)} == {one["key"]: one for one in entries}
    assert cli("namespace", "delete", "two", "--yes").returncode == 0
    assert cli("list", "two").returncode == 1


def test_a_token_does_what_it_may_and_ends_when_it_is_revoked(cli: Cli) -> None:
    assert cli("namespace", "create", "mine").returncode == cli("namespace", "create", "other").returncode == 0
    assert cli("put", "mine", "k", "v").returncode == 0
    created = json.loads(cli("token", "create", "web", "-p", "read", "-n", "mine", "--json").stdout)
    token = created["token"]
    assert cli("get", "mine", "k", token=token).stdout == b"v"
    assert cli("put", "mine", "k", "w", token=token).returncode == 3
    assert cli("get", "other", "k", token=token).returncode == 1
    assert cli("status", token=token).returncode == 3
    assert created["id"] in cli("token", "list").stdout.decode()
    assert cli("token", "revoke", created["id"]).returncode == 0
    refused = cli("get", "mine", "k", token=token)
    assert refused.returncode == 3
    assert b"not known, or was revoked" in refused.stderr


def test_conditions_are_kept_and_status_shows_two_equal_nodes(cli: Cli) -> None:
    assert cli("namespace", "create", "locks").returncode == 0
    version = cli("put", "locks", "job", "a", "--if-absent").stdout.decode().strip()
    assert cli("put", "locks", "job", "b", "--if-absent").returncode == 3
    assert cli("put", "locks", "job", "c", "--if-match", version).returncode == 0
    assert cli("put", "locks", "job", "d", "--if-match", version).returncode == 3
    assert cli("get", "locks", "job").stdout == b"c"
    members = json.loads(cli("status", "--json").stdout)["members"]
    assert [one["name"] for one in members] == ["n1", "n2"]
    assert [one["status"]["leader"] for one in members] == [True, False]
    assert len(cli("status").stdout.splitlines()) == 3


def test_without_the_leader_reads_go_on_and_a_write_is_refused_with_3(cli: Cli) -> None:
    assert cli("namespace", "create", "alone").returncode == 0
    assert cli("put", "alone", "k", "v").returncode == 0
    cluster(cli.directory, "kill", "n1")
    assert cli("get", "alone", "k").stdout == b"v"
    statuses = {cli("put", "alone", f"k{number}", "w").returncode for number in range(3)}
    assert statuses <= {3, 4}
    refused = cli("put", "alone", "later", "w")
    assert refused.returncode == 3
    assert b"Nothing was written" in refused.stderr
    assert cli("get", "alone", "k", node=0).returncode == 3
    shown = cli("status")
    assert (shown.returncode, shown.stdout.count(b"no answer")) == (0, 1)
    cluster(cli.directory, "restart", "n1")
    assert cli("get", "alone", "k", node=0).stdout == b"v"
