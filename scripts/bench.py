"""Measure this project's own figures, on real processes: those named, or all.

Every number is the median of the repetitions with the least and the greatest of them; all writes are synced to disk before they
are acknowledged. Figures and budgets are those of the design: what is compared, is measured side by side in the same run.
Clients run on the same machine and take processor time from the nodes.

figures:
    replica       Replica.get against a bare LMDB get
    get           GET over HTTP, closed loop
    put           PUT over HTTP, closed loop
    propagation   5 nodes, 1 000 writes/s: acknowledged to visible at every peer, and by hop
    bootstrap     an empty peer joins: MB/s, against a bare websocket in the same run
    catch-up      a peer comes back: entries/s
    memory        anonymous memory of node, gateway and api
    large         small writes and digests beside values of 25 MiB, and the MB/s of those
    large-memory  anonymous memory while 50 values of 25 MiB are written, or read, at once

Exit status: 0 all were measured (kept budgets or not); 1 one could not be; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kvp2p.runtime import logs
from scripts.benchmarks import bootstrap, catch_up, large, large_memory, memory, port, propagation, replica
from scripts.benchmarks.effort import Effort
from scripts.benchmarks.results import CannotMeasure, Figure, document_head
from scripts.benchmarks.text import text_of

FIGURES: dict[str, Callable[[Effort], Figure]] = {
    "replica": replica.measure,
    "get": port.measure_get,
    "put": port.measure_put,
    "propagation": propagation.measure,
    "bootstrap": bootstrap.measure,
    "catch-up": catch_up.measure,
    "memory": memory.measure,
    "large": large.measure,
    "large-memory": large_memory.measure,
}


def run(names: Sequence[str], effort: Effort) -> dict[str, Any]:
    """Measure figures one after the other and return the document of it."""
    document = {**document_head(), "figures": [], "not_measured": {}}
    for name in names:
        try:
            document["figures"].append(FIGURES[name](effort).as_json())
        except CannotMeasure as reason:
            effort.tell(f"{name} cannot be measured: {reason}")
            document["not_measured"][name] = str(reason)
    return document


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="what to measure (all)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each repetition (3)")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="of each case, 3 or more (5)")
    parser.add_argument("--clients", type=int, choices=(1, 2), default=1, help="client processes of get and put (1)")
    parser.add_argument("--quick", action="store_true", help="for a first look: 3 short repetitions and less data")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parsed = parser.parse_args(arguments)
    unknown = [name for name in parsed.figures if name not in FIGURES]
    if unknown:
        parser.error(f"there is no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    if parsed.quick:
        parsed.seconds, parsed.repetitions = 0.6, 3
    if not 0.1 <= parsed.seconds <= 60 or not 3 <= parsed.repetitions <= 20:
        parser.error("--seconds must be from 0.1 to 60, --repetitions from 3 to 20")
    return parsed


def main() -> int:
    arguments = parse(sys.argv[1:])
    # As Ctrl-C, by the handler that trio has for it: so that the nodes are stopped then, too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    logs.configure("error", "console", "bench")  # what asks nodes logs; stdout is for the figures alone
    effort = Effort(
        seconds=arguments.seconds,
        repetitions=arguments.repetitions,
        clients=arguments.clients,
        is_quick=arguments.quick,
    )
    try:
        document = run(arguments.figures or list(FIGURES), effort)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(json.dumps(document, indent=1) if arguments.json else text_of(document))
    return 1 if document["not_measured"] else 0


if __name__ == "__main__":
    sys.exit(main())
