"""System rows: namespaces, tokens and settings, kept in the system namespace and replicated like every other row.

Decides: the keys and JSON values of system rows, and what a token allows.
Keeps true: I7, a deleted namespace is the tombstone of its system row; ids are never reused. A token is stored as a hash.
In and out: typed values in, (key, compact JSON bytes) out, and back.

    namespace/{32 hex}     {"account", "title", "created_ms"}; a tombstone here beats every entry of that namespace
    token/{64 hex}         SHA-256 of the token's text → {"id", "name", "account", "permissions", "namespaces", "expires_at", "created_ms"}
    account/{32 hex}       {"name"}
    leader                 {"node", "term"}
    candidates             {"nodes": [32 hex, ...]}: who may be promoted
    issuer/{16 hex}        {"node", "term", "closed"}: who leads or led under it, and where it ended (16 hex), null while it may go on
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from itertools import takewhile
from typing import Any

from kvp2p.core.port import ReadTransaction
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import ID_BYTES, ISSUER_BYTES, SYSTEM_NAMESPACE, AccountId, Issuer, NamespaceId, NodeId, Stamp
from kvp2p.limits import VECTOR_ISSUERS_MAX

NAMESPACE_PREFIX = b"namespace/"
TOKEN_PREFIX = b"token/"
ACCOUNT_PREFIX = b"account/"
ISSUER_PREFIX = b"issuer/"
LEADER_KEY = b"leader"
CANDIDATES_KEY = b"candidates"


def rows_under(txn: ReadTransaction, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over (key, row) of the system rows whose keys begin with a prefix, tombstones too, in byte order."""
    return takewhile(lambda keyed: keyed[0].startswith(prefix), txn.rows(SYSTEM_NAMESPACE, start=prefix))


class Permission(StrEnum):
    """What a token may do. `admin` includes both others, and namespaces, tokens and the cluster."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A live namespace."""

    namespace: NamespaceId
    account: AccountId
    title: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token as stored. `namespaces` None means all of the account; `expires_at` is unix seconds, 0 for never."""

    token_hash: bytes  # 32 bytes, SHA-256 of the token's text; a token has 256 random bits, so no salt is needed
    token_id: str  # the first 16 hex digits of the hash: public, names the token in `token list` and `token revoke`
    name: str
    account: AccountId
    permissions: frozenset[Permission]
    namespaces: frozenset[NamespaceId] | None
    expires_at: int
    created_ms: int

    def allows(self, permission: Permission, namespace: NamespaceId | None, account: AccountId | None) -> bool:
        """Tell whether the token grants `permission` on a namespace of `account` (None: on the account or cluster itself)."""
        if permission not in self.permissions and Permission.ADMIN not in self.permissions:
            return False
        if account is not None and account != self.account:
            return False
        return self.namespaces is None or (namespace is not None and namespace in self.namespaces)


@dataclass(frozen=True, slots=True)
class IssuerRow:
    """An issuer: the node that drew it (None: not known, it began before issuers had rows), and the term it began in.

    `closed` None: positions may still be added. Else none are, and it is the last position that whoever closed it knew of.
    """

    issuer: Issuer
    node: NodeId | None
    term: int
    closed: Stamp | None


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def hash_token(text: str) -> bytes:
    """Return the 32 bytes under which a token is stored."""
    return sha256(text.encode("utf-8", "surrogateescape")).digest()


def namespace_key(namespace: NamespaceId) -> bytes:
    """Return the key of a namespace's system row."""
    return NAMESPACE_PREFIX + namespace.hex().encode()


def namespace_of_key(key: bytes) -> NamespaceId | None:
    """Return the namespace that a system row's key names, None for any other key."""
    text = key.removeprefix(NAMESPACE_PREFIX)
    if text is key or len(text) != 32:
        return None
    try:
        namespace = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None
    if namespace == SYSTEM_NAMESPACE or namespace_key(NamespaceId(namespace)) != key:
        return None  # the system namespace has no row: nothing can delete it
    return NamespaceId(namespace)


def encode_namespace(namespace: Namespace) -> tuple[bytes, bytes]:
    """Return key and value of a namespace's row."""
    value = {"account": namespace.account.hex(), "title": namespace.title, "created_ms": namespace.created_ms}
    return namespace_key(namespace.namespace), _compact(value)


