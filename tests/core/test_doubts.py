"""What peers say that cannot be true: positions of this node's own issuer that it never gave out, stamps of a far future."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvp2p.core.messages import Designation, Frame, KeyedRow, Pull, WalkPart, WalkRequest
from kvp2p.core.operations import Delete, Ending
from kvp2p.core.settings import ReplicaSettings
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer, Stamp, make_version, version_stamp
from kvp2p.limits import STAMPS_AHEAD_MS_MAX
from tests.core.harness import (
    EPOCH_MS,
    SETTINGS,
    Cluster,
    Node,
    all_rows,
    digest_of,
    frame_of,
    issuer_of,
    node_id,
    put,
    value_at,
    value_row,
    vector,
)

NOW = EPOCH_MS << 16
DAY_MS = 86_400_000
FAR = NOW + (DAY_MS << 16)


def leader(*peers: str) -> Node:
    """Start a leader that has written one key, and meets peers that have what it has."""
    a = Cluster().add("a", leads=True)
    a.write(put(b"k"))
    for name in peers:
        a.meets(name, digest_of(a.machine.board.vector))
    return a


def own(node: Node) -> tuple[Issuer, Stamp]:
    issued = node.machine.leadership.issued
    assert issued is not None
    return issued


def own_frame(node: Node, *steps: int) -> Frame:
    """Make a frame of the node's own log, at positions so far behind its last."""
    issuer, last = own(node)
    stamps = [Stamp(last + step) for step in steps]
    rows = tuple(
        (SYSTEM_NAMESPACE, b"made up %d" % step, value_row_of(issuer, stamp))
        for step, stamp in zip(steps, stamps, strict=True)
    )
    return Frame(1, issuer, last, stamps[-1], tuple((stamp, n) for n, stamp in enumerate(stamps)), rows)


def value_row_of(issuer: Issuer, stamp: int) -> bytes:
    row = value_row(stamp)
    version = make_version(1, Stamp(stamp), issuer)
    return row[:12] + version + row[32:]  # the digest of a row does not cover its version


def state_of(node: Node) -> object:
    board = node.machine.board
    return board.vector, board.accepted, board.state_hash, all_rows(node.store)


def next_of(node: Node) -> VersionVector:
    issuer, last = own(node)
    return VersionVector([make_version(1, Stamp(last + 1), issuer)])


def next_row(node: Node) -> KeyedRow:
    issuer, last = own(node)
    return SYSTEM_NAMESPACE, b"k", value_row_of(issuer, last + 1)


MADE_UP: dict[str, Callable[[Node], Frame | WalkPart]] = {
    "a frame of its log": lambda node: own_frame(node, 1, 2),
    "a row of it in another log": lambda node: Frame(
        1, issuer_of("x"), Stamp(0), Stamp(1), ((Stamp(1), 0),), (next_row(node),)
    ),
    "a walk to its position": lambda node: WalkPart(1, None, None, (), next_of(node)),
    "a walk to above its position": lambda node: WalkPart(1, None, None, (), EMPTY_VECTOR, next_of(node)),
    "a row of it in a walk": lambda node: WalkPart(1, None, None, (next_row(node),), EMPTY_VECTOR),
}


@pytest.mark.parametrize("what", MADE_UP)
def test_positions_that_the_leader_never_issued_close_the_link_and_change_nothing(what: str) -> None:
    a = leader("y", "z")
    before = state_of(a)
    a.hears("z", MADE_UP[what](a))
    assert state_of(a) == before
    last = own(a)[1]
    assert a.disconnects == [
        (node_id("z"), f"it sends positions up to {last + (2 if 'frame' in what else 1):016x}, and this node has issued {last:016x}")
    ]  # fmt: skip
    assert a.notices[-1] == "peer_refused"
    a.write(put(b"k", b"later"))
    assert a.sent_to("y", Frame)[-1].after == last, "its log goes on where it was"


def test_nothing_more_of_a_refused_link_is_heard_and_a_new_link_is() -> None:
    a = leader("z")
    before = state_of(a)
    a.hears("z", own_frame(a, 1))
    a.hears("z", frame_of(0, 1))
    a.hears("z", own_frame(a, 1))
    assert state_of(a) == before
    assert (len(a.disconnects), a.notices.count("peer_refused")) == (1, 1)
    a.loses("z")
    a.meets("z", digest_of(vector(x=1)))
    a.hears("z", frame_of(0, 1))
    assert value_at(a.store, b"key1") == b"value"


def test_what_is_just_becoming_durable_is_not_taken_from_outside() -> None:
    a = leader("z")
    a.hold_disk()
    frame = own_frame(a, 1)
    a.write(put(b"mine"))
    issuer, last = own(a)
    assert last > frame.after
    before = state_of(a)
    a.hears(
        "z", Frame(1, issuer, frame.after, last, ((last, 0),), ((SYSTEM_NAMESPACE, b"x", value_row_of(issuer, last)),))
    )
    assert (state_of(a), a.disconnects) == (before, [])
    a.release_disk()
    assert (value_at(a.store, b"mine"), value_at(a.store, b"x")) == (b"value", None)


