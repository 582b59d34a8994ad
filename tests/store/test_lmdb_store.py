"""The LMDB store as a file: reopening it, other processes, full disks, and what it refuses to open."""

import errno
import gc
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from kvp2p import __version__
from kvp2p.core.messages import Designation
from kvp2p.core.port import Identity
from kvp2p.core.vector import VersionVector
from kvp2p.errors import StoreError, StoreFormatError, StoreFull
from kvp2p.ids import Issuer, NamespaceId, NodeId, Stamp, make_version
from kvp2p.limits import STORE_RESERVE_BYTES
from kvp2p.store import lmdb_store
from kvp2p.store.environment import DISK_FULL_BYTES, translate
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.meta import FORMAT_KEY, VECTOR
from kvp2p.store.tables import META

MakeRow = Callable[..., bytes]

ROOT = Path(__file__).resolve().parents[2]
SPACE = NamespaceId(b"1" * 16)
ISSUER = Issuer(b"issuer-1")
GIBIBYTES = 1 << 30


@pytest.fixture
def directory(tmp_path: Path, identity: Identity) -> Path:
    """Give the directory of a store that is made and closed."""
    LmdbStore.create(tmp_path / "store", identity, complete=False).close()
    return tmp_path / "store"


def start_process(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Start a Python process that answers on standard output, line by line."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def line_of(process: "subprocess.Popen[str]", told: str | None = None) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if told is not None:
        process.stdin.write(told + "\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def write_meta(directory: Path, key: bytes, value: bytes) -> None:
    with lmdb.open(str(directory), max_dbs=16, lib_version=0) as environment:
        table = environment.open_db(META.encode())
        with environment.begin(write=True) as transaction:
            transaction.put(key, value, db=table)


def test_reopened_store_has_what_was_written(tmp_path: Path, identity: Identity, make_row: MakeRow) -> None:
    designation = Designation(1, ISSUER, NodeId(b"n" * 16))
    with LmdbStore.create(tmp_path / "deep" / "store", identity, complete=True, designation=designation) as store:
        with store.write() as writer:
            for key in (b"\x00", b"k" * 512, b"\xff"):
                writer.put_row(SPACE, key, make_row(key))
            writer.set_vector(VersionVector([make_version(1, Stamp(3), ISSUER)]))
        assert store.used_bytes() > 8192
    for readonly in (True, False):
        with LmdbStore.open(tmp_path / "deep" / "store", readonly=readonly) as store, store.read() as reader:
            assert reader.identity == identity
            assert reader.designation == designation
            assert reader.complete is True
            assert [key for key, _ in reader.rows(SPACE)] == [b"\x00", b"k" * 512, b"\xff"]
            assert reader.vector == VersionVector([make_version(1, Stamp(3), ISSUER)])


def test_store_is_not_made_over_another(directory: Path, identity: Identity) -> None:
    with pytest.raises(StoreError, match="holds a store already"):
        LmdbStore.create(directory, Identity(identity.cluster, identity.account, identity.node, "n2"), complete=True)
    with LmdbStore.open(directory) as store, store.read() as reader:
        assert reader.identity.name == "n1"


def test_creation_that_was_interrupted_can_be_done_again(tmp_path: Path, identity: Identity) -> None:
    lmdb.open(str(tmp_path), max_dbs=16, lib_version=0).close()  # the file is there, the first transaction is not
    for readonly in (True, False):
        with pytest.raises(StoreError, match="not complete") as caught:
            LmdbStore.open(tmp_path, readonly=readonly)
        assert not isinstance(caught.value, StoreFormatError)
    with LmdbStore.create(tmp_path, identity, complete=True) as store, store.read() as reader:
        assert reader.identity == identity


@pytest.mark.parametrize("readonly", [True, False])
def test_file_that_is_still_empty_is_a_store_that_is_not_complete(tmp_path: Path, *, readonly: bool) -> None:
    (tmp_path / "data.mdb").touch()
    with pytest.raises(StoreError, match="not complete"):
        LmdbStore.open(tmp_path, readonly=readonly)


def test_directory_without_a_store_says_how_to_make_one(tmp_path: Path) -> None:
    for readonly in (True, False):
        with pytest.raises(StoreError, match="kvp2p init"):
            LmdbStore.open(tmp_path / "nothing", readonly=readonly)
    assert not (tmp_path / "nothing").exists()


def test_directory_that_cannot_be_made_is_a_store_error(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="no store can be made"):
        LmdbStore.create(tmp_path / "file" / "store", identity, complete=True)
    with pytest.raises(StoreError):
        LmdbStore.open(tmp_path / "file" / "store")


@pytest.mark.parametrize("readonly", [True, False])
def test_newer_format_is_refused_with_the_version_that_made_it(directory: Path, *, readonly: bool) -> None:
    write_meta(directory, FORMAT_KEY, b'{"format":3,"made_by":"7.1.0"}')
    with pytest.raises(StoreFormatError) as caught:
        LmdbStore.open(directory, readonly=readonly)
    told = str(caught.value)
    for part in (
        "format 3",
        "made by kvp2p 7.1.0",
        f"kvp2p {__version__} reads format 2",
        "Start kvp2p 7.1.0 or newer",
    ):
        assert part in told


def test_older_format_is_refused_with_what_to_do(directory: Path) -> None:
    write_meta(directory, FORMAT_KEY, b'{"format":0,"made_by":"0.0.1"}')
    with pytest.raises(StoreFormatError, match=r"format 0, made by kvp2p 0\.0\.1.*Export it with kvp2p 0\.0\.1"):
        LmdbStore.open(directory)


@pytest.mark.parametrize("value", [b"", b"1", b"[]", b'{"format":1}', b'{"format":"x","made_by":"y"}', b"\xff"])
def test_unreadable_format_is_refused(directory: Path, value: bytes) -> None:
    write_meta(directory, FORMAT_KEY, value)
    with pytest.raises(StoreFormatError, match="does not say its format"):
        LmdbStore.open(directory)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data.mdb").write_bytes(b"not a database" * 1000)
    with lmdb.open(str(tmp_path / "plain"), lib_version=0) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    with lmdb.open(str(tmp_path / "table"), max_dbs=2, lib_version=0) as environment:
        environment.open_db(b"meta")
    with (
        lmdb.open(str(tmp_path / "collision"), lib_version=0) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"meta", b"value")  # a key of this name where a table is looked for
    for name in ("text", "plain", "table", "collision"):
        for readonly in (True, False):
            with pytest.raises(StoreFormatError):
                LmdbStore.open(tmp_path / name, readonly=readonly)


def test_damaged_fact_is_refused_where_it_is_read(directory: Path) -> None:
    write_meta(directory, VECTOR.name, b"short")
    with LmdbStore.open(directory) as store:
        with store.read() as reader, pytest.raises(StoreFormatError, match="vector cannot be read"):
            _ = reader.vector
        with pytest.raises(StoreFormatError, match="vector cannot be read"), store.write() as writer:
            _ = writer.vector


READER = """
import sys
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.ids import NamespaceId
with LmdbStore.open(sys.argv[1], readonly=True) as store:
    print("ready", flush=True)
    for line in sys.stdin:
        with store.read() as reader:
            row = reader.row(NamespaceId(b"1" * 16), line.strip().encode())
            print(row[48:].decode() if row else "-", store.environment.handle.info()["map_size"], flush=True)
            if line.strip() == "stay":
                sys.stdin.readline()
"""


def test_reader_process_sees_what_was_committed(tmp_path: Path, identity: Identity, make_row: MakeRow) -> None:
    map_bytes = 1 << 30
    directory = tmp_path / "store"
    with (
        LmdbStore.create(directory, identity, complete=True, map_bytes=map_bytes) as store,
        start_process(READER, directory) as process,
    ):
        assert line_of(process) == "ready"
        assert line_of(process, "a") == f"- {map_bytes}"  # a reader takes the map that the writer left in the file
        for value in (b"1", b"2"):
            with store.write() as writer:
                writer.put_row(SPACE, b"a", make_row(value))
            assert line_of(process, "a") == f"{value.decode()} {map_bytes}"
        with pytest.raises(ZeroDivisionError), store.write() as writer:
            writer.put_row(SPACE, b"a", make_row(b"3"))
            assert line_of(process, "a").startswith("2")
            _ = 1 / 0
        assert line_of(process, "a").startswith("2")


def test_slot_of_a_killed_reader_is_freed_by_reader_check(directory: Path) -> None:
    with LmdbStore.open(directory) as store:
        with start_process(READER, directory) as process:
            assert line_of(process) == "ready"
            assert line_of(process, "stay").startswith("-")  # it is inside its transaction now
            assert store.reader_check() == 0
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        assert store.reader_check() == 1
        assert store.reader_check() == 0


OTHER_WRITER = """
import sys
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.core.vector import VersionVector
from kvp2p.ids import Issuer, Stamp, make_version
with LmdbStore.open(sys.argv[1]) as store, store.write() as writer:
    writer.set_vector(writer.vector.raised(make_version(1, Stamp(5), Issuer(b"issuer-2"))))
"""


def test_writer_notices_that_another_process_wrote(directory: Path) -> None:
    with LmdbStore.open(directory) as store:
        with store.write() as writer:
            writer.set_vector(VersionVector([make_version(1, Stamp(1), ISSUER)]))
        with start_process(OTHER_WRITER, directory) as process:
            assert process.wait(20) == 0
        with store.write() as writer:
            assert writer.vector == VersionVector(
                [make_version(1, Stamp(1), ISSUER), make_version(1, Stamp(5), Issuer(b"issuer-2"))]
            )


def test_store_is_shared_within_a_process(directory: Path, make_row: MakeRow) -> None:
    writing = LmdbStore.open(directory)
    reading = LmdbStore.open(directory, readonly=True)
    with writing.write() as writer:
        writer.put_row(SPACE, b"a", make_row(b"1"))
    writing.close()
    writing.close()
    with reading.read() as reader:  # the file stays open until the last of them lets go
        assert reader.row(SPACE, b"a") == make_row(b"1")
    reading.close()
    with LmdbStore.open(directory, readonly=True), pytest.raises(StoreError, match="open it for writing first"):
        LmdbStore.open(directory)
    LmdbStore.open(directory).close()


def test_closed_store_and_readonly_store_refuse_with_a_store_error(directory: Path) -> None:
    store = LmdbStore.open(directory, readonly=True)
    with pytest.raises(StoreError), store.write():
        raise AssertionError("a reader wrote")
    store.close()
    with pytest.raises(StoreError), store.read():
        raise AssertionError("read from a closed file")
    with pytest.raises(StoreError):
        store.reader_check()
    with pytest.raises(StoreError):
        store.check_in_place()


def test_replaced_file_is_noticed(directory: Path, tmp_path: Path, identity: Identity) -> None:
    with LmdbStore.open(directory, readonly=True) as store:
        store.check_in_place()
        directory.rename(tmp_path / "away")
        with pytest.raises(StoreError, match="removed or replaced"):
            store.check_in_place()
        other = Identity(identity.cluster, identity.account, identity.node, "n2")
        with LmdbStore.create(directory, other, complete=True) as new:
            with pytest.raises(StoreError, match="removed or replaced"):
                store.check_in_place()
            new.check_in_place()
            with new.read() as reader:
                assert reader.identity.name == "n2"


def test_views_are_not_copied_and_rows_are(directory: Path, make_row: MakeRow) -> None:
    with LmdbStore.open(directory) as store:
        with store.write() as writer:
            for key in (b"a", b"k" * 512):
                writer.put_row(SPACE, key, make_row(key))
        with store.read() as reader, store.read(views=True) as viewer:
            for key in (b"a", b"k" * 512):
                assert isinstance(reader.row(SPACE, key), bytes)
                view: object = viewer.row(SPACE, key)
                assert isinstance(view, memoryview)
            walked: list[tuple[bytes, object]] = list(viewer.rows(SPACE))
            assert [(key, bytes(row)) for key, row in walked if isinstance(row, memoryview)] == [
                (b"a", make_row(b"a")),
                (b"k" * 512, make_row(b"k" * 512)),
            ]
            assert all(isinstance(key, bytes) for key, _ in walked)


def test_full_map_is_told_as_full_and_undone(tmp_path: Path, identity: Identity, make_row: MakeRow) -> None:
    with LmdbStore.create(tmp_path / "store", identity, complete=True, map_bytes=1 << 20) as store:
        with store.write() as writer:
            writer.put_row(SPACE, b"kept", make_row(b"kept"))
        with pytest.raises(StoreFull, match="map"), store.write() as writer:
            for number in range(100):
                writer.put_row(SPACE, b"%d" % number, make_row(b"v" * 100_000))
        with store.write() as writer:
            assert [key for key, _ in writer.rows(SPACE)] == [b"kept"]
            writer.put_row(SPACE, b"more", make_row(b"more"))
        with store.read() as reader:
            assert [key for key, _ in reader.rows(SPACE)] == [b"kept", b"more"]


def test_reserve_is_kept_for_what_makes_room(directory: Path, make_row: MakeRow) -> None:
    with LmdbStore.open(directory, free=lambda: STORE_RESERVE_BYTES // 2) as store:
        with store.write(into_reserve=True) as writer:
            writer.put_row(SPACE, b"a", make_row(b"a"))
        with pytest.raises(StoreFull, match="32 MiB"), store.write():
            raise AssertionError("wrote into the reserve")
        with store.read() as reader:
            assert reader.row(SPACE, b"a") == make_row(b"a")


def test_a_full_disk_is_recovered_by_deleting(
    directory: Path, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB keeps the pages that deleting frees: the disk stays full, and yet there is room."""
    monkeypatch.setattr(lmdb_store, "STORE_RESERVE_BYTES", 1 << 20)
    free = GIBIBYTES
    with LmdbStore.open(directory, free=lambda: free) as store:
        with store.write() as writer:
            for number in range(20):
                writer.put_row(SPACE, b"%d" % number, make_row(b"v" * 100_000))
        free = 600_000
        with pytest.raises(StoreFull), store.write():
            raise AssertionError("wrote into the reserve")
        for numbers in (range(15), range(15, 16)):  # pages are used again from the second commit after theirs
            with store.write(into_reserve=True) as writer:
                for number in numbers:
                    writer.put_row(SPACE, b"%d" % number, make_row(None))
        used = store.used_bytes()
        with store.write() as writer:
            writer.put_row(SPACE, b"more", make_row(b"v" * 1_000))
        assert store.used_bytes() == used, "nothing was asked of the disk"


def test_an_old_reader_that_pins_freed_pages_lets_puts_take_half_of_the_reserve_and_no_more(
    directory: Path, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = 1 << 20
    monkeypatch.setattr(lmdb_store, "STORE_RESERVE_BYTES", reserve)
    disk: int = GIBIBYTES
    with LmdbStore.open(directory, free=lambda: disk - store.used_bytes()) as store:
        with store.write() as writer:
            for number in range(20):
                writer.put_row(SPACE, b"%d" % number, make_row(b"v" * 100_000))
        disk = store.used_bytes() + reserve - 1
        with store.read():
            for number in range(15):
                with store.write(into_reserve=True) as writer:
                    writer.put_row(SPACE, b"%d" % number, make_row(None))
            with pytest.raises(StoreFull):
                for number in range(100):
                    with store.write() as writer:
                        writer.put_row(SPACE, b"more %d" % number, make_row(b"v" * 100_000))
            assert disk - store.used_bytes() > reserve // 4
            with store.write(into_reserve=True) as writer:
                writer.put_row(SPACE, b"19", make_row(None))


# The limit on file sizes cuts a write short just as a full disk does: LMDB reports EIO, and the free space decides.
SHORT_WRITE = """
import resource, sys
from pathlib import Path
from kvp2p.core.entry import Kind, encode_row
from kvp2p.errors import StoreError
from kvp2p.ids import NamespaceId, Version
from kvp2p.store.lmdb_store import LmdbStore
directory, free = Path(sys.argv[1]), [1 << 30, 1 << 30]
row = encode_row(Kind.VALUE, bytes(150_000), None, 0, Version(bytes(20)))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with LmdbStore.open(directory, free=lambda: free.pop()) as store:
    with store.write() as writer:
        writer.put_row(NamespaceId(b"1" * 16), b"kept", row)
    free[:] = [int(sys.argv[2]), 1 << 30]
    resource.setrlimit(resource.RLIMIT_FSIZE, ((directory / "data.mdb").stat().st_size + 100_001, hard))
    try:
        with store.write() as writer:
            for number in range(20):
                writer.put_row(NamespaceId(b"1" * 16), b"%d" % number, row)
    except StoreError as error:
        print(type(error).__name__, error.__cause__.code)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    free[:] = [1 << 30]
    with store.write() as writer:
        writer.put_row(NamespaceId(b"1" * 16), b"later", row)
    with store.read() as reader:
        print(*[key.decode() for key, _ in reader.rows(NamespaceId(b"1" * 16))])
"""


@pytest.mark.parametrize(("free", "told"), [(DISK_FULL_BYTES - 1, "StoreFull"), (1 << 30, "StoreError")])
def test_write_that_the_disk_cuts_short_is_undone_and_told(directory: Path, free: int, told: str) -> None:
    with start_process(SHORT_WRITE, directory, free) as process:
        output, _ = process.communicate(timeout=30)
        assert output.splitlines() == [f"{told} {errno.EIO}", "kept later"]


# The same without a hand in what is free: the store asks how far the limit is away.
LIMITED = """
import resource, sys
from pathlib import Path
from kvp2p.core.entry import Kind, encode_row
from kvp2p.errors import StoreFull
from kvp2p.ids import NamespaceId, Version
from kvp2p.limits import STORE_RESERVE_BYTES
from kvp2p.store.lmdb_store import LmdbStore
directory, space = Path(sys.argv[1]), NamespaceId(b"1" * 16)
row = encode_row(Kind.VALUE, bytes(150_000), None, 0, Version(bytes(20)))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

def leave(more):
    size = (directory / "data.mdb").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if more is None else size + more, hard))

def attempt(name, **options):
    try:
        with store.write(**options) as writer:
            writer.put_row(space, name, row)
    except StoreFull as full:
        print(getattr(full.__cause__, "code", 0), str(full).rpartition(directory.name)[2])

with LmdbStore.open(directory) as store:
    attempt(b"kept")
    leave(STORE_RESERVE_BYTES // 2 - 1)
    attempt(b"refused")
    attempt(b"into the reserve", into_reserve=True)
    for more in (0, 1, 100_001):  # nothing of it fits, or a part of it
        leave(more)
        attempt(b"lost", into_reserve=True)
    leave(None)
    attempt(b"later")
    with store.read() as reader:
        print(*[key.decode() for key, _ in reader.rows(space)], sep=", ")
"""


def test_limit_on_the_size_of_files_is_a_full_disk(directory: Path) -> None:
    with start_process(LIMITED, directory) as process:
        output, _ = process.communicate(timeout=30)
    refused, *cut_short, keys = output.splitlines()
    what = "has reached the limit on the size of a file (RLIMIT_FSIZE): raise it, with prlimit or ulimit -f."
    assert refused == f"0  {what} Less than 32 MiB are left, which are kept for deleting"
    assert [line.split()[0] for line in cut_short] == [str(one) for one in (errno.EFBIG, errno.EIO, errno.EIO)]
    assert all(f" {what} The node goes on by itself (mdb_txn_commit: " in line for line in cut_short)
    assert keys == "into the reserve, kept, later"


@pytest.mark.parametrize(
    ("error", "code", "free", "kind"),
    [
        (lmdb.DiskError, errno.ENOSPC, GIBIBYTES, StoreFull),
        (lmdb.Error, errno.EDQUOT, GIBIBYTES, StoreFull),
        (lmdb.Error, errno.EFBIG, GIBIBYTES, StoreFull),
        (lmdb.Error, errno.EROFS, GIBIBYTES, StoreError),
        (lmdb.Error, errno.EIO, 0, StoreFull),
        (lmdb.Error, errno.EIO, GIBIBYTES, StoreError),
        (lmdb.MapFullError, 0, GIBIBYTES, StoreFull),
        (lmdb.InvalidError, 0, GIBIBYTES, StoreFormatError),
        (lmdb.VersionMismatchError, 0, GIBIBYTES, StoreFormatError),
        (lmdb.ReadersFullError, 0, GIBIBYTES, StoreError),
        (lmdb.MapResizedError, 0, GIBIBYTES, StoreError),
    ],
)
def test_errors_of_lmdb_become_ours(error: type[lmdb.Error], code: int, free: int, kind: type[StoreError]) -> None:
    struck = error("commit")
    vars(struck)["code"] = code  # as LMDB's binding does it
    assert type(translate(struck, Path("store"), lambda: free)) is kind


def test_real_lmdb_error_carries_the_code_it_is_judged_by(directory: Path) -> None:
    with LmdbStore.open(directory) as store:
        handle = store.environment.handle
        with pytest.raises(StoreError) as caught, store.write() as writer:
            writer._tables.put(META, b"k" * 512, b"")  # over LMDB's limit
        assert isinstance(caught.value.__cause__, lmdb.BadValsizeError)
        assert handle.info()["num_readers"] >= 0
    gc.collect()
