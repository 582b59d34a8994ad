"""The actor: timers, sends, answers from the store, and what happens when links or inbox have no room."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from kvp2p.core.entry import chunk_id
from kvp2p.core.events import (
    Await,
    Effect,
    Event,
    PeerDown,
    PeerUp,
    Received,
    Send,
    Serve,
    SetTimer,
    Start,
    TimerFired,
)
from kvp2p.core.messages import (
    ChunkMissing,
    ChunkPart,
    ChunkPull,
    Designation,
    Digest,
    Forward,
    ForwardOutcome,
    Frame,
    Message,
    Pull,
    PullEnd,
    Roster,
)
from kvp2p.core.operations import Ending, Outcome
from kvp2p.core.replica import ReplicaMachine
from kvp2p.core.vector import EMPTY_VECTOR
from kvp2p.ids import VERSION_ZERO, Issuer, NodeId, Now, Stamp, version_issuer
from kvp2p.limits import INBOX_EVENTS_MAX, PULLS_MAX
from kvp2p.runtime.driver import ReplicaDriver
from tests.node.rig import (
    QUICK,
    FakeDialler,
    FakeLink,
    GatedStore,
    a_put,
    has_key,
    in_ms,
    make_namespace,
    make_store,
    member_of,
    running,
    until,
    write,
)

NODE = NodeId(b"n" * 16)
PEER = NodeId(b"p" * 16)
ISSUER = Issuer(b"issuer-p")
MS = 1_000_000


class ScriptedMachine:
    """Notes its events and answers them as a test says."""

    def __init__(self, answer: Callable[[Event, Now], list[Effect]]) -> None:
        self.events: list[Event] = []
        self.times: list[Now] = []
        self._answer = answer

    def handle(self, event: Event, now: Now) -> list[Effect]:
        self.events.append(event)
        self.times.append(now)
        return self._answer(event, now)

    def install(self, driver: ReplicaDriver) -> None:
        driver.machine = cast("ReplicaMachine", self)


@pytest.fixture
def leader_store(tmp_path: Path) -> Iterator[GatedStore]:
    made = make_store(tmp_path / "store", NODE, leader=NODE)
    yield made
    made.close()


@pytest.fixture
def follower_store(tmp_path: Path) -> Iterator[GatedStore]:
    made = make_store(tmp_path / "store", NODE, leader=PEER)
    yield made
    made.close()


def make_driver(store: GatedStore) -> tuple[ReplicaDriver, FakeDialler]:
    driver = ReplicaDriver(store, QUICK, member_of(NODE), ())
    dialler = FakeDialler()
    driver.dialler = dialler
    return driver, dialler


def a_digest(leader: NodeId) -> Digest:
    designation = Designation(1, Issuer(b"\x01" * 8), leader)
    return Digest(EMPTY_VECTOR, bytes(16), True, EMPTY_VECTOR, designation, None, True, 0)


# --- timers


async def test_timers_fire_once_and_never_early(follower_store: GatedStore) -> None:
    def answer(event: Event, now: Now) -> list[Effect]:
        if isinstance(event, Start):
            return [
                SetTimer(3, now.mono_ns + 60 * MS),
                SetTimer(1, now.mono_ns - MS),
                SetTimer(2, now.mono_ns + 30 * MS),
            ]
        return []

    driver, _ = make_driver(follower_store)
    machine = ScriptedMachine(answer)
    machine.install(driver)
    async with running(driver):
        await trio.sleep(0.2)
    assert machine.events[1:] == [TimerFired(1), TimerFired(2), TimerFired(3)]
    start, _, second, third = (now.mono_ns for now in machine.times)
    assert second - start >= 30 * MS
    assert third - start >= 60 * MS


async def test_a_timer_fires_in_time_while_events_keep_coming(follower_store: GatedStore) -> None:
    due_ns = 0
    fired = trio.Event()

    def answer(event: Event, now: Now) -> list[Effect]:
        nonlocal due_ns
        if isinstance(event, Start):
            due_ns = now.mono_ns + 20 * MS
            return [SetTimer(9, due_ns)]
        if isinstance(event, TimerFired):
            assert now.mono_ns >= due_ns
            fired.set()
        return []

    driver, _ = make_driver(follower_store)
    ScriptedMachine(answer).install(driver)
    async with running(driver):
        for _ in range(500_000):  # faster than the driver takes them, so its inbox is never empty
            if fired.is_set():
                break
            await driver.post(Received(PEER, Roster(())))
    assert fired.is_set()


# --- the inbox


async def test_a_full_inbox_makes_those_outside_wait_until_there_is_room(follower_store: GatedStore) -> None:
    driver, _ = make_driver(follower_store)
    machine = ScriptedMachine(lambda event, now: [])
    machine.install(driver)
    for number in range(INBOX_EVENTS_MAX):
        await driver.post(Await(number, VERSION_ZERO, 0))
    posted = trio.Event()

    async def post_one_more() -> None:
        await driver.on_messages(PEER, [Roster(())])
        posted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(post_one_more)
        await trio.testing.wait_all_tasks_blocked()
        assert not posted.is_set(), "the inbox is bounded [I9]"
        async with running(driver):
            await posted.wait()
            await until(lambda: len(machine.events) == INBOX_EVENTS_MAX + 2)
    assert isinstance(machine.events[0], Start)
    assert machine.events[-1] == Received(PEER, Roster(()))


async def test_the_answers_of_the_store_find_room_in_a_full_inbox(leader_store: GatedStore) -> None:
    driver, _ = make_driver(leader_store)
    async with running(driver):
        await make_namespace(driver)
        leader_store.close_gate()
        outcomes: list[Outcome] = []
        await driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        for number in range(INBOX_EVENTS_MAX - 1):
            driver._tells[1_000_000 + number] = lambda _: None
            await driver.post(Await(1_000_000 + number, VERSION_ZERO, 0))
        leader_store.open_gate()
        await until(lambda: bool(outcomes))
    assert outcomes[0].ending is Ending.ACKED


# --- sends


async def test_a_forward_that_finds_no_room_is_refused_as_overloaded(follower_store: GatedStore) -> None:
    driver, _ = make_driver(follower_store)
    link = FakeLink(Forward)
    async with running(driver):
        await driver.on_link_up(PEER, link)
        outcome = await write(driver, a_put(b"k"))
    assert (outcome.ending, outcome.code) == (Ending.REFUSED, "overloaded")
    assert link.sent_of(Forward) == []


async def test_a_forward_is_answered_as_the_leader_says(follower_store: GatedStore) -> None:
    driver, _ = make_driver(follower_store)
    link = FakeLink()
    outcomes: list[Outcome] = []
    answer = Outcome(Ending.REFUSED, "namespace_not_found", "there is none")
    async with running(driver):
        await driver.on_link_up(PEER, link)
        await driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        await until(lambda: bool(link.sent_of(Forward)))
        forward = link.sent_of(Forward)[0]
        assert isinstance(forward, Forward)
        assert 4_000 * MS < forward.deadline_ns - time.monotonic_ns() <= 5_000 * MS
        await driver.on_messages(PEER, [ForwardOutcome(forward.request, answer)])
        await until(lambda: bool(outcomes))
    assert outcomes == [answer]


async def test_a_write_on_a_link_that_ends_is_unknown(follower_store: GatedStore) -> None:
    driver, _ = make_driver(follower_store)
    link = FakeLink()
    outcomes: list[Outcome] = []
    async with running(driver):
        await driver.on_link_up(PEER, link)
        await driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        await until(lambda: bool(link.sent_of(Forward)))
        link.is_closed = True
        await driver.on_link_down(PEER, "cut")
        await until(lambda: bool(outcomes))
    assert outcomes[0].ending is Ending.UNKNOWN


async def test_a_frame_that_finds_no_room_is_dropped_and_counted_and_the_write_is_acknowledged(
    leader_store: GatedStore,
) -> None:
    driver, _ = make_driver(leader_store)
    link = FakeLink(Frame)
    async with running(driver):
        await make_namespace(driver)
        await driver.on_link_up(PEER, link)
        await driver.on_messages(PEER, [a_digest(NODE)])
        assert driver.frames_dropped == 0
        outcome = await write(driver, a_put(b"k"))
    assert outcome.ending is Ending.ACKED
    assert driver.frames_dropped == 1


async def test_an_outcome_for_a_former_link_does_not_leave_on_the_next_one(follower_store: GatedStore) -> None:
    # The peer may have started anew meanwhile, and its requests are numbered from 1 again [I10].
    stale = ForwardOutcome(1, Outcome(Ending.ACKED))
    fresh = ForwardOutcome(2, Outcome(Ending.ACKED))

    def answer(event: Event, now: Now) -> list[Effect]:
        match event:
            case Await():
                return [Send(PEER, stale)]
            case PeerUp():
                return [Send(PEER, fresh)]
        return []

    driver, _ = make_driver(follower_store)
    machine = ScriptedMachine(answer)
    machine.install(driver)
    first, second = FakeLink(), FakeLink()
    await driver.on_link_up(PEER, first)
    await driver.post(Await(1, VERSION_ZERO, 0))
    first.is_closed = True
    await driver.on_link_down(PEER, "cut")
    await driver.on_link_up(PEER, second)
    async with running(driver):
        await until(lambda: len(machine.events) == 5)
    assert [type(event) for event in machine.events[1:]] == [PeerUp, Await, PeerDown, PeerUp]
    assert second.sent == [fresh]


# --- answers from the store


async def test_a_pull_is_answered_from_the_store(leader_store: GatedStore) -> None:
    driver, _ = make_driver(leader_store)
    link = FakeLink()
    async with running(driver):
        await make_namespace(driver)
        outcome = await write(driver, a_put(b"k", b"told"))
        assert outcome.version is not None
        issuer = version_issuer(outcome.version)
        await driver.on_link_up(PEER, link)
        await driver.on_messages(PEER, [Pull(1, issuer, Stamp(0), 1_000_000)])
        await until(lambda: bool(link.sent_of(PullEnd)))
        frame, end = [message for message in link.sent if isinstance(message, Frame | PullEnd)]
    assert isinstance(frame, Frame)
    assert [key for _, key, _ in frame.rows][2:] == [b"k"], "after the issuer's own row and the namespace"
    assert end == PullEnd(issuer, frame.upto, trimmed=False)


async def test_a_peer_that_asks_for_more_than_the_protocol_allows_is_disconnected(leader_store: GatedStore) -> None:
    driver, dialler = make_driver(leader_store)
    link = FakeLink()
    link.room = trio.Event()  # the link takes nothing: every answer waits
    pull = Pull(1, ISSUER, Stamp(0), 1_000)
    allowed = 1 + 2 * PULLS_MAX + 1
    async with running(driver):
        await driver.on_link_up(PEER, link)
        await driver.on_messages(PEER, [pull])
        await until(lambda: (PEER, False) in driver._serving and not driver._serving[PEER, False])
        for _ in range(allowed - 1):
            await driver.on_messages(PEER, [pull])
        await until(lambda: not driver._inbox)
        assert dialler.disconnected == []
        await driver.on_messages(PEER, [pull])
        await until(lambda: bool(dialler.disconnected))
        link.room.set()
        await until(lambda: len(link.sent_of(PullEnd)) == allowed)
    assert [peer for peer, _ in dialler.disconnected] == [PEER]


async def test_a_link_that_ends_under_an_answer_costs_the_answer_only(leader_store: GatedStore) -> None:
    driver, _ = make_driver(leader_store)
    first, second = FakeLink(), FakeLink()
    first.room = trio.Event()
    pull = Pull(1, ISSUER, Stamp(0), 1_000)
    async with running(driver):
        await driver.on_link_up(PEER, first)
        await driver.on_messages(PEER, [pull])
        await until(lambda: (PEER, False) in driver._serving)
        first.is_closed = True
        first.room.set()
        await driver.on_link_down(PEER, "cut")
        await driver.on_link_up(PEER, second)
        await driver.on_messages(PEER, [pull])
        await until(lambda: bool(second.sent_of(PullEnd)))
    assert first.sent_of(PullEnd) == []


async def test_a_request_that_outlived_its_link_is_answered_to_nobody(follower_store: GatedStore) -> None:
    pull = Pull(1, ISSUER, Stamp(0), 1_000)
    driver, dialler = make_driver(follower_store)
    machine = ScriptedMachine(lambda event, now: [Serve(PEER, pull)] if isinstance(event, PeerDown) else [])
    machine.install(driver)
    link = FakeLink()
    async with running(driver):
        await driver.on_link_up(PEER, link)
        await driver.on_link_down(PEER, "cut")
        await until(lambda: len(machine.events) == 3)
        await until(lambda: (PEER, False) not in driver._serving)
    assert link.sent == []
    assert dialler.disconnected == []


class _SlowForChunks(FakeLink):
    """A link whose chunk lane has no room: parts of chunks wait, everything else goes through."""

    async def send(self, message: Message) -> None:
        if isinstance(message, ChunkPart):
            await super().send(message)
        else:
            self.sent.append(message)


async def test_no_pull_waits_behind_a_chunk(leader_store: GatedStore) -> None:
    driver, dialler = make_driver(leader_store)
    link = _SlowForChunks()
    link.room = trio.Event()
    content = bytes(range(256)) * 8
    chunk = chunk_id(content)
    allowed = 2 * PULLS_MAX + 1
    async with running(driver):
        await driver.on_link_up(PEER, link)
        await driver.stage_chunk(driver.new_upload(), chunk, content, lambda _: None)
        await until(lambda: not driver.machine.board.batches_in_flight())
        await driver.on_messages(PEER, [ChunkPull(chunk, 0, 1_000)])
        await until(lambda: (PEER, True) in driver._serving and not driver._serving[PEER, True])
        for _ in range(allowed):
            await driver.on_messages(PEER, [Pull(1, ISSUER, Stamp(0), 1_000)])
        await until(lambda: len(link.sent_of(PullEnd)) == allowed)
        assert link.sent_of(ChunkPart) == []
        await driver.on_messages(PEER, [ChunkPull(chunk_id(b"another"), 0, 1_000)] * allowed)
        await until(lambda: not driver._inbox)
        assert dialler.disconnected == [], "those of chunks are counted apart, too"
        link.room.set()
        await until(lambda: len(link.sent_of(ChunkMissing)) == allowed)
        parts = [message for message in link.sent if isinstance(message, ChunkPart)]
        assert b"".join(part.data for part in parts) == content
        await driver.on_link_down(PEER, "cut")
        await until(lambda: not driver._serving)


# --- the end


async def test_stop_waits_until_what_is_being_persisted_is_durable_and_told(leader_store: GatedStore) -> None:
    driver, _ = make_driver(leader_store)
    outcomes: list[Outcome] = []
    stopped = trio.Event()

    async def stop() -> None:
        await driver.stop(10)
        assert has_key(leader_store, b"k")
        assert [outcome.ending for outcome in outcomes] == [Ending.ACKED]
        stopped.set()

    async with running(driver):
        await make_namespace(driver)
        leader_store.close_gate()
        began = leader_store.began
        await driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        await until(lambda: leader_store.began > began)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            await until(lambda: driver.machine.board.is_stopping)
            refused = await write(driver, a_put(b"too late"))
            assert (refused.ending, refused.code) == (Ending.REFUSED, "no_leader")
            assert not stopped.is_set()
            leader_store.open_gate()
            await stopped.wait()
    assert not has_key(leader_store, b"too late")


async def test_stop_waits_for_the_answer_to_a_write_that_was_sent_on(follower_store: GatedStore) -> None:
    driver, _ = make_driver(follower_store)
    link = FakeLink()
    outcomes: list[Outcome] = []
    answer = Outcome(Ending.REFUSED, "namespace_not_found", "there is none")
    async with running(driver), trio.open_nursery() as nursery:
        await driver.on_link_up(PEER, link)
        await driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        await until(lambda: bool(link.sent_of(Forward)))
        nursery.start_soon(driver.stop, 10)
        await until(lambda: driver.machine.board.is_stopping)
        await trio.sleep(0.05)
        assert len(nursery.child_tasks) == 1, "it waits"
        forward = link.sent_of(Forward)[0]
        assert isinstance(forward, Forward)
        await driver.on_messages(PEER, [ForwardOutcome(forward.request, answer)])
    assert outcomes == [answer]


async def test_stop_gives_up_when_the_disk_is_slower_than_its_patience(leader_store: GatedStore) -> None:
    driver, _ = make_driver(leader_store)
    outcomes: list[Outcome] = []
    async with running(driver):
        await make_namespace(driver)
        leader_store.close_gate()
        await driver.write(a_put(b"k"), in_ms(5_000), outcomes.append)
        with trio.fail_after(2):
            await driver.stop(0.1)
        assert outcomes == []
        leader_store.open_gate()


async def test_a_store_that_breaks_ends_the_driver(leader_store: GatedStore) -> None:
    driver, _ = make_driver(leader_store)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="the disk is gone"), flatten_subgroups=True):
        async with running(driver):
            await make_namespace(driver)
            leader_store.failure = OSError("the disk is gone")
            await write(driver, a_put(b"k"))
