"""Large values take turns to be written: in order, a few at a time, and not for ever."""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from kvp2p.config import HttpSettings
from kvp2p.core.operations import Outcome, refused
from kvp2p.gateway import uploads
from kvp2p.gateway.turns import Turns, bytes_max
from kvp2p.limits import CHUNK_BYTES, HTTP_LARGE_WRITE_BYTES_MAX, VALUE_BYTES_MAX
from kvp2p.wire.local_messages import LocalOutcome, SubmitWrite
from tests.gateway.rig import ADMIN, WRITER, Reply, Rig, Wire, request, rig, until
from tests.gateway.test_uploads import MIB, nothing_is_left, submitted, upload_of

KEYS = ("first", "second", "third")


def test_turns_are_taken_in_order_as_far_as_their_bytes_have_room() -> None:
    turns = Turns()
    begun: list[str] = []
    for _ in range(4):
        assert turns.take(VALUE_BYTES_MAX)
    assert not turns.take(VALUE_BYTES_MAX)
    for name in ("fifth", "sixth"):
        turns.wait(VALUE_BYTES_MAX, partial(begun.append, name))
    assert not turns.take(CHUNK_BYTES + 1), "not before those that wait"
    turns.give_back(VALUE_BYTES_MAX)
    assert begun == ["fifth"]
    turns.give_back(VALUE_BYTES_MAX)
    assert begun == ["fifth", "sixth"]
    for _ in range(4):
        turns.give_back(VALUE_BYTES_MAX)
    assert turns.bytes_under_way == 0


@pytest.mark.parametrize(
    ("value_bytes", "before_bytes_max"), [(CHUNK_BYTES, 20 * MIB - CHUNK_BYTES), (MIB, 19 * MIB), (10 * MIB, 40 * MIB)]
)
def test_value_that_has_less_time_has_less_before_it(value_bytes: int, before_bytes_max: int) -> None:
    turns = Turns()
    begun: list[str] = []
    assert turns.take(before_bytes_max + 1)
    assert not turns.take(value_bytes)
    turns.wait(value_bytes, partial(begun.append, "it"))
    turns.wait(VALUE_BYTES_MAX, partial(begun.append, "next"))
    assert not begun, "the next one would have room, and is not before its turn"
    turns.give_back(1)
    assert begun == ["it", "next"]


def test_values_of_one_chunk_do_not_stand_behind_larger_ones() -> None:
    turns = Turns()
    begun: list[str] = []
    for _ in range(4):
        assert turns.take(VALUE_BYTES_MAX)
    for name, value_bytes in (("large", VALUE_BYTES_MAX), ("first", CHUNK_BYTES), ("second", CHUNK_BYTES)):
        turns.wait(value_bytes, partial(begun.append, name))
    for _ in range(3):
        turns.give_back(VALUE_BYTES_MAX)
        assert not begun, "or so much would be under way for ever that they find no turn"
    assert not turns.take(1)
    turns.give_back(VALUE_BYTES_MAX)
    assert begun == ["first", "second", "large"]


def test_value_of_one_chunk_is_not_kept_waiting_by_a_larger_one_that_waits() -> None:
    turns = Turns()
    begun: list[str] = []
    assert turns.take(20 * MIB - CHUNK_BYTES)
    assert not turns.take(MIB)
    turns.wait(MIB, partial(begun.append, "larger"))
    assert turns.take(CHUNK_BYTES)
    assert not begun


def test_larger_value_does_not_overtake_one_of_one_chunk() -> None:
    turns = Turns()
    begun: list[str] = []
    assert turns.take(20 * MIB)
    turns.wait(CHUNK_BYTES, partial(begun.append, "small"))
    assert not turns.take(10 * MIB), "there would be room for it"
    turns.give_back(CHUNK_BYTES)
    assert begun == ["small"]
    assert turns.take(10 * MIB)


