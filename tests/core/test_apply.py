"""Applying batches: one state whatever the order, nothing over a gap, and what conditions, namespaces and sweeps do."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvp2p.core import system_rows
from kvp2p.core.apply import apply_batch, is_namespace_deleted, summarize
from kvp2p.core.batches import BatchResult, FrameBatch, NamespaceSweep, Settle, StampedWrite, WalkBatch, WriteGroup
from kvp2p.core.entry import Kind, encode_row, row_version
from kvp2p.core.messages import Frame, RowKey, WalkPart
from kvp2p.core.operations import Condition, CreateNamespace, Delete, DeleteNamespace, Ending, Operation, Outcome, Put
from kvp2p.core.vector import EMPTY_VECTOR, VersionVector
from kvp2p.ids import SYSTEM_NAMESPACE, AccountId, NamespaceId, Stamp, version_stamp
from kvp2p.limits import NAMESPACES_PER_ACCOUNT_MAX
from kvp2p.store.memory import MemoryStore
from tests.core.harness import (
    ACCOUNT,
    EPOCH_MS,
    SPACE,
    all_rows,
    apply,
    designated,
    frame_of,
    issuer_of,
    member,
    new_store,
    node_id,
    put,
    recounted_hash,
    tombstone_row,
    value_at,
    value_row,
    vector,
    version,
)

OTHER = NamespaceId(b"T" * 16)


class Writer:
    """A leader's store, and the frames that it tells."""

    def __init__(self, issuer: str = "x", store: MemoryStore | None = None, term: int = 1) -> None:
        self.store = store or new_store()
        self.issuer = issuer_of(issuer)
        self.term = term
        self.stamp = 0
        self.frames: list[Frame] = []

    def group(self, *writes: tuple[Operation, ...]) -> BatchResult:
        stamped = []
        for operations in writes:
            stamped.append(StampedWrite(Stamp(self.stamp + 1), operations))
            self.stamp += len(operations)
        result = apply(self.store, WriteGroup(self.term, self.issuer, tuple(stamped), EPOCH_MS))
        if result.frame is not None:
            self.frames.append(result.frame)
        assert result.state_hash == recounted_hash(self.store)
        return result

    def write(self, *operations: Operation) -> Outcome:
        return self.group(operations).outcomes[0]

    def with_namespace(self, namespace: NamespaceId = SPACE, title: str = "t") -> Writer:
        assert self.write(CreateNamespace(namespace, ACCOUNT, title)).created
        return self


def part(
    rows: tuple[tuple[NamespaceId, bytes, bytes], ...],
    has: VersionVector,
    after: RowKey | None = None,
    upto: RowKey | None = None,
) -> WalkPart:
    return WalkPart(1, after, upto, rows, has)


# --- frames

keys = st.sampled_from([b"a", b"b", b"c"])
operations = st.one_of(
    st.builds(put, keys, st.binary(max_size=2), st.sampled_from([SPACE, OTHER])),
    keys.map(lambda key: Delete(SPACE, key)),
)


