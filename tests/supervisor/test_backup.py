"""Backup files: what is in them, that they are whole or not there, and what is made of them."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kvp2p.cluster_key import read_cluster_key, write_cluster_key
from kvp2p.core.apply import apply_batch
from kvp2p.core.messages import Member
from kvp2p.errors import ConfigError, StoreCorrupt, StoreError, StoreFormatError
from kvp2p.ids import Issuer, NamespaceId, NodeId, Stamp, make_version
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.scrub import check_store
from kvp2p.supervisor.backup import make_backup
from kvp2p.supervisor.directory import Created, create_cluster
from kvp2p.supervisor.manifest import MANIFEST_BYTES
from kvp2p.supervisor.restore import restore_backup
from tests.store.batches import draw_batches

SPACE = NamespaceId(b"1" * 16)
BLOCK = 512


@pytest.fixture
def node(tmp_path: Path) -> Created:
    """Give a leader's directory that has something of everything in its store."""
    created = create_cluster(tmp_path / "n1", "n1", {"data_port": 20_001})
    with LmdbStore.open(created.directory / "store") as store, store.write() as txn:
        for batch in islice(draw_batches(1), 40):
            apply_batch(txn, batch)
        txn.set_clock_offset_ms(-1_234)
        txn.set_members((Member(created.node_id, 1, "n1", "", "", ""), Member(NodeId(b"2" * 16), 1, "n2", "", "", "")))
    return created


@pytest.fixture
def backup(node: Created, tmp_path: Path) -> Path:
    return make_backup(node.directory, tmp_path / "backup").file


def contents(directory: Path) -> dict[str, dict[bytes, bytes]]:
    """Return all tables, but not the mark of a restored store and the clock's offset, which it forgets."""
    with LmdbStore.open(directory / "store", readonly=True) as store, store.read() as reader:
        tables = {name: dict(reader.tables.scan(name)) for name in ("rows", "tails", "log", "expiry", "hashes", "meta")}
    for name in (b"restored", b"clock_offset_ms"):
        tables["meta"].pop(name, None)
    return tables


def is_marked(directory: Path) -> bool:
    with LmdbStore.open(directory / "store", readonly=True) as store, store.read() as reader:
        return reader.restored


def clock_offset_ms(directory: Path) -> int:
    with LmdbStore.open(directory / "store", readonly=True) as store, store.read() as reader:
        return reader.clock_offset_ms


def test_restored_directory_is_that_of_the_node_but_for_the_mark(node: Created, backup: Path, tmp_path: Path) -> None:
    restored = restore_backup(backup, tmp_path / "again")
    assert contents(restored.directory) == contents(node.directory)
    for name in ("kvp2p.toml", "cluster.key"):
        assert (restored.directory / name).read_bytes() == (node.directory / name).read_bytes()
    assert (restored.directory / "cluster.key").stat().st_mode & 0o777 == 0o600
    assert restored.directory.stat().st_mode & 0o777 == 0o700
    assert restored.is_marked
    assert is_marked(restored.directory)
    assert not is_marked(node.directory)
    assert check_store(restored.directory / "store") == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again", "backup", "n1"]


@pytest.mark.parametrize("leads_alone", [False, True])
def test_restored_node_does_not_go_by_the_clock_of_the_backup(
    node: Created, backup: Path, tmp_path: Path, leads_alone: bool
) -> None:
    assert clock_offset_ms(node.directory) == -1_234
    assert clock_offset_ms(restore_backup(backup, tmp_path / "again", leads_alone=leads_alone).directory) == 0


def test_directory_that_may_lead_alone_has_no_mark_even_if_the_backup_has(backup: Path, tmp_path: Path) -> None:
    marked = restore_backup(backup, tmp_path / "marked").directory
    second = make_backup(marked, tmp_path / "second").file
    assert not is_marked(restore_backup(second, tmp_path / "alone", leads_alone=True).directory)
    assert is_marked(restore_backup(second, tmp_path / "waits").directory)


