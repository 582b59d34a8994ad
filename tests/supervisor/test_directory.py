"""Data directories as `kvp2p init` leaves them."""

import json
from pathlib import Path

import pytest

from kvp2p.cluster_key import read_cluster_key
from kvp2p.config import load_config
from kvp2p.core import system_rows
from kvp2p.core.apply import summarize
from kvp2p.core.entry import decode_row
from kvp2p.errors import ConfigError
from kvp2p.ids import SYSTEM_NAMESPACE, version_stamp
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.supervisor.directory import create_cluster, create_member, make_token


def values_of(store: LmdbStore) -> dict[bytes, bytes]:
    with store.read() as txn:
        return {key: decode_row(SYSTEM_NAMESPACE, key, row).value for key, row in txn.rows(SYSTEM_NAMESPACE)}


def test_first_node_is_made_as_the_leader_of_its_cluster(tmp_path: Path) -> None:
    settings = {"data_port": 20_001, "mesh.dial_from": "127.0.0.5", "host": "127.0.0.1", "advertise": None}
    created = create_cluster(tmp_path / "d", "n1", settings)
    with LmdbStore.open(created.directory / "store", readonly=True) as store:
        with store.read() as txn:
            summary = summarize(txn)
        values = values_of(store)
    assert summary.complete
    assert (summary.identity.cluster, summary.identity.node) == (created.cluster_id, created.node_id)
    assert (summary.identity.account, summary.identity.name) == (created.account_id, "n1")
    assert summary.designation is not None
    assert (summary.designation.term, summary.designation.node) == (1, created.node_id)
    assert summary.candidates == (created.node_id,)
    (issuer,) = summary.issuers
    assert (issuer.node, issuer.term) == (created.node_id, 1)
    assert issuer.closed == dict(summary.vector.items()).get(issuer.issuer, 0), "nothing more is ever issued under it"
    assert json.loads(values[b"leader"]) == {"node": created.node_id.hex(), "term": 1}
    assert system_rows.account_key(created.account_id) in values
    config = load_config(created.directory / "kvp2p.toml")
    assert (config.data_port, config.api_port, config.join) == (20_001, 8788, ())
    assert config.mesh.dial_from == "127.0.0.5"


def test_first_admin_token_is_the_first_entry_of_the_log(tmp_path: Path) -> None:
    created = create_cluster(tmp_path / "d", "n1")
    assert created.admin_token.startswith("kv_")
    with LmdbStore.open(created.directory / "store", readonly=True) as store, store.read() as txn:
        rows = list(txn.rows(SYSTEM_NAMESPACE))
        first_key, first_row = min(rows, key=lambda row: version_stamp(decode_row(SYSTEM_NAMESPACE, *row).version))
    token = system_rows.decode_token(first_key, decode_row(SYSTEM_NAMESPACE, first_key, first_row).value)
    assert token.token_hash == system_rows.hash_token(created.admin_token)
    assert token.allows(system_rows.Permission.ADMIN, None, created.account_id)
    for path in created.directory.rglob("*"):
        assert not path.is_file() or created.admin_token.encode() not in path.read_bytes(), f"{path} has the token"


def test_member_is_empty_and_shares_the_cluster_of_its_key_file(tmp_path: Path) -> None:
    first = create_cluster(tmp_path / "n1", "n1")
    member = create_member(tmp_path / "n2", "n2", "ws://127.0.0.1:8789", first.key_file, {"mesh_port": 20_002})
    assert (member.cluster_id, member.account_id) == (first.cluster_id, first.account_id)
    assert member.node_id != first.node_id
    assert member.admin_token == ""
    assert read_cluster_key(member.key_file) == read_cluster_key(first.key_file)
    with LmdbStore.open(member.directory / "store", readonly=True) as store:
        with store.read() as txn:
            summary = summarize(txn)
        assert values_of(store) == {}
    assert not summary.complete
    assert summary.designation is None
    assert summary.identity.cluster == first.cluster_id
    config = load_config(member.directory / "kvp2p.toml")
    assert (config.join, config.mesh_port) == (("ws://127.0.0.1:8789",), 20_002)


def test_key_file_and_settings_are_private(tmp_path: Path) -> None:
    created = create_cluster(tmp_path / "d", "n1")
    assert created.key_file.stat().st_mode & 0o777 == 0o600
    assert created.directory.stat().st_mode & 0o777 == 0o700


def test_directory_that_has_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    created = create_cluster(tmp_path / "d", "n1")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"already has a node \(cluster\.key, kvp2p\.toml, store\)"):
        create_cluster(created.directory, "n1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(ConfigError, match="is not empty, it has notes"):
        create_member(tmp_path / "mine", "n2", "ws://127.0.0.1:8789", created.key_file)
    with pytest.raises(ConfigError, match="is a file"):
        create_cluster(tmp_path / "mine" / "notes", "n1")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "mine", tmp_path / "mine" / "notes"])


def test_directory_that_is_there_and_empty_is_used(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert create_cluster(tmp_path / "d", "n1").directory == tmp_path / "d"
    assert (tmp_path / "d" / "kvp2p.toml").is_file()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("", {}, "a node's name"),
        ("a/b", {}, "a node's name"),
        ("n1", {"data_port": 0}, "data_port must be from 1"),
        ("n1", {"dataport": 1}, "'dataport' is no setting"),
    ],
)
def test_nothing_is_left_of_a_directory_that_could_not_be_made(
    tmp_path: Path, name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_cluster(tmp_path / "d", name, settings)
    assert list(tmp_path.iterdir()) == []


def test_half_made_directory_is_removed_when_the_store_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LmdbStore, "create", fail)
    with pytest.raises(ConfigError, match=r"cannot be made: .*No space left"):
        create_cluster(tmp_path / "d", "n1")
    assert list(tmp_path.iterdir()) == []


def test_tokens_have_256_random_bits() -> None:
    tokens = {make_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {len("kv_") + 43}
