"""The configuration: what is wrong in a `kvp2p.toml`, and what the node says when it is to start with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRow:
    """A file that a node refuses to start with. `says` is a part of what it tells."""

    what: str
    text: str
    says: str


CONFIG: tuple[ConfigRow, ...] = (
    ConfigRow(
        what="`dataport = 8787`",
        text="dataport = 8787",
        says="'dataport' is no setting; the nearest known name is 'data_port'",
    ),
    ConfigRow(
        what="`idle_timeout = 5` under `[http]`",
        text="[http]\nidle_timeout = 5",
        says="[http] 'idle_timeout' is no setting; the nearest known name is 'idle_timeout_seconds'",
    ),
    ConfigRow(
        what="`[htpp]`",
        text="[htpp]\nconnections_max = 5",
        says="'htpp' is no setting; the nearest known name is 'http'",
    ),
    ConfigRow(what="`gateways = 0`", text="gateways = 0", says="gateways must be from 1 to 64, not 0"),
    ConfigRow(
        what='`data_port = "8787"`', text='data_port = "8787"', says="data_port must be a whole number, not '8787'"
    ),
    ConfigRow(
        what="one port twice",
        text="data_port = 8789",
        says="data_port, api_port and mesh_port must differ: data_port 8789, api_port 8788, mesh_port 8789",
    ),
    ConfigRow(
        what="a mesh URL that is none",
        text='join = ["http://10.0.0.1:8787"]',
        says="join must be a mesh URL such as ws://10.0.0.1:8789, not 'http://10.0.0.1:8787'",
    ),
)
