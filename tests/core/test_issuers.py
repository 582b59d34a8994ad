"""Issuers: opened before they are used, closed when nothing can be added to them, and never opened again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvp2p.core.batches import FrameBatch, Settle, WriteGroup
from kvp2p.core.entry import Kind, encode_row
from kvp2p.core.events import Stop
from kvp2p.core.messages import Digest, Frame
from kvp2p.core.operations import Delete, Ending
from kvp2p.core.system_rows import IssuerRow, encode_issuer, encode_leader, issuer_key
from kvp2p.core.vector import VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, Issuer, Stamp
from tests.core.harness import (
    EPOCH_MS,
    SETTINGS,
    Cluster,
    Node,
    apply,
    designated,
    digest_of,
    frame_of,
    issuer_of,
    issuer_rows,
    member,
    new_store,
    node_id,
    put,
    value_at,
    vector,
    version,
)

X, Y = issuer_of("x"), issuer_of("y")


def frame_of_issuer(row: IssuerRow, stamp: int, *, after: int = 0, term: int | None = None) -> Frame:
    """A frame of an issuer's log with its row at one position."""
    key, value = encode_issuer(row)
    at = version(stamp, chr(row.issuer[0]), row.term if term is None else term)
    keyed = (SYSTEM_NAMESPACE, key, encode_row(Kind.VALUE, value, None, 0, at))
    return Frame(1, row.issuer, Stamp(after), Stamp(stamp), ((Stamp(stamp), 0),), (keyed,))


def leader(*frames: Frame, name: str = "a") -> Node:
    """A leader at term 2 whose store has these frames."""
    store = new_store(name, designation=designated(name, 2))
    for frame in frames:
        apply(store, FrameBatch(frame))
    return Cluster().add(name, store=store)


def begun_by(name: str, issuer: Issuer = X, term: int = 1, closed: int | None = None) -> IssuerRow:
    return IssuerRow(issuer, node_id(name), term, None if closed is None else Stamp(closed))


def closed_at(node: Node, issuer: Issuer = X) -> int | None:
    return issuer_rows(node.store)[issuer].closed


def own_issuer(node: Node) -> Issuer:
    issuer = node.machine.leadership.issuer
    assert issuer is not None
    return issuer


def given_way(node: Node, *, x: int, **others: int) -> Digest:
    """What a peer says that knows of this leader and leads nothing."""
    board = node.machine.board
    return digest_of(
        VersionVector([*board.vector.tops(), *vector(x=x, **others).tops()]), designation=board.designation
    )


# --- opening


