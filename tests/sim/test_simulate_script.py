"""scripts/simulate.py: what it prints, and its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvp2p.sim.checkers import check
from kvp2p.sim.history import from_line

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/simulate.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_good_seed_ends_with_figures_and_status_0(tmp_path: Path) -> None:
    file = tmp_path / "history"
    done = simulate("--seeds", "2..2", "--history", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 (2 to 2), 0 with violations" in done.stdout
    assert "cluster-hours" in done.stdout
    assert check([from_line(line) for line in file.read_text().splitlines()]) == []


def test_a_violation_ends_with_its_seed_its_claim_and_status_1() -> None:
    done = simulate("--seed", "1", "--planted", "tombstone lost at restart")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "seed 1 violates:" in done.stdout
    assert "the last events:" in done.stdout
    assert "reproduce: scripts/simulate --seed 1 --trace" in done.stdout


def test_a_trace_has_a_line_for_every_event() -> None:
    done = simulate("--seed", "2", "--trace")
    assert done.returncode == 0
    assert "n1 < Start" in done.stdout
    assert len(done.stdout.splitlines()) > 1_000


def test_minutes_begin_with_the_first_seed_given() -> None:
    done = simulate("--minutes", "0.001", "--first", "2", "--jobs", "1")
    assert "(2 to 2)" in done.stdout


def test_seeds_that_share_the_cores_are_told_in_their_order_and_end_with_status_1_when_one_fails() -> None:
    done = simulate("--seeds", "0..2", "--jobs", "2", "--planted", "tombstone lost at restart")
    assert done.returncode == 1, done.stdout + done.stderr
    told = [line.split()[1] for line in done.stdout.splitlines() if line.endswith(" violates:")]
    assert told
    assert told == sorted(told)
    assert "3 (0 to 2)" in done.stdout


def test_a_wrong_command_line_ends_with_status_2() -> None:
    assert simulate("--seeds", "9..1").returncode == 2
    assert simulate("--seed", "1", "--minutes", "1").returncode == 2
