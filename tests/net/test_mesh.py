"""Meshes over real loopback sockets: who is linked with whom, through dials at once, restarts, dead wires and strangers."""

import time
from collections.abc import Callable, MutableMapping, Sequence
from random import Random
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from kvp2p.core.messages import Forward, Lane, Message
from kvp2p.core.operations import Put
from kvp2p.ids import ClusterId, NamespaceId, NodeId
from kvp2p.limits import DATA_CREDIT_BYTES_MAX, DATA_QUEUE_BYTES_MAX, LINK_PROGRESS_BYTES_MIN
from kvp2p.net import registry as registry_module
from kvp2p.net.handshake import CHECKS
from kvp2p.net.settings import MeshSettings
from tests.net.hosts import Node, RecordingHost, Wire, linked_by_wire, node_id, numbered, running, start, until

A, B, C = node_id("a"), node_id("b"), node_id("c")


def warnings(logs: list[MutableMapping[str, Any]]) -> list[tuple[Any, Any]]:
    return [(log["event"], log.get("reason")) for log in logs if log["log_level"] == "warning"]


def big(number: int) -> Forward:
    return Forward(number, time.monotonic_ns() + 60_000_000_000, (Put(NamespaceId(b"n" * 16), b"k", bytes(190_000)),))


async def test_one_dial_links_both_ways_and_messages_pass() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.mesh.connect(B, b.url)
        await a.host.until_up(B)
        await b.host.until_up(A)
        assert a.mesh.try_send(B, numbered(1))
        assert b.mesh.try_send(A, numbered(2))
        await b.host.until_messages(1)
        await a.host.until_messages(1)
        assert (a.host.messages, b.host.messages) == ([numbered(2)], [numbered(1)])
        assert set(a.mesh.links()) == {B}
        assert not a.mesh.try_send(C, numbered(3))


async def test_a_target_given_before_the_mesh_runs_is_dialled() -> None:
    a, b = Node("a"), Node("b")
    async with running(b) as nursery:
        a.mesh.connect(None, b.url)
        await start(nursery, a)
        await a.host.until_up(B)


@pytest.mark.parametrize("repeat", range(15))
@pytest.mark.parametrize("are_seeds", [False, True])
async def test_two_that_dial_at_the_same_instant_keep_the_link_of_the_smaller(repeat: int, are_seeds: bool) -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        first, second = (a, b) if repeat % 2 else (b, a)
        first.mesh.connect(None if are_seeds else second.id, second.url)
        second.mesh.connect(None if are_seeds else first.id, first.url)
        await a.host.until_up(B)
        await b.host.until_up(A)
        await trio.sleep(0.05)  # the other dial ends, and nobody dials again
        assert (a.host.ups, b.host.ups) == (1, 1)
        sessions = a.mesh._registry.get(B), b.mesh._registry.get(A)
        if not are_seeds:
            assert [session.is_dialled for session in sessions if session] == [True, False]
        assert a.mesh.try_send(B, numbered(1))
        await b.host.until_messages(1)


async def test_a_full_mesh_of_five_has_one_link_a_pair() -> None:
    nodes = [Node(name) for name in "abcde"]
    async with running(*nodes):
        for node in nodes:
            for other in nodes:
                node.mesh.connect(other.id, other.url)
        for node in nodes:
            await node.host.until_up(*(other.id for other in nodes if other is not node))
        await trio.sleep(0.1)
        assert [node.host.ups for node in nodes] == [4] * 5


async def test_a_lost_link_is_dialled_again() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.mesh.connect(B, b.url)
        await b.host.until_up(A)
        for _ in range(3):
            b.mesh.disconnect(A, "test")
            await b.host.until_down(A)
            await b.host.until_up(A)
        await a.host.until_up(B)
        assert a.host.reasons == ["the peer closed it: test"] * 3


async def test_what_ended_links_have_carried_stays_in_the_sums() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.mesh.connect(B, b.url)
        for round_number in range(1, 4):
            await b.host.until_up(A)
            await a.host.until_up(B)
            assert a.mesh.try_send(B, big(round_number))
            await b.host.until_messages(round_number)
            await until(lambda count=round_number: a.mesh.traffic.sums()[Lane.DATA].sent_messages == count)  # type: ignore[misc]
            sent, received = (node.mesh.traffic.sums()[Lane.DATA] for node in (a, b))
            assert received.received_messages == round_number
            assert sent.sent_bytes == received.received_bytes > round_number * 190_000
            b.mesh.disconnect(A, "test")
            await b.host.until_down(A)
            assert b.mesh.traffic.sums()[Lane.DATA] == received
        assert a.mesh.traffic.sums()[Lane.CONTROL].sent_messages >= 3  # pings


