"""The handshake as bytes: who gets in, and how every attack ends."""

import dataclasses

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvp2p.errors import HandshakeRefused, LocalProtocolError
from kvp2p.ids import ClusterId, NodeId
from kvp2p.limits import HANDSHAKE_BYTES_MAX
from kvp2p.net.handshake import Handshake, Identity, Phase, refuse

KEY = b"k" * 32
SMALL = Identity(ClusterId(b"c" * 16), NodeId(b"a" * 16), b"small..1", KEY)
GREAT = Identity(ClusterId(b"c" * 16), NodeId(b"b" * 16), b"great..1", KEY)
NONCES = (b"1" * 32, b"2" * 32)


def pair(dialler: Identity, acceptor: Identity) -> tuple[Handshake, Handshake]:
    return Handshake(dialler, True, NONCES[0]), Handshake(acceptor, False, NONCES[1])


def start(handshake: Handshake) -> bytes:
    return sent(handshake.start())


def sent(answer: bytes | None) -> bytes:
    assert answer is not None
    return answer


def prove(dialler: Handshake, acceptor: Handshake) -> None:
    """Go on until both ends are proven."""
    hello = sent(acceptor.receive(start(dialler)))
    proof = sent(acceptor.receive(sent(dialler.receive(hello))))
    assert dialler.receive(proof) is None


def refusal_of(handshake: Handshake, data: bytes) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        handshake.receive(data)
    return caught.value


@pytest.mark.parametrize(("dials", "accepts"), [(SMALL, GREAT), (GREAT, SMALL)])
def test_two_members_open_a_link_and_the_smaller_has_the_last_word(dials: Identity, accepts: Identity) -> None:
    dialler, acceptor = pair(dials, accepts)
    assert acceptor.start() is None
    prove(dialler, acceptor)
    assert dialler.phase is acceptor.phase is Phase.PROVEN
    assert dialler.version == acceptor.version == 2
    judge, other = (dialler, acceptor) if dials is SMALL else (acceptor, dialler)
    assert judge.decides
    assert not other.decides
    assert judge.peer is not None
    assert (judge.peer.node, judge.peer.instance) == (GREAT.node, GREAT.instance)
    assert other.receive(judge.accept()) is None
    assert judge.phase is other.phase is Phase.OPEN


def test_the_end_that_does_not_decide_cannot_accept() -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    with pytest.raises(LocalProtocolError):
        dialler.accept()
    prove(dialler, acceptor)
    with pytest.raises(LocalProtocolError):
        acceptor.accept()
    assert refusal_of(dialler, cbor2.dumps([3])).reason == "malformed"


def test_a_dialler_with_another_key_gets_nothing_but_a_hello() -> None:
    dialler, acceptor = pair(dataclasses.replace(SMALL, key=b"x" * 32), GREAT)
    hello = sent(acceptor.receive(start(dialler)))
    refused = refusal_of(acceptor, sent(dialler.receive(hello)))
    assert refused.reason == "wrong_key"
    assert not refused.by_peer


def test_an_acceptor_with_another_key_is_found_out_by_the_dialler() -> None:
    dialler, acceptor = pair(SMALL, dataclasses.replace(GREAT, key=b"x" * 32))
    proof = dialler.receive(sent(acceptor.receive(start(dialler))))
    refusal_of(acceptor, sent(proof))
    # It cannot say anything better than a proof with the wrong key.
    acceptor.phase = Phase.PROVEN
    assert refusal_of(dialler, acceptor._proof(by_dialler=False)).reason == "wrong_key"


def test_a_recorded_dialler_cannot_be_replayed() -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    hello = start(dialler)
    proof = sent(dialler.receive(sent(acceptor.receive(hello))))
    acceptor.receive(proof)
    later = Handshake(GREAT, False, b"3" * 32)
    later.receive(hello)
    assert refusal_of(later, proof).reason == "wrong_key"