def test_backup_file_is_a_tar_that_says_what_it_is(node: Created, tmp_path: Path) -> None:
    made = make_backup(node.directory, tmp_path / "backup")
    assert made.file.stat().st_mode & 0o777 == 0o600
    assert made.file_bytes == made.file.stat().st_size
    with tarfile.open(made.file) as archive:
        assert archive.getnames() == ["manifest.json", "kvp2p.toml", "cluster.key", "store.mdb"]
        content = archive.extractfile("manifest.json")
        assert content is not None
        manifest = json.loads(content.read())
    assert manifest == made.manifest.document()
    assert (manifest["backup_format"], manifest["name"], manifest["other_members"]) == (1, "n1", 1)
    assert (manifest["cluster_id"], manifest["node_id"]) == (node.cluster_id.hex(), node.node_id.hex())


def test_backup_of_a_store_that_is_written_to_is_the_state_of_one_moment(node: Created, tmp_path: Path) -> None:
    """The writer keeps two facts alike and the rows ever more: a copy of two moments would have them differ."""
    stop, begun = threading.Event(), threading.Event()
    value = b"\x01" + bytes(60_000)
    with LmdbStore.open(node.directory / "store") as store:

        def write() -> None:
            number = 1
            while not stop.is_set():
                with store.write() as writer:
                    for name in (b"first", b"second"):
                        writer.put_row(SPACE, name, b"%d" % number + value)
                    writer.put_row(SPACE, b"row %d" % (number % 50), value)
                    writer.set_floor(writer.vector.raised(make_version(9, Stamp(number), Issuer(b"issuer-9"))))
                number += 1
                begun.set()

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait(10)
        try:
            files = [make_backup(node.directory, tmp_path / f"backup-{number}").file for number in range(5)]
        finally:
            stop.set()
            thread.join()
    seen = []
    for number, file in enumerate(files):
        directory = restore_backup(file, tmp_path / f"again-{number}").directory
        with LmdbStore.open(directory / "store", readonly=True) as store, store.read() as reader:
            first, second = reader.row(SPACE, b"first"), reader.row(SPACE, b"second")
            assert first == second
            assert first is not None
            assert int(first[: -len(value)]) == dict(reader.floor.items())[Issuer(b"issuer-9")]
            seen.append(int(first[: -len(value)]))
    assert seen == sorted(seen)
    assert seen[0] < seen[-1], "it was written to meanwhile"