async def test_stop_dialling_leaves_the_link_and_does_not_dial_again() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.mesh.connect(B, b.url)
        await a.host.until_up(B)
        a.mesh.stop_dialling(B)
        a.mesh.stop_dialling(B)
        await trio.sleep(0.05)
        assert B in a.mesh.links()
        a.mesh.disconnect(B, "test")
        await a.host.until_down(B)
        await trio.sleep(0.15)
        assert a.mesh.links() == {}
        a.mesh.disconnect(B, "there is none")


async def test_a_node_that_starts_later_is_found_by_back_off(free_ports: Callable[[int], list[int]]) -> None:
    (port,) = free_ports(1)
    a, b = Node("a"), Node("b")
    async with running(a) as nursery:
        a.mesh.connect(B, f"ws://127.0.0.1:{port}")
        await trio.sleep(0.15)
        assert a.host.story == []
        await start(nursery, b, port)
        await a.host.until_up(B)


async def test_links_are_dialled_from_the_address_that_is_set() -> None:
    callers: list[str] = []

    async def note(stream: trio.SocketStream) -> None:
        callers.append(stream.socket.getpeername()[0])
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, note, 0)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        for address in ("127.0.0.77", None):
            async with running(a := Node("a", settings=MeshSettings(dial_from=address))):
                seen = len(callers)
                a.mesh.connect(None, url)
                await until(lambda seen=seen: len(callers) > seen)  # type: ignore[misc]
        nursery.cancel_scope.cancel()
    assert callers[0] == "127.0.0.77"
    assert callers[-1] == "127.0.0.1"