@settings(max_examples=25)
@given(
    st.lists(st.lists(operations, min_size=1, max_size=3), min_size=1, max_size=5),
    st.lists(st.lists(operations, min_size=1, max_size=3), min_size=1, max_size=5),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_frames_in_any_order_and_any_number_give_one_state(
    first: list[list[Operation]], second: list[list[Operation]], deleted_at: int, random: Random
) -> None:
    """Two leaders that did not hear of each other; one of them deletes a namespace that the other goes on writing to."""
    one = Writer("x").with_namespace(SPACE, "s").with_namespace(OTHER, "o")
    other = Writer("y", term=2)
    for frame in one.frames:
        apply(other.store, FrameBatch(frame))
    for index, writes in enumerate(first):
        if index == deleted_at:
            one.write(DeleteNamespace(SPACE))
        one.group(tuple(writes))
    for writes in second:
        other.group(tuple(writes))
    frames = (one.frames + other.frames) * 2
    random.shuffle(frames)
    stores = [new_store(), one.store, other.store]
    for store in stores:
        has, had = EMPTY_VECTOR, None
        while has != had:  # a frame over a gap is refused until the gap is closed
            had, has = has, [apply(store, FrameBatch(frame)) for frame in frames][-1].vector
        with store.read() as txn:
            assert summarize(txn).state_hash == recounted_hash(store)
            assert dict(txn.vector.items()).get(issuer_of("x"), 0) == one.frames[-1].upto
            assert not len(txn.above)
    assert all_rows(stores[0]) == all_rows(stores[1]) == all_rows(stores[2])
    assert len({recounted_hash(store) for store in stores}) == 1


def test_a_frame_over_a_gap_changes_nothing() -> None:
    store = new_store()
    result = apply(store, FrameBatch(frame_of(5, 6)))
    assert result.vector == EMPTY_VECTOR
    assert result.rows_changed == 0
    assert all_rows(store) == []


def test_an_entry_that_is_covered_is_dropped() -> None:
    """A removed row does not come back with a late frame."""
    store = new_store()
    with store.write() as txn:
        txn.set_vector(vector(x=9))
    result = apply(store, FrameBatch(frame_of(0, 3)))
    assert result.rows_changed == 0
    assert all_rows(store) == []


def test_positions_are_indexed_as_they_were_sent() -> None:
    writer = Writer()
    writer.group((put(b"k", b"1"), put(b"k", b"2")), (put(b"l"),))
    (frame,) = writer.frames
    assert [index for _, index in frame.positions] == [0, 0, 1]
    follower = new_store()
    apply(follower, FrameBatch(frame))
    apply(follower, FrameBatch(frame))
    with follower.read() as txn:
        assert [stamp for stamp, _ in txn.positions(issuer_of("x"), Stamp(0))] == [1, 2, 3]
        assert txn.position(issuer_of("x"), Stamp(1)) == (SYSTEM_NAMESPACE, b"k")


def test_rows_above_the_vector_are_remembered_until_it_reaches_them() -> None:
    store = new_store()
    newer = value_row(7, issuer="y", term=2)
    frame = Frame(1, issuer_of("x"), Stamp(0), Stamp(1), ((Stamp(1), 0),), ((SYSTEM_NAMESPACE, b"k", newer),))
    assert apply(store, FrameBatch(frame)).above == VersionVector([version(7, "y", 2)])
    same = Frame(2, issuer_of("y"), Stamp(0), Stamp(7), ((Stamp(7), 0),), ((SYSTEM_NAMESPACE, b"k", newer),))
    assert apply(store, FrameBatch(same)).above == EMPTY_VECTOR


# --- writes

PUT, DELETE = put(b"k", b"new"), Delete(SYSTEM_NAMESPACE, b"k")


@pytest.mark.parametrize("state", ["value", "expired", "tombstone", "nothing"])
@pytest.mark.parametrize("condition", Condition)
def test_a_condition_is_checked_against_what_a_reader_would_see(state: str, condition: Condition) -> None:
    writer = Writer()
    if state != "nothing":
        writer.write(Put(SYSTEM_NAMESPACE, b"k", b"old", expires_at=EPOCH_MS // 1000 if state == "expired" else 0))
    if state == "tombstone":
        writer.write(DELETE)
    with writer.store.read() as txn:
        row = txn.row(SYSTEM_NAMESPACE, b"k")
    if_version = row_version(row) if row is not None else version(1)
    outcome = writer.write(Put(SYSTEM_NAMESPACE, b"k", b"new", None, 0, condition, if_version))
    is_there = state == "value"
    may = condition == Condition.ALWAYS or is_there != (condition == Condition.ABSENT)
    assert outcome.ending == (Ending.ACKED if may else Ending.REFUSED)
    if not may:
        assert outcome.code == "precondition_failed"
        assert outcome.version == (if_version if is_there else None)
    assert (value_at(writer.store, b"k") == b"new") == may


def test_another_version_fails_the_condition() -> None:
    writer = Writer()
    writer.write(put(b"k"))
    delete = Delete(SYSTEM_NAMESPACE, b"k", Condition.VERSION_IS, version(9))
    assert writer.write(delete).code == "precondition_failed"
    assert writer.write(Delete(SYSTEM_NAMESPACE, b"k", Condition.VERSION_IS, version(1))).ending == Ending.ACKED
    assert value_at(writer.store, b"k") is None


def test_a_write_of_many_operations_is_applied_whole_or_not_at_all() -> None:
    writer = Writer()
    writer.write(put(b"k", b"old"))
    refused = Put(SYSTEM_NAMESPACE, b"k", b"new", condition=Condition.ABSENT)
    result = writer.group((put(b"l"), refused), (put(b"m"), put(b"n")))
    assert [outcome.ending for outcome in result.outcomes] == [Ending.REFUSED, Ending.ACKED]
    assert value_at(writer.store, b"l") is None
    assert value_at(writer.store, b"n") == b"value"
    assert result.outcomes[1].version == version(5)
    assert result.vector == vector(x=5)


def test_a_group_of_refused_writes_makes_no_frame() -> None:
    result = Writer().group((Put(SPACE, b"k", b"v"),), (DeleteNamespace(SPACE),), (DeleteNamespace(SYSTEM_NAMESPACE),))
    assert [outcome.code for outcome in result.outcomes] == ["namespace_not_found"] * 3
    assert result.frame is None
    assert result.vector == EMPTY_VECTOR


def test_a_group_carries_its_designation() -> None:
    store = new_store()
    apply(store, WriteGroup(2, issuer_of("x"), (), EPOCH_MS, designated("a", 2)))
    with store.read() as txn:
        assert summarize(txn).designation == designated("a", 2)


# --- namespaces


def test_a_title_is_created_once() -> None:
    writer = Writer().with_namespace()
    again = writer.write(CreateNamespace(OTHER, ACCOUNT, "t"))
    assert (again.ending, again.namespace, again.created) == (Ending.ACKED, SPACE, False)
    assert again.version == version(1)
    elsewhere = writer.write(CreateNamespace(OTHER, AccountId(b"B" * 16), "t"))
    assert elsewhere.namespace == OTHER


def test_two_creations_of_one_title_in_one_write_give_one_namespace() -> None:
    writer = Writer()
    outcome = writer.write(CreateNamespace(SPACE, ACCOUNT, "t"), CreateNamespace(OTHER, ACCOUNT, "t"))
    assert outcome.namespace == SPACE


def test_a_write_reports_the_greatest_version_that_it_wrote_or_met() -> None:
    """A reader that waits for it sees all of the write."""
    writer = Writer().with_namespace()
    outcome = writer.write(put(b"a"), put(b"b"), CreateNamespace(OTHER, ACCOUNT, "t"))
    assert (outcome.version, outcome.namespace, outcome.created) == (version(3), SPACE, False)
    outcome = writer.write(CreateNamespace(OTHER, ACCOUNT, "u"), put(b"c"))
    assert (outcome.version, outcome.namespace, outcome.created) == (version(6), OTHER, True)
    follower = Writer("y", writer.store, term=0)
    assert follower.write(CreateNamespace(OTHER, ACCOUNT, "t")).version == version(1), "it stands at a higher term"


def test_an_id_is_never_used_again() -> None:
    writer = Writer().with_namespace()
    writer.write(DeleteNamespace(SPACE))
    assert writer.write(CreateNamespace(SPACE, ACCOUNT, "u")).code == "bad_request"
    assert writer.write(CreateNamespace(SYSTEM_NAMESPACE, ACCOUNT, "u")).code == "bad_request"


def test_an_account_has_a_limit_of_namespaces_and_unreadable_rows_do_not_count() -> None:
    writer = Writer()
    writer.group((put(system_rows.namespace_key(OTHER), b"not JSON"), put(b"zzz")))
    creations = tuple(
        CreateNamespace(NamespaceId(n.to_bytes(16, "big")), ACCOUNT, f"{n}")
        for n in range(1, NAMESPACES_PER_ACCOUNT_MAX)
    )
    writer.group(*[(creation,) for creation in creations[:2]])
    with writer.store.write() as txn:
        for creation in creations[2:]:
            key, text = system_rows.encode_namespace(
                system_rows.Namespace(creation.namespace, ACCOUNT, creation.title, 1)
            )
            txn.put_row(SYSTEM_NAMESPACE, key, encode_row(Kind.VALUE, text, None, 0, version(9)))
    more = [NamespaceId(b"Y" * 16), NamespaceId(b"Z" * 16)]
    result = apply(
        writer.store,
        WriteGroup(
            1,
            issuer_of("x"),
            tuple(
                StampedWrite(Stamp(5_000 + n), (CreateNamespace(one, ACCOUNT, f"more{n}"),))
                for n, one in enumerate(more)
            ),
            EPOCH_MS,
        ),
    )
    assert [outcome.code for outcome in result.outcomes] == ["", "namespace_limit"]


def test_a_namespaces_tombstone_beats_late_and_newer_entries() -> None:
    leader = Writer("x").with_namespace()
    other = Writer("y", term=9)
    apply(other.store, FrameBatch(leader.frames[0]))
    other.write(Put(SPACE, b"newer", b"v"))
    leader.write(Put(SPACE, b"k", b"v"))
    deleted = leader.group((DeleteNamespace(SPACE),))
    assert deleted.namespaces_to_sweep == (SPACE,)
    assert leader.write(Put(SPACE, b"k", b"v")).code == "namespace_not_found"
    for store, frames in ((leader.store, other.frames), (other.store, leader.frames)):
        for frame in frames:
            apply(store, FrameBatch(frame))
    assert all_rows(leader.store) == all_rows(other.store)
    assert recounted_hash(leader.store) == recounted_hash(other.store)
    # The row of a namespace that another leader, at a higher term, wrote anew loses too: kinds decide, not versions.
    newer = value_row(99, issuer="z", term=99)
    row_key = system_rows.namespace_key(SPACE)
    late = Frame(1, issuer_of("z"), Stamp(0), Stamp(99), ((Stamp(99), 0),), ((SYSTEM_NAMESPACE, row_key, newer),))
    apply(leader.store, FrameBatch(late))
    with leader.store.read() as txn:
        assert is_namespace_deleted(txn, SPACE)
        assert summarize(txn).namespaces_to_sweep == (SPACE,)
    # And an older tombstone beats a newer row that is there already.
    fresh = new_store()
    apply(fresh, FrameBatch(late))
    for frame in leader.frames:
        apply(fresh, FrameBatch(frame))
    assert all_rows(fresh) == all_rows(leader.store)


def test_the_frame_of_a_group_that_deletes_a_namespace_carries_its_tombstone_once() -> None:
    writer = Writer().with_namespace()
    frame = writer.group((Put(SPACE, b"a", b"v"), Put(SPACE, b"b", b"v")), (DeleteNamespace(SPACE),)).frame
    assert frame is not None
    assert [index for _, index in frame.positions] == [0, 0, 0]
    assert [key for _, key, _ in frame.rows] == [system_rows.namespace_key(SPACE)]


def test_a_sweep_frees_rows_in_slices() -> None:
    writer = Writer().with_namespace()
    writer.write(*[Put(SPACE, b"%d" % n, b"v") for n in range(5)])
    assert apply(writer.store, NamespaceSweep(SPACE, 9)).rows_changed == 0, "it lives"
    hash_before = writer.group((DeleteNamespace(SPACE),)).state_hash
    first = apply(writer.store, NamespaceSweep(SPACE, 3))
    assert (first.rows_changed, first.namespaces_to_sweep) == (3, (SPACE,))
    second = apply(writer.store, NamespaceSweep(SPACE, 3))
    assert (second.rows_changed, second.namespaces_to_sweep) == (2, ())
    assert second.state_hash == hash_before
    with writer.store.read() as txn:
        assert next(txn.rows(SPACE), None) is None
        assert summarize(txn).namespaces_to_sweep == ()


def test_a_summary_skips_what_is_no_namespace_and_what_lives() -> None:
    writer = Writer().with_namespace()
    writer.write(put(b"namespace/x"), put(b"zzz"))
    with writer.store.read() as txn:
        assert summarize(txn).namespaces_to_sweep == ()


def test_nothing_deletes_the_system_namespace() -> None:
    writer = Writer()
    writer.write(Delete(SYSTEM_NAMESPACE, system_rows.namespace_key(SYSTEM_NAMESPACE)), put(b"k"))
    assert value_at(writer.store, b"k") == b"value"


def test_candidates_are_told_when_their_row_changes() -> None:
    writer = Writer()
    row = put(system_rows.CANDIDATES_KEY, system_rows.encode_candidates((b"a" * 16,)))
    assert writer.group((row,)).candidates == (b"a" * 16,)
    assert writer.group((put(b"k"),)).candidates is None
    assert writer.group((Delete(SYSTEM_NAMESPACE, system_rows.CANDIDATES_KEY),)).candidates == ()


def test_candidates_are_told_when_a_walk_takes_their_row_away() -> None:
    writer = Writer()
    writer.write(put(system_rows.CANDIDATES_KEY, system_rows.encode_candidates((b"a" * 16,))))
    assert apply(writer.store, WalkBatch(part((), vector(x=9)), None)).candidates == ()


def test_all_issuers_are_told_when_the_row_of_one_changes() -> None:
    writer = Writer()
    begun = system_rows.IssuerRow(issuer_of("x"), node_id("a"), 1, None)
    other = system_rows.IssuerRow(issuer_of("y"), node_id("b"), 2, Stamp(9))
    assert writer.group((put(*system_rows.encode_issuer(other)),)).issuers == (other,)
    assert writer.group((put(*system_rows.encode_issuer(begun)), put(b"k"))).issuers == (begun, other)
    assert writer.group((put(b"k"),)).issuers is None
    assert writer.group((put(b"issuer/", b"not one"),)).issuers == (begun, other)
    assert writer.group((Delete(SYSTEM_NAMESPACE, system_rows.issuer_key(issuer_of("y"))),)).issuers == (begun,)
    with writer.store.read() as txn:
        assert summarize(txn).issuers == (begun,)


# --- walks


def test_a_row_that_a_walk_lacks_was_removed_there_if_its_vector_covers_it() -> None:
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 1, 2, 3)))
    apply(store, FrameBatch(frame_of(0, 5, issuer="y")))
    after, upto = (SYSTEM_NAMESPACE, b"key1"), (SYSTEM_NAMESPACE, b"key5")
    walk = part(((SYSTEM_NAMESPACE, b"key3", value_row(3)),), vector(x=9), after, upto)
    result = apply(store, WalkBatch(walk, None))
    assert [key for _, key, _ in all_rows(store)] == [b"key1", b"key3", b"key5"]
    assert result.state_hash == recounted_hash(store)
    last = part((), vector(x=9, y=9), after=(SYSTEM_NAMESPACE, b"key2"))
    result = apply(store, WalkBatch(last, None))
    assert [key for _, key, _ in all_rows(store)] == [b"key1"]
    assert result.state_hash == recounted_hash(store)


