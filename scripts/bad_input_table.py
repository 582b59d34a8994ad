"""Print the table of bad input that the README shows: the very rows that tests/bad_input sends to real nodes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bad_input.table import markdown, put_into

README = Path(__file__).resolve().parents[1] / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bad_input_table", description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="put it into README.md instead, between the two markers")
    if parser.parse_args().write:
        README.write_text(put_into(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(markdown())


if __name__ == "__main__":
    main()
