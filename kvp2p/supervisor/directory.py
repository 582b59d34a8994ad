"""Making data directories: a new cluster's first node, or an empty member.

Decides: what `kvp2p init` leaves on disk: `kvp2p.toml`, `cluster.key` and the store.
Keeps true
* A directory is whole or not there: it is made beside its place and renamed into it.
* A new cluster's store begins as its log would have: designation (term 1), then one write group with the rows `leader`,
  `candidates`, the account and the first admin token. So these reach every member like any write [I4].
* A member's store is empty and not complete; what it is to be comes from its peers.
In and out: a directory, a name and settings in; ids, key file and the token's text (shown once, stored as a hash) out.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvp2p.cluster_key import KEY_BYTES, ClusterKey, read_cluster_key, write_cluster_key
from kvp2p.config import CONFIG_FILE, KEY_FILE, STORE_DIRECTORY, NodeConfig, build_config, put_setting, toml_value
from kvp2p.core import system_rows
from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import StampedWrite, WriteGroup
from kvp2p.core.hlc import HybridClock
from kvp2p.core.messages import Designation
from kvp2p.core.operations import Ending, Put
from kvp2p.core.port import Identity
from kvp2p.errors import ConfigError
from kvp2p.ids import ID_BYTES, ISSUER_BYTES, SYSTEM_NAMESPACE, AccountId, ClusterId, Issuer, NodeId, Stamp
from kvp2p.replacement import sync_directory
from kvp2p.store.lmdb_store import LmdbStore

NAME_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
FIRST_TERM = 1
TOKEN_MARK = "kv_"
TOKEN_RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True)
class Created:
    """A data directory that was made. `admin_token` is "" for a member; its cluster has one already."""

    directory: Path
    cluster_id: ClusterId
    account_id: AccountId
    node_id: NodeId
    key_file: Path
    admin_token: str


def create_cluster(directory: Path, name: str, settings: Mapping[str, object] | None = None) -> Created:
    """Make the first node of a new cluster, its leader. `settings` go into kvp2p.toml, by name (`data_port`, `mesh.dial_from`);
    None stands for one not given.

    Raises ConfigError when the directory has something in it or a setting is wrong; nothing was made then.
    """
    cluster_key = ClusterKey(
        ClusterId(secrets.token_bytes(ID_BYTES)),
        secrets.token_bytes(KEY_BYTES),
        AccountId(secrets.token_bytes(ID_BYTES)),
    )
    return _create(directory, name, cluster_key, settings or {}, make_token())


def create_member(
    directory: Path,
    name: str,
    join_url: str,
    cluster_key_file: Path,
    settings: Mapping[str, object] | None = None,
) -> Created:
    """Make a member of an existing cluster, to be filled by the peer at `join_url` (`ws://HOST:8789`) or any it knows.

    Raises ConfigError as `create_cluster`, and when the key file or the URL is wrong.
    """
    cluster_key = read_cluster_key(cluster_key_file)
    return _create(directory, name, cluster_key, {**(settings or {}), "join": [join_url]}, "")


def make_token() -> str:
    """Draw the text of a new token: 256 random bits."""
    return TOKEN_MARK + base64.urlsafe_b64encode(secrets.token_bytes(TOKEN_RANDOM_BYTES)).rstrip(b"=").decode()


def _create(
    directory: Path, name: str, cluster_key: ClusterKey, settings: Mapping[str, object], admin_token: str
) -> Created:
    directory = directory.absolute()
    if not NAME_FORM.fullmatch(name):
        raise ConfigError(f"a node's name is 1 to 63 of A-Z a-z 0-9 . _ -, not {name[:80]!r}")
    given = {key: value for key, value in settings.items() if value is not None}
    document: dict[str, object] = {}
    for key, value in given.items():
        put_setting(document, key, value, f"node {name}")
    config = build_config(directory, document, f"node {name}")
    identity = Identity(cluster_key.cluster, cluster_key.account, NodeId(secrets.token_bytes(ID_BYTES)), name)
    with making(directory) as new:
        _write_settings(new / CONFIG_FILE, name, given)
        write_cluster_key(new / KEY_FILE, cluster_key)
        _create_store(new / STORE_DIRECTORY, identity, config, admin_token)
    return Created(directory, identity.cluster, identity.account, identity.node, directory / KEY_FILE, admin_token)


@contextmanager
def making(directory: Path) -> Iterator[Path]:
    """Give a new directory beside the place of a data directory; it is moved there, durably, when the block ends well.

    Raises ConfigError when there is something in the place already, or when no directory can be made; nothing is left then.
    """
    directory = directory.absolute()
    _require_unused(directory)
    new = directory.with_name(f".{directory.name}.new-{secrets.token_hex(4)}")
    try:
        new.mkdir(parents=True, mode=0o700)
        yield new
        sync_directory(new)
        new.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _require_unused(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory} is a file; name a directory that does not exist yet")
    found = sorted(one.name for one in directory.iterdir())
    if CONFIG_FILE in found or STORE_DIRECTORY in found:
        raise ConfigError(f"{directory} already has a node ({', '.join(found)}); start it with `kvp2p serve`")
    if found:
        raise ConfigError(f"{directory} is not empty, it has {', '.join(found[:5])}; name a new directory")
    if os.path.ismount(directory):
        raise ConfigError(
            f"{directory} is a mount point, which cannot be made whole in one step; name a directory in it"
        )


def _write_settings(path: Path, name: str, given: Mapping[str, object]) -> None:
    lines = [f"# Settings of node {name}. What is not set here has its default."]
    lines += [f"{key} = {toml_value(value)}" for key, value in given.items()]
    with path.open("w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _create_store(path: Path, identity: Identity, config: NodeConfig, admin_token: str) -> None:
    # The first node has all there is; a member has to hear of it before it is complete.
    is_first = bool(admin_token)
    with LmdbStore.create(path, identity, complete=is_first, map_bytes=config.store.map_bytes) as store:
        if is_first:
            with store.write() as txn:
                result = apply_batch(txn, _first_group(identity, admin_token))
            assert all(outcome.ending is Ending.ACKED for outcome in result.outcomes)
    sync_directory(path.parent)


def _first_group(identity: Identity, admin_token: str) -> WriteGroup:
    wall_ms = time.time_ns() // 1_000_000
    issuer = Issuer(secrets.token_bytes(ISSUER_BYTES))  # never used again: each start to lead draws its own [I2]
    token_hash = system_rows.hash_token(admin_token)
    token = system_rows.Token(
        token_hash=token_hash,
        token_id=token_hash.hex()[:16],
        name="first admin token",
        account=identity.account,
        permissions=frozenset({system_rows.Permission.ADMIN}),
        namespaces=None,
        expires_at=0,
        created_ms=wall_ms,
    )
    rows: tuple[tuple[bytes, bytes], ...] = (
        system_rows.encode_token(token),  # the first entry of the log
        (system_rows.LEADER_KEY, system_rows.encode_leader(identity.node, FIRST_TERM)),
        (system_rows.CANDIDATES_KEY, system_rows.encode_candidates((identity.node,))),
        (system_rows.account_key(identity.account), system_rows.encode_account(identity.name)),
    )
    first = HybridClock().tick(wall_ms)
    last = Stamp(first + len(rows))  # where the row stands that says so: nothing comes after it
    rows = (*rows, system_rows.encode_issuer(system_rows.IssuerRow(issuer, identity.node, FIRST_TERM, last)))
    puts = tuple(Put(SYSTEM_NAMESPACE, key, value) for key, value in rows)
    write = StampedWrite(first, puts)
    return WriteGroup(FIRST_TERM, issuer, (write,), wall_ms, Designation(FIRST_TERM, issuer, identity.node))