def test_a_walk_stops_looking_for_removed_rows_where_its_part_ends() -> None:
    store = new_store()
    apply(store, FrameBatch(frame_of(0, 1, 2)))
    apply(store, WalkBatch(part((), vector(x=9), None, (SYSTEM_NAMESPACE, b"key1")), None))
    assert [key for _, key, _ in all_rows(store)] == [b"key2"]


def test_the_vector_rises_at_a_walks_end_to_that_of_its_first_part() -> None:
    store = new_store(complete=False)
    first = part(((SYSTEM_NAMESPACE, b"a", value_row(1)),), vector(x=5), None, (SYSTEM_NAMESPACE, b"a"))
    result = apply(store, WalkBatch(first, None))
    assert (result.vector, result.above, result.complete) == (EMPTY_VECTOR, vector(x=5), False)
    last = part(((SYSTEM_NAMESPACE, b"b", value_row(7)),), vector(x=8), (SYSTEM_NAMESPACE, b"a"))
    result = apply(store, WalkBatch(last, vector(x=5)))
    assert (result.vector, result.floor, result.complete) == (vector(x=5), vector(x=5), True)
    assert result.above == vector(x=8), "a later part may hold rows above the first part's vector"
    assert apply(store, FrameBatch(frame_of(5, 8))).above == EMPTY_VECTOR