def test_file_that_is_there_is_replaced_only_when_asked_to(node: Created, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        make_backup(node.directory, file)
    assert file.read_text() == "mine"
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(file)
    file.chmod(0o644)
    make_backup(node.directory, link, overwrites=True)
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o600, "it is secret now, whatever was there"
    restore_backup(file, tmp_path / "again")
    os.mkfifo(pipe)
    for place in (node.directory, pipe):
        with pytest.raises(ConfigError, match="is there already, and is no file"):
            make_backup(node.directory, place, overwrites=True)
    assert pipe.is_fifo()


def test_backup_whose_directory_cannot_be_synced_is_there_and_said_to_be(
    node: Created, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "bad disk")

    file = tmp_path / "backup"
    with monkeypatch.context() as patch:
        patch.setattr("kvp2p.supervisor.backup.sync_directory", fail)
        with pytest.raises(StoreError, match=r"is whole, but its directory cannot be synced: .*bad disk"):
            make_backup(node.directory, file)
    restore_backup(file, tmp_path / "again")


def test_file_that_comes_while_the_backup_is_made_is_left_alone(node: Created, tmp_path: Path) -> None:
    file = tmp_path / "backup"

    def come_between(_done: int, _total: int) -> None:
        file.write_text("mine")

    with pytest.raises(ConfigError, match="meanwhile"):
        make_backup(node.directory, file, on_progress=come_between)
    assert file.read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["backup", "n1"]


def test_directory_without_a_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kvp2p init"):
        make_backup(tmp_path, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


class StopError(Exception):
    pass


def test_nothing_is_left_of_work_that_was_stopped(node: Created, backup: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise StopError

    before = sorted(tmp_path.iterdir())
    with pytest.raises(StopError):
        make_backup(node.directory, tmp_path / "other", on_progress=stop)
    with pytest.raises(StopError):
        restore_backup(backup, tmp_path / "again", on_progress=stop)
    assert sorted(tmp_path.iterdir()) == before
    assert [one.name for one in threading.enumerate() if one.name == "store-copy"] == []


def test_progress_ends_at_the_whole(node: Created, backup: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    make_backup(node.directory, tmp_path / "other", on_progress=lambda *now: told.append(now))
    size = (tmp_path / "other").stat().st_size
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    assert size - MANIFEST_BYTES - 10 * BLOCK < told[-1][0] < size
    told.clear()
    restore_backup(backup, tmp_path / "again", on_progress=lambda *now: told.append(now))
    assert told[-1][0] == told[-1][1]


# The disk of the file is full: a limit on the size of files stands for that.
FULL = """
import resource, sys
from pathlib import Path
from kvp2p.errors import KvError
from kvp2p.supervisor.backup import make_backup
from kvp2p.supervisor.manifest import MANIFEST_BYTES
from kvp2p.supervisor.restore import restore_backup
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
work = {"backup": make_backup, "restore": restore_backup}[sys.argv[1]]
try:
    work(Path(sys.argv[2]), Path(sys.argv[3]))
except KvError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("work", "told"), [("backup", "StoreError"), ("restore", "ConfigError")])
def test_disk_without_room_is_told_and_nothing_is_left(
    node: Created, backup: Path, tmp_path: Path, work: str, told: str
) -> None:
    before = sorted(tmp_path.iterdir())
    source = node.directory if work == "backup" else backup
    command = [sys.executable, "-W", "error", "-c", FULL, work, str(source), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith(f"{told} {tmp_path / 'other'} cannot be ")
    assert "File too large" in done.stdout
    assert sorted(tmp_path.iterdir()) == before


# --- files that are not whole


def restoring(file: Path, tmp_path: Path) -> pytest.ExceptionInfo[StoreError]:
    with pytest.raises(StoreError) as caught:
        restore_backup(file, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert list(tmp_path.glob(".*")) == []
    return caught


def is_told_what_to_do(file: Path, error: StoreError) -> bool:
    """Tell whether an error names the file, and what to do, in one line."""
    message = str(error)
    return message.startswith(f"{file} is ") and message.endswith("Use another backup") and message.isprintable()


def test_file_that_was_cut_off_anywhere_is_refused(backup: Path, tmp_path: Path) -> None:
    whole = backup.read_bytes()
    end = len(whole) - 2 * BLOCK  # what follows is the end of the tar: nothing of the backup
    for length in [0, 1, BLOCK, 2_000, BLOCK + MANIFEST_BYTES, *range(9_000, end, 20_011), end - BLOCK]:
        backup.write_bytes(whole[:length])
        assert is_told_what_to_do(backup, restoring(backup, tmp_path).value)
    assert "cut off: store.mdb cannot be read of it" in str(restoring(backup, tmp_path).value)


def test_file_with_a_bit_turned_over_is_refused_or_makes_the_same_directory(
    node: Created, backup: Path, tmp_path: Path
) -> None:
    whole = backup.read_bytes()
    refused = 0
    for at in [*range(0, 12_000, 997), *range(12_000, len(whole), 30_011)]:
        damaged = bytearray(whole)
        damaged[at] ^= 4
        backup.write_bytes(damaged)
        try:
            directory = restore_backup(backup, tmp_path / f"again-{at}").directory
        except StoreError:
            refused += 1
        else:
            assert contents(directory) == contents(node.directory), "it was in padding, or a date"
    assert refused > 20


def test_byte_of_the_manifest_that_is_damaged_ends_in_a_clear_error_or_restores_the_very_node(
    node: Created, backup: Path, tmp_path: Path
) -> None:
    """One bit of each byte, in the tar's head, the text and the padding. What is not noticed tells when and by whom the backup was made."""
    sound = restore_backup(backup, tmp_path / "sound").manifest.document()
    whole = backup.read_bytes()
    newer: list[str] = []
    unnoticed: set[str] = set()
    with backup.open("r+b", buffering=0) as file:
        for at in range(BLOCK + MANIFEST_BYTES):
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << at % 8]), at)
            try:
                restored = restore_backup(backup, tmp_path / "again")
            except StoreError as error:
                if not is_told_what_to_do(backup, error):
                    newer.append(str(error))
                assert not (tmp_path / "again").exists()
            else:
                found = restored.manifest.document()
                unnoticed |= {name for name, value in found.items() if value != sound[name]}
                assert contents(restored.directory) == contents(node.directory)
                shutil.rmtree(restored.directory)
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert unnoticed == {"made_at", "made_by"}
    assert len(newer) <= 1, "the digit of the format"
    assert all("Restore it with kvp2p" in one for one in newer)
    assert list(tmp_path.glob(".*")) == []


def test_manifest_that_was_cut_off_anywhere_ends_in_a_clear_error(backup: Path, tmp_path: Path) -> None:
    for length in reversed(range(BLOCK + MANIFEST_BYTES + 1)):
        os.truncate(backup, length)
        assert is_told_what_to_do(backup, restoring(backup, tmp_path).value)


def rewritten(backup: Path, change: Callable[[dict[str, object]], object]) -> Path:
    """Change the manifest of a backup."""
    data = bytearray(backup.read_bytes())
    manifest = json.loads(data[BLOCK : BLOCK + MANIFEST_BYTES])
    change(manifest)
    data[BLOCK : BLOCK + MANIFEST_BYTES] = json.dumps(manifest).encode().ljust(MANIFEST_BYTES)
    backup.write_bytes(data)
    return backup


def test_backup_of_a_newer_format_is_refused_with_the_version_to_use(backup: Path, tmp_path: Path) -> None:
    newer = rewritten(backup, lambda manifest: manifest.update(backup_format=2, made_by="7.1.0"))
    caught = restoring(newer, tmp_path)
    assert caught.type is StoreFormatError
    assert "format 2, made by kvp2p 7.1.0; this one reads format 1. Restore it with kvp2p 7.1.0 or newer" in str(
        caught.value
    )


@pytest.mark.parametrize("name", ["../outside", "lock", "store/data.mdb"])
def test_backup_that_names_other_files_is_refused(backup: Path, tmp_path: Path, name: str) -> None:
    def add(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, dict)
        files[name] = files["kvp2p.toml"]

    assert restoring(rewritten(backup, add), tmp_path).type is StoreFormatError


def test_backup_that_lacks_a_file_or_has_others_is_refused(backup: Path, tmp_path: Path) -> None:
    for names in (["kvp2p.toml"], ["store.mdb", "cluster.key"]):

        def keep(manifest: dict[str, object], names: list[str] = names) -> None:
            files = manifest["files"]
            assert isinstance(files, dict)
            manifest["files"] = {name: files[name] for name in names}

        file = tmp_path / "changed"
        file.write_bytes(backup.read_bytes())
        assert restoring(rewritten(file, keep), tmp_path).type is StoreFormatError


def other_files(tmp_path: Path) -> Iterator[Path]:
    text = tmp_path / "text"
    text.write_text("not a backup " * 1_000)
    yield text
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w") as made:
        made.add(text, "text")
    yield archive
    linked = tmp_path / "linked"
    with tarfile.open(linked, "w") as made:
        link = tarfile.TarInfo("manifest.json")
        link.type, link.linkname = tarfile.SYMTYPE, "text"
        made.addfile(link)
    yield linked


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    for file in other_files(tmp_path):
        caught = restoring(file, tmp_path)
        assert caught.type is StoreFormatError
        assert file.name != "archive" or "its first member is 'text'" in str(caught.value)
    for name in ("nothing", "."):
        with pytest.raises(ConfigError, match="cannot be read"):
            restore_backup(tmp_path / name, tmp_path / "again")


def test_member_that_the_manifest_does_not_tell_of_is_refused(node: Created, backup: Path, tmp_path: Path) -> None:
    def forget_the_key(manifest: dict[str, Any]) -> None:
        del manifest["files"]["cluster.key"]

    with pytest.raises(StoreCorrupt, match=r"holds 'cluster.key', which its manifest does not tell of"):
        restore_backup(rewritten(backup, forget_the_key), tmp_path / "again", cluster_key_file=node.key_file)
    assert not (tmp_path / "again").exists()


def test_settings_that_are_longer_than_settings_can_be_are_not_copied(node: Created, tmp_path: Path) -> None:
    with (node.directory / "kvp2p.toml").open("a") as config:
        config.write("#" * 2**20 + "\n")
    with pytest.raises(ConfigError, match=r"kvp2p.toml has \d+ bytes, which is too much"):
        make_backup(node.directory, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("cluster_id", "0" * 32), ("node_id", "0" * 32), ("name", "n2"), ("state_hash", "0" * 32), ("other_members", 0)],
)
def test_manifest_of_another_store_is_refused(backup: Path, tmp_path: Path, name: str, value: object) -> None:
    caught = restoring(rewritten(backup, lambda manifest: manifest.update({name: value})), tmp_path)
    assert caught.type is StoreCorrupt
    assert f"its manifest and its store differ in {name}. Use another backup" in str(caught.value)