def test_a_recorded_acceptor_cannot_be_replayed() -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    hello = sent(acceptor.receive(start(dialler)))
    proof = sent(acceptor.receive(sent(dialler.receive(hello))))
    later = Handshake(SMALL, True, b"3" * 32)
    later.start()
    later.receive(hello)
    assert refusal_of(later, proof).reason == "wrong_key"


def test_a_diallers_proof_cannot_be_reflected_to_it() -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    proof = sent(dialler.receive(sent(acceptor.receive(start(dialler)))))
    assert refusal_of(dialler, proof).reason == "wrong_key"


def test_a_hello_cannot_be_reflected_to_its_sender() -> None:
    dialler, _ = pair(SMALL, GREAT)
    assert refusal_of(dialler, start(dialler)).reason == "self_connection"


def test_a_proof_got_by_dialling_does_not_open_a_link_the_other_way() -> None:
    # The attacker has no key. It dials GREAT as SMALL, and makes SMALL dial it, hoping that one proof fits both.
    victim = Handshake(SMALL, True, NONCES[0])
    attacked = Handshake(GREAT, False, NONCES[1])
    victim_hello = start(victim)
    forged = cbor2.loads(victim_hello)
    forged[7] = b"4" * 32
    answer = sent(attacked.receive(cbor2.dumps(forged)))
    assert refusal_of(attacked, sent(victim.receive(answer))).reason == "wrong_key"


def test_another_cluster_is_told_by_name_and_refused_before_any_proof() -> None:
    dialler, acceptor = pair(dataclasses.replace(SMALL, cluster=ClusterId(b"d" * 16)), GREAT)
    refused = refusal_of(acceptor, start(dialler))
    assert refused.reason == "other_cluster"
    assert (b"d" * 16).hex() in str(refused)


@pytest.mark.parametrize(
    ("mine", "theirs", "agreed"),
    [((1, 1), (1, 1), 1), ((1, 2), (1, 1), 1), ((1, 2), (2, 3), 2), ((1, 3), (2, 3), 3), ((1, 1), (2, 2), None), ((3, 4), (1, 2), None)],
)  # fmt: skip
def test_the_greatest_version_that_both_speak_is_used(
    mine: tuple[int, int], theirs: tuple[int, int], agreed: int | None
) -> None:
    dialler, acceptor = pair(dataclasses.replace(SMALL, versions=mine), dataclasses.replace(GREAT, versions=theirs))
    if agreed is None:
        assert refusal_of(acceptor, start(dialler)).reason == "other_version"
    else:
        prove(dialler, acceptor)
        assert dialler.version == acceptor.version == agreed


def test_versions_cannot_be_talked_down_by_somebody_in_between() -> None:
    dialler, acceptor = pair(dataclasses.replace(SMALL, versions=(1, 2)), dataclasses.replace(GREAT, versions=(1, 2)))
    hello = cbor2.loads(start(dialler))
    hello[3] = 1
    answer = cbor2.loads(sent(acceptor.receive(cbor2.dumps(hello))))
    answer[3] = 1
    assert refusal_of(acceptor, sent(dialler.receive(cbor2.dumps(answer)))).reason == "wrong_key"


def test_a_node_that_dials_itself_knows_itself() -> None:
    dialler, acceptor = pair(SMALL, SMALL)
    assert refusal_of(acceptor, start(dialler)).reason == "self_connection"


def test_a_copied_data_directory_is_told_from_the_node_itself() -> None:
    dialler, acceptor = pair(dataclasses.replace(SMALL, instance=b"small..2"), SMALL)
    assert refusal_of(acceptor, start(dialler)).reason == "copied_node_id"


def test_a_hello_may_grow_at_its_end_under_the_protection_of_the_proofs() -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    grown = cbor2.dumps([*cbor2.loads(start(dialler)), "something new"])
    dialler._own_hello = grown
    prove(dialler, acceptor)
    dialler, acceptor = pair(SMALL, GREAT)
    proof = dialler.receive(sent(acceptor.receive(grown)))
    assert refusal_of(acceptor, sent(proof)).reason == "wrong_key"


