"""Every bad peer of the table, at the mesh port of a real node: how its link ends, what the log says, and that nothing has changed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

import pytest
import trio

from tests.bad_input.cluster import Cluster, NodeState
from tests.bad_input.mesh_plays import CHANGING, PLAYS, SLOW
from tests.bad_input.mesh_table import MEMBERS, MESH_GROUPS
from tests.bad_input.rows import PlayRow
from tests.gateway.rig import until

pytestmark = pytest.mark.slow

ROWS = [pytest.param(row, id=f"{group}: {row.what}") for group, rows in MESH_GROUPS.items() for row in rows]
GROWN_MIB_MAX = 32.0  # guess: a peer's credit, and what it asks for
TOLD_SELDOM = ("handshake_refused", "dial_failed")  # once in 10 s of each reason (kvp2p/net/notices.py)
# What no input may cause: a bug of ours that was met, a process that has died, stores that differ.
FAULTS = (
    "connection_failed",
    "read_failed",
    "store_failed",
    "child_died",
    "child_ended",
    "child_cannot_run",
    "diverged",
)


@pytest.fixture(scope="module")
def began(bad_input_cluster: Cluster) -> float:
    """Give the moment at which these tests began."""
    return time.monotonic()


@dataclass
class Acted:
    """Plays that were acted out at the same time."""

    endings: dict[str, str]
    before: dict[str, NodeState]
    after: dict[str, NodeState]
    log_ends: dict[str, int]  # before


async def act_out(cluster: Cluster, *names: str) -> Acted:
    """Act plays out at the same time."""
    endings: dict[str, str] = {}

    async def act(name: str) -> None:
        endings[name] = await PLAYS[name](cluster)

    before = cluster.look_everywhere()
    log_ends = {name: cluster.log_end(name) for name in before}
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(act, name)
    return Acted(endings, before, cluster.look_everywhere(), log_ends)


@pytest.fixture(scope="module")
def slow(bad_input_cluster: Cluster, began: float) -> Acted:
    """What takes as long as a node's patience, acted out at the same time."""
    return trio.run(act_out, bad_input_cluster, *sorted(SLOW))


def pattern(shown: str) -> re.Pattern[str]:
    """Return what a text of the table stands for: an ellipsis is anything."""
    return re.compile(re.escape(shown).replace("…", ".*"), re.DOTALL)


async def assert_logged(cluster: Cluster, line: str, acted: Acted) -> None:
    """Wait for a line in a node's log, logged since a row began, or at any time if it is one that strangers can cause.

    Rows that were acted out at the same time have as many lines as they are, if theirs are the same.
    """
    name, _, told = line.rpartition(": ") if line.startswith("n2: ") else ("n1", "", line)
    wanted = pattern(told)
    since = 0 if told.startswith(TOLD_SELDOM) else acted.log_ends[name]
    times = sum(row.log == line for row in MEMBERS if row.play in acted.endings)

    def is_logged() -> bool:
        return sum(bool(wanted.match(one)) for one in cluster.log_lines(name, since)) >= max(1, times)

    with trio.move_on_after(3):
        await until(is_logged)
        return
    raise AssertionError(f"{name} has not logged {told!r} {max(1, times)} times: {cluster.log_lines(name, since)}")


@pytest.mark.deadline_s(60)
@pytest.mark.parametrize("row", ROWS)
async def test_bad_peer_ends_as_the_table_says_and_changes_nothing(
    cluster: Cluster, began: float, slow: Acted, row: PlayRow
) -> None:
    acted = slow if row.play in SLOW else await act_out(cluster, row.play)
    assert pattern(row.ends).fullmatch(acted.endings[row.play]), acted.endings
    if row.log:
        await assert_logged(cluster, row.log, acted)
    if row.play not in CHANGING:
        for name, state in acted.before.items():
            after = acted.after[name]
            assert replace(after, vector={}) == replace(state, vector={})
            assert after.vector.keys() == state.vector.keys()


async def test_nodes_are_equal_linked_and_none_has_died(cluster: Cluster, began: float) -> None:
    with trio.fail_after(10):
        await until(cluster.equal_hashes)
    for name, status in cluster.statuses().items():
        assert (status["ready"], status["diverged"]) == (True, False), name
        assert {"n1", "n2"} <= {one["name"] for one in status["members"] if one["linked"]}
        lines = cluster.log_lines(name)
        assert any(line.startswith("link_up") for line in lines), "its log is read"
        assert not [line for line in lines if line.startswith(FAULTS)]


def test_honest_clients_noticed_no_bad_peer(cluster: Cluster, began: float) -> None:
    cluster.assert_unharmed(cluster.figures(began, time.monotonic()), grown_mib_max=GROWN_MIB_MAX)
