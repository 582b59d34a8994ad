"""Run an operation many times and tell how long it took.

Decides: when each operation starts, and what its latency is.
Keeps true: [I9] a run is bounded in count, in operations outstanding and in time.
In and out: an async operation in (its result is the word its outcome is counted under), a `LatencySummary` out.
Source: open loop and coordinated omission as in Tene, "How NOT to measure latency" (2013): the schedule is fixed before
    the run, and latency is measured from the moment that the schedule gives, so a stall is charged to all that it delays.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from .failures import ClientError

# Gets the number of the operation in the run, from 0; returns the word to count it under. A `ClientError` that it
# raises is counted under the error's own `outcome`; anything else ends the run.
Operation = Callable[[int], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """What a run came to.

    `outcomes` counts all operations of the run, with `unfinished` (begun, not ended when the run ended) and
    `not_started`. Latencies are over all of them, so those two count with the time they had waited by then.
    `start_lag_ms_max` is how late the generator itself, or its bound on outstanding operations, began one.
    """

    count: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    start_lag_ms_max: float
    outcomes: dict[str, int]

    @property
    def per_second(self) -> float:
        """Operations ended per second of the run."""
        ended = self.count - self.outcomes.get("unfinished", 0) - self.outcomes.get("not_started", 0)
        return ended / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Recorder:
    """Collects while a run goes on: 8 bytes per operation."""

    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    outcomes: Counter[str] = field(default_factory=Counter)
    start_lag_s_max: float = 0.0

    def note(self, outcome: str, latency_s: float) -> None:
        self.outcomes[outcome] += 1
        self.latencies_s.append(latency_s)

    async def perform(self, operation: Operation, number: int, due: float) -> None:
        """Run one operation and note what it came to, also when the run's end cuts it off."""
        self.start_lag_s_max = max(self.start_lag_s_max, trio.current_time() - due)
        outcome = "unfinished"
        try:
            outcome = await operation(number)
        except ClientError as error:
            outcome = error.outcome
        finally:
            self.note(outcome, trio.current_time() - due)

    def summary(self, seconds: float) -> LatencySummary:
        ordered = sorted(self.latencies_s)
        return LatencySummary(
            count=len(ordered),
            seconds=seconds,
            p50_ms=percentile(ordered, 50) * 1000,
            p99_ms=percentile(ordered, 99) * 1000,
            max_ms=percentile(ordered, 100) * 1000,
            start_lag_ms_max=self.start_lag_s_max * 1000,
            outcomes=dict(self.outcomes),
        )


async def run_open_loop(
    operation: Operation, *, rate_per_s: float, duration_s: float, outstanding_max: int = 256, drain_s: float = 10.0
) -> LatencySummary:
    """Offer `rate_per_s` operations for `duration_s`, whatever the server's pace, then wait up to `drain_s` for the rest.

    Operation i is due at i / rate. When `outstanding_max` are under way the next begins late, and its latency says so.
    Sleeping has a grain of 1 ms (epoll), which shows in the latencies of a server faster than that.
    """
    total = _whole(rate_per_s * duration_s, "rate_per_s * duration_s")
    workers = min(_whole(outstanding_max, "outstanding_max"), total)
    recorder = _Recorder()
    idle = trio.lowlevel.ParkingLot()
    start = trio.current_time()
    taken = released = 0

    async def perform_due() -> None:
        nonlocal taken
        while taken < total:
            if taken >= released:
                await idle.park()
                continue
            number = taken
            taken += 1
            await recorder.perform(operation, number, start + number / rate_per_s)

    async def keep_time() -> None:
        # One task sleeps for all: a timer for each operation would cost more than the operation.
        nonlocal released
        while released < total:
            await trio.sleep_until(start + released / rate_per_s)
            due_count = int((trio.current_time() - start) * rate_per_s) + 1
            released = min(max(released + 1, due_count), total)  # + 1: what was slept for is due, however that rounds
            idle.unpark(count=released - taken)
        idle.unpark_all()

    with trio.move_on_at(start + duration_s + drain_s):
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(perform_due)
            nursery.start_soon(keep_time)
    end = trio.current_time()
    for number in range(taken, total):
        recorder.note("not_started", end - (start + number / rate_per_s))
    return recorder.summary(end - start)


async def run_closed_loop(
    operations: Sequence[Operation], *, depth: int = 1, count_max: int = 1_000_000, duration_s: float = 60.0
) -> LatencySummary:
    """Keep `depth` of each operation under way, until `count_max` have begun or `duration_s` has passed.

    Give one operation per connection. Latency is measured from the start of each operation, so this says how fast the
    server can be driven, not how long its users wait: that is `run_open_loop`. After `duration_s` nothing begins, and
    what is under way is cut off.
    """
    workers = _whole(depth, "depth")
    recorder = _Recorder()
    start = trio.current_time()
    taken = 0

    async def perform_repeatedly(operation: Operation) -> None:
        nonlocal taken
        while taken < count_max:
            number = taken
            taken += 1
            await recorder.perform(operation, number, trio.current_time())

    with trio.move_on_at(start + duration_s):
        async with trio.open_nursery() as nursery:
            for operation in operations:
                for _ in range(workers):
                    nursery.start_soon(perform_repeatedly, operation)
    return recorder.summary(trio.current_time() - start)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of an ascending sequence do not exceed; 0.0 when it is empty."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * percent // 100)  # rounded up: the nearest-rank definition
    return ordered[max(int(rank), 1) - 1]


def _whole(number: float, name: str) -> int:
    if int(number) < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return int(number)
