"""Scenarios that read like a play, on the real machines: who is cut off, who dies, and what must be true then."""

from random import Random

from kvp2p.core.apply import mark_restored
from kvp2p.core.operations import Delete, DeleteNamespace, Ending, Outcome, Put
from kvp2p.core.replica import ReplicaMachine
from kvp2p.sim.checkers import check
from kvp2p.sim.host import Host
from kvp2p.sim.large import CHUNK_BYTES
from kvp2p.sim.planted import DeadlineFromArrival
from tests.sim.plays import NAMESPACE, SYNC_MS, Play


def late_forward(host_type: type[Host]) -> tuple[Play, Ending]:
    """Let a write reach the leader after its sender has told its end, and a newer one of the same client before it."""
    play = Play(host_type=host_type)
    told: list[Outcome | None] = []
    with play.cluster.network.cut_during([(play.node(3).node, play.node(1).node)]):
        play.cluster.write(play.node(3), Put(NAMESPACE, b"key", b"older"), told=told.append, deadline_ms=500)
        play.until(lambda: bool(told), 1)
        assert play.put(play.node(2), b"key", b"newer") is Ending.ACKED
    play.run(2)
    assert told[0] is not None
    return play, told[0].ending


def content(play: Play) -> str:
    return play.cluster.read(play.node(1), NAMESPACE, b"key").content


def test_a_write_that_was_told_unknown_never_surfaces_after_a_newer_one() -> None:
    play, ending = late_forward(Host)
    assert ending is Ending.UNKNOWN
    newer = content(play)
    assert play.put(play.node(2), b"key", b"newer") is Ending.ACKED
    assert content(play) == newer, "the late one was dropped"
    play.end()


def test_a_deadline_that_counts_from_the_arrival_would_let_it_surface() -> None:
    play, ending = late_forward(DeadlineFromArrival)
    assert ending is Ending.UNKNOWN
    older = content(play)
    assert play.put(play.node(2), b"key", b"newer") is Ending.ACKED
    assert content(play) != older, "the planted bug shows: the late one had won"


def test_a_write_that_waited_at_a_stopped_leader_is_dropped_when_it_goes_on() -> None:
    play = Play()
    told: list[Outcome | None] = []
    play.node(1).pause()
    play.cluster.write(play.node(3), Put(NAMESPACE, b"key", b"value"), told=told.append, deadline_ms=500)
    play.until(lambda: bool(told), 1)
    play.node(1).resume()
    play.run(2)
    assert told[0] is not None
    assert told[0].ending is Ending.UNKNOWN
    assert not play.has(play.node(1), b"key")
    play.end()


def test_survivors_become_equal_before_a_killed_leader_returns() -> None:
    play = Play()
    leader, witness, other = play.node(1), play.node(2), play.node(3)
    # The leader's last frames reach n2 only, then it dies.
    with play.cluster.network.cut_during([(leader.node, other.node)]):
        for number in range(20):
            assert play.put(witness, b"last %d" % number, b"of n1") is Ending.ACKED
        assert not play.has(other, b"last 0")
        play.cluster.crash(leader)  # what was held back for n3 is lost with the link
    assert not play.has(other, b"last 19")
    play.until(lambda: play.cluster.are_equal([witness, other]))
    assert play.has(other, b"last 19")
    assert not leader.is_alive
    leader.start()
    play.end()


def test_a_write_is_refused_while_the_leader_is_down_and_reads_go_on() -> None:
    play = Play()
    assert play.put(play.node(3), b"key", b"value") is Ending.ACKED
    play.cluster.crash(play.node(1))
    play.run(1)
    assert play.put(play.node(3), b"key", b"new value") is Ending.REFUSED
    assert play.has(play.node(2), b"key")
    play.node(1).start()
    play.run(5)
    assert play.put(play.node(3), b"key", b"new value") is Ending.ACKED
    play.end()


