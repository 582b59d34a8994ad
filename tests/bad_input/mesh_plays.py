"""What the rows of the mesh port do: each play acts one out against a node, checks what only it can see, and returns how the link ended."""

from __future__ import annotations

import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import trio
from trio_websocket import ConnectionClosed

from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.messages import Digest, Forward, ForwardOutcome, Frame, Message, Pull, Roster, WalkPart
from kvp2p.core.messages import Member as Row
from kvp2p.core.operations import Ending, Put
from kvp2p.core.vector import VersionVector
from kvp2p.ids import (
    ISSUER_BYTES,
    Issuer,
    NamespaceId,
    NodeId,
    Stamp,
    Version,
    make_version,
    version_issuer,
    version_stamp,
    version_term,
)
from kvp2p.limits import MESH_MESSAGE_BYTES_MAX, STAMP_MAX, STAMP_OBSERVED_MAX, UNPROVEN_LINKS_MAX, WALL_MS_MAX
from kvp2p.net.handshake import Identity
from kvp2p.wire import mesh
from kvp2p.wire.cbor import CborValue, encode
from kvp2p.wire.mesh import encode_message, pack
from tests.bad_input.by_hand import (
    ENDS_WITHIN_S,
    NODE_PREFIX,
    PROOF,
    UPGRADE,
    accepted,
    dialled,
    fields_of,
    identity,
    member,
    other_instance,
    read_to_end,
    reset,
    shake_hands,
    trap,
)
from tests.bad_input.cluster import HANDSHAKE_TIMEOUT_S, WORDS, Cluster
from tests.bad_input.rows import request
from tests.gateway.rig import Wire, until

Play = Callable[[Cluster], Awaitable[str]]
UNKNOWN = NamespaceId(b"nowhere-nowhere-")
DAY_MS = 86_400_000
HALF = Issuer(b"halfhalf")  # nobody's
MASK = b"mask"
TIMED_OUT = "closed when the time of a handshake is over"


def _one(endings: set[str]) -> str:
    (ending,) = endings
    return ending


# --- strangers


FIRST_BYTES = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    b"\x00" * 1_000,
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-Header: value\r\n" * 5_000,
    UPGRADE + b"\xff" * 100,
    UPGRADE + b"\x82\x01a",
    UPGRADE + b"\x82\xff" + b"\x00\x00\x00\x01" + bytes(100_000),
)


async def garbage(cluster: Cluster) -> str:
    async def act(first: bytes) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", cluster.node("n1").mesh_port) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(first)
            received = await read_to_end(stream)
            assert bytes(cluster.key.cluster) not in received, "a stranger who has not even said hello is told nothing"

    async with trio.open_nursery() as nursery:
        for first in FIRST_BYTES:
            nursery.start_soon(act, first)
    return "closed"


async def _timed_out(cluster: Cluster, *parts: bytes) -> str:
    began = trio.current_time()
    stream = await trio.open_tcp_stream("127.0.0.1", cluster.node("n1").mesh_port)

    async def send() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for part in parts:
                await stream.send_all(part)
                await trio.sleep(0.05)

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await read_to_end(stream)
        nursery.cancel_scope.cancel()
    assert HANDSHAKE_TIMEOUT_S - 0.1 <= trio.current_time() - began < ENDS_WITHIN_S
    return TIMED_OUT


async def silence(cluster: Cluster) -> str:
    async with trio.open_nursery() as nursery:
        for first in ((), (UPGRADE,), (UPGRADE[:40],)):
            nursery.start_soon(_timed_out, cluster, *first)
    return TIMED_OUT


async def drip_upgrade(cluster: Cluster) -> str:
    return await _timed_out(cluster, *(bytes([byte]) for byte in UPGRADE))


async def reset_in_upgrade(cluster: Cluster) -> str:
    for number in range(40):
        stream = await trio.open_tcp_stream("127.0.0.1", cluster.node("n1").mesh_port)
        await stream.send_all(UPGRADE[: len(UPGRADE) - number % 4 * 20])
        await trio.sleep(number % 5 / 1_000)
        reset(stream)
    async with member(cluster) as last:
        await last.hears(Digest)  # the listener has survived it
    return "closed"


