"""The programs of scripts/ that try something on clusters of their own, as a person runs them."""

import json
import subprocess
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[2] / "scripts"


def figures_of(name: str, directory: Path, options: str) -> dict[str, Any]:
    """Run a trial, which has to find that all was kept, and return its figures."""
    command = [str(SCRIPTS / name), *options.split(), "--json", "--dir", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["violations"] == []
    assert done.returncode == 0
    return document
