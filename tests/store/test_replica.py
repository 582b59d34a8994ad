"""The embedded reader: what it shows, what it hides, how lists go on, and what it does with odd callers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import kvp2p
from kvp2p import Replica
from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import NamespaceSweep, StampedWrite, WriteGroup
from kvp2p.core.clock import OFFSET_KEPT_MS
from kvp2p.core.entry import row_digest_holds
from kvp2p.core.operations import CreateNamespace, Delete, DeleteNamespace, Ending, Operation, Put
from kvp2p.core.port import Identity
from kvp2p.core.vector import VersionVector
from kvp2p.errors import RequestError, StoreCorrupt, StoreError
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, Issuer, NamespaceId, Stamp, make_version
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.reader import Page, is_hidden

ROOT = Path(__file__).resolve().parents[2]
ISSUER = Issuer(b"issuer-1")
SPACE = NamespaceId(bytes.fromhex("ab" * 16))
OTHER = NamespaceId(bytes.fromhex("cd" * 16))
ACCOUNT = AccountId(b"a" * 16)
OTHER_ACCOUNT = AccountId(b"b" * 16)


@dataclass
class Node:
    """A store that is written as a leader writes it, and a reader of it."""

    store: LmdbStore
    directory: Path
    stamp: int = 0
    seconds: float = 1000.0
    replica: Replica = field(init=False)

    def __post_init__(self) -> None:
        self.replica = Replica(self.directory, now=lambda: self.seconds)

    def write(self, *operations: Operation) -> bytes:
        """Apply operations as one group; returns the version of the last."""
        first = Stamp(self.stamp + 1)
        self.stamp += len(operations)
        with self.store.write() as writer:
            group = WriteGroup(1, ISSUER, (StampedWrite(first, operations),), 5_000)
            (outcome,) = apply_batch(writer, group).outcomes
        assert outcome.ending == Ending.ACKED, outcome
        return make_version(1, Stamp(self.stamp), ISSUER)

    def put(self, *keys: bytes, expires_at: int = 0, namespace: NamespaceId = SPACE) -> None:
        self.write(*[Put(namespace, key, b"value of " + key, expires_at=expires_at) for key in keys])


@pytest.fixture
def node(tmp_path: Path, identity: Identity) -> Iterator[Node]:
    """Give a node with the namespace `things`."""
    store = LmdbStore.create(tmp_path / "store", identity, complete=True)
    made = Node(store, tmp_path)
    made.write(CreateNamespace(SPACE, ACCOUNT, "things"))
    yield made
    made.replica.close()
    store.close()


def names(page: Page) -> list[bytes]:
    return [one.key for one in page.keys]


def walk(replica: Replica, limit: int, prefix: bytes = b"") -> Iterator[Page]:
    cursor = None
    for _ in range(1000):
        page = replica.list("things", prefix, limit, cursor)
        yield page
        cursor = page.cursor
        assert page.list_complete == (cursor is None)
        if page.list_complete:
            return
    raise AssertionError("the walk does not end")


def test_package_exports_the_reader_without_importing_lmdb_before_it_is_asked_for() -> None:
    code = "import sys, kvp2p; assert 'lmdb' not in sys.modules; kvp2p.Replica; assert 'lmdb' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
    with pytest.raises(AttributeError, match="Replicant"):
        _ = kvp2p.Replicant


def test_get_finds_values_by_id_and_title_and_text_and_bytes(node: Node) -> None:
    version = node.write(Put(SPACE, b"key", b"", b'{"a":1}'))
    node.write(Put(SPACE, "schlüssel".encode(), b"wert"))
    for namespace in ("things", "ab" * 16, "AB" * 16, bytes(SPACE)):
        for key in ("key", b"key"):
            for _ in range(2):
                assert node.replica.get(namespace, key) == b""
            assert node.replica.get_with_metadata(namespace, key) == (b"", b'{"a":1}')
            found = node.replica.find(namespace, key)
            assert found is not None
            assert (found.expires_at, found.version) == (0, version)
    assert node.replica.get("things", "schlüssel") == b"wert"
    assert node.replica.get_with_metadata("things", "schlüssel") == (b"wert", None)
    assert node.replica.get("things", "missing") is None
    assert node.replica.get_with_metadata("things", "missing") is None


class Name(str):
    __slots__ = ()


def test_key_may_be_of_a_subclass_of_str(node: Node) -> None:
    node.put(b"key")
    for _ in range(2):
        assert node.replica.get(Name("things"), Name("key")) == b"value of key"
        with pytest.raises(TypeError):
            node.replica.get("things", 5)  # type: ignore[arg-type]


def test_get_sees_a_write_at_once(node: Node) -> None:
    for number in range(5):
        node.write(Put(SPACE, b"key", b"%d" % number))
        assert node.replica.get("things", "key") == b"%d" % number
        assert node.replica.get("things", "other") is None


@pytest.mark.parametrize(
    "key",
    [b"\x00", b"\xff", b"k" * 494, b"k" * 495, b"k" * 496, b"k" * 511, b"k" * 511 + b"\x00", b"k" * 511 + b"\xff"],
)
def test_key_of_any_length_and_byte_is_found(node: Node, key: bytes) -> None:
    node.put(b"k" * 512, b"k" * 497, b"other")
    assert node.replica.get("things", key) is None
    assert node.replica.get("things", key) is None
    node.put(key)
    for _ in range(2):
        assert node.replica.get("things", key) == b"value of " + key
        assert node.replica.get("things", key.decode("utf-8", "surrogateescape")) == b"value of " + key
    with node.replica.view() as view:
        row = view.raw_row(SPACE, key)
        assert row is not None
        assert row[48:] == b"value of " + key


def test_impossible_key_is_refused(node: Node) -> None:
    for _ in range(2):  # before and after the namespaces are known
        for key in (b"", "", b"k" * 513, "k" * 513):
            for ask in (node.replica.get, node.replica.find, node.replica.get_with_metadata):
                with pytest.raises(RequestError) as caught:
                    ask("things", key)
                assert caught.value.code == "bad_key"
        node.replica.get("things", "key")


def test_unknown_namespace_is_refused(node: Node) -> None:
    for namespace in ("nothing", "ef" * 16, b"e" * 16, "", b"", "00" * 16, bytes(SYSTEM_NAMESPACE)):
        for _ in range(2):
            with pytest.raises(RequestError) as caught:
                node.replica.get(namespace, "key")
            assert caught.value.code == "namespace_not_found"
        with pytest.raises(RequestError, match="there is no namespace"):
            node.replica.list(namespace)


def test_row_is_hidden_from_the_second_at_which_it_expires(node: Node) -> None:
    node.put(b"soon", b"s" * 512, expires_at=2000)
    node.put(b"stays")
    for seconds, shown in ((1999.9, True), (2000.0, False), (2001, False), (1999.0, True)):
        node.seconds = seconds
        for key in (b"soon", b"s" * 512):
            for _ in range(2):
                assert (node.replica.get("things", key) is not None) is shown
            assert (node.replica.find("things", key) is not None) is shown
        listed = names(node.replica.list("things"))
        assert listed == ([b"soon", b"s" * 512, b"stays"] if shown else [b"stays"])


def test_program_hides_by_the_leaders_clock_as_the_node_wrote_it_down_and_not_early(node: Node) -> None:
    leader_s, wall_s = 1_000.0, 1_000.0
    node.put(b"key", expires_at=1_000)
    with Replica(node.directory, wall_s=lambda: wall_s) as replica:

        def shows() -> bool:
            assert names(replica.list("things")) == ([b"key"] if replica.find("things", "key") else [])
            return replica.get("things", "key") is not None

        assert shows(), "clocks that are less apart than this are not written down"
        wall_s = leader_s + OFFSET_KEPT_MS / 1_000
        assert not shows()
        for offset_ms in (3_600_000, -3_600_000):
            with node.store.write() as txn:
                txn.set_clock_offset_ms(offset_ms)
            for seconds, is_shown in ((-3_600, True), (0.499, True), (0.5, False), (3_600, False)):
                wall_s = leader_s - offset_ms / 1_000 + seconds
                assert shows() is is_shown
                assert replica.kept_now() == pytest.approx(leader_s + seconds - 0.5)


def test_clock_is_not_asked_for_rows_that_stay(node: Node) -> None:
    node.put(b"key")
    node.write(Put(SPACE, b"described", b"v", b"{}"))

    def no_clock() -> float:
        raise AssertionError("asked for the time")

    with Replica(node.directory, now=no_clock) as replica:
        assert replica.get("things", "key") == b"value of key"
        assert replica.get("things", "described") == b"v"
        assert names(replica.list("things")) == [b"described", b"key"]


def test_tombstone_is_hidden_and_stays_in_the_store(node: Node) -> None:
    node.put(b"a", b"b")
    node.write(Delete(SPACE, b"a"))
    assert node.replica.get("things", "a") is None
    assert node.replica.find("things", "a") is None
    assert names(node.replica.list("things")) == [b"b"]
    with node.replica.view() as view:
        row = view.raw_row(SPACE, b"a")
        assert row is not None
        assert is_hidden(row, lambda: 0.0)


def test_rows_of_a_deleted_namespace_are_hidden_before_they_are_freed(node: Node) -> None:
    node.put(b"a")
    assert node.replica.get("things", "a") is not None
    node.write(DeleteNamespace(SPACE))
    with node.replica.view() as view:
        assert view.raw_row(SPACE, b"a") is not None
    for _ in range(2):
        for namespace in ("things", "ab" * 16, bytes(SPACE)):
            with pytest.raises(RequestError):
                node.replica.get(namespace, "a")
            with pytest.raises(RequestError):
                node.replica.list(namespace)
    assert node.replica.namespaces() == ()
    with node.store.write() as writer:
        apply_batch(writer, NamespaceSweep(SPACE, 10))
    node.write(CreateNamespace(OTHER, ACCOUNT, "things"))
    assert node.replica.get("things", "a") is None
    assert node.replica.resolve("things") == OTHER


def test_namespace_deleted_between_name_and_rows_lists_nothing(node: Node) -> None:
    node.put(b"a")
    resolve = node.replica.resolve

    def resolve_then_lose(namespace: str | bytes) -> NamespaceId:
        found = resolve(namespace)
        node.write(DeleteNamespace(SPACE))
        return found

    vars(node.replica)["resolve"] = resolve_then_lose
    with pytest.raises(RequestError) as caught:
        node.replica.list("things")
    assert caught.value.code == "namespace_not_found"


def test_namespaces_are_listed_and_titles_belong_to_an_account(node: Node) -> None:
    node.write(CreateNamespace(OTHER, OTHER_ACCOUNT, "theirs"))
    found = [(one.namespace, one.title, one.account, one.created_ms) for one in node.replica.namespaces()]
    assert found == [(SPACE, "things", ACCOUNT, 5_000), (OTHER, "theirs", OTHER_ACCOUNT, 5_000)]
    assert node.replica.resolve("cd" * 16) == OTHER
    with pytest.raises(RequestError):
        node.replica.resolve("theirs")
    with Replica(node.directory, account=OTHER_ACCOUNT) as theirs:
        assert theirs.resolve("theirs") == OTHER
        with pytest.raises(RequestError):
            theirs.resolve("things")


def test_id_wins_over_a_title_that_looks_like_one(node: Node) -> None:
    node.write(CreateNamespace(OTHER, ACCOUNT, "ab" * 16))
    assert node.replica.resolve("ab" * 16) == SPACE


def test_list_tells_what_was_stored_with_a_key(node: Node) -> None:
    version = node.write(Put(SPACE, b"na\xefve", b"v" * 100_000, b'{"a":1}', expires_at=5000))
    (listed,) = node.replica.list("things").keys
    assert (listed.key, listed.metadata, listed.expires_at, listed.version) == (b"na\xefve", b'{"a":1}', 5000, version)
    assert type(listed.version) is bytes
    assert type(listed.metadata) is bytes
    assert node.replica.get("things", listed.name) == b"v" * 100_000


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_walk_by_cursors_meets_every_key_once_in_byte_order(node: Node, limit: int) -> None:
    keys = [b"\x00", b"a", b"a\x00", b"b", b"k" * 494, b"k" * 495, b"k" * 512, b"\xff", b"\xff" * 512, b"hidden", b"ab"]
    node.put(*keys)
    node.write(Delete(SPACE, b"hidden"))
    pages = list(walk(node.replica, limit))
    assert [key for page in pages for key in names(page)] == sorted(set(keys) - {b"hidden"})
    assert all(len(page.keys) == limit for page in pages[:-1])
    assert len(pages) == -(-10 // limit)  # a last page that is exactly full is complete


@pytest.mark.parametrize("prefix", [b"a", b"a\xff", b"k" * 494, b"k" * 495, b"k" * 496, b"k" * 512, b"\xff", b"none"])
def test_list_keeps_to_its_prefix(node: Node, prefix: bytes) -> None:
    keys = [
        b"a",
        b"a\x00",
        b"a\xff",
        b"a\xff\xff",
        b"b",
        b"k",
        b"k" * 494,
        b"k" * 495,
        b"k" * 496,
        b"k" * 512,
        b"\xff" * 3,
    ]
    node.put(*keys)
    expected = sorted(key for key in keys if key.startswith(prefix))
    assert [key for page in walk(node.replica, 2, prefix) for key in names(page)] == expected
    as_text = prefix.decode("utf-8", "surrogateescape")
    assert names(node.replica.list("things", as_text)) == expected


def test_list_goes_on_after_its_last_key_whatever_was_deleted_or_added(node: Node) -> None:
    node.put(b"b", b"d", b"f", b"h")
    first = node.replica.list("things", limit=2)
    assert names(first) == [b"b", b"d"]
    with node.store.write() as writer:
        writer.delete_row(SPACE, b"d")  # purged: nothing stands at the cursor any more
    node.write(Delete(SPACE, b"f"))
    node.put(b"a", b"dd", b"g")
    assert names(node.replica.list("things", cursor=first.cursor)) == [b"dd", b"g", b"h"]


def test_cursor_is_not_bound_to_a_prefix(node: Node) -> None:
    node.put(b"a1", b"a2", b"b1", b"b2", b"c1", b"c2")
    cursor = node.replica.list("things", limit=3).cursor  # after b1
    assert names(node.replica.list("things", "a", cursor=cursor)) == []
    assert node.replica.list("things", "a", cursor=cursor).list_complete
    assert names(node.replica.list("things", "b", cursor=cursor)) == [b"b2"]
    assert names(node.replica.list("things", "c", cursor=cursor)) == [b"c1", b"c2"]


def test_cursor_of_another_namespace_and_bad_limits_are_refused(node: Node) -> None:
    node.write(CreateNamespace(OTHER, ACCOUNT, "others"))
    node.put(b"a", b"b")
    node.put(b"a", b"b", namespace=OTHER)
    cursor = node.replica.list("others", limit=1).cursor
    refused: list[tuple[dict[str, object], str]] = [
        ({"cursor": cursor}, "bad_cursor"),
        ({"cursor": "garbage"}, "bad_cursor"),
        ({"cursor": ""}, "bad_cursor"),
        ({"limit": 0}, "bad_limit"),
        ({"limit": 1001}, "bad_limit"),
        ({"prefix": "p" * 513}, "bad_prefix"),
    ]
    for arguments, code in refused:
        with pytest.raises(RequestError) as caught:
            node.replica.list("things", **arguments)  # type: ignore[arg-type]
        assert caught.value.code == code


def test_page_over_many_hidden_rows_is_bounded_and_the_walk_still_ends(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvp2p.store.reader.LIST_ROWS_SCANNED_MAX", 10)
    keys = [b"%03d" % number for number in range(100)]
    node.put(*keys)
    node.write(*[Delete(SPACE, key) for key in keys[5:-5]])
    pages = list(walk(node.replica, 4))
    assert [key for page in pages for key in names(page)] == [*keys[:5], *keys[-5:]]
    assert any(not page.keys for page in pages)


def test_view_shows_one_state_and_when_system_rows_changed(node: Node) -> None:
    node.put(b"a")
    with node.replica.view() as view:
        generation = view.system_generation
        node.put(b"b")
        node.write(CreateNamespace(OTHER, ACCOUNT, "others"))
        assert view.system_generation == generation
        assert view.vector == VersionVector([make_version(1, Stamp(2), ISSUER)])
        assert view.raw_row(SPACE, b"b") is None
        assert view.transaction.row(SPACE, b"a") == view.raw_row(SPACE, b"a")
        assert [key for key, _ in view.transaction.rows(SPACE)] == [b"a"]
    with node.replica.view() as view:
        changed = view.system_generation
        assert changed != generation
        assert view.vector == VersionVector([make_version(1, Stamp(4), ISSUER)])
        assert type(view.raw_row(SPACE, b"b")) is bytes
    node.put(b"c")
    with node.replica.view() as view:
        assert view.system_generation == changed


def test_reader_of_a_store_without_namespaces_knows_none(tmp_path: Path, identity: Identity) -> None:
    with LmdbStore.create(tmp_path, identity, complete=False), Replica(tmp_path) as replica:
        assert replica.namespaces() == ()
        with replica.view() as view:
            assert view.system_generation == b""
        with pytest.raises(RequestError):
            replica.get("things", "key")


def test_damaged_row_is_detected_when_asked(node: Node) -> None:
    node.write(Put(SPACE, b"key", b"value", b"{}"))
    with node.store.write() as writer:
        row = writer.row(SPACE, b"key")
        assert row is not None
        assert row_digest_holds(row)
        writer.put_row(SPACE, b"key", row[:-1] + b"E")
    found = node.replica.find("things", "key")
    assert found is not None
    assert found.value == b"valuE"
    with pytest.raises(StoreCorrupt, match="does not match its digest"):
        node.replica.find("things", "key", verify=True)
    node.put(b"sound")
    sound = node.replica.find("things", "sound", verify=True)
    assert sound is not None


def test_path_may_be_the_data_directory_or_the_store_in_it(node: Node) -> None:
    node.put(b"key")
    for path in (node.directory, node.directory / "store", str(node.directory)):
        with Replica(path) as replica:
            assert replica.get("things", "key") == b"value of key"


def test_relative_path_goes_on_after_the_process_changed_its_directory(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.replica.close()
    node.store.close()
    monkeypatch.chdir(node.directory)
    with Replica(".") as replica:
        monkeypatch.chdir(os.sep)
        assert replica.namespaces()
        replica.check()


def test_missing_store_and_closed_reader_are_store_errors(tmp_path: Path, identity: Identity) -> None:
    with pytest.raises(StoreError, match="kvp2p init"):
        Replica(tmp_path / "nothing")
    with LmdbStore.create(tmp_path / "apart", identity, complete=True):
        pass
    replica = Replica(tmp_path / "apart")
    replica.check()
    replica.close()
    asked: list[Callable[[], object]] = [
        lambda: replica.get("things", "key"),
        lambda: replica.list("things"),
        replica.namespaces,
        replica.check,
        lambda: replica.view().__enter__(),
    ]
    for ask in asked:
        with pytest.raises(StoreError):
            ask()


def test_replaced_store_is_noticed_by_a_reader_that_asks(node: Node, tmp_path: Path, identity: Identity) -> None:
    node.replica.check()
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="open the store again"):
        node.replica.check()
    with LmdbStore.create(tmp_path / "store", identity, complete=True), Replica(node.directory) as replica:
        replica.check()
        assert replica.namespaces() == ()
