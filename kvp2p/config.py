"""Configuration of a node: one frozen value, read from TOML and flags, checked before anything starts.

Decides: the names, defaults and limits of all settings that people may change, and the file names in a data directory.
Keeps true: a wrong setting is refused where it is read, by file, key, value and limit; nothing below looks again.
In and out: `kvp2p.toml` and flags in, a `NodeConfig` out; `dump` writes the effective configuration back as TOML.

Each layer defines its own settings, `NodeConfig` only holds them: so `core` and `net` never import this module, and each
machine is given its own settings alone. That is why this module may import `core.settings` and `net.settings`, which
import nothing but `errors`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from kvp2p.core.settings import ReplicaSettings
from kvp2p.errors import ConfigError
from kvp2p.limits import (
    CLOCK_OFFSET_MS_MAX,
    HTTP_BODY_TIMEOUT_SECONDS,
    HTTP_CONNECTIONS_MAX,
    HTTP_HEAD_TIMEOUT_SECONDS,
    HTTP_IDLE_TIMEOUT_SECONDS,
    MEMBERS_MAX,
)
from kvp2p.net.settings import MeshSettings

# What a data directory holds. A node's processes change into it first and use the relative names: the path of a unix
# socket over 107 bytes fails (DESIGN §6).
CONFIG_FILE: Final = "kvp2p.toml"
KEY_FILE: Final = "cluster.key"
LOCK_FILE: Final = "lock"
STORE_DIRECTORY: Final = "store"
SOCKET_FILE: Final = "node.sock"
PIDS_FILE: Final = "pids.json"

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("console", "json")
GATEWAYS_MAX: Final = 64  # guess: a gateway per core of a large machine
MAP_BYTES_MIN: Final = 1 << 24
MAP_BYTES_MAX: Final = 1 << 46  # of the 47 bits of address space that Linux gives a process on x86-64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Settings of the store. The map is address space, not disk; growing it later fails every reader, so it starts large."""

    map_bytes: int = 1 << 40

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _require_range("map_bytes", self.map_bytes, MAP_BYTES_MIN, MAP_BYTES_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Settings of the data port. Times are seconds without progress."""

    connections_max: int = HTTP_CONNECTIONS_MAX  # of one gateway
    head_timeout_seconds: float = HTTP_HEAD_TIMEOUT_SECONDS
    body_timeout_seconds: float = HTTP_BODY_TIMEOUT_SECONDS
    idle_timeout_seconds: float = HTTP_IDLE_TIMEOUT_SECONDS
    min_version_wait_ms: int = 2_000  # how long a read with KV-Min-Version waits for this replica; guess

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _require_range("connections_max", self.connections_max, 1, 65_536)
        for name in ("head_timeout_seconds", "body_timeout_seconds", "idle_timeout_seconds"):
            _require_range(name, getattr(self, name), 0.1, 3_600)
        _require_range("min_version_wait_ms", self.min_version_wait_ms, 1, 60_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything that a node may be told. `directory` is absolute; it is where the file was found, not a setting."""

    directory: Path
    host: str = "127.0.0.1"
    data_port: int = 8787
    api_port: int = 8788
    mesh_port: int = 8789
    advertise: str | None = None  # the host that peers and clients are told; None: `host`
    advertise_mesh_port: int | None = (
        None  # the mesh port that peers are told, behind NAT or a port mapping; None: `mesh_port`
    )
    gateways: int = 2
    log_level: str = "info"
    log_format: str = "console"
    join: tuple[str, ...] = ()  # mesh URLs of members, dialled until their owners are known
    ready_lag_ms_max: int | None = None  # None: a lag does not unready a node
    clock_offset_ms: int | None = None  # for tests: shifts the wall clock of the node process, and lets it be shifted
    store: StoreSettings = field(default_factory=StoreSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    replica: ReplicaSettings = field(default_factory=ReplicaSettings)
    http: HttpSettings = field(default_factory=HttpSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot work, relations between settings included."""
        if not self.directory.is_absolute():
            raise ConfigError(f"directory must be absolute, not {str(self.directory)!r}")
        _require_host("host", self.host)
        ports = {name: getattr(self, name) for name in ("data_port", "api_port", "mesh_port")}
        for name, port in ports.items():
            _require_range(name, port, 1, 65_535)
        if len(set(ports.values())) < len(ports):
            told = ", ".join(f"{name} {port}" for name, port in ports.items())
            raise ConfigError(f"data_port, api_port and mesh_port must differ: {told}")
        if self.advertise is not None:
            _require_host("advertise", self.advertise)
        elif self.host in {"0.0.0.0", "::"}:
            raise ConfigError(f"host {self.host!r} is no address that peers can dial: set advertise to one that is")
        if self.advertise_mesh_port is not None:
            _require_range("advertise_mesh_port", self.advertise_mesh_port, 1, 65_535)
        _require_range("gateways", self.gateways, 1, GATEWAYS_MAX)
        _require_one_of("log_level", self.log_level, LOG_LEVELS)
        _require_one_of("log_format", self.log_format, LOG_FORMATS)
        if len(self.join) > MEMBERS_MAX:
            raise ConfigError(f"join has {len(self.join)} URLs; {MEMBERS_MAX} are the limit")
        for url in self.join:
            require_mesh_url("join", url)
        if self.ready_lag_ms_max is not None:
            _require_range("ready_lag_ms_max", self.ready_lag_ms_max, 1, 3_600_000)
        if self.clock_offset_ms is not None:
            _require_range("clock_offset_ms", self.clock_offset_ms, -CLOCK_OFFSET_MS_MAX, CLOCK_OFFSET_MS_MAX)

    @property
    def data_url(self) -> str:
        """Address of the data port as others are told, no slash at the end."""
        return f"http://{self._advertised}:{self.data_port}"

    @property
    def api_url(self) -> str:
        """Address of the API port as others are told, no slash at the end."""
        return f"http://{self._advertised}:{self.api_port}"

    @property
    def mesh_url(self) -> str:
        """Address of the mesh port as peers are told, no slash at the end."""
        return f"ws://{self._advertised}:{self.advertise_mesh_port or self.mesh_port}"

    @property
    def _advertised(self) -> str:
        host = self.advertise or self.host
        return f"[{host}]" if ":" in host else host


_SECTIONS: Final[dict[str, type]] = {
    "store": StoreSettings,
    "mesh": MeshSettings,
    "replica": ReplicaSettings,
    "http": HttpSettings,
}


def load_config(path: Path, overrides: Mapping[str, object] | None = None) -> NodeConfig:
    """Read a data directory's TOML file; flags go above it.

    `overrides` maps a setting (`data_port`, `mesh.ping_ms`) to its value; None stands for a flag that was not given. Raises
    ConfigError, which names the file or flag, the key, the value and the limit.
    """
    path = path.absolute()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; `kvp2p init --dir {path.parent}` makes a node") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    for name, value in given.items():
        put_setting(document, name, value, str(path))
    source = str(path)
    if given:
        source += " with " + ", ".join(f"--{name.replace('_', '-')}" for name in given)
    return build_config(path.parent, document, source)


def put_setting(document: dict[str, Any], name: str, value: object, source: str) -> None:
    """Put a setting into a parsed document: `data_port` at its top, `mesh.dial_from` into its table `mesh`."""
    section, _, key = name.rpartition(".")
    table = document.setdefault(section, {}) if section else document
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: {section} must be a table, not {table!r}")
    table[key] = value


def build_config(directory: Path, settings: Mapping[str, Any], source: str) -> NodeConfig:
    """Make a configuration of a parsed document; errors begin with `source`."""
    values = dict(settings)
    try:
        sections = {
            name: _build(layer, values.pop(name), f"[{name}] ") for name, layer in _SECTIONS.items() if name in values
        }
        top = _checked(NodeConfig, values, "", hidden={"directory", *_SECTIONS})
        return NodeConfig(directory=directory, **top, **sections)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def dump(config: NodeConfig) -> str:
    """Write the effective configuration as TOML that `load_config` reads back to the same."""
    lines = [f"# Effective configuration of {config.directory}"]
    lines += _dump_fields(config, hidden={"directory", *_SECTIONS})
    for name in _SECTIONS:
        lines += ["", f"[{name}]", *_dump_fields(getattr(config, name), hidden=set())]
    return "\n".join(lines) + "\n"


def toml_value(value: object) -> str:
    """Write one value as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # A JSON string is a TOML string, but for the character that TOML counts among the controls and JSON does not.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return "[" + ", ".join(toml_value(one) for one in value) + "]"
    raise TypeError(f"{value!r} has no form in TOML")


def _build(layer: type, table: object, where: str) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}must be a table, not {table!r}")
    checked = _checked(layer, table, where, hidden=set())
    try:
        return layer(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def _checked(layer: type, table: Mapping[str, object], where: str, hidden: set[str]) -> dict[str, Any]:
    """Return the values of a table by name, of the types that `layer` declares."""
    declared = get_type_hints(layer)
    names = [one.name for one in dataclasses.fields(layer) if one.name not in hidden]
    known = [*names, *_SECTIONS] if layer is NodeConfig else names
    for name in table:
        if name not in names:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; the nearest known name is {nearest[0]!r}" if nearest else ""
            raise ConfigError(f"{where}{name!r} is no setting{hint}")
    return {name: _of_type(value, declared[name], where + name) for name, value in table.items()}


def _of_type(value: object, declared: Any, what: str) -> object:
    kinds = get_args(declared) if get_origin(declared) in {types.UnionType, Union} else (declared,)
    for kind in kinds:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind in {int, float, str, bool} and type(value) is kind:
            return value
        if get_origin(kind) is tuple and isinstance(value, list | tuple) and all(type(one) is str for one in value):
            return tuple(value)
    words = " or ".join(_WORDS.get(kind, "a list of strings") for kind in kinds if kind is not types.NoneType)
    raise ConfigError(f"{what} must be {words}, not {value!r}")


_WORDS: Final[dict[object, str]] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _dump_fields(settings: Any, hidden: set[str]) -> list[str]:
    lines = []
    for one in dataclasses.fields(settings):
        if one.name not in hidden:
            value = getattr(settings, one.name)
            lines.append(f"# {one.name} is not set" if value is None else f"{one.name} = {toml_value(value)}")
    return lines


def _require_range(name: str, value: float, least: float, greatest: float) -> None:
    if not least <= value <= greatest:
        raise ConfigError(f"{name} must be from {least} to {greatest}, not {value!r}")


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _require_host(name: str, value: str) -> None:
    if not value or any(one.isspace() or one in "/@[]?#" for one in value) or value.count(":") == 1:
        raise ConfigError(f"{name} must be an address or host name without scheme, port or brackets, not {value!r}")


def require_mesh_url(name: str, value: str) -> None:
    """Refuse a URL that no mesh port can have."""
    try:
        parts = urlsplit(value)
        is_dialable = parts.scheme == "ws" and bool(parts.hostname) and parts.port is not None
        is_bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or parts.username)
    except ValueError:
        is_dialable = is_bare = False
    if not (is_dialable and is_bare):
        raise ConfigError(f"{name} must be a mesh URL such as ws://10.0.0.1:8789, not {value!r}")