def test_disk_that_does_not_give_the_backup_is_not_taken_for_a_fault_of_the_directory(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 0

    def read(content: tarfile.ExFileObject, size: int = -1) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return io.BufferedReader.read(content, size)

    monkeypatch.setattr(tarfile.ExFileObject, "read", read)
    for reads in (0, 1, 5):  # up to the manifest, the settings, the store
        left = reads
        assert str(restoring(backup, tmp_path).value) == f"{backup} cannot be read: Input/output error"


def test_member_that_does_not_match_its_digest_is_named(backup: Path, tmp_path: Path) -> None:
    data = bytearray(backup.read_bytes())
    data[-3 * BLOCK] ^= 1
    backup.write_bytes(data)
    caught = restoring(backup, tmp_path)
    assert caught.type is StoreCorrupt
    assert "store.mdb does not match its digest" in str(caught.value)


# --- keys and places


def test_backup_without_the_key_asks_for_it(node: Created, tmp_path: Path) -> None:
    file = make_backup(node.directory, tmp_path / "backup", has_key=False).file
    assert node.key_file.read_bytes().split()[3] not in file.read_bytes()
    with pytest.raises(ConfigError, match="--cluster-key-file"):
        restore_backup(file, tmp_path / "again")
    restored = restore_backup(file, tmp_path / "again", cluster_key_file=node.key_file)
    assert (restored.directory / "cluster.key").read_bytes() == node.key_file.read_bytes()


def never(_done: int, _total: int) -> None:
    raise AssertionError("bytes were copied")


@pytest.mark.parametrize("has_key", [False, True])
def test_key_that_is_of_another_cluster_or_none_is_refused_before_anything_is_unpacked(
    node: Created, tmp_path: Path, has_key: bool
) -> None:
    file = make_backup(node.directory, tmp_path / "backup", has_key=has_key).file
    other = create_cluster(tmp_path / "other", "n1")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=f"of cluster {node.cluster_id.hex()}, the key of {other.cluster_id.hex()}"):
        restore_backup(file, tmp_path / "again", cluster_key_file=other.key_file, on_progress=never)
    with pytest.raises(ConfigError, match=f"{file} is no cluster key file|the cluster key file {file} cannot be read"):
        restore_backup(file, tmp_path / "again", cluster_key_file=file, on_progress=never)
    with pytest.raises(ConfigError, match=f"the cluster key file {tmp_path}/nothing does not exist"):
        restore_backup(file, tmp_path / "again", cluster_key_file=tmp_path / "nothing", on_progress=never)
    assert sorted(tmp_path.iterdir()) == before


