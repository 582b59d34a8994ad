"""What the API port says of a write when the fault is its own."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from kvp2p.api.app import Api
from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import StampedWrite, WriteGroup
from kvp2p.core.hlc import HybridClock
from kvp2p.core.operations import Put
from kvp2p.core.system_rows import Permission, Token, encode_token
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.reader import Replica
from kvp2p.supervisor.directory import create_cluster

TOKEN_ID = "0123456789abcdef"


class FaultyPort:
    """A way to the node that sends a write and then fails as only a bug can."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def submit(self, operations: list[Any], _deadline_ms: int) -> Any:
        await trio.lowlevel.checkpoint()
        self.sent.extend(operations)
        raise RuntimeError("a planted fault")


async def error_of(directory: Path, method: str, path: str, port: FaultyPort) -> dict[str, Any]:
    created = create_cluster(directory, "n1")
    add_token(created.directory / "store")
    with Replica(created.directory) as replica:
        application = Api(replica, port, "http://n1").application()  # type: ignore[arg-type]
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {created.admin_token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://n1", headers=headers) as client:
            answer = await client.request(
                method, path, json={"name": "t", "permissions": ["read"]} if method == "POST" else None
            )
    assert answer.status_code == 500
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "internal_error"
    return error


def add_token(store: Path) -> None:
    with LmdbStore.open(store) as opened, opened.write() as txn:
        token = Token(b"t" * 32, TOKEN_ID, "t", txn.identity.account, frozenset({Permission.READ}), None, 0, 0)
        write = StampedWrite(HybridClock().tick(1), (Put(SYSTEM_NAMESPACE, *encode_token(token)),))
        apply_batch(txn, WriteGroup(1, Issuer(b"issuer01"), (write,), 1))


@pytest.mark.parametrize(("method", "path"), [("POST", "/admin/v1/tokens"), ("DELETE", f"/admin/v1/tokens/{TOKEN_ID}")])
async def test_a_fault_after_the_write_was_sent_leaves_its_outcome_unknown(
    tmp_path: Path, method: str, path: str
) -> None:
    port = FaultyPort()
    error = await error_of(tmp_path / "n1", method, path, port)
    assert len(port.sent) == 1
    assert error["applied"] == "unknown"


async def test_a_fault_before_the_write_was_sent_says_that_nothing_was_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = FaultyPort()

    def fail(size: int) -> str:
        raise RuntimeError(f"a planted fault instead of {size} bytes")

    monkeypatch.setattr("kvp2p.api.tokens.secrets.token_urlsafe", fail)
    error = await error_of(tmp_path / "n1", "POST", "/admin/v1/tokens", port)
    assert port.sent == []
    assert error["applied"] == "no"
