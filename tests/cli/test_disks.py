"""`kvp2p backup`, `restore` and `scrub`: what people are told, and exit codes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvp2p.core.messages import Member
from kvp2p.ids import SYSTEM_NAMESPACE, NodeId
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.tables import ROWS
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


# --- scrub


def spoil(directory: Path, key: bytes) -> None:
    """Turn a bit over in the value of a system row."""
    with LmdbStore.open(directory / "store") as store, store.write() as writer:
        row = writer.row(SYSTEM_NAMESPACE, key)
        assert row is not None
        writer._tables.put(ROWS, SYSTEM_NAMESPACE + key, row[:-1] + bytes([row[-1] ^ 1]))


def test_scrub_of_a_sound_store_says_how_much_it_has_read(kvp2p: Run, directory: Path) -> None:
    result = kvp2p("scrub", str(directory))
    assert (result.status, result.out) == (0, b"")
    assert result.err == "5 rows and 5 positions of the log: no damage found.\n"
    document = kvp2p("scrub", str(directory), "--consistent", "--mib-per-second", "0", "--json").document
    assert document == {"damage": [], "damaged": 0, "rows": 5, "positions": 5, "not_compared": []}


def test_scrub_names_what_is_damaged_and_ends_with_1(kvp2p: Run, directory: Path) -> None:
    spoil(directory, b"leader")
    result = kvp2p("scrub", str(directory))
    assert result.status == 1
    assert result.out.decode() == f"row\t{SYSTEM_NAMESPACE.hex()}/leader\ta row does not match its digest\n"
    assert "1 place is damaged" in result.err
    assert "Restore a backup" in result.err
    asked_for_json = kvp2p("scrub", str(directory), "--json")
    assert asked_for_json.status == 1
    (damage,) = asked_for_json.document["damage"]
    assert (damage["what"], damage["key"], damage["title"]) == ("row", "leader", "")


def test_scrub_outlives_a_file_that_ends_whoever_reads_it(kvp2p: Run, directory: Path) -> None:
    os.truncate(directory / "store" / "data.mdb", 20_000)
    result = kvp2p("scrub", str(directory))
    assert result.status == 1
    assert "ended the process with SIG" in result.out.decode()
    document = kvp2p("scrub", str(directory), "--json").document
    assert ([one["what"] for one in document["damage"]], document["rows"]) == (["file"], None)


def test_scrub_refuses_what_is_no_store(kvp2p: Run, directory: Path, tmp_path: Path) -> None:
    assert kvp2p("scrub", str(tmp_path / "nothing")).status == 2
    (directory / "store" / "data.mdb").unlink()
    refused = kvp2p("scrub", str(directory))
    assert (refused.status, "there is no store" in refused.err) == (3, True)
    assert kvp2p("scrub", str(directory), "--mib-per-second", "-1").status == 2


def test_scrub_that_is_killed_is_no_damage(
    kvp2p: Run, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho complaint >&2\nkill -KILL $$\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    result = kvp2p("scrub", str(directory))
    assert result.status == 3
    assert "ended by SIGKILL before it was through. complaint" in result.err


def test_scrub_shows_progress_on_a_terminal(kvp2p: Run, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert "scrubbing" in kvp2p("scrub", str(directory)).err