def test_a_leader_makes_its_issuer_durable_before_it_leads() -> None:
    a = Cluster().add("a", leads=True, knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    (persist,) = a.disk
    assert isinstance(persist.batch, WriteGroup)
    assert (a.role, a.sent_to("b", Digest)[-1].leads) == ("taking_over", None)
    assert "taking_over" in a.replies[a.write(put(b"k"))].message
    a.finish()
    assert (a.role, a.sent_to("b", Digest)[-1].leads) == ("leading", persist.batch.issuer)
    assert [frame.issuer for frame in a.sent_to("b", Frame)] == [persist.batch.issuer]
    assert issuer_rows(a.store) == {persist.batch.issuer: begun_by("a", persist.batch.issuer)}


def test_a_leader_that_starts_again_closes_the_issuer_of_its_earlier_life() -> None:
    a = leader(frame_of_issuer(begun_by("b", Y), 7))
    earlier = own_issuer(a)
    a.write(put(b"k"))
    ended = dict(a.machine.board.vector.items()).get(earlier, 0)
    a.start()
    assert own_issuer(a) != earlier
    assert issuer_rows(a.store) == {
        Y: begun_by("b", Y),
        earlier: begun_by("a", earlier, 2, ended),
        own_issuer(a): begun_by("a", own_issuer(a), 2),
    }
    a.start()
    assert closed_at(a, earlier) == ended, "it stays as it was"


def test_a_promotion_closes_the_nodes_own_issuers_in_its_first_group() -> None:
    a = leader()
    earlier = own_issuer(a)
    a.meets("b", digest_of(designation=designated("b", 3)))
    a.hold_disk()
    a.promote(override=True)
    (persist,) = a.disk
    a.release_disk()
    assert isinstance(persist.batch, WriteGroup)
    assert len(persist.batch.writes) == 1
    assert closed_at(a, earlier) is not None
    assert value_at(a.store, b"leader") == encode_leader(a.id, 4)


def test_a_leader_whose_disk_is_full_tries_again_by_and_by() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    a.fail()
    a.hears("b", digest_of())
    assert (a.role, len(a.disk)) == ("hearing", 0)
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert (a.role, len(a.disk)) == ("taking_over", 1)
    a.fail()
    a.release_disk()
    a.hears("b", digest_of(vector(x=1)))
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert a.role == "catching_up", "what was heard meanwhile counts"
    a.hears("b", frame_of(0, 1))
    assert a.role == "leading"
    assert len(issuer_rows(a.store)) == 1


def test_a_designation_heard_of_meanwhile_ends_the_waiting_for_the_disk() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    a.fail()
    a.release_disk()
    a.hears("b", digest_of(designation=designated("b", 2)))
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert (a.role, issuer_rows(a.store)) == ("follower", {})


@pytest.mark.parametrize("ends", ["durable", "full"])
def test_a_higher_designation_heard_of_while_opening_wins(ends: str) -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True)
    a.start(seeds=("ws://b",))
    a.hold_disk()
    a.meets("b", digest_of(a.machine.board.vector))
    a.hears("b", digest_of(designation=designated("b", 2)))
    assert a.role == "follower"
    if ends == "full":
        a.fail()
    a.release_disk()
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert (a.role, a.sent_to("b", Digest)[-1].leads) == ("follower", None)
    assert len(issuer_rows(a.store)) == (2 if ends == "durable" else 1)
    with a.store.read() as txn:
        assert txn.designation == designated("b", 2)


def test_a_node_that_stops_while_opening_answers_no_writes() -> None:
    a = Cluster().add("a", leads=True, knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    a.handle(Stop())
    a.release_disk()
    assert a.replies[a.write(put(b"k"))].code == "no_leader"
    assert len(issuer_rows(a.store)) == 1, "what was on its way ends"


def test_a_node_that_stops_does_not_try_again_to_lead() -> None:
    cluster = Cluster()
    a = cluster.add("a", leads=True, knows="b")
    a.hold_disk()
    a.meets("b", digest_of())
    a.fail()
    a.handle(Stop())
    cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert (a.role, len(a.disk)) == ("hearing", 0)


# --- closing what others began


def test_the_leader_closes_the_issuer_of_a_node_that_has_given_way() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    assert closed_at(a) is None
    a.meets("b", given_way(a, x=5))
    assert closed_at(a) == 5
    assert "issuer_closed" in a.notices
    assert len(a.sent_to("b", Frame)) == 1
    positions = a.machine.board.vector
    a.hears("b", given_way(a, x=5))
    assert a.machine.board.vector == positions, "once is enough"


@pytest.mark.parametrize("why", ["leads", "another designation", "incomplete", "another node"])
def test_the_leader_leaves_an_issuer_open_that_may_go_on(why: str) -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    designation = designated("a", 2, "c") if why == "another designation" else designated("a", 2)
    leads = X if why == "leads" else None
    digest = digest_of(vector(x=5), designation=designation, leads=leads, complete=why != "incomplete")
    a.meets("c" if why == "another node" else "b", digest)
    assert closed_at(a) is None


def test_the_leader_closes_an_issuer_only_when_it_has_what_the_peers_show() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    a.meets("c", given_way(a, x=6))
    a.meets("b", given_way(a, x=5))
    assert closed_at(a) is None, "c has more"
    a.hears("c", frame_of(5, 6))
    a.hears("b", given_way(a, x=5))
    assert closed_at(a) == 6


def test_what_an_incomplete_peer_shows_is_not_waited_for() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    a.meets("c", digest_of(vector(x=9), complete=False))
    a.meets("b", given_way(a, x=5))
    assert closed_at(a) == 5


def test_an_issuer_is_closed_once_more_when_positions_turn_up_behind_its_end() -> None:
    a = leader(frame_of_issuer(begun_by("b", closed=5), 5))
    a.meets("c", given_way(a, x=7))
    a.hears("c", frame_of(5, 6))
    a.hears("c", given_way(a, x=7))
    assert closed_at(a) == 5, "there is still more"
    a.hears("c", frame_of(6, 7))
    a.hears("c", given_way(a, x=7))
    assert closed_at(a) == 7


def test_a_leader_closes_an_issuer_that_its_own_disk_had_forgotten() -> None:
    a = leader()
    a.meets("b", given_way(a, x=5))
    a.hears("b", frame_of_issuer(begun_by("a"), 5))
    assert closed_at(a) is None
    a.hears("b", given_way(a, x=5))
    assert closed_at(a) == 5


def test_a_closed_issuer_is_not_written_for_ever_when_a_later_leaders_row_stands() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5, term=9))
    a.meets("b", given_way(a, x=5))
    written = a.machine.board.vector
    assert closed_at(a) is None, "the row of the higher term stays"
    a.hears("b", given_way(a, x=5))
    assert a.machine.board.vector == written


