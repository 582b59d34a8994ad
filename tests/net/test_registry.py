"""Which link to a peer stays: the judge's rules, one by one."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from kvp2p.ids import NodeId
from kvp2p.limits import PEERS_MAX
from kvp2p.net.handshake import Peer, Refusal
from kvp2p.net.link import Link
from kvp2p.net.registry import Registry
from kvp2p.net.settings import MeshSettings
from tests.net.hosts import node_id
from tests.net.pipes import pipe_pair

B = node_id("b")
FIRST_RUN, SECOND_RUN = Peer(B, b"run....1"), Peer(B, b"run....2")


def link() -> Link:
    return Link(B, pipe_pair()[0], MeshSettings())


def in_mock_time(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("is_dialled", [False, True])
async def test_the_first_newcomer_wins(is_dialled: bool) -> None:
    await trio.lowlevel.checkpoint()
    assert Registry(5).objection(FIRST_RUN, is_dialled) is None


@pytest.mark.parametrize("is_dialled", [False, True])
async def test_a_second_link_to_the_same_process_loses(is_dialled: bool) -> None:
    await trio.lowlevel.checkpoint()
    registry = Registry(5)
    registry.add(FIRST_RUN, link(), is_dialled=True)
    assert registry.objection(FIRST_RUN, is_dialled) is Refusal.ALREADY_LINKED


@pytest.mark.parametrize("is_dialled", [False, True])
async def test_a_restarted_peer_wins_at_once(is_dialled: bool) -> None:
    await trio.lowlevel.checkpoint()
    registry = Registry(5)
    old = registry.add(FIRST_RUN, link(), is_dialled=True)
    assert registry.objection(SECOND_RUN, is_dialled) is None
    new = registry.add(SECOND_RUN, link(), is_dialled)
    assert registry.get(B) is new
    assert new.before is old
    assert old.link.reason == "the peer has restarted"
    registry.remove(old)  # its task ends later: the newer one stays
    assert registry.all() == [new]


@pytest.mark.parametrize("is_dialled", [False, True])
async def test_a_link_that_has_ended_stands_in_nobodys_way(is_dialled: bool) -> None:
    await trio.lowlevel.checkpoint()
    registry = Registry(5)
    registry.add(FIRST_RUN, link(), is_dialled=True).link.close("test")
    assert registry.objection(FIRST_RUN, is_dialled) is None


def test_a_peer_that_dials_again_after_the_timeout_has_lost_the_old_link() -> None:
    async def main() -> None:
        registry = Registry(5)
        old = registry.add(FIRST_RUN, link(), is_dialled=False)
        await trio.sleep(4.9)
        assert registry.objection(FIRST_RUN, is_dialled=False) is Refusal.ALREADY_LINKED
        await trio.sleep(0.2)
        assert registry.objection(FIRST_RUN, is_dialled=False) is None
        # Our own dial tells nothing about the peer's end: it may have been a seed.
        assert registry.objection(FIRST_RUN, is_dialled=True) is Refusal.ALREADY_LINKED
        registry.add(FIRST_RUN, link(), is_dialled=False)
        assert old.link.reason == "a newer link to the peer took its place"

    in_mock_time(main)


async def test_links_are_bounded_and_a_newcomer_for_a_linked_peer_takes_no_place() -> None:
    await trio.lowlevel.checkpoint()
    registry = Registry(5)
    for number in range(PEERS_MAX - 1):
        registry.add(Peer(NodeId(number.to_bytes(16, "big")), b"run....1"), link(), is_dialled=False)
    assert not registry.is_full_for(B)
    registry.add(FIRST_RUN, link(), is_dialled=False)
    assert registry.objection(Peer(node_id("c"), b"run....1"), is_dialled=False) is Refusal.TOO_MANY_LINKS
    assert registry.objection(SECOND_RUN, is_dialled=False) is None


def test_waiting_for_the_end_of_a_link_tells_how_long_it_lived() -> None:
    async def main() -> None:
        registry = Registry(5)
        assert await registry.until_unlinked(B) == 0.0
        session = registry.add(FIRST_RUN, link(), is_dialled=False)
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await trio.sleep(7)
                registry.add(Peer(node_id("c"), b"run....1"), link(), is_dialled=False)  # none of its business
                await trio.sleep(5)
                registry.remove(session)

            nursery.start_soon(end)
            assert await registry.until_unlinked(B) == pytest.approx(12.0)

    in_mock_time(main)
