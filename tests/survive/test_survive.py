"""scripts/survive in its short form, on real processes."""

import json
from pathlib import Path

import pytest

from tests.survive.figures import figures_of


@pytest.mark.slow
def test_no_acknowledged_write_is_lost_when_the_leader_is_killed_under_load(short_tmp_path: Path) -> None:
    document = figures_of("survive", short_tmp_path, "--nodes 3 --rate 300 --seconds 8 --kill-every-s 3 --seed 1")
    assert document["leader"] in {kill["node"] for kill in document["kills"]}
    assert document["outcomes"]["refused"] > 0  # the kill was felt
    writes = [json.loads(line) for line in (short_tmp_path / "history.jsonl").read_text().splitlines()]
    acked = [write for write in writes if write["outcome"] == "acked"]
    assert len(acked) == document["outcomes"]["acked"]
    assert document["keys_compared"] >= 3 * len({write["key"] for write in acked})


@pytest.mark.slow
def test_no_acknowledged_write_is_lost_when_the_mesh_is_cut_as_well(short_tmp_path: Path) -> None:
    document = figures_of(
        "survive", short_tmp_path, "--nodes 3 --rate 200 --seconds 7 --kill-every-s 4 --seed 7 --partitions"
    )
    (cut,) = document["cuts"]
    assert cut["groups"] == [["n3"], ["n1", "n2"]]
    assert cut["heal_s"] > 7, "the last cut is healed when the load has ended"
    assert document["equal_after_s"] <= 5
    assert (document["lost"], document["invented"]) == (0, 0)
    assert document["outcomes"]["unknown"] > 0  # what n3 had taken when it was cut off


@pytest.mark.slow
def test_leader_that_stands_still_loses_nothing_and_goes_on(short_tmp_path: Path) -> None:
    document = figures_of(
        "survive", short_tmp_path, "--nodes 3 --rate 150 --seconds 6 --kill-every-s 2 --suspend-s 1.5 --seed 3"
    )
    assert len(document["kills"]) == 2
    assert document["leader"] in {kill["node"] for kill in document["kills"]}
    assert all(kill["ready_s"] - kill["killed_s"] >= 1.5 for kill in document["kills"])