def test_a_digest_with_positions_never_issued_is_told_once_and_neither_believed_nor_punished() -> None:
    a = leader("z")
    issuer, last = own(a)
    shown = Stamp(last + (1 << 20))
    for _ in range(3):
        a.hears("z", digest_of(VersionVector([make_version(1, shown, issuer)])))
        a.cluster.pass_ms(SETTINGS.pull_grace_ms + SETTINGS.digest_idle_ms)
    assert (a.disconnects, a.notices.count("unissued_positions_shown")) == ([], 1)
    assert a.sent_to("z", Pull) == []
    request = a.write(put(b"k", b"next"))
    version = a.replies[request].version
    assert version is not None
    assert version_stamp(version) > shown, "or the peer would take what is written next for known [I2]"


def test_a_digest_with_the_position_of_a_purge_shows_nothing_made_up() -> None:
    settings = ReplicaSettings(purge_after_ms=500, purge_interval_ms=200)
    a = Cluster().add("a", leads=True, settings=settings)
    a.write(Delete(SYSTEM_NAMESPACE, b"k"))
    a.cluster.pass_ms(2_000)
    assert a.machine.purger.purges == 1
    a.meets("z", digest_of(a.machine.board.vector))
    assert "unissued_positions_shown" not in a.notices
    issuer, last = own(a)
    assert a.machine.board.vector.reach(1, issuer) == last


def test_positions_of_an_earlier_life_come_back_from_peers() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b")
    cluster.link("a", "b")
    rolled_back = a.store.snapshot()
    a.write(put(b"forgotten"))
    cluster.settle()
    cluster.cut("a", "b")
    a = cluster.add("a", leads=True, store=rolled_back)
    cluster.link("a", "b")
    assert value_at(a.store, b"forgotten") == b"value"
    assert (a.disconnects, b.disconnects) == ([], [])
    cluster.assert_equal()


def test_a_deposed_leader_refuses_made_up_positions_until_its_last_group_has_ended() -> None:
    a = leader("z")
    a.hold_disk()
    a.write(put(b"last"))
    a.hears("z", digest_of(a.machine.board.vector, designation=Designation(2, issuer_of("z"), node_id("z"))))
    a.hears("z", own_frame(a, 1))
    assert [peer for peer, _ in a.disconnects] == [node_id("z")]
    a.release_disk()
    assert a.machine.leadership.issued is None


def test_a_follower_takes_frames_of_any_issuer() -> None:
    a = Cluster().add("a")
    a.meets("z", digest_of())
    a.hears("z", frame_of(0, 1))
    assert (value_at(a.store, b"key1"), a.disconnects) == (b"value", [])


def far_frame() -> Frame:
    row = (SYSTEM_NAMESPACE, b"far", value_row(FAR, issuer="y"))
    return Frame(1, issuer_of("x"), Stamp(0), Stamp(1), ((Stamp(1), 0),), (row,))


AHEAD = {
    "frame": frame_of(0, FAR),
    "row in a frame": far_frame(),
    "walk": WalkPart(1, None, None, (), vector(x=FAR)),
    "walk above": WalkPart(1, None, None, (), EMPTY_VECTOR, vector(x=FAR)),
    "digest": digest_of(vector(x=FAR)),
}


@pytest.mark.parametrize("message", AHEAD.values(), ids=AHEAD.keys())
@pytest.mark.parametrize("leads", [True, False])
def test_stamps_a_day_ahead_are_told_once_a_link(message: object, leads: bool) -> None:
    a = Cluster().add("a", leads=leads)
    for links in (1, 2):
        a.meets("z")
        for _ in range(3):
            a.hears("z", message)  # type: ignore[arg-type]  # one of those above
        assert a.notices.count("stamps_ahead") == links
        a.loses("z")
    assert a.disconnects == []


def test_entries_of_a_leader_a_day_ahead_are_joined_and_what_follows_is_above_them() -> None:
    a = leader("z")
    a.hears("z", frame_of(0, FAR))
    a.hears("z", digest_of(vector(x=FAR)))
    assert value_at(a.store, b"key%d" % FAR) == b"value"
    request = a.write(put(b"k", b"next"))
    outcome = a.replies[request]
    assert outcome.ending is Ending.ACKED
    assert outcome.version is not None
    assert version_stamp(outcome.version) > FAR


def test_stamps_within_the_bound_are_nothing_to_tell_of() -> None:
    a = leader("z")
    a.hears("z", frame_of(0, NOW + (STAMPS_AHEAD_MS_MAX << 16)))
    assert "stamps_ahead" not in a.notices


def test_a_node_that_walks_takes_what_it_is_given() -> None:
    a = Cluster().add("a", complete=False)
    a.meets("z", digest_of(vector(x=1)))
    (asked,) = a.sent_to("z", WalkRequest)
    row = (SYSTEM_NAMESPACE, b"key", value_row(1))
    a.hears("z", WalkPart(asked.walk, None, None, (row,), vector(x=1)))
    assert (value_at(a.store, b"key"), a.disconnects) == (b"value", [])