def test_a_leader_does_not_close_an_issuer_of_a_later_term() -> None:
    a = leader(frame_of_issuer(begun_by("b", term=3), 5))
    a.meets("b", given_way(a, x=5))
    assert closed_at(a) is None
    assert "later term" in a.replies[a.close_issuer(X)].message


def test_a_new_row_beats_the_one_that_stands_whatever_the_clocks_say() -> None:
    ahead = (1 << 58) + 5
    a = leader()
    a.meets("b")
    a.hears("b", frame_of_issuer(begun_by("b", term=2), ahead))
    a.hears("b", given_way(a, x=ahead))
    assert closed_at(a) == ahead


def test_a_full_disk_while_closing_is_tried_again_by_and_by() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    a.hold_disk()
    a.meets("b", given_way(a, x=5))
    a.hears("b", given_way(a, x=5))
    assert len(a.disk) == 1, "one at a time"
    a.fail()
    a.hears("b", given_way(a, x=5))
    assert len(a.disk) == 0
    a.is_disk_held = False
    a.cluster.pass_ms(SETTINGS.digest_idle_ms)
    assert closed_at(a) == 5


def test_a_node_that_was_deposed_or_stops_closes_nothing() -> None:
    for event in ("deposed", "stops"):
        a = leader(frame_of_issuer(begun_by("b"), 5))
        a.hold_disk()
        a.meets("b", given_way(a, x=5))
        a.fail()
        if event == "stops":
            a.handle(Stop())
        else:
            a.hears("b", digest_of(designation=designated("b", 3)))
        a.release_disk()
        a.cluster.pass_ms(2 * SETTINGS.digest_idle_ms)
        assert closed_at(a) is None


def test_after_a_promotion_the_issuer_of_the_old_leader_is_closed_everywhere() -> None:
    cluster = Cluster()
    a, b = cluster.add("a", leads=True), cluster.add("b", knows="a")
    cluster.link("a", "b")
    old = own_issuer(a)
    a.hold_disk()
    last = a.write(put(b"k"))
    b.promote(override=True)
    cluster.settle()
    assert a.role == "follower"
    assert closed_at(b, old) is None, "the last write is still on its way to the disk"
    a.release_disk()
    cluster.pass_ms(2 * SETTINGS.digest_idle_ms)
    assert a.replies[last].ending == Ending.ACKED
    assert closed_at(a, old) == closed_at(b, old) == dict(a.machine.board.vector.items()).get(old, 0)
    assert closed_at(a, own_issuer(b)) is None
    cluster.assert_equal()


# --- closing by an operator


def test_an_operator_closes_the_issuer_of_a_node_that_is_gone() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    a.hold_disk()
    request = a.close_issuer(X)
    assert request not in a.replies, "it is told when it is durable"
    a.release_disk()
    assert a.replies[request].ending == Ending.ACKED
    assert closed_at(a) == 5
    positions = a.machine.board.vector
    assert a.replies[a.close_issuer(X)].ending == Ending.ACKED
    assert a.machine.board.vector == positions, "it is closed already"