def decode_namespace(key: bytes, value: bytes) -> Namespace:
    """Read a namespace's row; raises RemoteProtocolError when it is not one."""
    namespace = namespace_of_key(key)
    try:
        fields = json.loads(value)
        if namespace is not None:
            return Namespace(
                namespace, AccountId(bytes.fromhex(fields["account"])), str(fields["title"]), int(fields["created_ms"])
            )
    except (ValueError, KeyError, TypeError):
        pass
    raise RemoteProtocolError(f"the system row {key!r} is not a namespace")


def token_key(token_hash: bytes) -> bytes:
    """Return the key of a token's system row."""
    return TOKEN_PREFIX + token_hash.hex().encode()


def encode_token(token: Token) -> tuple[bytes, bytes]:
    """Return key and value of a token's row."""
    value = {
        "id": token.token_id,
        "name": token.name,
        "account": token.account.hex(),
        "permissions": sorted(token.permissions),
        "namespaces": None if token.namespaces is None else sorted(one.hex() for one in token.namespaces),
        "expires_at": token.expires_at,
        "created_ms": token.created_ms,
    }
    return token_key(token.token_hash), _compact(value)


def decode_token(key: bytes, value: bytes) -> Token:
    """Read a token's row; raises RemoteProtocolError when it is not one."""
    try:
        fields = json.loads(value)
        namespaces = fields["namespaces"]
        return Token(
            bytes.fromhex(key.removeprefix(TOKEN_PREFIX).decode("ascii")),
            str(fields["id"]),
            str(fields["name"]),
            AccountId(bytes.fromhex(fields["account"])),
            frozenset(Permission(one) for one in fields["permissions"]),
            None if namespaces is None else frozenset(NamespaceId(bytes.fromhex(one)) for one in namespaces),
            int(fields["expires_at"]),
            int(fields["created_ms"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteProtocolError(f"the system row {key[:80]!r} is not a token") from error


def account_key(account: AccountId) -> bytes:
    """Return the key of an account's row."""
    return ACCOUNT_PREFIX + account.hex().encode()


def encode_account(name: str) -> bytes:
    """Return the value of an account's row."""
    return _compact({"name": name})


def encode_leader(node: NodeId, term: int) -> bytes:
    """Return the value of the leader row."""
    return _compact({"node": node.hex(), "term": term})


def encode_candidates(nodes: tuple[bytes, ...]) -> bytes:
    """Return the value of the candidates row."""
    return _compact({"nodes": [node.hex() for node in nodes]})


def decode_candidates(value: bytes) -> tuple[bytes, ...]:
    """Read the candidates row; an unreadable one names nobody."""
    try:
        return tuple(bytes.fromhex(node) for node in json.loads(value)["nodes"])
    except (ValueError, KeyError, TypeError):
        return ()


def issuer_key(issuer: Issuer) -> bytes:
    """Return the key of an issuer's row."""
    return ISSUER_PREFIX + issuer.hex().encode()


def encode_issuer(row: IssuerRow) -> tuple[bytes, bytes]:
    """Return key and value of an issuer's row."""
    value = {
        "node": None if row.node is None else row.node.hex(),
        "term": row.term,
        "closed": None if row.closed is None else f"{row.closed:016x}",
    }
    return issuer_key(row.issuer), _compact(value)


@lru_cache(maxsize=VECTOR_ISSUERS_MAX)  # all of them are read again whenever one changes
def decode_issuer(key: bytes, value: bytes) -> IssuerRow | None:
    """Read an issuer's row, None for an unreadable one: an issuer without a row counts as open."""
    try:
        issuer = Issuer(bytes.fromhex(key.removeprefix(ISSUER_PREFIX).decode("ascii")))
        fields = json.loads(value)
        node = None if fields["node"] is None else NodeId(bytes.fromhex(fields["node"]))
        closed = None if fields["closed"] is None else Stamp(int.from_bytes(bytes.fromhex(fields["closed"]), "big"))
        row = IssuerRow(issuer, node, fields["term"], closed)
    except (ValueError, KeyError, TypeError):
        return None
    is_whole = len(issuer) == ISSUER_BYTES and (node is None or len(node) == ID_BYTES) and type(row.term) is int
    return row if is_whole and encode_issuer(row) == (key, value) else None  # there is one way to write a row