@pytest.mark.parametrize(("value_bytes", "before"), [(MIB, 4), (MIB + 1, 5), (VALUE_BYTES_MAX, 100)])
def test_larger_value_lets_no_more_go_before_it_than_it_has_itself(value_bytes: int, before: int) -> None:
    """A hundred clients write values of one chunk, each the next one when its last one has ended."""
    turns = Turns()
    begun: list[str] = []

    def come() -> None:
        if turns.take(CHUNK_BYTES):
            begun.append("small")
        else:
            turns.wait(CHUNK_BYTES, partial(begun.append, "small"))

    for _ in range(100):
        come()
    begun.clear()
    assert not turns.take(value_bytes)
    for name in ("larger", "next"):
        turns.wait(value_bytes, partial(begun.append, name))
    begun_before = 0
    for name in ("larger", "next"):
        for _ in range(400):
            if name in begun:
                break
            turns.give_back(CHUNK_BYTES)
            come()
        assert begun.index(name) - begun_before == before
        begun_before = begun.index(name) + 1
        turns.give_back(value_bytes)


def test_value_of_one_chunk_does_not_go_before_a_larger_one_that_is_due() -> None:
    turns = Turns()
    begun: list[str] = []
    larger = partial(begun.append, "larger")
    assert turns.take(19 * MIB + 1)
    turns.wait(MIB, larger)
    for _ in range(4):
        assert turns.take(CHUNK_BYTES - 1)
        turns.give_back(CHUNK_BYTES - 1)
    assert turns.take(4)
    turns.give_back(4)
    assert not turns.take(1), "there would be room for it"
    turns.wait(1, partial(begun.append, "small"))
    turns.stop_waiting(larger)
    assert begun == ["small"]


def test_larger_value_does_not_overtake_another_that_finds_too_much_under_way() -> None:
    turns = Turns()
    begun: list[str] = []
    assert turns.take(20 * MIB)
    turns.wait(MIB, partial(begun.append, "first"))
    assert not turns.take(10 * MIB), "there would be room for it"
    turns.give_back(MIB)
    assert begun == ["first"]


def test_value_of_any_size_has_its_turn_when_nothing_is_under_way() -> None:
    turns = Turns(bytes_max=1)
    assert turns.take(VALUE_BYTES_MAX)
    assert not turns.take(1)
    turns.give_back(VALUE_BYTES_MAX)
    assert turns.take(1)


def test_who_leaves_the_line_lets_the_next_go() -> None:
    turns = Turns()
    begun: list[str] = []
    waiting = {name: partial(begun.append, name) for name in ("small", "smaller", "large")}
    for _ in range(3):
        assert turns.take(VALUE_BYTES_MAX)
    for name, value_bytes in (("small", 2), ("smaller", 1), ("large", VALUE_BYTES_MAX)):
        turns.wait(value_bytes, waiting[name])
    turns.stop_waiting(waiting["smaller"])
    assert not begun
    turns.stop_waiting(waiting["small"])
    assert begun == ["large"]
    for _ in range(4):
        turns.give_back(VALUE_BYTES_MAX)
    assert (turns.bytes_under_way, begun) == (0, ["large"])


def test_gateways_of_a_node_share_its_turns() -> None:
    for gateways in (1, 2, 3, 8):
        assert gateways * bytes_max(gateways) <= HTTP_LARGE_WRITE_BYTES_MAX < gateways * (bytes_max(gateways) + 1)


async def answer(r: Rig, write: SubmitWrite, outcome: Outcome) -> None:
    """Answer a write that the node has kept waiting."""
    await r.node._send(r.node._streams[0], LocalOutcome(write.request, outcome))


async def acknowledge(r: Rig, write: SubmitWrite) -> None:
    """Apply a write that the node has kept waiting, and answer it."""
    await answer(r, write, r.node.writer.write(*write.operations))