def test_both_sides_of_a_cut_take_writes_after_a_promotion_and_none_is_lost() -> None:
    play = Play()
    old, new, follower = play.node(1), play.node(2), play.node(3)
    cut = play.cluster.cut_off([old])
    play.run(8)
    assert play.promote(new) is Ending.ACKED
    play.run(1)
    assert play.put(follower, b"contested", b"of the new leader") is Ending.ACKED
    assert play.put(old, b"contested", b"of the deposed leader, and later") is Ending.ACKED
    assert play.put(old, b"untouched elsewhere", b"of the deposed leader") is Ending.ACKED
    play.cluster.heal(cut)
    play.until(lambda: play.cluster.are_equal(play.cluster.hosts))
    contested = play.cluster.read(old, NAMESPACE, b"contested")
    assert contested.version is not None
    assert contested.version.startswith("00000002"), "the new term wins"
    assert play.has(new, b"untouched elsewhere"), "nothing acknowledged is thrown away"
    assert play.put(old, b"key", b"value") is Ending.ACKED, "the deposed leader forwards"
    play.end()


def test_restarted_peer_does_not_revive_a_deleted_key() -> None:
    play = Play()
    assert play.put(play.node(1), b"key", b"value") is Ending.ACKED
    play.run(1)
    play.cluster.crash(play.node(3))
    assert play.write(play.node(1), Delete(NAMESPACE, b"key")) is Ending.ACKED
    play.run(1)
    assert play.has(play.node(3), b"key"), "its disk still has it"
    play.cluster.crash(play.node(1))
    play.node(3).start()
    play.until(lambda: not play.has(play.node(3), b"key"))
    play.node(1).start()
    play.end()
    assert not any(play.has(host, b"key") for host in play.cluster.hosts)


def test_a_write_that_the_leader_had_not_synced_is_unknown_and_never_half_there() -> None:
    play = Play()
    ended: list[Outcome | None] = []
    operations = (Put(NAMESPACE, b"first", b"1"), Put(NAMESPACE, b"second", b"2"))
    for share_kept in (0.0, 1.0):
        ended.clear()
        play.cluster.write(play.node(2), *operations, told=ended.append)
        play.until(lambda: bool(play.node(1).disk.waiting))
        play.cluster.crash(play.node(1), share_kept)
        play.until(lambda: bool(ended))
        assert ended[0] is not None
        assert ended[0].ending is Ending.UNKNOWN
        play.node(1).start()
        play.run(8)
        assert [play.has(play.node(3), key) for key in (b"first", b"second")] == [share_kept == 1.0] * 2
    play.end()


def test_a_leader_whose_disk_was_put_back_does_not_issue_the_past() -> None:
    play = Play()
    leader = play.node(1)
    backup = leader.disk.store.snapshot()
    assert play.put(leader, b"key", b"written after the backup") is Ending.ACKED
    play.run(1)
    play.cluster.crash(leader)
    leader.disk.replace(backup)
    leader.clock_offset_ms = -60_000
    leader.start()
    play.run(8)
    assert play.has(leader, b"key"), "its peers gave it back what it had written"
    assert play.put(leader, b"key", b"newer") is Ending.ACKED
    play.end()
    assert (
        play.cluster.read(play.node(3), NAMESPACE, b"key").content
        == play.cluster.read(leader, NAMESPACE, b"key").content
    )


def test_a_leader_that_was_restored_from_a_backup_does_not_lead_before_it_has_caught_up() -> None:
    play = Play()
    leader = play.node(1)
    backup = leader.disk.store.snapshot()
    with backup.write() as txn:
        mark_restored(txn)
    assert play.put(leader, b"key", b"written after the backup") is Ending.ACKED
    play.run(1)
    play.cluster.crash(leader)
    leader.disk.replace(backup)
    cut = play.cluster.cut_off([leader])
    leader.start()
    play.run(20)
    assert play.put(leader, b"key", b"by itself") is Ending.REFUSED
    play.cluster.heal(cut)
    play.until(lambda: play.has(leader, b"key"))
    play.until(lambda: play.put(leader, b"key", b"newer") is Ending.ACKED)
    with leader.disk.store.read() as reader:
        assert not reader.restored
    play.end()


def test_a_promoted_node_whose_disk_forgot_it_leads_again() -> None:
    play = Play()
    new = play.node(2)
    backup = new.disk.store.snapshot()
    cut = play.cluster.cut_off([play.node(1)])
    play.run(8)
    assert play.promote(new) is Ending.ACKED
    play.run(1)
    play.cluster.crash(new)
    new.disk.replace(backup)
    new.start()
    play.run(10)
    assert play.put(play.node(3), b"key", b"value") is Ending.ACKED
    play.cluster.heal(cut)
    play.end()