async def many_unproven(cluster: Cluster) -> str:
    port = cluster.node("n1").mesh_port
    waiting = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(UNPROVEN_LINKS_MAX)]
    began = trio.current_time()
    async with await trio.open_tcp_stream("127.0.0.1", port) as one_more:
        assert await read_to_end(one_more) == b""
    assert trio.current_time() - began < HANDSHAKE_TIMEOUT_S / 2
    for stream in waiting:
        await stream.aclose()
    # It takes the node a moment to see that they have gone; then there is room again.
    is_let_in = False
    with trio.fail_after(ENDS_WITHIN_S):
        while not is_let_in:
            with trio.move_on_after(0.5):
                async with member(cluster) as late:
                    await late.hears(Digest)
                    is_let_in = True
    return "the 65th is closed at once"


async def no_hello(cluster: Cluster) -> str:
    hello = encode(
        [1, "kvp2p", mesh.WIRE_VERSION, mesh.WIRE_VERSION, cluster.key.cluster, NODE_PREFIX * 2, b"byhand.1", b"1" * 32]
    )
    endings = set()
    for message in (
        b"",
        b"garbage",
        hello[:-1],
        hello + b"\x00",
        encode([1, "other", 1, 1]),
        encode([2, bytes(32)]),
        bytes(513),
    ):
        async with dialled(cluster.node("n1").mesh_port) as link:
            await link.send(message)
            endings.add(await link.ending())
    async with dialled(cluster.node("n1").mesh_port) as link:
        await link.send("text")
        assert await link.ending() == "no link"
    return _one(endings)


async def _dials(cluster: Cluster, who: Identity) -> str:
    async with dialled(cluster.node("n1").mesh_port) as link:
        return await shake_hands(link, who)


async def other_cluster(cluster: Cluster) -> str:
    return await _dials(cluster, replace(identity(cluster), cluster=type(cluster.key.cluster)(b"c" * 16)))


async def other_version(cluster: Cluster) -> str:
    return _one(
        {
            await _dials(cluster, replace(identity(cluster), versions=one))
            for one in ((0, mesh.WIRE_VERSION - 1), (mesh.WIRE_VERSION + 1, 99), (1_000, 1_000))
        }
    )


async def wrong_key(cluster: Cluster) -> str:
    return await _dials(cluster, replace(identity(cluster), key=b"x" * 32))


async def replayed_handshake(cluster: Cluster) -> str:
    recorded: list[bytes] = []
    async with dialled(cluster.node("n1").mesh_port) as link:
        assert await shake_hands(link, identity(cluster), recorded) == ""
    async with dialled(cluster.node("n1").mesh_port) as link:
        for message in recorded:
            await link.send(message)
        return await link.ending()


async def _in_trap(cluster: Cluster, answer: Callable[[list[CborValue]], list[CborValue]]) -> str:
    """Be the end that `n2` dials, answer its hello, give its own proof back, and return what it says to that."""
    endings: list[str] = []
    done = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        async with accepted(stream) as link:
            await link.send(encode(answer(fields_of(await link.receive()))))
            said = await link.receive()
            if fields_of(said)[0] == PROOF:
                await link.send(said)
                endings.append(await link.ending())
            else:
                endings.append(str(fields_of(said)[-1]))
            done.set()

    async with trap(cluster, serve):
        with trio.fail_after(ENDS_WITHIN_S):
            await done.wait()
    return endings[0]


async def reflected_challenge(cluster: Cluster) -> str:
    # Its own nonce, so that its own proof is one of the two that this pair of hellos has.
    return await _in_trap(cluster, lambda hello: [*hello[:5], NODE_PREFIX * 2, *hello[6:]])


async def reflected_hello(cluster: Cluster) -> str:
    return await _in_trap(cluster, lambda hello: hello)


async def trap_that_spoils_the_upgrade(cluster: Cluster) -> str:
    attempts = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        match attempts % 4:
            case 0:
                await stream.receive_some()
                await stream.send_all(b"\x00" * 1_000)
                await trio.sleep(0.2)
            case 1:
                await stream.receive_some()
                await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            case 2:
                reset(stream)
            case _:
                async with accepted(stream):
                    reset(stream)

    async with trap(cluster, serve):
        with trio.fail_after(ENDS_WITHIN_S):
            await until(lambda: attempts >= 8)
    return "it goes on dialling"


async def copied_node_id(cluster: Cluster) -> str:
    return await _dials(cluster, replace(identity(cluster), node=cluster.node_ids["n1"]))


# --- members


async def _ending_of(cluster: Cluster, payload: str | bytes) -> str:
    async with member(cluster) as bad:
        await bad.link.send(payload)
        return await bad.ending()


