"""A data directory of format 1, served by this one: nothing is read before its node has brought it to the present format, all is then."""

import gzip
import json
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from kvp2p import Replica
from kvp2p.cluster_key import ClusterKey, write_cluster_key
from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.system_rows import Permission, Token, encode_token, hash_token
from kvp2p.errors import StoreOutdated
from kvp2p.ids import SYSTEM_NAMESPACE
from kvp2p.supervisor.directory import create_cluster
from tests.disks.nodes import request, until
from tests.store.test_format_1 import FIXTURE, IDENTITY, SPACE, _version

pytestmark = pytest.mark.slow

ROWS = 20_000
TOKEN = "kv_of_tests"


@pytest.fixture
def directory(short_tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Path:
    """Give a directory whose store is the committed file of format 1, with a token and many more rows."""
    names = ("data_port", "api_port", "mesh_port")
    settings = {**dict(zip(names, free_ports(3), strict=True)), "gateways": 2, "log_format": "json"}
    made = create_cluster(short_tmp_path / "n1", "n1", settings).directory
    (made / "cluster.key").unlink()
    write_cluster_key(made / "cluster.key", ClusterKey(IDENTITY.cluster, bytes(32), IDENTITY.account))
    for old in (made / "store").iterdir():
        old.unlink()
    (made / "store" / "data.mdb").write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    digest = hash_token(TOKEN)
    permissions = frozenset({Permission.ADMIN})
    token_key, token = encode_token(Token(digest, digest.hex()[:16], "t", IDENTITY.account, permissions, None, 0, 0))
    with lmdb.open(str(made / "store"), max_dbs=16, map_size=1 << 30, lib_version=0) as handle:
        table = handle.open_db(b"rows", create=False)
        with handle.begin(db=table, write=True) as writer:
            writer.put(SYSTEM_NAMESPACE + token_key, encode_row(Kind.VALUE, token, None, 0, _version(11)))
            for number in range(ROWS):
                kind = Kind.TOMBSTONE if number % 2 else Kind.VALUE
                row = encode_row(kind, b"" if number % 2 else b"old %d" % number, None, 0, _version(100 + number))
                writer.put(SPACE + b"row %06d" % number, row)
    return made


def test_directory_of_format_1_is_served_once_its_node_has_rewritten_it(directory: Path) -> None:
    """A transaction of the test's keeps the node from it until both gateways and the api have met the old format, more than once."""
    command = [sys.executable, "-m", "kvp2p.supervisor", str(directory)]
    log = directory.parent / "log"
    config = (directory / "kvp2p.toml").read_text()
    port = next(line.split(" = ")[1] for line in config.splitlines() if line.startswith("data_port"))

    def events(name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def get(key: str) -> tuple[int, bytes]:
        try:
            answer = request("GET", f"http://127.0.0.1:{port}/v1/strings/{key}", TOKEN)
        except urllib.error.URLError:
            return 0, b""
        return answer.status, answer.body

    environment = lmdb.open(str(directory / "store"), max_dbs=16, map_size=1 << 30, lib_version=0)
    with log.open("wb") as stream, environment as handle:
        held = handle.begin(write=True)
        process = subprocess.Popen(command, stderr=stream)
        try:
            readers = ("gateway-1", "gateway-2", "api")
            until(
                lambda: (
                    process.poll() is not None
                    or all(sum(died["child"] == name for died in events("child_died")) > 1 for name in readers)
                )
            )
            assert process.poll() is None, log.read_text()
            assert all("Start its node once" in str(one["reason"]) for one in events("child_failed"))
            assert not events("store_migration_ended")
            held.abort()
            until(lambda: get("row%20000000") == (200, b"old 0"))
            assert [len(events(f"store_migration_{what}")) for what in ("begins", "ended")] == [1, 1]
            assert get("row%20019998") == (200, b"old 19998")
            assert get("row%20000001")[0] == 404
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert not events("child_cannot_run")


def test_reader_of_a_stopped_node_of_format_1_is_told_to_start_it(directory: Path) -> None:
    before = (directory / "store" / "data.mdb").read_bytes()
    with pytest.raises(StoreOutdated, match=r"has format 1, .* Start its node once \(`kvp2p serve`\)"):
        Replica(directory)
    assert (directory / "store" / "data.mdb").read_bytes() == before
