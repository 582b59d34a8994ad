"""Simulate whole clusters from seeds: scripts/simulate --seed 7 --trace, --seeds 0..199, --minutes 20, --grade.

A seed is the whole run: the same seed shows the same events on every machine. Many seeds share the cores, one process each. Exit status 1 when a claim was violated (or, with
--grade, when a planted bug was not found), 2 for a wrong command line.
"""

import argparse
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from kvp2p.sim.history import to_line
from kvp2p.sim.host import Host
from kvp2p.sim.planted import PLANTED
from kvp2p.sim.planted_purge import FOUND_BY_SCENARIOS, PURGE_BUGS
from kvp2p.sim.simulation import Report, Simulation

GRADE_SEEDS = 50
BUGS = PLANTED | PURGE_BUGS
TRACE_LINES_SHOWN = 60


def seed_range(text: str) -> range:
    """Read A..B, both included."""
    first, dots, last = text.partition("..")
    if not dots or not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise argparse.ArgumentTypeError(f"seeds are given as A..B, such as 0..199, not {text!r}")
    return range(int(first), int(last) + 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--seed", type=int, help="simulate one seed")
    what.add_argument("--seeds", type=seed_range, help="simulate the seeds A..B, both included (0..49)")
    what.add_argument("--minutes", type=float, help="simulate as many seeds as fit, beginning with --first")
    what.add_argument(
        "--grade",
        action="store_true",
        help="count the seeds until each planted bug is found, but for those that only scenarios find",
    )
    parser.add_argument("--first", type=int, help="the first seed of --minutes (the seconds since 1970)")
    parser.add_argument("--jobs", type=int, help="how many processes share the seeds (as many as there are cores)")
    parser.add_argument("--planted", choices=sorted(BUGS), help="plant this bug")
    parser.add_argument("--trace", action="store_true", help="print every event, one line each")
    parser.add_argument("--history", type=Path, help="write the history of the last seed to a file of JSON lines")
    return parser.parse_args()


def seeds_of(options: argparse.Namespace) -> Iterator[int]:
    """Yield the seeds that were asked for."""
    if options.seed is not None:
        yield options.seed
    elif options.minutes is not None:
        end = time.monotonic() + 60 * options.minutes
        seed = options.first if options.first is not None else int(time.time())
        while time.monotonic() < end:
            yield seed
            seed += 1
    else:
        yield from options.seeds if options.seeds is not None else range(GRADE_SEEDS)


def show_failure(report: Report, *, is_traced: bool) -> None:
    """Print the seed, what was violated, and how it came to that."""
    print(f"seed {report.seed} violates:")
    for violation in report.violations:
        print(f"  {violation}")
    if not is_traced:
        print("the last events:")
        for line in report.lines[-TRACE_LINES_SHOWN:]:
            print(f"  {line}")
    print(f"reproduce: scripts/simulate --seed {report.seed} --trace", flush=True)


def run_one(seed: int, planted: str | None) -> Report:
    """Simulate one seed, in a process of its own; a long run keeps figures, not histories."""
    return replace(Simulation(seed, host_type=BUGS[planted] if planted else Host).run(), history=())


def run_all(options: argparse.Namespace, jobs: int) -> Iterator[Report]:
    """Yield the reports of the seeds that were asked for, in their order."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: deque[Future[Report]] = deque()
        for seed in seeds_of(options):
            running.append(pool.submit(run_one, seed, options.planted))
            if len(running) > jobs:  # one waits, so that no process does
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def run_here(options: argparse.Namespace) -> Iterator[Report]:
    """Yield the reports of the seeds that were asked for, one after the other, and do with each what was asked for."""
    for seed in seeds_of(options):
        host_type = BUGS[options.planted] if options.planted else Host
        report = Simulation(seed, printer=print if options.trace else None, host_type=host_type).run()
        if options.history is not None:
            options.history.write_text("".join(f"{to_line(record)}\n" for record in report.history))
        yield replace(report, history=())


def show_totals(reports: list[Report], seconds: float) -> None:
    """Print figures over all runs; `seconds` is what they took together on the clock."""
    fired: Counter[str] = Counter()
    for report in reports:
        fired.update(report.fired)
    real_s = sum(report.real_s for report in reports)
    hours = sum(report.virtual_s for report in reports) / 3600
    node_hours = sum(report.virtual_s * report.nodes for report in reports) / 3600
    bad = [report.seed for report in reports if not report.is_good]
    print(
        f"seeds        {len(reports)} ({reports[0].seed} to {reports[-1].seed}), {len(bad)} with violations {bad[:20] or ''}"
    )
    print(
        f"writes       {sum(one.acked for one in reports)} acked, {sum(one.refused for one in reports)} refused, "
        f"{sum(one.unknown for one in reports)} unknown; {sum(one.hidden for one in reports)} reads found a value expired"
    )
    print(f"faults       {', '.join(f'{kind} {count}' for kind, count in sorted(fired.items()))}")
    recoveries_s = sorted(report.recovery_s for report in reports)
    print(
        f"recovery     {median(recoveries_s):.1f} s in the median until all nodes are equal, {recoveries_s[-1]:.1f} s at most"
    )
    print(
        f"simulated    {hours:.2f} cluster-hours, {node_hours:.2f} node-hours in {seconds:.1f} s: "
        f"{hours / seconds * 60:.2f} cluster-hours a minute, {hours / real_s * 60:.2f} a minute of one process"
    )


def grade() -> int:
    """Count, for each planted bug, the seeds until one fails."""
    counts = []
    missed = 0
    graded = {name: host_type for name, host_type in BUGS.items() if name not in FOUND_BY_SCENARIOS}
    for name, host_type in graded.items():
        for seed in range(GRADE_SEEDS):
            report = Simulation(seed, host_type=host_type).run()
            if not report.is_good:
                counts.append(seed + 1)
                print(
                    f"{name:28} found by seed {seed}, after {seed + 1} seeds: {report.violations[0].claim}", flush=True
                )
                break
        else:
            missed += 1
            print(f"{name:28} not found by {GRADE_SEEDS} seeds", flush=True)
    print(f"{len(counts)} of {len(graded)} found, after {median(counts or [0]):.0f} seeds in the median")
    return 1 if missed else 0


def main() -> int:
    options = parse()
    if options.grade:
        return grade()
    jobs = options.jobs if options.jobs is not None else os.cpu_count() or 1
    is_alone = jobs < 2 or options.seed is not None or options.trace or options.history is not None
    began = time.monotonic()
    reports = []
    for report in run_here(options) if is_alone else run_all(options, jobs):
        if not report.is_good:
            show_failure(report, is_traced=options.trace)
        reports.append(replace(report, lines=()))
    show_totals(reports, time.monotonic() - began)
    return 0 if all(report.is_good for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
