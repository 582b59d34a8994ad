"""Configuration: what is refused, in which words, and that what is printed reads back to the same."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from kvp2p.cluster_key import ClusterKey, read_cluster_key, write_cluster_key
from kvp2p.config import HttpSettings, NodeConfig, StoreSettings, dump, load_config
from kvp2p.errors import ConfigError
from kvp2p.ids import AccountId, ClusterId
from kvp2p.limits import CLOCK_OFFSET_MS_MAX

CLUSTER_KEY = ClusterKey(ClusterId(bytes(range(16))), bytes(range(100, 132)), AccountId(bytes(range(16, 32))))


def write(directory: Path, text: str) -> Path:
    path = directory / "kvp2p.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(directory: Path, text: str, **overrides: object) -> str:
    path = write(directory, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    return message.removeprefix(str(path))


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == NodeConfig(directory=tmp_path)


def test_flags_stand_above_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "data_port = 9000\ngateways = 3\n[replica]\nhold_ms = 5\n")
    config = load_config(path, {"data_port": 9001, "api_port": None, "replica.hold_ms": 7, "http.connections_max": 9})
    assert (config.data_port, config.api_port, config.gateways) == (9001, 8788, 3)
    assert (config.replica.hold_ms, config.http.connections_max) == (7, 9)


def test_directory_is_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("kvp2p.toml")).directory == tmp_path
    assert "no setting" in refusal(tmp_path, 'directory = "/elsewhere"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataport = 1", ": 'dataport' is no setting; the nearest known name is 'data_port'"),
        ("replicas = 1", ": 'replicas' is no setting; the nearest known name is 'replica'"),
        ("[replica]\nhold = 1", ": [replica] 'hold' is no setting; the nearest known name is 'hold_ms'"),
        ("[htpp]\na = 1", ": 'htpp' is no setting; the nearest known name is 'http'"),
        ("http = 3", ": [http] must be a table, not 3"),
        ("data_port = 0", ": data_port must be from 1 to 65535, not 0"),
        ("data_port = 65536", ": data_port must be from 1 to 65535, not 65536"),
        ("data_port = '8787'", ": data_port must be a whole number, not '8787'"),
        ("data_port = true", ": data_port must be a whole number, not True"),
        (
            "data_port = 8788",
            ": data_port, api_port and mesh_port must differ: data_port 8788, api_port 8788, mesh_port 8789",
        ),
        ("gateways = 0", ": gateways must be from 1 to 64, not 0"),
        ("log_level = 'loud'", ": log_level must be one of debug, info, warning, error, not 'loud'"),
        ("log_format = 'xml'", ": log_format must be one of console, json, not 'xml'"),
        ("host = '0.0.0.0'", ": host '0.0.0.0' is no address that peers can dial: set advertise to one that is"),
        ("host = ''", ": host must be an address or host name without scheme, port or brackets, not ''"),
        (
            "advertise = 'http://a:1'",
            ": advertise must be an address or host name without scheme, port or brackets, not 'http://a:1'",
        ),
        ("advertise_mesh_port = 0", ": advertise_mesh_port must be from 1 to 65535, not 0"),
        (
            "mesh.dial_from = 'n1'",
            ": [mesh] dial_from must be one IP address of this machine, such as 10.0.0.1, not 'n1'",
        ),
        ("join = 'ws://a:1'", ": join must be a list of strings, not 'ws://a:1'"),
        ("join = ['a:1']", ": join must be a mesh URL such as ws://10.0.0.1:8789, not 'a:1'"),
        ("join = ['http://a:1']", ": join must be a mesh URL such as ws://10.0.0.1:8789, not 'http://a:1'"),
        ("join = ['ws://a']", ": join must be a mesh URL such as ws://10.0.0.1:8789, not 'ws://a'"),
        ("join = ['ws://a:99999']", ": join must be a mesh URL such as ws://10.0.0.1:8789, not 'ws://a:99999'"),
        ("ready_lag_ms_max = 0", ": ready_lag_ms_max must be from 1 to 3600000, not 0"),
        (
            f"clock_offset_ms = -{CLOCK_OFFSET_MS_MAX + 1}",
            f": clock_offset_ms must be from -{CLOCK_OFFSET_MS_MAX} to {CLOCK_OFFSET_MS_MAX}, not -{CLOCK_OFFSET_MS_MAX + 1}",
        ),
        ("[store]\nmap_bytes = 4096", f": [store] map_bytes must be from {1 << 24} to {1 << 46}, not 4096"),
        ("[http]\nidle_timeout_seconds = 0", ": [http] idle_timeout_seconds must be from 0.1 to 3600, not 0.0"),
        ("[replica]\nbusy_ms = 1.5", ": [replica] busy_ms must be a whole number, not 1.5"),
        (
            "[replica]\ndigest_idle_ms = 100",
            ": [replica] digest_busy_ms must not exceed digest_idle_ms",
        ),
    ],
)
def test_wrong_setting_is_refused_with_key_value_and_limit(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


def test_wrong_flag_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, "", data_port=70_000) == (
        " with --data-port: data_port must be from 1 to 65535, not 70000"
    )


def test_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    assert " cannot be read: " in refusal(tmp_path, "data_port = ")
    with pytest.raises(ConfigError, match="does not exist; `kvp2p init"):
        load_config(tmp_path / "nowhere" / "kvp2p.toml")


def test_printed_configuration_reads_back_to_the_same(tmp_path: Path) -> None:
    config = NodeConfig(
        directory=tmp_path,
        host="::1",
        advertise='ä"\\\x7f😀',
        join=("ws://a:1", "ws://[::1]:2"),
        ready_lag_ms_max=5,
        clock_offset_ms=-5,
        store=StoreSettings(map_bytes=1 << 30),
        http=HttpSettings(idle_timeout_seconds=1.5),
    )
    for one in (config, NodeConfig(directory=tmp_path)):
        assert load_config(write(tmp_path, dump(one))) == one


def test_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = NodeConfig(directory=tmp_path)
    with pytest.raises(FrozenInstanceError):
        config.gateways = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match="gateways"):
        replace(config, gateways=-1)
    with pytest.raises(ConfigError, match="directory must be absolute"):
        replace(config, directory=Path("d"))


def test_urls_tell_the_advertised_host(tmp_path: Path) -> None:
    config = NodeConfig(directory=tmp_path, host="0.0.0.0", advertise="::1")
    assert (config.data_url, config.api_url) == ("http://[::1]:8787", "http://[::1]:8788")
    assert config.mesh_url == "ws://[::1]:8789"
    assert NodeConfig(directory=tmp_path).data_url == "http://127.0.0.1:8787"


def test_mesh_port_that_peers_are_told_may_be_another_than_the_one_listened_on(tmp_path: Path) -> None:
    config = NodeConfig(directory=tmp_path, advertise="example.net", advertise_mesh_port=443)
    assert (config.mesh_url, config.mesh_port) == ("ws://example.net:443", 8789)


def test_key_file_reads_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    write_cluster_key(path, CLUSTER_KEY)
    assert read_cluster_key(path) == CLUSTER_KEY
    assert path.stat().st_mode & 0o777 == 0o600
    assert CLUSTER_KEY.key.hex() not in repr(CLUSTER_KEY)
    with pytest.raises(FileExistsError):
        write_cluster_key(path, CLUSTER_KEY)


@pytest.mark.parametrize("damage", ["key ", "cluster", "\nextra 00", "é", "account"])
def test_file_that_is_no_key_file_is_refused_without_showing_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cluster.key"
    write_cluster_key(path, CLUSTER_KEY)
    text = path.read_text()
    path.write_text(text.replace(damage, "") if damage in text else text + damage)
    with pytest.raises(ConfigError, match="cluster key file") as caught:
        read_cluster_key(path)
    assert CLUSTER_KEY.key.hex() not in str(caught.value)
    with pytest.raises(ConfigError, match="does not exist; copy it"):
        read_cluster_key(tmp_path / "nowhere")
