"""The API port over a real store, hypercorn and a fake node that applies writes as a leader would."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio

import kvp2p
from kvp2p.api import server
from kvp2p.config import load_config
from kvp2p.core.apply import apply_batch
from kvp2p.core.batches import Settle, StampedWrite, WriteGroup
from kvp2p.core.hlc import HybridClock
from kvp2p.core.messages import Designation, Member
from kvp2p.core.operations import CreateNamespace, Delete, Operation, Put, refused, unknown
from kvp2p.core.port import Identity
from kvp2p.core.system_rows import Permission, Token, encode_token, hash_token, token_key
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, Issuer, NamespaceId, NodeId
from kvp2p.runtime.listening import open_listener
from kvp2p.store.lmdb_store import LmdbStore
from kvp2p.store.reader import Replica
from kvp2p.supervisor.directory import create_cluster, create_member
from kvp2p.wire.local import LocalDecoder, encode_local
from kvp2p.wire.local_messages import LocalMessage, LocalOutcome, Query, QueryAnswer, Readiness, Report, SubmitWrite

Ports = Callable[[int], list[int]]
NAMESPACE = NamespaceId(b"\x07" * 16)

SENSELESS_TOKENS = [
    b"",
    b"[]",
    b"{",
    b'{"name":"x"}',
    b'{"name":"","permissions":["read"]}',
    b'{"name":"a\\nb","permissions":["read"]}',
    b'{"name":"x","permissions":[]}',
    b'{"name":"x","permissions":["root"]}',
    b'{"name":"x","permissions":[[]]}',
    b'{"name":"x","permissions":"read"}',
    b'{"name":"x","permissions":["read"],"expires_at":1}',
    b'{"name":"x","permissions":["read"],"expires_at":true}',
    b'{"name":"x","permissions":["read"],"account":"me"}',
    b'{"name":"x","permissions":["read"],"account":"00000000000000000000000000000000"}',
    b'{"name":"x","permissions":["read"],"namespaces":[]}',
    b'{"name":"x","permissions":["read"],"namespaces":[1]}',
    b'{"name":"x","permissions":["read"],"scope":"all"}',
    b'{"name":"x","permissions":["read"],"namespaces":' + b"[" * 60_000,
]


@dataclass
class FakeNode:
    """A leader of one: applies each write to the store at once. `script` answers instead when it is set."""

    store: LmdbStore
    socket: Path
    script: Callable[[SubmitWrite], LocalOutcome | None] | None = None
    writes: list[SubmitWrite] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    documents: dict[str, bytes] = field(default_factory=lambda: {"status": b'{"name":"n1","leader":true}'})
    _clock: HybridClock = field(default_factory=HybridClock)
    _issuer: Issuer = Issuer(b"issuer01")

    def apply(self, operations: tuple[Operation, ...]) -> Any:
        wall_ms = time.time_ns() // 1_000_000
        stamps = [self._clock.tick(wall_ms) for _ in operations]
        write = StampedWrite(stamps[0], operations)
        with self.store.write() as txn:
            return apply_batch(txn, WriteGroup(1, self._issuer, (write,), wall_ms)).outcomes[0]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(self.socket))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [trio.SocketListener(listener)])
            yield
            nursery.cancel_scope.cancel()
        self.socket.unlink()

    async def _serve(self, stream: trio.SocketStream) -> None:
        decoder = LocalDecoder()
        async with stream:
            await stream.send_all(encode_local([Readiness(True, "")]))
            while data := await stream.receive_some(65_536):
                answers = [self._answer(message) for message in decoder.feed(bytes(data))]
                await stream.send_all(encode_local([one for one in answers if one is not None]))

    def _answer(self, message: LocalMessage) -> LocalMessage | None:
        match message:
            case SubmitWrite(number, _, operations):
                self.writes.append(message)
                return self.script(message) if self.script else LocalOutcome(number, self.apply(operations))
            case Query(number, what):
                return QueryAnswer(number, self.documents[what])
            case Report():
                self.reports.append(message)
        return None


@dataclass
class Served:
    """A running API port, its store and a client that is an admin."""

    client: httpx.AsyncClient
    node: FakeNode
    identity: Identity
    replica: Replica

    async def new_token(self, **fields: Any) -> str:
        answer = await self.client.post("/admin/v1/tokens", json={"name": "t", **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    async def status_for(self, path: str, token: str | None) -> int:
        headers = {"Authorization": "" if token is None else f"Bearer {token}"}
        return (await self.client.get(path, headers=headers)).status_code


@asynccontextmanager
async def serving_api(directory: Path, port: int, *, member: bool = False) -> AsyncIterator[Served]:
    settings = {"api_port": port}
    created = create_cluster(directory / "n1", "n1", settings)
    token = created.admin_token
    if member:
        created = create_member(directory / "n2", "n2", "ws://127.0.0.1:1", created.key_file, settings)
    config = load_config(created.directory / "kvp2p.toml")
    socket = created.directory / "node.sock"
    store = LmdbStore.open(created.directory / "store")  # first: a process that reads cannot begin to write
    with Replica(created.directory) as replica:
        node = FakeNode(store, socket)
        stop = trio.Event()
        async with node.serving(), trio.open_nursery() as nursery:
            ready = trio.Event()
            listener = open_listener(config.host, config.api_port, backlog=64)
            nursery.start_soon(server.serve, config, replica, str(socket), listener, ready.set, stop)
            await ready.wait()
            headers = {"Authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(base_url=config.api_url, headers=headers, trust_env=False) as client:
                with store.read() as txn:
                    identity = txn.identity
                await until_connected(client)
                yield Served(client, node, identity, replica)
            stop.set()
    store.close()


def expired_admin(account: AccountId) -> Token:
    text_hash = hash_token("kv_expired")
    return Token(text_hash, text_hash.hex()[:16], "old", account, frozenset({Permission.ADMIN}), None, 1, 0)


async def until_connected(client: httpx.AsyncClient) -> None:
    for _ in range(200):
        if (await client.get("/admin/v1/status")).status_code != 503:
            return
        await trio.sleep(0.01)


async def test_healthz_says_who_the_node_is_without_a_token(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        answer = await served.client.get("/healthz", headers={"Authorization": ""})
        assert answer.status_code == 200
        assert answer.json() == {
            "name": "n1",
            "node_id": served.identity.node.hex(),
            "cluster_id": served.identity.cluster.hex(),
            "version": kvp2p.__version__,
            "api_url": str(served.client.base_url).rstrip("/"),
        }


async def test_admin_routes_want_an_admin_token_of_the_whole_cluster(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        served.node.apply((CreateNamespace(NAMESPACE, served.identity.account, "settings"),))
        reader = await served.new_token(permissions=["read", "write"])
        narrow = await served.new_token(permissions=["admin"], namespaces=["settings"])
        for path in ("status", "members", "leader", "tokens"):
            assert await served.status_for(f"/admin/v1/{path}", None) == 401
            assert await served.status_for(f"/admin/v1/{path}", "kv_wrong") == 401
            assert await served.status_for(f"/admin/v1/{path}", reader) == 403
            assert await served.status_for(f"/admin/v1/{path}", narrow) == 403
        refusal = await served.client.get("/admin/v1/status", headers={"Authorization": ""})
        assert refusal.headers["www-authenticate"] == "Bearer"
        error = refusal.json()["error"]
        assert (error["code"], error["retryable"], error["applied"]) == ("unauthorized", False, "no")


async def test_a_node_without_the_clusters_tokens_answers_503_not_401(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0], member=True) as served:
        answer = await served.client.get("/admin/v1/tokens")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert "retry-after" in answer.headers


async def test_a_created_token_works_is_listed_without_its_secret_and_ends_when_revoked(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        expires_at = int(time.time()) + 3_600
        fields = {"name": "ops", "permissions": ["admin", "read"], "expires_at": expires_at}
        answer = await served.client.post("/admin/v1/tokens", json=fields)
        assert answer.status_code == 201
        created = answer.json()
        assert len(created["version"]) == 40
        assert created["expires_at"] == expires_at
        assert await served.status_for("/admin/v1/status", created["token"]) == 200

        listing = await served.client.get("/admin/v1/tokens")
        tokens = listing.json()["tokens"]
        assert [one["name"] for one in tokens] == ["first admin token", "ops"]
        assert tokens[1] == {name: created[name] for name in tokens[1]}
        write = served.node.writes[0].operations[0]
        assert isinstance(write, Put)
        assert write.namespace == SYSTEM_NAMESPACE
        stored_hash = write.key.removeprefix(b"token/").decode()
        assert stored_hash not in listing.text
        assert created["token"] not in listing.text
        assert created["token"].encode() not in write.value

        revoked = await served.client.delete(f"/admin/v1/tokens/{created['id']}")
        assert revoked.status_code == 204
        assert await served.status_for("/admin/v1/status", created["token"]) == 401
        again = await served.client.delete(f"/admin/v1/tokens/{created['id']}")
        assert (again.status_code, again.json()["error"]["code"]) == (404, "token_not_found")


async def test_the_last_token_that_administers_the_cluster_is_not_revoked(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        served.node.apply((CreateNamespace(NAMESPACE, served.identity.account, "settings"),))
        await served.new_token(permissions=["read", "write"])
        await served.new_token(permissions=["admin"], namespaces=["settings"])
        served.node.apply((Put(SYSTEM_NAMESPACE, *encode_token(expired_admin(served.identity.account))),))
        tokens = (await served.client.get("/admin/v1/tokens")).json()["tokens"]
        first = next(one["id"] for one in tokens if one["name"] == "first admin token")
        writes = len(served.node.writes)
        answer = await served.client.delete(f"/admin/v1/tokens/{first}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["applied"]) == (409, "last_admin_token", "no")
        assert "create another one first" in error["message"]
        assert len(served.node.writes) == writes

        other = await served.new_token(permissions=["admin"])
        assert (await served.client.delete(f"/admin/v1/tokens/{first}")).status_code == 204
        assert await served.status_for("/admin/v1/status", other) == 200


async def test_an_admin_of_another_account_administers_nothing_here(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        other = AccountId(b"\x09" * 16)
        served.node.apply((Put(SYSTEM_NAMESPACE, b"account/" + other.hex().encode(), b'{"name":"other"}'),))
        foreign = await served.new_token(permissions=["admin"], account=other.hex())
        for path in ("status", "members", "leader", "tokens"):
            assert await served.status_for(f"/admin/v1/{path}", foreign) == 403
        assert await served.status_for("/metrics", foreign) == 403
        tokens = (await served.client.get("/admin/v1/tokens")).json()["tokens"]
        first = next(one["id"] for one in tokens if one["name"] == "first admin token")
        answer = await served.client.delete(f"/admin/v1/tokens/{first}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "last_admin_token")


async def test_an_expired_admin_token_can_always_be_revoked(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        expired = expired_admin(served.identity.account)
        served.node.apply((Put(SYSTEM_NAMESPACE, *encode_token(expired)),))
        assert (await served.client.delete(f"/admin/v1/tokens/{expired.token_id}")).status_code == 204


async def test_a_complete_node_whose_tokens_are_all_gone_does_not_say_that_it_has_just_joined(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        token = served.client.headers["authorization"].removeprefix("Bearer ")
        served.node.apply((Delete(SYSTEM_NAMESPACE, token_key(hash_token(token))),))  # as two racing nodes may
        answer = await served.client.get("/admin/v1/tokens")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert "no token any more" in answer.json()["error"]["message"]


async def test_a_token_that_makes_no_sense_is_refused_and_nothing_is_written(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        for body in SENSELESS_TOKENS:
            answer = await served.client.post("/admin/v1/tokens", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request"), body
        assert served.node.writes == []


async def test_a_namespace_that_is_not_there_and_a_body_too_large_are_told_as_such(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        fields = {"name": "x", "permissions": ["read"], "namespaces": ["nowhere"]}
        answer = await served.client.post("/admin/v1/tokens", json=fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "namespace_not_found")
        answer = await served.client.post("/admin/v1/tokens", content=b" " * 70_000)
        assert (answer.status_code, answer.json()["error"]["limit"]) == (413, 65_536)


async def test_outcomes_of_writes_are_told_as_they_came(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        fields = {"name": "x", "permissions": ["read"]}
        served.node.script = lambda write: LocalOutcome(write.request, refused("no_leader", "nobody leads"))
        answer = await served.client.post("/admin/v1/tokens", json=fields)
        assert (answer.status_code, answer.json()["error"]["applied"]) == (503, "no")
        assert "retry-after" in answer.headers
        served.node.script = lambda write: LocalOutcome(write.request, unknown("the link has ended"))
        answer = await served.client.post("/admin/v1/tokens", json=fields)
        assert (answer.status_code, answer.json()["error"]["applied"]) == (504, "unknown")
        assert len(served.node.writes) == 2


async def test_status_passes_the_nodes_document_on_and_adds_the_namespaces(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        served.node.apply((CreateNamespace(NAMESPACE, served.identity.account, "größe"),))
        served.node.apply((Put(NAMESPACE, b"a", b"1"), Put(NAMESPACE, b"b", b"2")))
        document = (await served.client.get("/admin/v1/status")).json()
        assert (document["name"], document["leader"]) == ("n1", True)
        (namespace,) = document["namespaces"]
        assert (namespace["id"], namespace["title"], namespace["keys"]) == (NAMESPACE.hex(), "größe", 2)
        assert namespace["account"] == served.identity.account.hex()
        assert len(namespace["state_hash"]) == 32


async def test_members_and_leader_are_answered_while_the_node_process_is_down(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        me = served.identity.node
        member = Member(me, 3, "n1", "ws://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")
        designation = Designation(4, Issuer(b"abcdefgh"), me)
        with served.node.store.write() as txn:
            apply_batch(txn, Settle(designation=designation, members=(member,)))
        document = (await served.client.get("/admin/v1/leader")).json()
        assert document["term"] == 4
        assert (document["leader"]["node_id"], document["leader"]["name"]) == (me.hex(), "n1")
        (shown,) = (await served.client.get("/admin/v1/members")).json()["members"]
        assert (shown["incarnation"], shown["data_url"], shown["leader"]) == (3, "http://127.0.0.1:2", True)
        with served.node.store.write() as txn:
            apply_batch(txn, Settle(designation=Designation(5, Issuer(b"abcdefgh"), NodeId(b"x" * 16))))
        assert (await served.client.get("/admin/v1/leader")).json()["leader"] == {"node_id": (b"x" * 16).hex()}


async def test_metrics_are_the_nodes_sums_in_prometheus_text(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        samples = {'kvp2p_gateway_requests_total{method="GET",status="200"}': 12, "kvp2p_node_links": 2}
        served.node.documents["metrics"] = json.dumps(samples).encode()
        assert await served.status_for("/metrics", None) == 401
        assert await served.status_for("/metrics", await served.new_token(permissions=["write"])) == 403
        reader = await served.new_token(permissions=["read"])
        answer = await served.client.get("/metrics", headers={"Authorization": f"Bearer {reader}"})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        lines = answer.text.splitlines()
        assert 'kvp2p_gateway_requests_total{method="GET",status="200"} 12.0' in lines
        assert "# TYPE kvp2p_gateway_requests_total counter" in lines
        assert "kvp2p_node_links 2.0" in lines
        served.node.documents["metrics"] = b'{"no name at all": 1}'
        assert (await served.client.get("/metrics")).status_code == 503


async def test_what_was_answered_is_reported_to_the_node(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        await served.client.get("/healthz")
        await served.client.get("/admin/v1/nothing/here")
        with trio.fail_after(5):
            while not served.node.reports or len(served.node.reports[-1].counters) < 2:  # noqa: ASYNC110
                await trio.sleep(0.05)
        counters = dict(served.node.reports[-1].counters)
        assert counters['kvp2p_api_requests_total{route="/healthz",status="200"}'] == 1
        assert counters['kvp2p_api_requests_total{route="other",status="404"}'] == 1


async def test_unknown_routes_and_methods_are_refused_in_json(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        answer = await served.client.get("/nowhere")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
        answer = await served.client.request("PATCH", "/admin/v1/tokens")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) >= {"GET", "POST"}


async def test_without_the_node_process_status_is_503_and_a_write_is_not_applied(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    created = create_cluster(short_tmp_path / "n1", "n1", {"api_port": free_ports(1)[0]})
    config = load_config(created.directory / "kvp2p.toml")
    ready, stop = trio.Event(), trio.Event()
    with Replica(created.directory) as replica:
        async with trio.open_nursery() as nursery:
            listener, socket = open_listener(config.host, config.api_port, backlog=64), created.directory / "node.sock"
            nursery.start_soon(server.serve, config, replica, str(socket), listener, ready.set, stop)
            await ready.wait()
            headers = {"Authorization": f"Bearer {created.admin_token}"}
            async with httpx.AsyncClient(base_url=config.api_url, headers=headers, trust_env=False) as client:
                answer = await client.get("/admin/v1/status")
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "node_unavailable")
                answer = await client.post("/admin/v1/tokens", json={"name": "x", "permissions": ["read"]})
                assert (answer.status_code, answer.json()["error"]["applied"]) == (503, "no")
                assert (await client.get("/admin/v1/tokens")).status_code == 200
            start = trio.current_time()
            stop.set()
    assert trio.current_time() - start < 4


async def test_an_account_other_than_the_creators_must_exist(short_tmp_path: Path, free_ports: Ports) -> None:
    async with serving_api(short_tmp_path, free_ports(1)[0]) as served:
        other = AccountId(b"\x09" * 16)
        fields = {"name": "x", "permissions": ["read"], "account": other.hex()}
        assert (await served.client.post("/admin/v1/tokens", json=fields)).status_code == 400
        served.node.apply((Put(SYSTEM_NAMESPACE, b"account/" + other.hex().encode(), b'{"name":"other"}'),))
        answer = await served.client.post("/admin/v1/tokens", json=fields)
        assert (answer.status_code, answer.json()["account"]) == (201, other.hex())


async def test_caller_of_a_starting_api_process_waits_and_is_not_refused(
    short_tmp_path: Path, free_ports: Ports
) -> None:
    created = create_cluster(short_tmp_path / "n1", "n1", {"api_port": free_ports(1)[0]})
    config = load_config(created.directory / "kvp2p.toml")
    ready, stop = trio.Event(), trio.Event()
    listener = open_listener(config.host, config.api_port, backlog=64)
    stream = await trio.open_tcp_stream(config.host, config.api_port)
    await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n")
    with Replica(created.directory) as replica:
        async with trio.open_nursery() as nursery, stream:
            socket = created.directory / "node.sock"
            nursery.start_soon(server.serve, config, replica, str(socket), listener, ready.set, stop)
            answer = b"".join([part async for part in stream])
            assert answer.startswith(b"HTTP/1.1 200")
            stop.set()
    assert listener.fileno() < 0
