"""`python -m kvp2p.supervisor DIRECTORY`: serve a node without loading the command line; `scripts/cluster` starts nodes so."""

from __future__ import annotations

import gc
import sys
from pathlib import Path


def main() -> int:
    """Serve the node in the directory that is the only argument."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m kvp2p.supervisor DIRECTORY\n")
        return 2
    gc.disable()  # until the first fork has been prepared, see `supervisor/main.py`
    from kvp2p.config import CONFIG_FILE, load_config
    from kvp2p.errors import KvError
    from kvp2p.supervisor.main import serve

    try:
        return serve(load_config(Path(sys.argv[1]) / CONFIG_FILE))
    except KvError as error:
        sys.stderr.write(f"kvp2p: {error}\n")
        return 3


if __name__ == "__main__":
    sys.exit(main())