async def test_attempts_are_spaced_by_back_off() -> None:
    attempts = 0

    async def hang_up(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        await stream.aclose()

    a = Node("a", settings=MeshSettings(backoff_ms_min=40, backoff_ms_max=80))
    async with running(a) as nursery:
        listeners = await nursery.start(trio.serve_tcp, hang_up, 0)
        a.mesh.connect(None, f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        begin = trio.current_time()
        await until(lambda: attempts >= 6)
    # One wait of 20..40 ms, then four of 40..80 ms each.
    assert trio.current_time() - begin >= 0.18


@pytest.mark.parametrize(("restarted", "stays"), [("b", "a"), ("a", "b")])
async def test_a_restarted_peer_replaces_its_link_on_a_dead_wire_at_once(restarted: str, stays: str) -> None:
    """SIGKILL and restart within a second while the old connection looks alive: to the end that decides, and to the one that obeys."""
    patient = MeshSettings(link_timeout_ms=60_000, backoff_ms_min=10)
    other, old, new = (Node(name, settings=patient) for name in (stays, restarted, restarted))
    async with running(other, old) as nursery:
        wire = Wire(other.mesh.port)
        await nursery.start(wire.run)
        old.mesh.connect(other.id, wire.url)
        await other.host.until_up(old.id)
        wire.is_dead = True
        await old.stop()
        await trio.sleep(0.05)
        assert other.host.up == {old.id}
        await start(nursery, new)
        new.mesh.connect(other.id, other.url)
        await new.host.until_up(other.id)
        await until(lambda: other.host.ups == 2)
        assert other.host.reasons == ["the peer has restarted"]
        assert [word for word, _ in other.host.story] == ["up", "down", "up"]
        assert other.mesh.try_send(old.id, numbered(1))
        await new.host.until_messages(1)


async def test_a_peer_that_lost_its_end_of_a_dead_wire_gets_a_new_link() -> None:
    quick = MeshSettings(ping_interval_ms=50, link_timeout_ms=400, backoff_ms_min=10, backoff_ms_max=50)
    a, b = Node("a", settings=quick), Node("b", settings=quick)
    async with linked_by_wire(b, a) as wire:
        wire.is_dead = True
        b.mesh.connect(A, a.url)  # another way, once b has noticed
        await b.host.until_down(A)
        await b.host.until_up(A)
        await until(lambda: a.host.ups == 2)
        assert [word for word, _ in a.host.story] == ["up", "down", "up"]


async def test_a_slow_wire_brings_a_large_message_whole() -> None:
    quick = MeshSettings(ping_interval_ms=50, link_timeout_ms=500)
    a, b = Node("a", settings=quick), Node("b", settings=quick)
    async with linked_by_wire(a, b) as wire:
        await trio.sleep(0.1)  # so that both have answered a ping
        wire.rate_bytes = 6 * LINK_PROGRESS_BYTES_MIN  # three times what is asked for
        began = trio.current_time()
        value = Put(NamespaceId(b"n" * 16), b"k", bytes(190_000))
        assert a.mesh.try_send(B, Forward(1, time.monotonic_ns() + 60_000_000_000, (value,)))
        await b.host.until_messages(1)
        assert trio.current_time() - began > 3 * 0.5
        assert a.host.reasons == b.host.reasons == []


async def test_a_dead_wire_is_noticed_by_both_ends() -> None:
    quick = MeshSettings(ping_interval_ms=50, link_timeout_ms=300)
    a, b = Node("a", settings=quick), Node("b", settings=quick)
    async with linked_by_wire(a, b) as wire:
        a.mesh.stop_dialling(B)
        wire.is_dead = True
        await a.host.until_down(B)
        await b.host.until_down(A)
        assert a.host.reasons == b.host.reasons == ["nothing was heard of the peer for 0.3 s"]


async def test_a_seed_that_is_the_node_itself_is_dropped() -> None:
    a = Node("a")
    async with running(a):
        a.mesh.connect(None, a.url)
        a.mesh.connect(A, a.url)
        await until(lambda: not a.mesh._targets.all())
        assert a.host.story == []


async def test_a_seed_becomes_the_target_of_its_owner() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.mesh.connect(None, b.url)
        await b.host.until_up(A)
        a.mesh.connect(B, b.url)
        a.mesh.connect(None, b.url)
        assert [target.node for target in a.mesh._targets.all()] == [B]
        b.mesh.disconnect(A, "test")
        await a.host.until_down(B)
        await a.host.until_up(B)


async def test_a_seed_whose_owner_is_linked_already_is_dropped() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b) as nursery:
        wire = Wire(b.mesh.port)
        await nursery.start(wire.run)
        a.mesh.connect(B, b.url)
        await a.host.until_up(B)
        a.mesh.connect(None, wire.url)
        await until(lambda: len(a.mesh._targets.all()) == 1)
        assert a.host.ups == 1


async def test_urls_that_are_none_are_ignored() -> None:
    a = Node("a")
    a.mesh.connect(B, "http://127.0.0.1:1")
    a.mesh.connect(B, "ws://127.0.0.1")
    assert a.mesh._targets.all() == []
    async with running(a):
        a.mesh.connect(B, "ws://" + "ü" * 70 + ":1")  # no host name at all, to the resolver
        await trio.sleep(0.05)
        assert a.host.story == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"key": b"x" * 32}, "wrong_key"), ({"cluster": ClusterId(b"d" * 16)}, "other_cluster")],
)
@pytest.mark.parametrize("name", ["0", "z"])
async def test_a_stranger_is_refused_on_both_ends_by_name(changes: dict[str, bytes], reason: str, name: str) -> None:
    a, stranger = Node("a"), Node(name, **changes)  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        async with running(a, stranger):
            stranger.mesh.connect(None, a.url)
            await until(lambda: len(warnings(logs)) >= 2)
            await trio.sleep(0.1)  # further attempts
            assert a.mesh.links() == stranger.mesh.links() == {}
    assert warnings(logs) == [("handshake_refused", reason)] * 2  # each end once, however often it is tried
    assert {one["check"] for one in logs if one["log_level"] == "warning"} == {CHECKS[reason]}
    assert "cluster.key" in CHECKS[reason]
    assert (a.mesh.refused_dial, stranger.mesh.refused_dial) == ("", CHECKS[reason])
    assert "kkk" not in str(logs)
    assert "xxx" not in str(logs)


async def test_a_refusal_of_the_past_is_forgotten_with_the_next_link() -> None:
    a, b, stranger = Node("a"), Node("b"), Node("z", key=b"x" * 32)
    async with running(a, b, stranger):
        a.mesh.connect(stranger.id, stranger.url)
        await until(lambda: bool(a.mesh.refused_dial))
        a.mesh.stop_dialling(stranger.id)
        a.mesh.connect(B, b.url)
        await a.host.until_up(B)
        assert a.mesh.refused_dial == ""


async def test_a_copied_data_directory_is_told_and_not_linked() -> None:
    a, copy = Node("a"), Node("a")
    with structlog.testing.capture_logs() as logs:
        async with running(a, copy):
            copy.mesh.connect(None, a.url)
            await until(lambda: len(warnings(logs)) >= 2)
            assert a.mesh.links() == copy.mesh.links() == {}
    assert warnings(logs) == [("handshake_refused", "copied_node_id")] * 2


