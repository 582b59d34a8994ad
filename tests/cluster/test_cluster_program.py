"""`scripts/cluster` with real nodes, as other programs rely on it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kvp2p.supervisor.group import group_members, read_process
from scripts.local_cluster.starting import wait_until_ready as wait_until_all_are_ready
from scripts.local_cluster.state import CannotError, Node, State, read_state, write_state
from tests.cluster.rig import PROGRAM, Cluster

NODE_FIELDS = {"name", "pid", "data_url", "api_url", "mesh_url", "data_dir", "leader"}
STATUS_FIELDS = NODE_FIELDS | {"alive", "ready", "lag_ms", "state_hash", "vector", "pending_values", "pids"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Cluster, dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="kvp2p-") as name:
        cluster = Cluster(Path(name).resolve() / "c")
        try:
            yield cluster, cluster.document("start", "--nodes", "3", "--gateways", "1")
        finally:
            cluster.run("stop")
            assert set(cluster.processes().values()) == {0}


@pytest.fixture
def cluster(started: tuple[Cluster, dict[str, Any]]) -> Cluster:
    """Give the cluster with all its nodes up, whatever an earlier test did to them."""
    started[0].run("start")
    return started[0]


def wait_until_ready(cluster: Cluster, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while not (node := cluster.nodes()[name])["ready"]:
        assert time.monotonic() < deadline, node
    return node


def test_start_prints_one_document_and_leaves_the_nodes_running(started: tuple[Cluster, dict[str, Any]]) -> None:
    cluster, document = started
    assert list(document) == ["cluster_id", "account_id", "admin_token", "nodes"]
    assert (len(document["cluster_id"]), len(document["account_id"])) == (32, 32)
    assert [node["name"] for node in document["nodes"]] == ["n1", "n2", "n3"]
    assert [node["leader"] for node in document["nodes"]] == [True, False, False]
    ports = set()
    for node in document["nodes"]:
        assert set(node) == NODE_FIELDS
        assert Path(node["data_dir"]) == cluster.directory / node["name"]
        for field, scheme in (("data_url", "http"), ("api_url", "http"), ("mesh_url", "ws")):
            url = urlsplit(node[field])
            assert (url.scheme, url.hostname, url.path) == (scheme, "127.0.0.1", "")
            assert url.port is not None
            assert 20_000 <= url.port <= 32_000
            ports.add(url.port)
        assert read_process(node["pid"]) is not None
    assert len(ports) == 9


def test_nodes_keep_nothing_of_the_caller(cluster: Cluster) -> None:
    for node in cluster.nodes().values():
        assert os.getsid(node["pid"]) == node["pid"]
        for process in group_members(node["pid"], Path(node["data_dir"])):
            opened = [str(Path(f"/proc/{process.process_id}/fd/{number}").readlink()) for number in range(3)]
            assert opened == ["/dev/null", f"{node['data_dir']}/log", f"{node['data_dir']}/log"]


def test_status_tells_of_each_node(cluster: Cluster) -> None:
    nodes = cluster.nodes()
    for node in nodes.values():
        assert set(node) == STATUS_FIELDS
        assert node["alive"] is node["ready"] is True
        assert isinstance(node["lag_ms"], int | float)
        assert len(bytes.fromhex(node["state_hash"])) == 16
        assert {(len(issuer), len(stamp)) for issuer, stamp in node["vector"].items()} == {(16, 16)}
        assert node["pids"]["supervisor"] == node["pid"]
        assert all(read_process(pid) for pid in (node["pids"]["node"], node["pids"]["api"], *node["pids"]["gateways"]))
        assert len(node["pids"]["gateways"]) == 1
    assert len({node["state_hash"] for node in nodes.values()}) == 1


def test_api_process_leaves_the_processor_to_the_others(cluster: Cluster) -> None:
    pids = cluster.nodes()["n1"]["pids"]
    others = {os.getpriority(os.PRIO_PROCESS, pid) for pid in (pids["node"], *pids["gateways"])}
    assert others == {os.getpriority(os.PRIO_PROCESS, 0)}
    assert {os.getpriority(os.PRIO_PROCESS, pids["api"])} == {min(19, one + 5) for one in others}


def test_killed_node_is_gone_whole_and_comes_back_where_it_was(cluster: Cluster) -> None:
    before = cluster.nodes()["n2"]
    cluster.run("kill", "n2")
    assert cluster.processes()["n2"] == 0
    cluster.run("kill", "n2")
    dead = cluster.nodes()["n2"]
    assert (dead["alive"], dead["ready"], dead["leader"]) == (False, False, False)
    assert {dead[name] for name in ("pid", "lag_ms", "state_hash", "vector", "pids")} == {None}
    cluster.run("restart", "n2")
    after = cluster.nodes()["n2"]
    assert after["ready"] is True
    assert after["pid"] != before["pid"]
    urls = ("data_url", "api_url", "mesh_url")
    assert [after[name] for name in urls] == [before[name] for name in urls]


def test_node_that_is_terminated_drains(cluster: Cluster) -> None:
    cluster.run("kill", "n3", "--signal", "TERM")
    assert cluster.processes()["n3"] == 0
    assert not (cluster.directory / "n3" / "pids.json").exists()
    cluster.run("restart", "n3")


def test_stopped_node_is_alive_and_not_ready_until_it_continues(cluster: Cluster) -> None:
    pid = cluster.nodes()["n3"]["pid"]
    for _ in range(2):
        cluster.run("kill", "n3", "--signal", "STOP")
        assert all(process.is_stopped for process in group_members(pid, cluster.directory / "n3"))
    stopped = cluster.nodes()["n3"]
    assert (stopped["alive"], stopped["ready"], stopped["pid"]) == (True, False, pid)
    assert {stopped[name] for name in ("lag_ms", "state_hash", "vector", "pids")} == {None}
    cluster.run("kill", "n3", "--signal", "CONT")
    assert not any(process.is_stopped for process in group_members(pid, cluster.directory / "n3"))
    assert wait_until_ready(cluster, "n3")["pid"] == pid


def test_start_returns_only_when_nodes_that_ran_already_are_ready_too(cluster: Cluster) -> None:
    cluster.run("kill", "n3", "--signal", "STOP")
    try:
        nodes = read_state(cluster.directory).nodes
        with pytest.raises(
            CannotError, match=r"n3 was not ready within 0 s \(SIGSTOP holds it: kill n3 --signal CONT\)"
        ):
            wait_until_all_are_ready(nodes, {}, seconds=0.3)
        starting = subprocess.Popen([sys.executable, str(PROGRAM), "start", "--dir", str(cluster.directory)])
        with pytest.raises(subprocess.TimeoutExpired):
            starting.wait(1.5)
    finally:
        cluster.run("kill", "n3", "--signal", "CONT")
    assert starting.wait(20) == 0
    assert all(node["ready"] for node in cluster.nodes().values())


def test_start_names_a_node_that_ends_while_it_waits(cluster: Cluster) -> None:
    cluster.run("kill", "n3")
    with pytest.raises(CannotError, match=r"n3 has ended; its log says\n"):
        wait_until_all_are_ready(read_state(cluster.directory).nodes, {}, seconds=5)
    assert cluster.document("start")["nodes"][2]["pid"] is not None


def test_kill_imports_nothing_that_takes_long(cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(PROGRAM), "kill", "--dir", str(cluster.directory), "n9"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert imported >= {"argparse", "json", "scripts.local_cluster.signals"}
    assert not imported & {"dataclasses", "http.client", "concurrent.futures", "socket", "subprocess", "trio", "typer"}


def test_killed_child_is_replaced_and_the_node_is_ready_again(cluster: Cluster) -> None:
    before = cluster.nodes()["n3"]
    os.kill(before["pids"]["node"], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not ((now := cluster.nodes()["n3"])["ready"] and now["pids"]["node"] not in {None, before["pids"]["node"]}):
        assert time.monotonic() < deadline, now
    assert now["pids"]["gateways"] == before["pids"]["gateways"]


def test_cluster_resumes_with_its_data_after_a_stop(cluster: Cluster) -> None:
    before = cluster.document("start")

    def request(method: str, node: int, path: str, body: bytes | None = None) -> bytes:
        asked = urllib.request.Request(  # noqa: S310  the address of a node on loopback
            before["nodes"][node]["data_url"] + path,
            data=body,
            method=method,
            headers={"Authorization": f"Bearer {before['admin_token']}"},
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310  as above
            content: bytes = answer.read()
        return content

    request("PUT", 1, "/v1/places")
    request("PUT", 1, "/v1/places/key", b"value")
    cluster.run("stop")
    assert set(cluster.processes().values()) == {0}
    assert {node["alive"] for node in cluster.nodes().values()} == {False}
    after = cluster.document("start")
    for document in (before, after):
        for node in document["nodes"]:
            del node["pid"]
    assert after == before
    assert [request("GET", node, "/v1/places/key") for node in range(len(after["nodes"]))] == [b"value"] * len(
        after["nodes"]
    )


def test_added_node_joins_and_becomes_equal(cluster: Cluster) -> None:
    count = len(cluster.nodes())
    added = cluster.document("add")
    assert set(added) == NODE_FIELDS
    assert (added["name"], added["leader"]) == (f"n{count + 1}", False)
    nodes = cluster.nodes()
    assert len(nodes) == count + 1
    assert nodes[added["name"]]["ready"] is True
    assert len({node["state_hash"] for node in nodes.values()}) == 1


def test_node_that_cannot_start_is_told_with_the_end_of_its_log(cluster: Cluster) -> None:
    settings = cluster.directory / "n2" / "kvp2p.toml"
    text = settings.read_text()
    settings.write_text(text + "dataport = 1\n")
    try:
        told = cluster.run("restart", "n2", status=1).stderr
        assert "'dataport' is no setting; the nearest known name is 'data_port'" in told
    finally:
        settings.write_text(text)
    cluster.run("restart", "n2")


def test_node_without_its_data_directory_is_told_before_anything_is_started(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c")
    nodes = [Node(name, str(cluster.directory / name), 1, 2, 3) for name in ("n1", "n2")]
    (cluster.directory / "n1").mkdir(parents=True)
    write_state(cluster.directory, State("", "", "", 1, nodes))
    for command in (["start"], ["restart", "n2"]):
        told = cluster.run(*command, status=1).stderr
        assert told.startswith(f"cluster: n2 has no data directory ({cluster.directory}/n2). Put it back; ")
        assert list((cluster.directory / "n1").iterdir()) == []


@pytest.mark.parametrize("name", ["check", "test", "lock"])
def test_scripts_that_do_much_only_print_help_when_asked_for_it(name: str) -> None:
    script = PROGRAM.parent / name
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=10, check=True)
    assert f"scripts/{name}" in done.stdout
    assert len(done.stdout.splitlines()) < 15
    assert done.stderr == ""


def test_unknown_node_is_wrong_usage(cluster: Cluster) -> None:
    assert "no node 'n77'; there are n1, n2" in cluster.run("kill", "n77", status=2).stderr


def test_taken_port_is_named_and_nothing_is_left(tmp_path: Path, cluster: Cluster) -> None:
    taken = urlsplit(cluster.nodes()["n1"]["api_url"]).port
    other = Cluster(tmp_path / "c")
    assert f"port {taken} is taken" in other.run("start", "--base-port", str(taken), status=1).stderr
    assert "has no cluster" in other.run("status", status=1).stderr
    assert "not within 20000 to 32000" in other.run("start", "--base-port", "31999", status=2).stderr


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        ("replica.purge_after=500", 1, "'purge_after' is no setting; the nearest known name is 'purge_after_ms'"),
        ("replica.purge_after_ms=soon", 1, "purge_after_ms must be a whole number, not 'soon'"),
        ("mesh_port=8789", 2, "mesh_port cannot be set: this program chooses it for each node"),
        ("log_level", 2, "must be NAME=VALUE"),
    ],
)
def test_setting_that_cannot_be_is_refused_and_nothing_is_left(
    tmp_path: Path, given: str, status: int, told: str
) -> None:
    other = Cluster(tmp_path / "c")
    assert told in other.run("start", "--set", given, status=status).stderr
    assert "has no cluster" in other.run("status", status=1).stderr


def test_settings_for_new_nodes_are_refused_where_there_are_nodes(cluster: Cluster) -> None:
    told = cluster.run("start", "--set", "log_level=debug", status=2).stderr
    assert "--set is for new nodes: edit nX/kvp2p.toml in it and `restart` nX" in told


def test_start_that_fails_in_part_stops_what_it_started(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kvp2p-") as name:
        broken = Cluster(Path(name).resolve() / "c")
        broken.run("start", "--nodes", "2", "--gateways", "1")
        broken.run("stop")
        settings = broken.directory / "n2" / "kvp2p.toml"
        settings.write_text(settings.read_text() + "gateways = 0\n")
        told = broken.run("start", status=1).stderr
        assert "n2 ended with status" in told
        assert "kvp2p.toml cannot be read" in told
        assert set(broken.processes().values()) == {0}
