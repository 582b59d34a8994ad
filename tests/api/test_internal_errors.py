"""What the API port says of a write when the fault is its own."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from kvp2p.api.app import Api
from kvp2p.store.reader import Replica
from kvp2p.supervisor.directory import create_cluster


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
    with Replica(created.directory) as replica:
        tokens = path.format(token=token_id(replica)) if "{token}" in path else path
        application = Api(replica, port, "http://n1").application()  # type: ignore[arg-type]
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {created.admin_token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://n1", headers=headers) as client:
            answer = await client.request(
                method, tokens, json={"name": "t", "permissions": ["read"]} if method == "POST" else None
            )
    assert answer.status_code == 500
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "internal_error"
    return error


def token_id(replica: Replica) -> str:
    from kvp2p.api.tokens import _tokens

    with replica.view() as view:
        return next(iter(_tokens(view))).token_id


@pytest.mark.parametrize(("method", "path"), [("POST", "/admin/v1/tokens"), ("DELETE", "/admin/v1/tokens/{token}")])
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