def test_key_that_is_given_takes_the_place_of_the_one_in_the_backup(
    node: Created, backup: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given.key"
    write_cluster_key(given, replace(read_cluster_key(node.key_file), key=b"k" * 32))
    restored = restore_backup(backup, tmp_path / "again", cluster_key_file=given)
    assert (restored.directory / "cluster.key").read_bytes() == given.read_bytes()


def test_backup_of_a_directory_whose_key_is_missing_or_another_clusters_blames_the_key(
    node: Created, tmp_path: Path
) -> None:
    other = create_cluster(tmp_path / "other", "n1")
    before = sorted(tmp_path.iterdir())
    sound = node.key_file.read_bytes()
    node.key_file.write_bytes(other.key_file.read_bytes())
    with pytest.raises(ConfigError, match=f"{node.key_file} is of cluster {other.cluster_id.hex()}"):
        make_backup(node.directory, tmp_path / "backup", on_progress=never)
    node.key_file.unlink()
    with pytest.raises(ConfigError, match=f"the cluster key file {node.key_file} does not exist"):
        make_backup(node.directory, tmp_path / "backup", on_progress=never)
    assert sorted(tmp_path.iterdir()) == before
    file = make_backup(node.directory, tmp_path / "backup", has_key=False).file
    node.key_file.write_bytes(sound)
    restore_backup(file, tmp_path / "again", cluster_key_file=node.key_file)


def test_directory_that_has_something_in_it_is_left_alone(node: Created, backup: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already has a node"):
        restore_backup(backup, node.directory)
    (tmp_path / "empty").mkdir()
    restored = restore_backup(backup, tmp_path / "empty")
    assert os.listdir(restored.directory)  # noqa: PTH208  only whether there is anything