def test_an_issuer_that_an_operator_closed_too_early_is_closed_again_where_it_ended() -> None:
    play = Play()
    old, new = play.node(1), play.node(2)
    (row,) = play.cluster.open_issuers(new)
    cut = play.cluster.cut_off([old])
    play.run(8)
    assert play.promote(new) is Ending.ACKED
    play.run(2)
    assert row in play.cluster.open_issuers(new), "nobody closes it only because its node is silent"
    ended: list[Outcome | None] = []
    play.cluster.close_issuer(new, row.issuer, ended.append)
    play.until(lambda: bool(ended))
    assert ended[0] is not None
    assert ended[0].ending is Ending.ACKED
    assert row not in play.cluster.open_issuers(new)
    assert play.put(old, b"key", b"of the node that was given up") is Ending.ACKED
    play.cluster.heal(cut)
    play.until(lambda: play.has(new, b"key"))
    play.until(play.cluster.are_issuers_closed)
    play.end()


def test_an_empty_node_that_joins_late_gets_everything_from_one_peer() -> None:
    play = Play(joining=1)
    for number in range(50):
        assert play.put(play.node(2), b"key %d" % number, b"." * 20_000) is Ending.ACKED
    assert play.write(play.node(2), Delete(NAMESPACE, b"key 7")) is Ending.ACKED
    late = play.node(3)
    late.start()
    play.until(lambda: play.cluster.are_equal(play.cluster.hosts))
    assert play.has(late, b"key 49")
    play.end()


def test_a_walk_whose_peer_dies_halfway_goes_on_with_another() -> None:
    play = Play(nodes=4, joining=1)
    for number in range(60):
        assert play.put(play.node(2), b"key %d" % number, b"." * 20_000) is Ending.ACKED
    late = play.node(4)
    late.start()

    def has_some() -> bool:
        with late.disk.store.read() as txn:
            return next(txn.rows(NAMESPACE), None) is not None and not txn.complete

    play.until(has_some)
    play.cluster.crash(play.node(1))  # the peer that `--join` named
    play.until(lambda: play.cluster.are_equal([play.node(2), play.node(3), late]))
    play.node(1).start()
    play.end()


def test_a_deleted_namespace_stays_deleted_for_a_node_that_wrote_to_it_meanwhile() -> None:
    play = Play()
    old, new = play.node(1), play.node(2)
    cut = play.cluster.cut_off([old])
    play.run(8)
    assert play.promote(new) is Ending.ACKED
    assert play.write(new, DeleteNamespace(NAMESPACE)) is Ending.ACKED
    assert play.put(old, b"key", b"the deposed leader does not know yet") is Ending.ACKED
    play.cluster.heal(cut)
    play.end()
    assert not any(play.has(host, b"key") for host in play.cluster.hosts)


def test_a_leader_that_was_paused_during_a_promotion_finds_itself_deposed() -> None:
    play = Play()
    old, new = play.node(1), play.node(2)
    old.pause()
    play.cluster.network.host_silent(old)
    play.run(3)
    assert play.promote(new) is Ending.ACKED
    play.run(1)
    assert play.put(play.node(3), b"key", b"of the new leader") is Ending.ACKED
    old.resume()
    play.run(5)
    assert play.put(old, b"key", b"forwarded by the old one") is Ending.ACKED
    play.end()
    assert str(play.cluster.read(new, NAMESPACE, b"key").version).startswith("00000002")


def test_a_single_node_leads_as_soon_as_its_issuer_is_durable_after_each_restart() -> None:
    play = Play(nodes=1)
    for number in range(3):
        assert play.put(play.node(1), b"key", b"value %d" % number) is Ending.ACKED
        play.cluster.crash(play.node(1))
        play.node(1).start()
        play.run(6 * SYNC_MS / 1_000)
    play.end()


# --- large values


def large_put(key: bytes, seed: int = 1) -> Put:
    """A value of 20 chunks; the cluster sends it in chunks before its write."""
    return Put(NAMESPACE, key, Random(seed).randbytes(20 * CHUNK_BYTES - 7), is_chunked=True)


