"""`kvp2p init` and `config`: what is made, printed and refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvp2p.core.system_rows import hash_token, token_key
from kvp2p.ids import SYSTEM_NAMESPACE
from kvp2p.store.reader import Replica

Run = Callable[..., Any]


def test_init_makes_a_cluster_whose_first_token_is_in_the_store(kvp2p: Run, tmp_path: Path) -> None:
    directory = tmp_path / "n1"
    result = kvp2p("init", "--dir", str(directory), "--name", "n1", "--data-port", "21000", "--json")
    assert result.status == 0
    document = result.document
    assert len(document["cluster_id"]) == 32
    assert Path(document["cluster_key_file"]).stat().st_mode & 0o777 == 0o600
    with Replica(directory) as replica, replica.view() as view:
        assert view.raw_row(SYSTEM_NAMESPACE, token_key(hash_token(document["admin_token"]))) is not None
        assert view.transaction.identity.cluster.hex() == document["cluster_id"]


def test_init_says_what_people_need_next(kvp2p: Run, tmp_path: Path) -> None:
    result = kvp2p("init", "--dir", str(tmp_path / "a b"), "--name", "n1")
    text = result.out.decode()
    assert "cluster id" in text
    assert "cluster.key" in text
    assert "admin token       kv_" in text
    assert f"kvp2p serve --dir '{tmp_path}/a b'" in result.err


def test_a_member_gets_the_clusters_key_and_no_token(kvp2p: Run, tmp_path: Path) -> None:
    first = kvp2p("init", "--dir", str(tmp_path / "n1"), "--name", "n1", "--json").document
    join = ["--join", "ws://127.0.0.1:8789", "--cluster-key-file", first["cluster_key_file"]]
    member = kvp2p("init", "--dir", str(tmp_path / "n2"), "--name", "n2", *join, "--json").document
    assert (member["cluster_id"], member["admin_token"]) == (first["cluster_id"], None)
    assert member["node_id"] != first["node_id"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "n1"],
        ["--name", "n 1"],
        ["--name", "n1", "--data-port", "70000"],
        ["--name", "n1", "--data-port", "9000", "--api-port", "9000"],
        ["--name", "n1", "--join", "http://127.0.0.1:1", "--cluster-key-file", "nowhere"],
    ],
    ids=" ".join,
)
def test_init_refuses_what_cannot_be_and_makes_nothing(kvp2p: Run, tmp_path: Path, arguments: list[str]) -> None:
    directory = tmp_path / "n1"
    if arguments == ["--name", "n1"]:
        assert kvp2p("init", "--dir", str(directory), "--name", "first").status == 0
    before = sorted(one.name for one in tmp_path.rglob("*"))
    result = kvp2p("init", "--dir", str(directory), *arguments)
    assert result.status == 2
    assert result.err.startswith("kvp2p: ")
    assert sorted(one.name for one in tmp_path.rglob("*")) == before


def test_config_prints_every_setting_as_toml_or_json(kvp2p: Run, tmp_path: Path) -> None:
    directory = str(tmp_path / "n1")
    kvp2p("init", "--dir", directory, "--name", "n1", "--gateways", "3")
    text = kvp2p("config", "--dir", directory).out.decode()
    assert "gateways = 3\n" in text
    assert "[store]" in text
    assert kvp2p("config", "--dir", directory, "--json").document["data_port"] == 8787


def test_clock_offset_is_not_for_people_and_still_checked(kvp2p: Run, tmp_path: Path) -> None:
    assert b"clock" not in kvp2p("serve", "--help").out
    directory = str(tmp_path / "n1")
    kvp2p("init", "--dir", directory, "--name", "n1")
    result = kvp2p("serve", "--dir", directory, "--clock-offset-ms", "-99999999999")
    assert result.status == 2
    assert "with --clock-offset-ms: clock_offset_ms must be from -31622400000 to 31622400000" in result.err


def test_serve_and_config_without_a_node_say_how_to_make_one(kvp2p: Run, tmp_path: Path) -> None:
    for command in ("serve", "config"):
        result = kvp2p(command, "--dir", str(tmp_path / "nothing"))
        assert result.status == 2
        assert "kvp2p init" in result.err
