"""scripts/catchup: its verdicts on figures written by hand, and its short form on real processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvp2p.core.entry import Kind, encode_row
from kvp2p.ids import Issuer, Stamp, make_version
from scripts.catchup import Figures, covers, entry_bytes, judge
from tests.survive.figures import figures_of

GOOD = Figures(
    nodes=3,
    rate=100,
    cut_s=10,
    entries_before=200,
    offered=1_200,
    acked=1_200,
    missed_at_heal=1_000,
    received_entries=1_200,
    received_entry_bytes=300_000,
    overtaken_bytes=5_000,
    received_data_bytes=320_000,
    received_control_bytes=9_000,
    caught_up_s=0.3,
    equal_s=0.1,
)


def test_good_figures_have_no_violation() -> None:
    assert judge(GOOD) == []


@pytest.mark.parametrize(
    ("spoilt", "claim"),
    [
        ({"caught_up_s": None}, "C1"),
        ({"equal_s": None}, "C1"),
        ({"lacking": 1}, "C2"),
        ({"received_data_bytes": 340_000}, "pull"),
        ({"walks": 1}, "pull"),
        ({"received_data_bytes": 299_999}, "count"),
        ({"acked": 1_100}, "exercised too little"),
        ({"missed_at_heal": 900}, "exercised too little"),
        ({"entries_before": 0}, "exercised too little"),
    ],
)
def test_each_fault_of_the_figures_is_found_under_its_claim(spoilt: dict[str, Any], claim: str) -> None:
    assert {violation.partition(":")[0] for violation in judge(replace(GOOD, **spoilt))} == {claim}


def test_version_is_covered_by_its_issuers_stamp() -> None:
    version = make_version(1, Stamp(0x1234), Issuer(b"issuer-a")).hex()
    for vector, is_covered in (
        ({b"issuer-a": 0x1234}, True),
        ({b"issuer-a": 0x1233}, False),
        ({b"issuer-b": 9}, False),
    ):
        assert covers({issuer.hex(): f"{stamp:016x}" for issuer, stamp in vector.items()}, version) is is_covered


def test_bytes_of_an_entry_are_namespace_key_and_row() -> None:
    row = encode_row(Kind.VALUE, b"value", None, 0, make_version(1, Stamp(1), Issuer(b"issuer-a")))
    assert entry_bytes("ä", b"value") == 16 + 2 + len(row)


@pytest.mark.slow
def test_node_that_was_cut_off_under_load_receives_only_what_it_missed(short_tmp_path: Path) -> None:
    # The cut is longer than links live: nothing of it arrives late on an old one.
    document = figures_of("catchup", short_tmp_path, "--nodes 3 --rate 300 --seconds 6 --before 1 --after 1")
    assert document["received_entries"] > document["missed_at_heal"] > 1_700