def test_what_stands_above_the_vector_of_the_peer_that_is_walked_stands_above_this_one_too() -> None:
    """It has the newer row of a key whose log it has in part only: with the same vector H is another one elsewhere."""
    store = new_store(complete=False)
    walked = part(((SYSTEM_NAMESPACE, b"a", value_row(9)),), vector(x=5))
    assert apply(store, WalkBatch(walked, vector(x=5))).above == vector(x=9)
    assert apply(store, FrameBatch(frame_of(5, 9))).above == EMPTY_VECTOR


def test_a_walk_brings_back_nothing_that_was_known_and_keeps_the_log_that_is_there() -> None:
    store = new_store()
    with store.write() as txn:
        txn.set_vector(vector(x=9))
    result = apply(store, WalkBatch(part(((SYSTEM_NAMESPACE, b"a", value_row(3)),), vector(x=5)), vector(x=5)))
    assert all_rows(store) == []
    assert (result.vector, result.floor) == (vector(x=9), EMPTY_VECTOR)


def test_a_walk_removes_rows_of_a_deleted_namespace_and_tombstones_alike() -> None:
    writer = Writer().with_namespace()
    writer.write(Put(SPACE, b"k", b"v"), Delete(SYSTEM_NAMESPACE, b"gone"))
    writer.write(DeleteNamespace(SPACE))
    with writer.store.read() as txn:
        tombstone = txn.row(SYSTEM_NAMESPACE, system_rows.namespace_key(SPACE))
    assert tombstone is not None
    kept = (SYSTEM_NAMESPACE, system_rows.namespace_key(SPACE), tombstone)
    result = apply(writer.store, WalkBatch(part((kept,), vector(x=99)), None))
    with writer.store.read() as txn:
        assert list(txn.all_rows()) == [kept]
        totals = txn.totals(SYSTEM_NAMESPACE)
    assert totals is not None
    assert (totals.rows, totals.live) == (1, 0)
    assert result.state_hash == recounted_hash(writer.store)