def pulled(host: Host) -> int:
    assert isinstance(host.machine, ReplicaMachine)
    return host.machine.large_values.pulls.pulled


def test_a_replica_that_dies_while_it_pulls_goes_on_where_it_was() -> None:
    play = Play(delay_ms=20)
    leader, replica = play.node(1), play.node(3)
    old = play.write(replica, large_put(b"k"))
    assert old is Ending.ACKED
    play.run(5)
    before = play.cluster.read(replica, NAMESPACE, b"k").content
    ended: list[Outcome | None] = []
    play.cluster.write(leader, large_put(b"k", 2), told=ended.append)
    play.until(lambda: pulled(replica) >= 9)
    assert play.cluster.read(replica, NAMESPACE, b"k").content == before, (
        "the old value is shown until the new one is whole"
    )
    replica.crash(1.0, 5)
    assert play.cluster.read(replica, NAMESPACE, b"k").content == before
    with replica.disk.store.read() as txn:
        missing = sum(not state.is_here for _, state, _ in txn.chunk_states())
    assert 0 < missing <= 11
    replica.start()
    play.until(play.cluster.are_whole)
    assert pulled(replica) == missing, "nothing is pulled twice"
    assert play.cluster.read(replica, NAMESPACE, b"k").content not in {before, ""}
    assert check([*play.cluster.history, *play.cluster.states()]) == []


def test_a_leader_that_dies_while_its_value_is_pulled_leaves_the_old_one_shown_until_it_is_back() -> None:
    play = Play(delay_ms=20)
    leader, replica = play.node(1), play.node(3)
    play.put(leader, b"k", b"old")
    play.run(1)
    before = play.cluster.read(replica, NAMESPACE, b"k").content
    assert play.write(leader, large_put(b"k")) is Ending.ACKED
    play.until(lambda: pulled(replica) >= 3)
    leader.crash(1.0, 5)
    play.run(20)
    assert play.cluster.read(replica, NAMESPACE, b"k").content == before
    leader.start()
    play.until(play.cluster.are_whole)
    play.run(10)
    assert play.cluster.read(replica, NAMESPACE, b"k").content not in {before, ""}
    assert check([*play.cluster.history, *play.cluster.states()]) == []


def test_a_large_value_comes_from_any_node_that_has_it() -> None:
    play = Play(delay_ms=20)
    leader, other, replica = (play.node(number) for number in (1, 2, 3))
    cut = play.cluster.cut_off([replica])
    assert play.write(leader, large_put(b"k")) is Ending.ACKED
    play.until(lambda: pulled(other) == 20)
    leader.crash(1.0, 5)
    play.cluster.heal(cut)
    play.until(lambda: pulled(replica) == 20)
    assert play.has(replica, b"k")


def test_an_upload_whose_client_went_away_leaves_nothing() -> None:
    play = Play()
    ended: list[Outcome | None] = []
    play.cluster.write(play.node(3), large_put(b"k"), told=ended.append, gives_up_after=7)
    play.until(lambda: bool(ended))
    play.run(1)
    assert play.cluster.are_whole()
    assert all(not state.chunks for state in play.cluster.states())


def test_a_node_that_dies_in_the_middle_of_an_upload_forgets_it_at_its_next_start() -> None:
    play = Play()
    replica = play.node(3)
    play.cluster.write(replica, large_put(b"k"))
    play.until(lambda: len(staged(replica)) >= 5)
    replica.crash(1.0, 5)
    assert staged(replica)
    replica.start()
    play.run(1)
    assert not staged(replica)
    assert all(not state.chunks for state in play.cluster.states())


def staged(host: Host) -> list[bytes]:
    with host.disk.store.read() as txn:
        return list(txn.staged())


def test_a_superseded_value_is_not_pulled_to_its_end() -> None:
    play = Play(delay_ms=20)
    leader, replica = play.node(1), play.node(3)
    assert play.write(leader, large_put(b"k")) is Ending.ACKED
    play.until(lambda: pulled(replica) >= 3)
    play.put(leader, b"k", b"small")
    play.run(2)
    assert pulled(replica) < 12
    assert play.cluster.are_whole()
    assert all(not state.chunks for state in play.cluster.states())
