"""The README shows the table as it is tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input import abuse_plays, mesh_plays
from tests.bad_input.abuse_table import ABUSE
from tests.bad_input.config_table import CONFIG, ConfigRow
from tests.bad_input.mesh_table import MESH_GROUPS
from tests.bad_input.table import BEGIN, END, markdown, put_into

ROOT = Path(__file__).resolve().parents[2]


def test_readme_has_the_table_that_is_tested() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == markdown().strip(), "run scripts/bad_input_table --write"


def test_script_prints_the_table() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bad_input_table.py")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == markdown()


def test_table_takes_the_place_of_an_older_one_and_of_nothing_else() -> None:
    new = put_into(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert new == f"before\n{BEGIN}\n{markdown()}{END}\nafter\n"
    assert put_into(new) == new
    with pytest.raises(ValueError, match="there is no"):
        put_into("a document without markers\n")


def test_every_play_has_its_row_and_every_row_its_play() -> None:
    assert sorted(row.play for rows in MESH_GROUPS.values() for row in rows) == sorted(mesh_plays.PLAYS)
    assert sorted(row.play for row in ABUSE) == sorted(abuse_plays.PLAYS)


@pytest.mark.parametrize("row", CONFIG, ids=lambda row: row.what)
def test_node_does_not_start_with_a_wrong_setting_and_names_it(row: ConfigRow, tmp_path: Path) -> None:
    (tmp_path / "kvp2p.toml").write_text(row.text + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kvp2p.supervisor", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 3
    assert done.stderr == f"kvp2p: {tmp_path / 'kvp2p.toml'}: {row.says}\n"
    assert [one.name for one in tmp_path.iterdir()] == ["kvp2p.toml"], "nothing was made"