# --- what a node keeps for itself


def test_a_node_settles_what_it_knows() -> None:
    store = new_store()
    apply(store, Settle(designated("a"), (member("a"),), 5, restored=True))
    apply(store, Settle())
    with store.read() as txn:
        summary = summarize(txn)
    assert (summary.designation, summary.members) == (designated("a"), (member("a"),))
    assert (summary.clock_offset_ms, summary.restored) == (5, True)


def test_a_batch_that_raises_leaves_no_trace() -> None:
    writer = Writer()
    with pytest.raises(ZeroDivisionError), writer.store.write() as txn:
        apply_batch(txn, WriteGroup(1, issuer_of("x"), (StampedWrite(Stamp(1), (PUT,)),), EPOCH_MS))
        _ = 1 // 0
    assert all_rows(writer.store) == []


def test_totals_count_rows_and_those_that_live() -> None:
    writer = Writer().with_namespace()
    writer.write(Put(SPACE, b"a", b"v"), Put(SPACE, b"b", b"v"))
    writer.write(Delete(SPACE, b"a"), Delete(SPACE, b"c"))
    with writer.store.read() as txn:
        totals = txn.totals(SPACE)
    assert totals is not None
    assert (totals.rows, totals.live) == (3, 1)
    assert version_stamp(row_version(tombstone_row(4))) == 4