async def test_links_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "PEERS_MAX", 2)
    nodes = [Node(name) for name in "abcd"]
    a, b, c, d = nodes
    async with running(*nodes):
        a.mesh.connect(B, b.url)
        a.mesh.connect(C, c.url)
        await a.host.until_up(B, C)
        a.mesh.connect(d.id, d.url)  # not dialled
        d.mesh.connect(A, a.url)  # refused
        await trio.sleep(0.2)
        assert set(a.mesh.links()) == {B, C}
        assert d.mesh.links() == {}
        a.mesh.stop_dialling(B)
        a.mesh.disconnect(B, "makes room")
        await a.host.until_up(d.id)


async def test_a_host_that_does_not_take_messages_stops_the_sender() -> None:
    a, b = Node("a"), Node("b")
    b.host.gate = trio.Event()
    async with running(a, b):
        a.mesh.connect(B, b.url)
        await a.host.until_up(B)
        sent = 0
        with trio.move_on_after(5):
            while a.mesh.try_send(B, big(sent)):
                sent += 1
                await trio.sleep(0.02)
        # What is in flight, what waits, and what was handed over.
        assert sent * 190_000 < DATA_CREDIT_BYTES_MAX + DATA_QUEUE_BYTES_MAX + 600_000
        assert A in b.mesh.links()
        b.host.gate.set()
        await b.host.until_messages(sent)
        assert [message.request for message in b.host.messages if isinstance(message, Forward)] == list(range(sent))


async def test_a_message_that_waits_for_the_host_dies_with_its_link() -> None:
    a, b = Node("a"), Node("b")
    b.host.gate = trio.Event()
    async with running(a, b):
        a.mesh.connect(B, b.url)
        await b.host.until_up(A)
        a.mesh.stop_dialling(B)
        a.mesh.try_send(B, numbered(1))
        await trio.sleep(0.05)
        a.mesh.disconnect(B, "test")
        await b.host.until_down(A)
        b.host.gate.set()
        await trio.sleep(0.05)
        assert b.host.messages == []


class FailingHost(RecordingHost):
    """A host with a bug."""

    async def on_messages(self, peer: NodeId, messages: Sequence[Message]) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError


async def test_an_error_of_the_host_ends_its_mesh() -> None:
    a, b = Node("a"), Node("b", host=FailingHost())
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError), flatten_subgroups=True):
        async with running(a, b):
            a.mesh.connect(B, b.url)
            await a.host.until_up(B)
            a.mesh.try_send(B, numbered(1))
            await trio.sleep(5)


async def test_a_stopped_mesh_leaves_nothing_behind() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.mesh.connect(B, b.url)
        a.mesh.connect(None, "ws://127.0.0.1:1")
        await b.host.until_up(A)
        with trio.fail_after(2):
            await a.stop()
        await b.host.until_down(A)
        # A payload that was being written is cut off by the stop, and the word behind it with it.
        assert b.host.reasons[0] in {"the peer closed it: this node is stopping", "the connection was lost"}
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", a.mesh.port)


async def test_a_port_that_is_taken_is_an_error_at_the_start() -> None:
    a, b = Node("a"), Node("b")
    async with running(a):
        with pytest.raises(OSError, match="in use"):
            await b.mesh.run("127.0.0.1", a.mesh.port)


@pytest.mark.deadline_s(40)
async def test_ups_and_downs_alternate_through_restarts_and_cut_links() -> None:
    """The hosts assert it at every call; in the end every pair has its link again."""
    random = Random(7)
    names = "abcd"
    async with trio.open_nursery() as nursery:
        nodes = {name: await start(nursery, Node(name)) for name in names}
        ports = {name: node.mesh.port for name, node in nodes.items()}

        def connect_all(node: Node) -> None:
            for name in names:
                node.mesh.connect(node_id(name), f"ws://127.0.0.1:{ports[name]}")

        for node in nodes.values():
            connect_all(node)
        for number in range(60):
            await trio.sleep(random.uniform(0.0, 0.04))
            name = random.choice(names)
            node = nodes[name]
            if random.random() < 0.3:
                await node.stop()
                nodes[name] = await start(nursery, Node(name), ports[name])
                connect_all(nodes[name])
            else:
                node.mesh.disconnect(node_id(random.choice(names)), "chaos")
            for other in names:
                node.mesh.try_send(node_id(other), numbered(number))
        for name, node in nodes.items():
            await node.host.until_up(*(node_id(other) for other in names if other != name))
        await trio.sleep(0.3)
        assert all(len(node.mesh.links()) == 3 for node in nodes.values())
        assert sum(node.host.ups for node in nodes.values()) > 20
        nursery.cancel_scope.cancel()
