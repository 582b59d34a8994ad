"""Load runs: the schedule is kept, the latency is honest, and every run ends. The clock is trio's mock clock."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from kvp2p.client import LatencySummary, NotSent, Unanswered, run_closed_loop, run_open_loop
from kvp2p.client.load import percentile


def in_virtual_time(run: Callable[[], Awaitable[LatencySummary]]) -> LatencySummary:
    async def main() -> LatencySummary:
        return await run()

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_open_loop_starts_each_operation_when_it_is_due() -> None:
    starts: list[tuple[int, float]] = []

    async def run() -> LatencySummary:
        start = trio.current_time()

        async def operation(number: int) -> str:
            starts.append((number, round(trio.current_time() - start, 6)))
            await trio.sleep(0.25)  # slower than the schedule: the next ones start all the same
            return "acked"

        return await run_open_loop(operation, rate_per_s=100, duration_s=1)

    summary = in_virtual_time(run)
    assert starts == [(number, number / 100) for number in range(100)]
    assert summary.count == 100
    assert summary.outcomes == {"acked": 100}
    assert summary.p50_ms == pytest.approx(250)
    assert summary.p99_ms == pytest.approx(250)
    assert summary.max_ms == pytest.approx(250)
    assert summary.seconds == pytest.approx(1.24)
    assert summary.per_second == pytest.approx(100 / 1.24)
    assert summary.start_lag_ms_max < 0.001


def test_a_stall_is_charged_to_every_operation_that_it_delayed() -> None:
    async def run() -> LatencySummary:
        stall_end = trio.current_time() + 0.5

        async def operation(number: int) -> str:
            await trio.sleep_until(max(stall_end, trio.current_time()))
            return "acked"

        return await run_open_loop(operation, rate_per_s=100, duration_s=1, outstanding_max=2)

    summary = in_virtual_time(run)
    # Those due in the first half second waited until its end, 0.5, 0.49 ... 0.01 s; the rest did not wait.
    assert summary.count == 100
    assert summary.max_ms == pytest.approx(500)
    assert summary.p50_ms == pytest.approx(0, abs=0.001)
    assert summary.p99_ms == pytest.approx(490)
    assert summary.start_lag_ms_max == pytest.approx(480), "two began in time, the third was held back by the bound"


def test_no_more_than_the_bound_is_ever_outstanding() -> None:
    outstanding = outstanding_max = 0

    async def operation(number: int) -> str:
        nonlocal outstanding, outstanding_max
        outstanding += 1
        outstanding_max = max(outstanding_max, outstanding)
        await trio.sleep(0.1)
        outstanding -= 1
        return "acked"

    summary = in_virtual_time(lambda: run_open_loop(operation, rate_per_s=1000, duration_s=0.5, outstanding_max=7))
    assert outstanding_max == 7
    assert summary.outcomes == {"acked": 500}


def test_what_the_end_of_an_open_loop_cuts_off_counts_with_its_waiting_time() -> None:
    async def operation(number: int) -> str:
        if number == 0:
            return "acked"
        await trio.sleep_forever()
        return "never"

    summary = in_virtual_time(
        lambda: run_open_loop(operation, rate_per_s=10, duration_s=1, outstanding_max=4, drain_s=2)
    )
    assert summary.outcomes == {"acked": 1, "unfinished": 4, "not_started": 5}
    assert summary.count == 10
    assert summary.seconds == pytest.approx(3)
    assert summary.max_ms == pytest.approx(2900), "number 1 was due at 0.1 s and had waited until the end"
    assert summary.per_second == pytest.approx(1 / 3)


def test_failures_of_the_client_are_counted_and_other_errors_end_the_run() -> None:
    async def operation(number: int) -> str:
        await trio.lowlevel.checkpoint()
        if number % 2:
            raise Unanswered("cut")
        if number % 4:
            raise NotSent("closed")
        return "found"

    summary = in_virtual_time(lambda: run_open_loop(operation, rate_per_s=100, duration_s=0.4))
    assert summary.outcomes == {"found": 10, "lost": 30}

    async def broken(number: int) -> str:
        await trio.lowlevel.checkpoint()
        raise KeyError(number)

    with pytest.raises(ExceptionGroup) as caught:
        in_virtual_time(lambda: run_open_loop(broken, rate_per_s=1, duration_s=1))
    assert isinstance(caught.value.exceptions[0], KeyError)


def test_a_closed_loop_keeps_its_depth_under_way_and_ends_at_its_count() -> None:
    outstanding = [0, 0]
    outstanding_max = [0, 0]
    numbers: list[int] = []

    def operation_of(connection: int) -> Callable[[int], Awaitable[str]]:
        async def operation(number: int) -> str:
            numbers.append(number)
            outstanding[connection] += 1
            outstanding_max[connection] = max(outstanding_max[connection], outstanding[connection])
            await trio.sleep(0.01)
            outstanding[connection] -= 1
            return "found"

        return operation

    summary = in_virtual_time(lambda: run_closed_loop([operation_of(0), operation_of(1)], depth=3, count_max=60))
    assert outstanding_max == [3, 3]
    assert sorted(numbers) == list(range(60))
    assert summary.outcomes == {"found": 60}
    assert summary.seconds == pytest.approx(0.1)
    assert summary.per_second == pytest.approx(600)
    assert summary.p99_ms == pytest.approx(10)


def test_a_closed_loop_ends_at_its_time() -> None:
    async def operation(number: int) -> str:
        await trio.sleep(0.03)
        return "found"

    summary = in_virtual_time(lambda: run_closed_loop([operation], duration_s=0.1))
    assert summary.outcomes == {"found": 3, "unfinished": 1}
    assert summary.seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "percent", "result"),
    [
        ([], 50, 0.0),
        ([3.0], 1, 3.0),
        ([3.0], 100, 3.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0], 51, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 102)], 99, 100.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: float, result: float) -> None:
    assert percentile(values, percent) == result


@pytest.mark.parametrize(
    ("rate_per_s", "outstanding_max", "complaint"),
    [(0.5, 1, "rate_per_s"), (-1.0, 1, "rate_per_s"), (10.0, 0, "outstanding_max must be at least 1, not 0")],
)
def test_a_run_without_operations_is_refused(rate_per_s: float, outstanding_max: int, complaint: str) -> None:
    async def operation(number: int) -> str:
        await trio.lowlevel.checkpoint()
        return "found"

    with pytest.raises(ValueError, match=complaint):
        in_virtual_time(
            lambda: run_open_loop(operation, rate_per_s=rate_per_s, duration_s=1, outstanding_max=outstanding_max)
        )
    with pytest.raises(ValueError, match="depth must be at least 1"):
        in_virtual_time(lambda: run_closed_loop([operation], depth=0))
