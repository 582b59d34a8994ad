"""`kvp2p backup` and `restore`: what people are told, and exit codes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.supervisor.directory import create_cluster

Run = Callable[..., Any]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return create_cluster(tmp_path / "n1", "n1").directory


def is_marked(directory: Path) -> bool:
    with LmdbStore.open(directory / "store", readonly=True) as store, store.read() as reader:
        return reader.restored


def test_backup_says_what_it_made_and_that_it_is_secret(kvp2p: Run, directory: Path, tmp_path: Path) -> None:
    result = kvp2p("backup", str(directory), str(tmp_path / "b"))
    assert (result.status, result.out) == (0, b"")
    assert f"{tmp_path}/b: " in result.err
    assert "It is secret" in result.err
    document = kvp2p("backup", str(directory), str(tmp_path / "c"), "--without-key", "--json").document
    assert (document["file"], document["name"], list(document["files"])) == (
        str(tmp_path / "c"),
        "n1",
        ["kvp2p.toml", "store.mdb"],
    )
    assert document["bytes"] == (tmp_path / "c").stat().st_size


def test_backup_replaces_a_file_only_when_told_to(kvp2p: Run, directory: Path, tmp_path: Path) -> None:
    arguments = ("backup", str(directory), str(tmp_path / "b"))
    assert kvp2p(*arguments).status == 0
    refused = kvp2p(*arguments)
    assert (refused.status, "--overwrite" in refused.err) == (2, True)
    assert kvp2p(*arguments, "--overwrite").status == 0


def test_restore_of_the_only_node_says_that_it_would_wait_in_vain(kvp2p: Run, directory: Path, tmp_path: Path) -> None:
    kvp2p("backup", str(directory), str(tmp_path / "b"))
    result = kvp2p("restore", str(tmp_path / "b"), str(tmp_path / "again"))
    assert result.status == 0
    assert "restore with --lead-alone" in result.err
    assert f"Next: kvp2p serve --dir {tmp_path}/again" in result.err
    assert is_marked(tmp_path / "again")
    document = kvp2p("restore", "--lead-alone", str(tmp_path / "b"), str(tmp_path / "alone"), "--json").document
    assert (document["directory"], document["waits_for_a_peer"]) == (str(tmp_path / "alone"), False)
    assert not is_marked(tmp_path / "alone")


def test_restore_of_a_member_says_that_it_catches_up_first(kvp2p: Run, directory: Path, tmp_path: Path) -> None:
    from kvp2p.core.messages import Member
    from kvp2p.ids import NodeId

    with LmdbStore.open(directory / "store") as store, store.write() as writer:
        writer.set_members((Member(NodeId(b"2" * 16), 1, "n2", "", "", ""),))
    kvp2p("backup", str(directory), str(tmp_path / "b"))
    told = kvp2p("restore", str(tmp_path / "b"), str(tmp_path / "again")).err
    assert "until it has caught up with a peer" in told
    assert "--lead-alone" not in told


def test_restore_refuses_a_damaged_file_with_3_and_a_place_that_is_taken_with_2(
    kvp2p: Run, directory: Path, tmp_path: Path
) -> None:
    kvp2p("backup", str(directory), str(tmp_path / "b"))
    assert kvp2p("restore", str(tmp_path / "b"), str(directory)).status == 2
    assert kvp2p("restore", str(tmp_path / "none"), str(tmp_path / "again")).status == 2
    data = bytearray((tmp_path / "b").read_bytes())
    data[-5_000] ^= 1
    (tmp_path / "b").write_bytes(data)
    refused = kvp2p("restore", str(tmp_path / "b"), str(tmp_path / "again"))
    assert (refused.status, "does not match its digest" in refused.err) == (3, True)


def test_progress_is_shown_on_a_terminal(
    kvp2p: Run, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert "copying" in kvp2p("backup", str(directory), str(tmp_path / "b")).err
    assert "restoring" in kvp2p("restore", str(tmp_path / "b"), str(tmp_path / "again")).err


def test_help_says_what_is_secret_and_what_may_be_lost(kvp2p: Run) -> None:
    assert "It is secret" in kvp2p("backup", "--help").out.decode()
    told = kvp2p("restore", "--help").out.decode()
    assert "WARNING: --lead-alone gives that up" in told
    assert "must not run anywhere else" in told
