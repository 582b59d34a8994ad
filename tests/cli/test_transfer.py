"""Import and export: Cloudflare's bulk format there and back, and what happens when writes fail."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from kvp2p.cli import transfer
from kvp2p.limits import VALUE_BYTES_MAX
from tests.cli.conftest import CLOCK

Run = Callable[..., Any]
Node = Any


def bulk_file(directory: Path, entries: Any) -> str:
    path = directory / "bulk.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return str(path)


def test_what_is_exported_is_imported_to_the_same(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    node.values = {f"key/{number}/é".encode(): (b"value %d" % number, None) for number in range(300)}
    node.values |= {b"a//b": (bytes(range(256)), None), b"..x": (b"", '{"m":[1,"x"]}'), b"%41": (b"percent", None)}
    node.page_keys_max = 70
    before = dict(node.values)
    exported = tmp_path / "dump.json"
    result = kvp2p("export", "settings", "--output", str(exported))
    assert (result.status, result.err) == (0, "303 keys\n")
    entries = json.loads(exported.read_bytes())
    assert [one["key"].encode() for one in entries] == sorted(before)
    assert kvp2p("export", "settings").out == exported.read_bytes()
    node.values = {}
    result = kvp2p("import", "settings", str(exported))
    assert result.status == 0
    assert result.err == "303 of 303 written, 0 refused, 0 unknown, 0 not begun\n"
    assert node.values == before


def test_export_of_a_prefix_and_of_nothing_is_an_array(kvp2p: Run, node: Node) -> None:
    node.values = {b"a1": (b"1", None), b"b1": (b"2", None)}
    assert kvp2p("export", "settings", "--prefix", "b").document == [{"key": "b1", "value": "2"}]
    assert kvp2p("export", "settings", "--prefix", "c").document == []


def test_an_export_that_fails_leaves_the_old_file_and_prints_nothing(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    backup = tmp_path / "backup.json"
    backup.write_text("[the old backup]")
    result = kvp2p("export", "nowhere", "--output", str(backup))
    assert (result.status, result.out) == (1, b"")
    assert kvp2p("export", "nowhere").out == b""
    assert kvp2p("export", "settings", "--output", str(backup), "--token", "wrong").status == 3
    assert kvp2p("export", "settings", "--output", str(tmp_path / "no" / "where")).status == 2
    assert backup.read_text() == "[the old backup]"
    assert list(tmp_path.iterdir()) == [backup]


def test_an_export_takes_the_place_of_the_file_that_a_link_names(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    node.values = {b"k": (b"v", None)}
    backup, link = tmp_path / "backup.json", tmp_path / "link"
    backup.write_text("old")
    backup.chmod(0o600)
    link.symlink_to(backup)
    assert kvp2p("export", "settings", "--output", str(link)).err == "1 key\n"
    assert json.loads(backup.read_bytes()) == [{"key": "k", "value": "v"}]
    assert backup.stat().st_mode & 0o777 == 0o600
    assert link.is_symlink()
    assert kvp2p("export", "settings", "--output", "/dev/null").status == 0
    assert not Path("/dev/null").is_file()


def test_of_a_key_that_stands_there_twice_the_last_counts(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    entries = [{"key": "k", "value": "first"}, {"key": "k", "value": "bGFzdA==", "base64": True}]
    result = kvp2p("import", "settings", bulk_file(tmp_path, entries), "--json")
    assert result.document == {
        "total": 1,
        "acked": 1,
        "refused": 0,
        "unknown": 0,
        "not_begun": 0,
        "last_key": "k",
    }
    assert "1 entry is followed" in result.err
    assert node.values == {b"k": (b"last", None)}


def test_stdin_is_read_where_a_dash_stands(kvp2p: Run, node: Node) -> None:
    assert kvp2p("import", "settings", "-", stdin=b'[{"key":"k","value":"v","metadata":null}]').status == 0
    assert node.values == {b"k": (b"v", None)}


@pytest.mark.parametrize(
    "entries",
    [
        {},
        ["k"],
        [{"key": "k"}],
        [{"key": "", "value": "v"}],
        [{"key": 1, "value": "v"}],
        [{"key": "half \ud800", "value": "v"}],
        [{"key": "k", "value": 1}],
        [{"key": "k", "value": "***", "base64": True}],
        [{"key": "k", "value": "v", "expiration": "soon"}],
        [{"key": "k", "value": "v", "expiration": 0}],
        [{"key": "k", "value": "v", "expiration": True}],
        [{"key": "k", "value": "v", "expiration": 2**63}],
        [{"key": "k", "value": "v", "expiration_ttl": 59}],
        [{"key": "k", "value": "v", "expiration_ttl": 60.5}],
        [{"key": "k", "value": "v", "ttl": 60}],
    ],
    ids=repr,
)
def test_a_file_with_a_wrong_entry_is_refused_before_the_first_write(
    kvp2p: Run, node: Node, tmp_path: Path, entries: Any
) -> None:
    good = [{"key": "good", "value": base64.b64encode(b"v").decode()}]
    document = good + entries if isinstance(entries, list) else entries
    result = kvp2p("import", "settings", bulk_file(tmp_path, document))
    assert result.status == 2
    assert node.requests == []


def test_an_import_stops_soon_after_writes_are_refused_and_says_what_was_not_begun(
    kvp2p: Run, node: Node, tmp_path: Path
) -> None:
    node.refusal = (503, "no_leader", "nobody leads")
    entries = [{"key": f"k{number}", "value": "v"} for number in range(500)]
    result = kvp2p("import", "settings", bulk_file(tmp_path, entries), "--parallel", "8", "--json")
    assert result.status == 3
    tally = result.document
    assert tally["error"]["code"] == "incomplete"
    assert tally["acked"] == tally["unknown"] == 0
    assert 10 <= tally["refused"] <= 18
    assert tally["not_begun"] == 500 - tally["refused"]
    assert len(node.writes()) == tally["refused"]
    assert "no_leader" in result.err


@pytest.mark.parametrize(
    ("refusal", "status"),
    [((404, "namespace_not_found", "gone"), 1), ((401, "unauthorized", "who"), 3), ((403, "forbidden", "no"), 3)],
)
def test_an_import_ends_with_the_first_refusal_that_all_writes_would_meet(
    kvp2p: Run, node: Node, tmp_path: Path, refusal: Any, status: int
) -> None:
    node.refusal = refusal
    entries = [{"key": f"k{number}", "value": "v"} for number in range(500)]
    result = kvp2p("import", "settings", bulk_file(tmp_path, entries), "--json")
    assert (result.status, len(node.writes())) == (status, 1)
    assert (result.document["refused"], result.document["not_begun"]) == (1, 499)
    assert result.document["error"]["code"] == refusal[1]


def test_an_import_with_an_unknown_outcome_ends_with_4(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    node.refusal = (504, "outcome_unknown", "the link has ended")
    result = kvp2p("import", "settings", bulk_file(tmp_path, [{"key": "k", "value": "v"}]))
    assert result.status == 4
    assert len(node.writes()) == 1


def test_an_import_of_nothing_is_done_at_once(kvp2p: Run, node: Node) -> None:
    assert kvp2p("import", "settings", "-", stdin=b"[]").status == 0
    assert node.requests == []


def test_what_expires_is_exported_and_imported_with_it(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    entries = [
        {"key": "at", "value": "1", "expiration": 4_000_000_000},
        {"key": "both", "value": "2", "expiration": 4_000_000_000, "expiration_ttl": 99},
        {"key": "in", "value": "3", "expiration_ttl": 60},
        {"key": "never", "value": "4", "expiration": None},
        {"key": "over", "value": "5", "expiration": 1_000_000_000},
        {"key": "over but for its ttl", "value": "6", "expiration": 1_000_000_000, "expiration_ttl": 70},
    ]
    result = kvp2p("import", "settings", bulk_file(tmp_path, entries))
    assert result.status == 0
    assert result.err.startswith("1 entry has expired and is left out\n5 of 5 written")
    assert node.expiries == {b"at": CLOCK, b"both": CLOCK + 99, b"in": CLOCK + 60, b"over but for its ttl": CLOCK + 70}
    exported = kvp2p("export", "settings").document
    assert exported == [
        {"key": "at", "value": "1", "expiration": CLOCK},
        {"key": "both", "value": "2", "expiration": CLOCK + 99},
        {"key": "in", "value": "3", "expiration": CLOCK + 60},
        {"key": "never", "value": "4"},
        {"key": "over but for its ttl", "value": "6", "expiration": CLOCK + 70},
    ]
    before = dict(node.expiries)
    node.values, node.expiries = {}, {}
    assert kvp2p("import", "settings", bulk_file(tmp_path, exported)).status == 0
    assert node.expiries == before


def test_large_values_are_exported_and_imported_and_larger_ones_refused(kvp2p: Run, node: Node, tmp_path: Path) -> None:
    large = {b"text": ("é" * 2_000_000).encode(), b"bytes": os.urandom(3_000_000), b"most": b"x" * VALUE_BYTES_MAX}
    node.values = {key: (value, None) for key, value in large.items()} | {b"small": (b"v", None)}
    before = dict(node.values)
    exported = kvp2p("export", "settings", "--output", str(tmp_path / "dump.json"))
    assert exported.err == "4 keys\n"
    node.values = {}
    assert kvp2p("import", "settings", str(tmp_path / "dump.json")).status == 0
    assert node.values == before
    node.requests.clear()
    result = kvp2p("import", "settings", bulk_file(tmp_path, [{"key": "k", "value": "v" * (VALUE_BYTES_MAX + 1)}]))
    assert result.status == 2
    assert f"the value has {VALUE_BYTES_MAX + 1} bytes" in result.err
    assert node.requests == []


async def test_writes_under_way_have_so_many_bytes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "UNDERWAY_BYTES_MAX", 100)
    room = transfer._Room()
    underway = most = done = 0

    async def write(count: int) -> None:
        nonlocal underway, most, done
        async with room.held(count):
            underway += count
            most = max(most, underway if count < 100 else 0)
            assert underway == count or underway <= 100, "one that is larger than all goes alone"
            await trio.sleep(0.001)
            underway -= count
            done += 1

    async with trio.open_nursery() as nursery:
        for count in [30, 60, 250, 10, 100, 0, 40] * 5:
            nursery.start_soon(write, count)
    assert (done, room._bytes) == (35, 0)
    assert most > 60
