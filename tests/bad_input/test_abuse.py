"""Slow clients and crowds, at the gateway that an honest client uses: how they end, what that costs others, and what is stored."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trio

from tests.bad_input.abuse_plays import PLAYS, TOGETHER
from tests.bad_input.abuse_table import ABUSE
from tests.bad_input.cluster import Cluster, Figures, NodeState
from tests.bad_input.rows import PlayRow

pytestmark = pytest.mark.slow

ROWS = [pytest.param(row, id=row.what) for row in ABUSE]
DESCRIPTORS = 4_096
# Guess: 64 MiB is what a gateway may keep of unfinished bodies in all; a thousand connections or ten unread answers are far less.
GROWN_MIB_MAX = 64.0


@dataclass
class Acted:
    """Plays that were acted out at the same time."""

    endings: dict[str, str]
    figures: Figures
    before: dict[str, NodeState]
    after: dict[str, NodeState]


@pytest.fixture(scope="module", autouse=True)
def enough_descriptors() -> Iterator[None]:
    """A thousand connections have an end here as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def act_out(cluster: Cluster, *names: str) -> Acted:
    """Act plays out at the same time, watched."""
    endings: dict[str, str] = {}

    async def act(name: str) -> None:
        endings[name] = await PLAYS[name](cluster)

    async def act_all() -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(act, name)

    before = cluster.look_everywhere()
    with cluster.watched() as window:
        trio.run(act_all)
    assert window.figures is not None
    return Acted(endings, window.figures, before, cluster.look_everywhere())


@pytest.fixture(scope="module")
def together(bad_input_cluster: Cluster) -> Acted:
    """What can be acted out at the same time."""
    return act_out(bad_input_cluster, *sorted(TOGETHER))


@pytest.mark.parametrize("row", ROWS)
def test_slow_client_or_crowd_ends_as_the_table_says_and_harms_nobody(
    cluster: Cluster, together: Acted, row: PlayRow
) -> None:
    acted = together if row.play in TOGETHER else act_out(cluster, row.play)
    assert acted.endings[row.play] == row.ends
    cluster.assert_unharmed(acted.figures, grown_mib_max=GROWN_MIB_MAX)
    for name, state in acted.before.items():
        # What was written, was written on purpose, and deleted again.
        assert {key for _, key in acted.after[name].keys} - {key for _, key in state.keys} <= {b"dripped", b"unread"}
