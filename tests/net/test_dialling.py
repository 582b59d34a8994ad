"""Back-off and targets."""

from random import Random
from typing import Any

import pytest

from kvp2p.errors import ConfigError
from kvp2p.ids import NodeId
from kvp2p.limits import MEMBERS_MAX
from kvp2p.net.dialling import Backoff, Target, Targets, parse_mesh_url
from kvp2p.net.settings import MeshSettings

SETTINGS = MeshSettings()
A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)


class Uniform(Random):
    """Draws one and the same point of every range."""

    def __init__(self, point: float) -> None:
        super().__init__(0)
        self.point = point

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.point


def target(node: NodeId | None, url: str) -> Target:
    return Target(node, url, Backoff(SETTINGS, Random(1)))


def test_waits_double_up_to_the_cap_and_begin_again_after_a_reset() -> None:
    backoff = Backoff(SETTINGS, Uniform(1.0))
    assert [backoff.next_seconds() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_seconds() == 0.1


def test_waits_are_shortened_by_a_half_at_most_and_differ() -> None:
    assert Backoff(SETTINGS, Uniform(0.0)).next_seconds() == 0.05
    drawn = {Backoff(SETTINGS, Random(seed)).next_seconds() for seed in range(20)}
    assert len(drawn) == 20
    assert all(0.05 <= wait <= 0.1 for wait in drawn)


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("ws://127.0.0.1:8789", ("127.0.0.1", 8789)),
        ("ws://[::1]:8789/", ("::1", 8789)),
        ("ws://Node-1.example:80", ("node-1.example", 80)),
        ("wss://a:1", None),
        ("http://a:1", None),
        ("ws://a", None),
        ("ws://a:0", None),
        ("ws://:1", None),
        ("ws://a:65536", None),
        ("ws://a:b", None),
        ("ws://[a:1", None),
        ("ws://a:1/path", None),
        ("ws://user@a:1", None),
        ("ws://a:1?query", None),
        ("", None),
    ],
)
def test_a_mesh_url_is_scheme_host_and_port(url: str, parsed: tuple[str, int] | None) -> None:
    assert parse_mesh_url(url) == parsed


def test_a_target_is_added_once_and_a_new_url_replaces_its_old_one() -> None:
    targets = Targets()
    first = target(A, "ws://a:1")
    assert targets.add(first)
    first.backoff.next_seconds()
    assert not targets.add(target(A, "ws://a:1"))
    assert not targets.add(target(A, "ws://a:2"))
    assert [one.url for one in targets.all()] == ["ws://a:2"]
    assert first.backoff.next_seconds() <= 0.1  # a new address is tried at once


def test_a_seed_is_not_dialled_beside_the_member_of_its_url() -> None:
    targets = Targets()
    assert targets.add(target(A, "ws://a:1"))
    assert not targets.add(target(None, "ws://a:1"))
    assert targets.add(target(None, "ws://b:1"))
    assert not targets.add(target(None, "ws://b:1"))


def test_a_seed_becomes_the_target_of_its_owner_unless_there_is_one() -> None:
    targets = Targets()
    seed, other = target(None, "ws://a:1"), target(None, "ws://a:2")
    assert targets.add(seed)
    assert targets.add(other)
    assert targets.adopt(seed, A)
    assert not targets.adopt(other, A)
    assert targets.all() == [seed]
    assert seed.node == A
    assert targets.remove(A) is seed
    assert targets.remove(A) is None


def test_targets_are_bounded() -> None:
    targets = Targets()
    added = [
        targets.add(target(NodeId(bytes(14) + at.to_bytes(2, "big")), "ws://a:1")) for at in range(MEMBERS_MAX + 1)
    ]
    assert added == [True] * MEMBERS_MAX + [False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ping_interval_ms": 0},
        {"ping_interval_ms": "1"},
        {"ping_interval_ms": 3_000},
        {"handshake_timeout_ms": 3_600_001},
        {"backoff_ms_min": 6_000},
        {"dial_from": "localhost"},
        {"dial_from": "10.0.0.1:80"},
        {"dial_from": "0.0.0.0"},
        {"dial_from": "::"},
        {"dial_from": "224.0.0.1"},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MeshSettings(**wrong)
