"""System rows: what was encoded reads back, anything else is refused, and a token allows what it says."""

from __future__ import annotations

import pytest

from kvp2p.core import system_rows
from kvp2p.core.system_rows import IssuerRow, Namespace, Permission, Token
from kvp2p.errors import RemoteProtocolError
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, NamespaceId, NodeId, Stamp
from tests.core.harness import ACCOUNT, SPACE, issuer_of, node_id

OTHER_ACCOUNT = AccountId(b"B" * 16)
OTHER_SPACE = NamespaceId(b"T" * 16)


def token(permission: Permission, *, namespaces: frozenset[NamespaceId] | None = None) -> Token:
    token_hash = system_rows.hash_token("secret")
    permissions = frozenset([permission])
    return Token(token_hash, token_hash.hex()[:16], "name", ACCOUNT, permissions, namespaces, 0, 1)


def test_a_namespace_reads_back() -> None:
    namespace = Namespace(SPACE, ACCOUNT, "Titel ä", 7)
    assert system_rows.decode_namespace(*system_rows.encode_namespace(namespace)) == namespace


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"account":"zz","title":"t","created_ms":1}'])
def test_a_value_that_is_no_namespace_is_refused(value: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        system_rows.decode_namespace(system_rows.namespace_key(SPACE), value)


def test_a_key_that_is_no_namespace_is_refused() -> None:
    _, value = system_rows.encode_namespace(Namespace(SPACE, ACCOUNT, "t", 7))
    with pytest.raises(RemoteProtocolError):
        system_rows.decode_namespace(b"namespace/x", value)


@pytest.mark.parametrize(
    "key",
    [
        b"leader",
        b"x" * 32,
        b"namespace/" + b"1" * 31,
        b"namespace/" + b"z" * 32,
        b"namespace/" + "ä".encode() * 16,
        b"namespace/" + b"AB" * 16,
        system_rows.namespace_key(SYSTEM_NAMESPACE),
    ],
)
def test_other_keys_name_no_namespace(key: bytes) -> None:
    assert system_rows.namespace_of_key(key) is None
    assert system_rows.namespace_of_key(system_rows.namespace_key(SPACE)) == SPACE


@pytest.mark.parametrize("namespaces", [None, frozenset([SPACE, OTHER_SPACE])])
def test_a_token_reads_back(namespaces: frozenset[NamespaceId] | None) -> None:
    made = token(Permission.READ, namespaces=namespaces)
    assert system_rows.decode_token(*system_rows.encode_token(made)) == made


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"namespaces":null}'])
def test_a_value_that_is_no_token_is_refused(value: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        system_rows.decode_token(system_rows.token_key(bytes(32)), value)


def test_a_token_allows_its_permission_in_its_account() -> None:
    reader = token(Permission.READ)
    assert reader.allows(Permission.READ, SPACE, ACCOUNT)
    assert reader.allows(Permission.READ, None, None)
    assert not reader.allows(Permission.WRITE, SPACE, ACCOUNT)
    assert not reader.allows(Permission.READ, SPACE, OTHER_ACCOUNT)
    assert token(Permission.ADMIN).allows(Permission.WRITE, SPACE, ACCOUNT)


def test_a_token_of_a_namespace_allows_nothing_else() -> None:
    reader = token(Permission.READ, namespaces=frozenset([SPACE]))
    assert reader.allows(Permission.READ, SPACE, ACCOUNT)
    assert not reader.allows(Permission.READ, OTHER_SPACE, ACCOUNT)
    assert not reader.allows(Permission.READ, None, ACCOUNT)


def test_candidates_read_back_and_an_unreadable_row_names_nobody() -> None:
    nodes = (b"a" * 16, b"b" * 16)
    assert system_rows.decode_candidates(system_rows.encode_candidates(nodes)) == nodes
    assert system_rows.decode_candidates(b"{}") == ()


def test_the_other_system_rows_are_compact_json() -> None:
    assert system_rows.account_key(ACCOUNT) == b"account/" + ACCOUNT.hex().encode()
    assert system_rows.encode_account("me") == b'{"name":"me"}'
    assert system_rows.encode_leader(bytes(1), 3) == b'{"node":"00","term":3}'  # type: ignore[arg-type]


@pytest.mark.parametrize("node", [None, node_id("a")])
@pytest.mark.parametrize("closed", [None, Stamp(0), Stamp(2**63 - 1)])
def test_an_issuer_reads_back(node: NodeId | None, closed: Stamp | None) -> None:
    row = IssuerRow(issuer_of("x"), node, 3, closed)
    assert system_rows.decode_issuer(*system_rows.encode_issuer(row)) == row


def test_an_issuers_row_is_compact_json() -> None:
    key, value = system_rows.encode_issuer(IssuerRow(issuer_of("x"), node_id("a"), 3, Stamp(255)))
    assert key == b"issuer/" + b"78" * 8
    assert value == b'{"closed":"00000000000000ff","node":"' + b"61" * 16 + b'","term":3}'


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"issuer/zz", b'{"closed":null,"node":null,"term":1}'),
        (b"issuer/7878", b'{"closed":null,"node":null,"term":1}'),
        (b"issuer/" + b"78" * 8, b'{"closed":null,"node":"61","term":1}'),
        (b"issuer/" + b"78" * 8, b'{"closed":"ff","node":null,"term":1}'),
        (b"issuer/" + b"78" * 8, b'{"closed":"ff","node":null}'),
        (b"issuer/" + b"78" * 8, b'{"closed":null,"node":null,"term":true}'),
        (b"issuer/" + b"78" * 8, b'{"closed": null,"node":null,"term":1}'),
        (b"issuer/" + b"78" * 8, b"[]"),
        (b"issuer/" + b"78" * 8, b""),
    ],
)
def test_what_is_no_row_of_an_issuer_is_none(key: bytes, value: bytes) -> None:
    assert system_rows.decode_issuer(key, value) is None