async def _break(cluster: Cluster, payloads: Mapping[str | bytes, str]) -> str:
    """Send each payload over a link of its own, which has to end with what it is mapped to."""
    for payload, told in payloads.items():
        ending = await _ending_of(cluster, payload)
        assert ending.startswith("protocol error: "), ending
        assert told in ending, (told, ending)
    return "protocol error: …"


def _altered(message: Message, **changes: CborValue) -> bytes:
    """Return a payload with a message that is right but for some fields."""
    fields = fields_of(encode_message(message))
    names = mesh._FIELDS[int(str(fields[0]))]
    for name, value in changes.items():
        fields[names.index(name)] = value
    return encode([fields])


async def member_garbage(cluster: Cluster) -> str:
    return await _break(
        cluster,
        {
            "text": "binary is spoken here",
            b"": "ends inside an item",
            b"garbage, and more of it": "bytes follow the item",
            b"\xff" * 1_000: "is not allowed",
            b"\x80": "a payload must be an array",
            encode([[60, 1]]): "a message of an unknown kind",
            encode([["ping", 1]]): "a message of an unknown kind",
            b"\x81\x82\x18\x20\x20": "a negative number",
        },
    )


async def member_oversize(cluster: Cluster) -> str:
    return await _ending_of(cluster, bytes(MESH_MESSAGE_BYTES_MAX + 1))


