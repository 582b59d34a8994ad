"""`python -m kvp2p.supervisor DIRECTORY [--clock-offset-ms N]`: serve a node without loading the command line; `scripts/cluster`
starts nodes so.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path


def main() -> int:
    """Serve the node in the directory that is the first argument."""
    try:
        directory, overrides = _parse(sys.argv[1:])
    except ValueError:
        sys.stderr.write("usage: python -m kvp2p.supervisor DIRECTORY [--clock-offset-ms N]\n")
        return 2
    gc.disable()  # until the first fork has been prepared, see `supervisor/main.py`
    from kvp2p.config import CONFIG_FILE, load_config
    from kvp2p.errors import KvError
    from kvp2p.supervisor.main import serve

    try:
        return serve(load_config(directory / CONFIG_FILE, overrides))
    except KvError as error:
        sys.stderr.write(f"kvp2p: {error}\n")
        return 3


def _parse(arguments: list[str]) -> tuple[Path, dict[str, object]]:
    directory, *option = arguments
    if not option:
        return Path(directory), {}
    name, number = option
    if name != "--clock-offset-ms":
        raise ValueError(name)
    return Path(directory), {"clock_offset_ms": int(number)}


if __name__ == "__main__":
    sys.exit(main())
