"""scripts/bench in its short form, on real processes."""

import json
import statistics
import subprocess
from pathlib import Path

import pytest

from scripts.benchmarks import propagation
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.hops import TO_A_PEER, TO_THE_CLIENT
from scripts.benchmarks.text import text_of

PROGRAM = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.mark.slow
def test_the_document_has_machine_commit_method_and_a_spread_for_every_number() -> None:
    run = [str(PROGRAM), "--quick", "--json", "replica", "catch-up"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["machine"]["cores"] >= 1
    assert document["commit"]
    assert document["not_measured"] == {}
    replica, catch_up = document["figures"]
    assert (replica["name"], catch_up["name"]) == ("replica", "catch-up")
    assert replica["rows"][0]["budgets"][0]["at_least"] == 0.5
    text = text_of(document)
    for figure in document["figures"]:
        assert figure["method"].split()[0] in text
        assert figure["repetitions"] == 3
        for row in figure["rows"]:
            assert row["what"] in text
            for spread in row["cells"].values():
                assert 0 < spread["least"] <= spread["median"] <= spread["greatest"]
    assert "catch-up" in done.stderr  # progress


@pytest.mark.slow
def test_the_hops_of_real_nodes_add_up_to_what_the_writers_waited() -> None:
    effort = Effort(seconds=0.5, repetitions=3, is_quick=True)
    figure = propagation.measure(effort, nodes=3, rate_per_s=100)
    mean_ms = {row.what: row.cells["mean_ms"] for row in figure.rows}
    hops = [mean_ms[f"hop: {name}"] for name in (*TO_THE_CLIENT, *TO_A_PEER)]
    assert all(spread.least >= 0 for spread in hops)
    assert statistics.median([spread.median for spread in hops]) > 0.01
    # The greatest of each hop may be of different repetitions, and so may the least.
    whole = mean_ms["with marks: sent → acknowledged"]
    to_the_client = hops[: len(TO_THE_CLIENT)]
    assert sum(spread.least for spread in to_the_client) <= whole.greatest * 1.01
    assert sum(spread.greatest for spread in to_the_client) >= whole.least * 0.99
    assert mean_ms["acknowledged → visible at every peer"].least > 0