@given(st.integers(0, 2), st.data())
def test_no_changed_byte_leads_to_a_link(step: int, data: st.DataObject) -> None:
    """Change one byte of the dialler's hello, the acceptor's hello, or either proof: never do both ends get through."""
    dialler, acceptor = pair(SMALL, GREAT)
    messages = 0

    def change(message: bytes) -> bytes:
        nonlocal messages
        messages += 1
        if messages - 1 != step:
            return message
        at = data.draw(st.integers(0, len(message) - 1))
        value = data.draw(st.integers(0, 255).filter(lambda one: one != message[at]))
        return message[:at] + bytes((value,)) + message[at + 1 :]

    try:
        hello = sent(acceptor.receive(change(start(dialler))))
        acceptor.receive(change(sent(dialler.receive(change(hello)))))
    except HandshakeRefused:
        return
    raise AssertionError("a changed message was believed")


@given(st.binary(max_size=200), st.sampled_from(list(Phase)), st.booleans())
def test_garbage_is_refused_in_every_phase(data: bytes, phase: Phase, is_dialler: bool) -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    if phase is not Phase.HELLO:
        prove(dialler, acceptor)
    handshake = dialler if is_dialler else acceptor
    handshake.phase = phase
    assert refusal_of(handshake, data).reason in {"malformed", "wrong_key", "unknown"}


WRONG_HELLOS = {
    "other protocol": {1: "kvp3p"},
    "protocol as bytes": {1: b"kvp2p"},
    "version as text": {2: "1"},
    "half a cluster": {4: b"c" * 8},
    "half a node": {5: b"c" * 8},
    "long instance": {6: b"c" * 9},
    "short nonce": {7: b"1" * 31},
}


@pytest.mark.parametrize("changes", WRONG_HELLOS.values(), ids=WRONG_HELLOS.keys())
def test_a_wrong_hello_is_malformed(changes: dict[int, object]) -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    hello = cbor2.loads(start(dialler))
    for at, value in changes.items():
        hello[at] = value
    assert refusal_of(acceptor, cbor2.dumps(hello)).reason == "malformed"


@pytest.mark.parametrize(
    "data",
    [cbor2.dumps([1, "kvp2p"]), cbor2.dumps([1, bytes(HANDSHAKE_BYTES_MAX)]), cbor2.dumps([2, bytes(32)]), b"\x80"],
)
def test_short_long_early_and_empty_messages_are_malformed(data: bytes) -> None:
    _, acceptor = pair(SMALL, GREAT)
    assert refusal_of(acceptor, data).reason == "malformed"


def test_a_proof_of_the_wrong_length_is_malformed() -> None:
    dialler, acceptor = pair(SMALL, GREAT)
    dialler.receive(sent(acceptor.receive(start(dialler))))
    assert refusal_of(acceptor, cbor2.dumps([2, bytes(31)])).reason == "malformed"


def test_a_peers_refusal_is_told_in_our_own_words_only() -> None:
    dialler, _ = pair(SMALL, GREAT)
    refused = refusal_of(dialler, refuse("too_many_links"))
    assert refused.by_peer
    assert refused.reason == "too_many_links"
    assert refusal_of(dialler, refuse("\x1b[2J")).reason == "unknown"
    assert refusal_of(dialler, cbor2.dumps([4, 7])).reason == "malformed"


def test_the_key_is_shown_nowhere() -> None:
    assert "kkk" not in repr(SMALL)
    with pytest.raises(LocalProtocolError) as caught:
        dataclasses.replace(SMALL, key=b"secret")
    assert "secret" not in str(caught.value)


def test_a_short_nonce_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        Handshake(SMALL, True, b"1")
