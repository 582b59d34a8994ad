"""Kill nodes of a real cluster under load, cut its mesh, and count what was lost.

Writes are offered open-loop through nodes that do not lead, while a node is killed (SIGKILL, the whole node) every few seconds
and started again. With --suspend-s nodes are stopped for so long instead (SIGSTOP, SIGCONT), as when a machine sleeps. With --partitions the mesh is also cut for some seconds between random groups of nodes, again and again; the last
cut is healed when the load has ended. Afterwards every node is read key by key over HTTP. Violations are judged by pure functions over
what clients saw:

* rate: in every whole second in which the leader was ready throughout and no cut was in force or just healed, at least 95 % of what
  was offered in it was acknowledged; during a cut the same holds for what was offered on the leader's side;
* C2: on every node each key stands at the greatest version that was acknowledged for it, or a greater one;
* C5: the value is one that was written to that key; under an acknowledged version it is that write's, and it is never a refused one's;
* C11: no version was acknowledged twice;
* C1: all nodes are equal, by vector and state hash within 5 s of the end or of the last heal, and key by key.

A run that exercised nothing (few acknowledged writes, too few kills of the leader, cuts that nobody felt) fails too. Exit status:
0 kept, 1 not, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import trio

from scripts.survival.history import History
from scripts.survival.plans import DOWN_SECONDS, plan_cuts, plan_kills
from scripts.survival.running import Run
from scripts.survival.telling import describe, print_table
from scripts.survival.trial import cluster_document, make_parser, run_trial
from scripts.survival.verdicts import judge


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("survive", __doc__)
    parser.add_argument("--nodes", type=int, default=5, metavar="N", help="nodes of the cluster, 2 or more (5)")
    parser.add_argument("--rate", type=float, default=1_000, metavar="R", help="writes offered per second (1000)")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="length of the load (30)")
    parser.add_argument("--kill-every-s", type=float, default=5, metavar="S", help="time between two kills (5)")
    parser.add_argument(
        "--suspend-s", type=float, metavar="S", help="do not kill them, but let them stand still for so long"
    )
    parser.add_argument("--partitions", action="store_true", help="cut the mesh between random groups meanwhile")
    parser.add_argument("--seed", type=int, metavar="X", help="of the victims and values (a random one, printed)")
    parsed = parser.parse_args(arguments)
    if parsed.nodes < 2 or parsed.rate * parsed.seconds < 1 or parsed.kill_every_s <= 0:
        parser.error("--nodes must be 2 or more, --rate, --seconds and --kill-every-s more than nothing")
    if parsed.suspend_s is not None and not 0 < parsed.suspend_s < parsed.seconds:
        parser.error("--suspend-s must be more than nothing and less than --seconds")
    return parsed


async def survive(arguments: argparse.Namespace, seed: int, directory: Path) -> dict[str, Any]:
    """Run the whole on a cluster in `directory` and return the figures; history.jsonl beside it tells every write."""
    faults = ["--faults"] if arguments.partitions else []
    started = await trio.to_thread.run_sync(
        partial(cluster_document, "start", "--nodes", str(arguments.nodes), "--dir", str(directory), "--json", *faults)
    )
    names = [node["name"] for node in started["nodes"]]
    leader = next(node["name"] for node in started["nodes"] if node["leader"])
    randomness = random.Random(seed)
    down_s = arguments.suspend_s or DOWN_SECONDS
    kill_count = int((arguments.seconds - down_s) / arguments.kill_every_s)
    history = History(leader, arguments.rate, arguments.seconds, leader_kills_wanted=2 if kill_count >= 3 else 1)
    # A plan of its own: the same seed kills the same nodes with and without cuts.
    cuts = plan_cuts(names, arguments.seconds, random.Random(seed + 1)) if arguments.partitions else []
    history.cuts_wanted = len(cuts)
    run = Run(history, directory, names, randomness, arguments.suspend_s)
    async with AsyncExitStack() as stack:
        await run.open(stack, started["nodes"], started["admin_token"])
        kills = plan_kills(
            names, leader, arguments.seconds - down_s, arguments.kill_every_s, history.leader_kills_wanted, randomness
        )
        await run.load(kills, cuts)
        await run.compare()
    assert run.summary is not None, "the load has ended"
    violations = judge(history)
    lines = "".join(json.dumps(asdict(write)) + "\n" for write in history.writes)
    await trio.Path(directory.parent / "history.jsonl").write_text(lines, encoding="utf-8")
    return {"seed": seed, "suspend_s": arguments.suspend_s, **describe(history, names, run.summary, violations)}


def main() -> int:
    arguments = parse(sys.argv[1:])
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    return run_trial("survive", arguments, partial(survive, arguments, seed), print_table)


if __name__ == "__main__":
    sys.exit(main())
