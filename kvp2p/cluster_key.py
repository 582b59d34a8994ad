"""The cluster key file: what a node must be given to become a member.

Decides: the file's form, three lines of a word and lower-case hex, mode 0600:

    cluster <32 hex>   id of the cluster, so that a link to a member of another one fails by name
    key <64 hex>       32 random bytes, the shared secret of the mesh's challenge and response
    account <32 hex>   the cluster's first account

Keeps true: the key is shown by nothing but the file; `repr` hides it.
In and out: `init` writes it into the data directory; `init --join` takes a copy of a member's; the node reads it at start.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from kvp2p.errors import ConfigError
from kvp2p.ids import ID_BYTES, AccountId, ClusterId

KEY_BYTES = 32
_WIDTHS = {"cluster": ID_BYTES, "key": KEY_BYTES, "account": ID_BYTES}


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """What all members of a cluster share."""

    cluster: ClusterId
    key: bytes = field(repr=False)
    account: AccountId


def read_cluster_key(path: Path) -> ClusterKey:
    """Read a key file.

    Raises ConfigError when it is missing, cannot be read or is anything else; the message never holds the key.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(
            f"the cluster key file {path} does not exist; copy it from a member's data directory"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the cluster key file {path} cannot be read: {error}") from error
    found: dict[str, bytes] = {}
    for line in lines:
        word, _, text = line.partition(" ")
        if word not in _WIDTHS or word in found or len(text) != 2 * _WIDTHS[word]:
            raise _not_a_key_file(path)
        try:
            found[word] = bytes.fromhex(text)
        except ValueError as error:
            raise _not_a_key_file(path) from error
    if len(found) != len(_WIDTHS):
        raise _not_a_key_file(path)
    return ClusterKey(ClusterId(found["cluster"]), found["key"], AccountId(found["account"]))


def write_cluster_key(path: Path, cluster_key: ClusterKey) -> None:
    """Write a new key file that only its owner may read; raises FileExistsError when there is one."""
    text = f"cluster {cluster_key.cluster.hex()}\nkey {cluster_key.key.hex()}\naccount {cluster_key.account.hex()}\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _not_a_key_file(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is no cluster key file: it must have the lines `cluster <32 hex>`, `key <64 hex>` and `account <32 hex>`"
    )