async def occupy(r: Rig, wire: Wire) -> None:
    """Send a value that has the only turn there is, and let the node be silent from then on."""
    r.gateway.turns.bytes_max = MIB
    r.node.answer = lambda _: None
    await wire.send(request("PUT", "/v1/words/first", os.urandom(MIB)))
    await until(lambda: len(submitted(r)) == 1)


def has_come(r: Rig, waiting: int) -> bool:
    return (len(submitted(r)), len(r.gateway.turns._larger)) == (1, waiting)


async def send_three(r: Rig, wires: Sequence[Wire], bodies: Sequence[bytes], token: str = ADMIN) -> SubmitWrite:
    """Send three values of which only the first may be written for the present, the second with another token; return that write."""
    r.gateway.turns.bytes_max = MIB
    r.node.answer = lambda _: None
    for number, (wire, key, body) in enumerate(zip(wires, KEYS, bodies, strict=True)):
        await wire.send(request("PUT", f"/v1/words/{key}", body, token=token if key == "second" else ADMIN))
        await until(partial(has_come, r, number))
    r.node.answer = None  # of the writes that come now
    (write,) = r.node.submitted
    return write


async def test_write_of_a_large_value_has_its_time_from_its_turn_on(short_tmp_path: Path) -> None:
    async with (
        rig(short_tmp_path) as r,
        await r.connect() as first,
        await r.connect() as second,
        await r.connect() as third,
    ):
        bodies = [os.urandom(MIB) for _ in range(3)]
        write = await send_three(r, (first, second, third), bodies)
        await trio.sleep(0.3)
        assert [one.key for one in submitted(r)] == [b"first"], "the others wait, with all their chunks"
        await acknowledge(r, write)
        for wire in (first, second, third):
            assert (await wire.reply()).status == 200
        assert [one.key for one in submitted(r)] == [b"first", b"second", b"third"]
        assert (r.node.submitted[1].deadline_ns - write.deadline_ns) // 1_000_000 >= 300
        for key, body in zip(KEYS, bodies, strict=True):
            assert (await r.ask("GET", f"/v1/words/{key}")).body == body
        assert r.gateway.turns.bytes_under_way == 0
        await nothing_is_left(r, 3 * 4)


async def test_value_that_waits_too_long_for_its_turn_is_429_and_nothing_of_it_stays(
    short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "HTTP_TURN_WAIT_SECONDS", 0.9)
    settings = HttpSettings(body_timeout_seconds=0.5, idle_timeout_seconds=0.6)  # the client is not late meanwhile
    async with rig(short_tmp_path, settings) as r, await r.connect() as first:
        await occupy(r, first)
        for key in ("second", "third"):
            began = trio.current_time()
            reply = await r.ask("PUT", f"/v1/words/{key}", os.urandom(MIB))
            assert (reply.status, reply.code, reply.error["applied"]) == (429, "overloaded", "no")
            assert reply.headers["retry-after"] == "1"
            assert trio.current_time() - began >= 0.9
        await until(lambda: len(r.node.uploads) == 1)
        (write,) = r.node.submitted
        await acknowledge(r, write)
        assert (await first.reply()).status == 200
        assert [one.key for one in submitted(r)] == [b"first"]
        assert r.gateway.counters.connections_timed_out == 0
        await nothing_is_left(r, 4)