async def member_half_item(cluster: Cluster) -> str:
    payload = pack([encode_message(made_frame(version(HALF, 2)))])
    return _one({await _ending_of(cluster, payload[:length]) for length in (len(payload) - 1, len(payload) // 2, 2)})


async def _sends_raw(cluster: Cluster, *parts: bytes, is_mute: bool = True) -> str:
    async with member(cluster) as bad:
        await bad.hears(Digest)
        bad.is_mute = is_mute
        # Below the websocket: its own task answers the end of the link over the same stream, which takes one sender at a time.
        with suppress(OSError, trio.ClosedResourceError):
            for part in parts:
                await bad.link.stream.socket.send(part)
                await trio.sleep(0.05)
        return await bad.ending()


async def member_half_frame(cluster: Cluster) -> str:
    return await _sends_raw(cluster, b"\x82" + bytes([0x80 | 100]) + MASK + bytes(50))


async def member_drip(cluster: Cluster) -> str:
    return await _sends_raw(cluster, b"\x82\xfe" + struct.pack(">H", 1_000) + MASK, *(b"\x00" for _ in range(200)))


async def member_mute(cluster: Cluster) -> str:
    async with member(cluster) as bad:
        bad.is_mute = True
        with suppress(ConnectionClosed):
            while bad.is_open:
                await bad.say(Pull(1, HALF, Stamp(0), 1))
                await trio.sleep(0.2)
        return await bad.ending()


def version(issuer: Issuer, stamp: int, term: int = 1) -> Version:
    return make_version(term, Stamp(stamp), issuer)


def made_row(at: Version) -> bytes:
    return encode_row(Kind.VALUE, b"made up", None, 0, at)


def made_frame(
    upto: Version, *, after: int | None = None, namespace: NamespaceId = WORDS, row: bytes | None = None
) -> Frame:
    """Make a frame of one position, the one before which is `after`, with a row of that version or another."""
    end = version_stamp(upto)
    keyed = (namespace, b"victim", made_row(upto) if row is None else row)
    start = Stamp(end - 1 if after is None else after)
    return Frame(version_term(upto), version_issuer(upto), start, end, ((end, 0),), (keyed,))


async def member_bad_frames(cluster: Cluster) -> str:
    frame = made_frame(version(HALF, 2))
    row = made_row(version(HALF, 2))
    return await _break(
        cluster,
        {
            _altered(frame, rows=[WORDS, b"victim", row[:-1] + b"!"]): "a row does not match its digest",
            _altered(frame, positions=[1, 0, 0, 0], upto=9): "a position of a Frame does not ascend",
            _altered(frame, positions=[9, 0]): "a position of a Frame lies behind its end",
            _altered(frame, positions=[1, 1]): "its row is not in the Frame",
            _altered(frame, after=2): "a Frame that spans nothing",
            _altered(frame, rows=[WORDS, b"v" * 513, row]): "a key has 513 bytes",
            _altered(frame, rows=[WORDS[:-1], b"victim", row]): "namespace must be 16 bytes",
            _altered(frame, issuer=b"short"): "issuer must be 8 bytes",
        },
    )


async def member_asks_too_much(cluster: Cluster) -> str:
    async with member(cluster) as bad:
        last = await bad.leader_position()
        await bad.say(*(Pull(version_term(last), version_issuer(last), Stamp(0), 1 << 20) for _ in range(100)))
        return await bad.ending()


async def _to_leader(cluster: Cluster, make: Callable[[Version], Frame]) -> str:
    async with member(cluster) as bad:
        await bad.say(make(await bad.leader_position()))
        return await bad.ending()


def _later(last: Version, by_ms: int) -> Version:
    return version(version_issuer(last), version_stamp(last) + (by_ms << 16), version_term(last))


async def made_up_positions(cluster: Cluster) -> str:
    # Honest clients write meanwhile: so far behind the last position that they do not get there.
    far_ms = 600_000
    endings = {
        await _to_leader(cluster, lambda last: made_frame(_later(last, far_ms), after=version_stamp(last))),
        await _to_leader(cluster, lambda last: made_frame(_later(last, far_ms), after=0)),
        await _to_leader(cluster, lambda last: made_frame(version(HALF, 1), row=made_row(_later(last, far_ms)))),
    }
    assert all("this node has issued" in one for one in endings), endings
    return min(endings)


async def made_up_digest(cluster: Cluster) -> str:
    async with member(cluster) as bad:
        digest = await bad.hears(Digest)
        assert digest.leads is not None
        last = digest.vector.top_of(digest.leads)
        assert last is not None
        await bad.say(replace(digest, vector=digest.vector.raised(_later(last, 500)), leads=None))
        await trio.sleep(0.8)  # more than the grace that a pull waits for
        assert bad.is_open
        assert not [one for one in bad.heard if isinstance(one, Pull) and one.issuer == digest.leads]
    return "the link stays"


async def impossible_stamps(cluster: Cluster) -> str:
    far = STAMP_MAX + 1
    frame = made_frame(version(HALF, 1))
    digest = Digest(VersionVector(), bytes(16), False, VersionVector(), None, None, True, 0)
    vector = VersionVector((version(HALF, far),)).encode()
    return await _break(
        cluster,
        {
            _altered(
                frame, rows=[WORDS, b"victim", made_row(version(HALF, 0))]
            ): "a row with the stamp 0, which nobody issues",
            _altered(frame, upto=far, positions=[far, 0]): "upto must be a number from 0",
            _altered(frame, rows=[WORDS, b"victim", made_row(version(HALF, far))]): "the stamp of a row must be",
            _altered(
                frame, rows=[WORDS, b"victim", made_row(version(HALF, (1 << 64) - 1))]
            ): "the stamp of a row must be",
            _altered(digest, vector=vector): "the latest stamp of a version vector must be",
            _altered(digest, wall_ms=WALL_MS_MAX + 1): "wall_ms must be a number",
            _altered(
                WalkPart(1, None, None, (), VersionVector()), vector=vector
            ): "the latest stamp of a version vector must be",
        },
    )


async def forward_to_unknown_namespace(cluster: Cluster) -> str:
    async with member(cluster) as bad:
        await bad.hears(Digest)
        await bad.say(Forward(1, time.monotonic_ns() + 5_000_000_000, (Put(UNKNOWN, b"k", b"v"),)))
        outcome = (await bad.hears(ForwardOutcome)).outcome
        assert outcome.ending is Ending.REFUSED
        return outcome.code


async def two_with_one_id(cluster: Cluster) -> str:
    who = identity(cluster)
    async with member(cluster, who) as first:
        await first.hears(Digest)
        async with member(cluster, other_instance(who)) as second:
            await second.hears(Digest)
            ending = await first.ending()
            assert second.is_open
    return ending


async def second_link(cluster: Cluster) -> str:
    who = identity(cluster)
    async with member(cluster, who) as first:
        await first.hears(Digest)
        ending = await _dials(cluster, who)
        assert first.is_open
    return ending


async def _reads(cluster: Cluster, name: str, target: str, *headers: tuple[str, str]) -> tuple[int, bytes]:
    async with Wire(await trio.open_tcp_stream("127.0.0.1", cluster.node(name).data_port)) as wire:
        reply = await wire.ask(cluster.spell(request("GET", target, headers=headers)))
        return reply.status, reply.body


async def _writes_victim_everywhere(cluster: Cluster) -> Version:
    """Write "good" at the node that does not lead, over what bad members may have sent, and read it at every node."""
    target = "/v1/words/victim"
    async with Wire(await trio.open_tcp_stream("127.0.0.1", cluster.node("n2").data_port)) as wire:
        reply = await wire.ask(cluster.spell(request("PUT", target, b"good")))
    assert reply.status == 200, reply.body
    written = reply.json["version"]
    for name in cluster.replicas:
        assert await _reads(cluster, name, target, ("KV-Min-Version", written)) == (200, b"good")
    return Version(bytes.fromhex(written))


async def _until_everywhere(cluster: Cluster, namespace: NamespaceId, key: bytes, row: bytes) -> None:
    with trio.fail_after(ENDS_WITHIN_S):
        await until(lambda: all(cluster.row(name, namespace, key) == row for name in cluster.replicas))


def _new_issuer(name: bytes) -> Issuer:
    return Issuer(name.ljust(ISSUER_BYTES, b"."))


async def _joined(cluster: Cluster, frame: Frame) -> None:
    """Send a frame of a log that nobody knows, and wait until every node has its row."""
    async with member(cluster) as bad:
        await bad.hears(Digest)
        await bad.say(frame)
        (keyed,) = frame.rows
        await _until_everywhere(cluster, *keyed)
        assert bad.is_open


async def entries_of_unknown_namespace(cluster: Cluster) -> str:
    await _joined(cluster, made_frame(version(_new_issuer(b"nowhere"), 1), namespace=UNKNOWN))
    for name in cluster.replicas:
        assert (await _reads(cluster, name, f"/v1/{UNKNOWN.hex()}/victim"))[0] == 404
        status, listed = await _reads(cluster, name, "/v1")
        assert (status, UNKNOWN.hex().encode() in listed) == (200, False)
    return "the link stays"


async def two_with_one_name(cluster: Cluster) -> str:
    async with member(cluster) as bad:
        await bad.hears(Digest)
        await bad.say(Roster((Row(NodeId(b"\xfe" * 16), 1, "n1", "", "", ""),)))
        await trio.sleep(0.3)
        assert bad.is_open
    return "the link stays"


async def stamps_a_day_ahead(cluster: Cluster) -> str:
    stamp = (time.time_ns() // 1_000_000 + DAY_MS) << 16
    tomorrow = version(_new_issuer(b"tomorrow"), stamp)
    await _joined(cluster, made_frame(tomorrow, after=0))
    for name in cluster.replicas:
        assert await _reads(cluster, name, "/v1/words/victim") == (200, b"made up")
    async with member(cluster) as bad:
        await bad.hears(Digest)
        await bad.say(Digest(VersionVector((tomorrow,)), bytes(16), False, VersionVector(), None, None, True, 0))
        await trio.sleep(0.3)
    written = await _writes_victim_everywhere(cluster)
    assert version_stamp(written) > stamp
    return "the link stays"


async def latest_stamp_in_a_digest(cluster: Cluster) -> str:
    latest = version(_new_issuer(b"latest"), STAMP_MAX)
    since = cluster.log_end("n1")
    async with member(cluster) as bad:
        await bad.hears(Digest)
        await bad.say(Digest(VersionVector((latest,)), bytes(16), False, VersionVector(), None, None, True, 0))
        with trio.fail_after(ENDS_WITHIN_S):
            await until(lambda: "stamps_ahead" in cluster.log_lines("n1", since))
        written = await _writes_victim_everywhere(cluster)
        assert version_stamp(written) <= STAMP_OBSERVED_MAX
        assert bad.is_open
    return "the link stays"


PLAYS: dict[str, Play] = {
    play.__name__: play
    for play in (
        garbage,
        silence,
        drip_upgrade,
        reset_in_upgrade,
        many_unproven,
        no_hello,
        other_cluster,
        other_version,
        wrong_key,
        replayed_handshake,
        reflected_challenge,
        trap_that_spoils_the_upgrade,
        reflected_hello,
        copied_node_id,
        member_garbage,
        member_oversize,
        member_half_item,
        member_half_frame,
        member_drip,
        member_mute,
        member_bad_frames,
        member_asks_too_much,
        made_up_positions,
        made_up_digest,
        impossible_stamps,
        forward_to_unknown_namespace,
        two_with_one_id,
        second_link,
        entries_of_unknown_namespace,
        two_with_one_name,
        stamps_a_day_ahead,
        latest_stamp_in_a_digest,
    )
}
SLOW = frozenset({"silence", "drip_upgrade", "member_half_frame", "member_drip", "member_mute"})
CHANGING = frozenset({"entries_of_unknown_namespace", "stamps_a_day_ahead", "latest_stamp_in_a_digest"})