def test_an_operator_closes_an_issuer_from_before_issuers_had_rows() -> None:
    a = leader(frame_of(0, 5))
    assert a.replies[a.close_issuer(X)].ending == Ending.ACKED
    assert issuer_rows(a.store)[X] == IssuerRow(X, None, 1, Stamp(5))
    a.meets("c", given_way(a, x=6))
    a.hears("c", frame_of(5, 6))
    a.hears("c", given_way(a, x=6))
    assert closed_at(a) == 6


def test_an_open_issuer_of_nobody_waits_for_the_operator_or_until_every_member_was_heard() -> None:
    store = new_store("a", designation=designated("a", 2))
    apply(store, FrameBatch(frame_of_issuer(IssuerRow(X, None, 0, None), 5)))
    apply(store, Settle(members=(member("b"), member("c"))))
    a = Cluster().add("a", store=store)
    a.meets("b", digest_of(vector(x=5)))
    assert a.role == "leading"
    a.hears("b", given_way(a, x=5))
    assert closed_at(a) is None, "c may have more"
    a.meets("c", digest_of(complete=False))
    assert closed_at(a) is None, "c does not say yet"
    a.hears("c", given_way(a, x=5))
    assert closed_at(a) == 5


def test_an_operator_closes_an_open_issuer_of_nobody() -> None:
    store = new_store("a", designation=designated("a", 2))
    apply(store, FrameBatch(frame_of_issuer(IssuerRow(X, None, 0, None), 5)))
    apply(store, Settle(members=(member("b"),)))
    a = Cluster().add("a", store=store)
    a.cluster.pass_ms(SETTINGS.first_contact_ms)
    assert closed_at(a) is None
    assert a.replies[a.close_issuer(X)].ending == Ending.ACKED
    assert closed_at(a) == 5


def test_an_issuer_in_use_or_unknown_is_not_closed() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    a.meets("b", digest_of(vector(x=5), leads=X))
    assert "leads under the issuer" in a.replies[a.close_issuer(X)].message
    assert "leads under the issuer" in a.replies[a.close_issuer(own_issuer(a))].message
    assert "no issuer" in a.replies[a.close_issuer(Y)].message


def test_only_a_leader_that_is_not_stopping_closes_issuers() -> None:
    b = Cluster().add("b")
    assert b.replies[b.close_issuer(X)].code == "no_leader"
    a = leader(frame_of_issuer(begun_by("b"), 5))
    a.handle(Stop())
    assert "stopping" in a.replies[a.close_issuer(X)].message


def test_a_close_that_finds_the_disk_full_is_refused() -> None:
    a = leader(frame_of_issuer(begun_by("b"), 5))
    a.hold_disk()
    request = a.close_issuer(X)
    a.fail()
    assert a.replies[request].code == "disk_full"
    assert closed_at(a) is None


def test_a_removed_row_leaves_the_issuer_open() -> None:
    a = leader(frame_of_issuer(begun_by("b", closed=5), 5))
    a.write(Delete(SYSTEM_NAMESPACE, issuer_key(X)))
    assert X not in a.machine.board.issuers
    assert a.replies[a.close_issuer(X)].ending == Ending.ACKED


def test_a_leader_whose_issuer_was_closed_by_another_goes_on_under_a_new_one() -> None:
    """An operator took it for gone while it was cut off; of the two leaders of one term it is the one that stays."""
    a = leader()
    before = own_issuer(a)
    closed = replace(issuer_rows(a.store)[before], closed=Stamp(1))
    key, value = encode_issuer(closed)
    late = encode_row(Kind.VALUE, value, None, 0, version(EPOCH_MS << 17, "y", 2))
    a.hold_disk()
    a.meets("b", digest_of())
    a.hears("b", Frame(2, issuer_of("y"), Stamp(0), Stamp(9), ((Stamp(9), 0),), ((SYSTEM_NAMESPACE, key, late),)))
    waiting = a.write(put(b"k"))
    a.release_disk()
    assert (a.role, own_issuer(a) != before) == ("leading", True)
    assert a.notices.count("issuer_closed_by_others") == 1
    assert a.replies[waiting].ending is Ending.ACKED, "it was on its way to the disk"
    assert a.replies[a.write(put(b"l"))].ending is Ending.ACKED