async def test_value_that_gets_its_turn_from_one_that_was_late_with_it_is_written(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as second, await r.connect() as third:
        r.gateway.turns.bytes_max = 60 * MIB
        under_way_bytes = 14 * MIB
        # A value of one chunk finds too much before it, the one behind it would not.
        r.gateway.turns.bytes_under_way = under_way_bytes
        await second.send(request("PUT", "/v1/words/second", os.urandom(CHUNK_BYTES)))
        await until(lambda: len(r.gateway.turns._small) == 1)
        await third.send(request("PUT", "/v1/words/third", os.urandom(8 * MIB)))
        await until(lambda: len(r.gateway.turns._larger) == 1)
        both = sorted(
            ((one, upload) for one in r.gateway._connections if one._uploading and (upload := one._uploading.upload)),
            key=lambda pair: pair[1].value_bytes,
        )
        for _, upload in both:
            upload.wait_deadline = time.monotonic()
        for connection, _ in both:  # as the sweep does
            connection.expire()
        assert (await second.reply()).status == 429
        assert (await third.reply()).status == 200
        assert r.gateway.counters.connections_timed_out == 0
        r.gateway.turns.give_back(under_way_bytes)
        await nothing_is_left(r, 32)


@pytest.mark.parametrize("is_reset", [False, True])
async def test_client_that_leaves_the_line_is_passed_over(short_tmp_path: Path, is_reset: bool) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as first, await r.connect() as third:
        async with await r.connect() as second:
            write = await send_three(r, (first, second, third), [os.urandom(MIB) for _ in range(3)])
            if is_reset:
                second.reset_at_close()
        await until(lambda: len(r.gateway.turns._larger) == 1)
        await answer(r, write, refused("no_leader", "nobody leads"))
        assert (await first.reply()).status == 503
        assert (await third.reply()).status == 200
        assert [one.key for one in submitted(r)] == [b"first", b"third"]
        await nothing_is_left(r, 4)


async def test_value_of_a_client_that_has_left_does_not_surface_after_a_newer_one(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as first:
        await occupy(r, first)
        async with await r.connect() as leaving:
            await leaving.send(request("PUT", "/v1/words/k", os.urandom(MIB)))
            await until(lambda: len(r.gateway.turns._larger) == 1)
        r.node.answer = None
        assert (await r.ask("PUT", "/v1/words/k", b"newer")).status == 200
        (write, _) = r.node.submitted
        await acknowledge(r, write)
        assert (await first.reply()).status == 200
        await nothing_is_left(r, 4)
        assert (await r.ask("GET", "/v1/words/k")).body == b"newer"


@pytest.mark.parametrize("is_in_line_first", [False, True])
async def test_client_that_says_no_more_is_told_that_its_value_has_not_waited(
    short_tmp_path: Path, is_in_line_first: bool
) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as first, await r.connect() as second:
        await occupy(r, first)
        if not is_in_line_first:
            r.node.gate = trio.Event()  # its chunks are not stored when its client has said all
        await second.send(request("PUT", "/v1/words/second", os.urandom(CHUNK_BYTES)))
        if is_in_line_first:
            await until(lambda: len(r.gateway.turns._small) == 1)
        await second.stream.send_eof()
        if not is_in_line_first:
            await until(lambda: len(r.node.staged) == 5)
            upload = upload_of(r, b"second")
            await until(lambda: upload._wait_refusal is not None)
            r.node.gate.set()
        reply = await second.reply()
        assert (reply.status, reply.code, reply.error["applied"]) == (429, "overloaded", "no")
        assert await second.is_closed()
        assert not r.gateway.turns._small
        assert [one.key for one in submitted(r)] == [b"first"]


async def test_value_that_need_not_wait_is_written_for_a_client_that_says_no_more(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.node.gate = trio.Event()
        await wire.send(request("PUT", "/v1/words/k", os.urandom(CHUNK_BYTES)))
        await wire.stream.send_eof()
        await until(lambda: len(r.node.staged) == 1)
        upload = upload_of(r, b"k")
        await until(lambda: upload._wait_refusal is not None)
        r.node.gate.set()
        assert (await wire.reply()).status == 200


async def test_turn_that_came_just_before_its_client_left_goes_to_the_next(short_tmp_path: Path) -> None:
    async with (
        rig(short_tmp_path) as r,
        await r.connect() as first,
        await r.connect() as second,
        await r.connect() as third,
    ):
        await send_three(r, (first, second, third), [os.urandom(MIB) for _ in range(3)])
        upload = upload_of(r, b"second")
        r.gateway.turns.give_back(MIB)  # in the name of the first
        assert upload.is_ready
        upload.leave()
        assert upload.failure is not None
        assert (await second.reply()).status == 429
        assert (await third.reply()).status == 200
        assert [one.key for one in submitted(r)] == [b"first", b"third"]
        r.gateway.turns.bytes_under_way += MIB


async def test_turn_of_a_client_that_has_left_lasts_until_its_write_has_ended(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as second, await r.connect() as third:
        async with await r.connect() as first:
            write = await send_three(r, (first, second, third), [os.urandom(MIB) for _ in range(3)])
            first.reset_at_close()
        await until(lambda: len(r.gateway._connections) == 2)
        await trio.sleep(0.1)
        assert len(submitted(r)) == 1
        await acknowledge(r, write)
        for wire in (second, third):
            assert (await wire.reply()).status == 200
        assert r.gateway.turns.bytes_under_way == 0


async def test_turn_of_a_value_that_may_not_be_written_any_more_goes_to_the_next(short_tmp_path: Path) -> None:
    async with (
        rig(short_tmp_path) as r,
        await r.connect() as first,
        await r.connect() as second,
        await r.connect() as third,
    ):
        write = await send_three(r, (first, second, third), [os.urandom(MIB) for _ in range(3)], WRITER)
        r.writer.revoke(WRITER)
        await answer(r, write, refused("no_leader", "nobody leads"))
        assert (await first.reply()).status == 503
        assert (await second.reply()).status == 401
        assert (await third.reply()).status == 200
        assert [one.key for one in submitted(r)] == [b"first", b"third"]
        await nothing_is_left(r, 4)


async def test_draining_refuses_values_that_wait_in_line_and_those_that_would_have_to(short_tmp_path: Path) -> None:
    async with (
        rig(short_tmp_path) as r,
        await r.connect() as first,
        await r.connect() as second,
        await r.connect() as third,
        await r.connect() as fourth,
    ):
        await occupy(r, first)
        await second.send(request("PUT", "/v1/words/second", os.urandom(MIB)))
        await until(lambda: len(r.gateway.turns._larger) == 1)
        third_message = request("PUT", "/v1/words/third", os.urandom(MIB))
        await third.send(third_message[:-1])
        await until(lambda: len(r.node.staged) == 4 + 4 + 3)
        fourth_message = request("PUT", "/v1/words/fourth", os.urandom(MIB))
        await fourth.send(fourth_message[:100])  # not even its head
        await until(lambda: len([one for one in r.gateway._connections if one._intake.phase.name == "HEAD"]) == 1)
        (write,) = r.node.submitted
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r.gateway.drain)
            assert_refused(await second.reply())
            for wire, rest in ((third, third_message[-1:]), (fourth, fourth_message[100:])):
                await wire.send(rest)
                assert_refused(await wire.reply())
            await acknowledge(r, write)
            assert (await first.reply()).status == 200
            for wire in (first, second, third, fourth):
                assert await wire.is_closed()
                await trio.aclose_forcefully(wire.stream)
        assert len(submitted(r)) == 1
        await nothing_is_left(r, 4)


async def test_draining_refuses_a_value_that_waits_for_its_first_room(short_tmp_path: Path) -> None:
    async with rig(short_tmp_path) as r, await r.connect() as wire:
        r.gateway.bodies.rooms_max = 0
        message = request("PUT", "/v1/words/k", os.urandom(MIB))
        await wire.send(message[:100_000])
        await until(lambda: len(r.gateway.bodies._waiting) == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r.gateway.drain)
            await wire.send(message[100_000:])  # which is read and dropped
            assert_refused(await wire.reply())
            assert await wire.is_closed()
            await trio.aclose_forcefully(wire.stream)
        await nothing_is_left(r)


def assert_refused(reply: Reply) -> None:
    assert (reply.status, reply.code, reply.error["applied"]) == (503, "unavailable", "no")
    assert reply.headers["connection"] == "close"
