"""What a run comes to, and its text: spreads, budgets, and that the text says what the document says, no more and no less."""

from typing import Any

import pytest
import trio

from kvp2p.client import NotSent
from scripts.bench import FIGURES, parse
from scripts.benchmarks.arriving import time_in_log
from scripts.benchmarks.results import (
    CannotMeasure,
    Figure,
    Row,
    Spread,
    at_least,
    at_most,
    document_head,
    quantiles_ms,
    run_async,
)
from scripts.benchmarks.text import shown, text_of

LOG = """\
2026-11-25T19:06:34.000000Z [info     ] link_up                  [kvp2p.mesh] peer=1 process=node
  a line of a traceback about link_up
2026-11-25T19:06:35.250000Z [warning  ] link_up                  [kvp2p.mesh] peer=2 process=node
"""


def a_document() -> dict[str, Any]:
    rows = (
        Row("GET", {"per_s": Spread(51_285.2, 50_898, 52_576), "p50_ms": Spread(0.612, 0.6, 0.62)}),
        Row("ratio", {"per_s": Spread(0.4, 0.3, 0.9)}, (at_least(0.5, "per_s"), at_most(0.4, "per_s"))),
        Row("memory", {"node_mb": Spread(23.5, 23.5, 23.5)}),
    )
    figure = Figure("get", "closed loop.", 3, rows)
    return {**document_head(), "figures": [figure.as_json()], "not_measured": {"large": "this version cannot."}}


def test_a_spread_is_the_median_with_the_least_and_the_greatest() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_quantiles_have_the_spread_of_the_repetitions_that_they_came_from() -> None:
    runs = [[float(number) for number in range(100, 0, -1)], [2.0] * 10, []]
    assert quantiles_ms(runs) == {
        "p50_ms": Spread(26.0, 2.0, 50.0),
        "p99_ms": Spread(50.5, 2.0, 99.0),
        "mean_ms": Spread(26.25, 2.0, 50.5),
    }
    with pytest.raises(CannotMeasure):
        quantiles_ms([[], []])


def test_a_budget_is_judged_by_the_median() -> None:
    spread = Spread(4.0, 1.0, 9.0)
    assert at_most(4.0, "p50_ms").is_kept_by(spread)
    assert not at_most(3.9, "p50_ms").is_kept_by(spread)
    assert at_least(4.0, "p50_ms").is_kept_by(spread)
    assert not at_least(4.1, "p50_ms").is_kept_by(spread)


def test_the_text_says_everything_that_the_document_holds() -> None:
    document = a_document()
    text = text_of(document)
    assert document["machine"]["processor"] in text
    assert document["commit"] in text
    assert "get: closed loop. Median of 3 repetitions (least–greatest)." in text
    assert "GET    51,285 (50,898–52,576)  0.61 (0.60–0.62)" in text
    assert "ratio        0.40 (0.30–0.90)\n" in text
    assert "node mb\n  memory  23.5 (23.5–23.5)" in text  # it shares no column, so it stands in a table of its own
    assert "budget: ratio, per s ≥ 0.5: NOT kept (0.40)" in text
    assert "budget: ratio, per s ≤ 0.4: kept (0.40)" in text
    assert "large: not measured. this version cannot." in text


def test_numbers_are_shown_with_about_three_digits() -> None:
    assert [shown(one) for one in (1_234_567.8, 100.4, 99.96, 12.345, 1.0, 0.054, -12.0, 0.0)] == [
        *("1,234,568", "100", "100.0", "12.3", "1.00", "0.05", "-12.0", "0.00")
    ]


def test_what_goes_wrong_at_a_node_is_one_error_however_deep_it_was() -> None:
    async def fail(error: Exception) -> None:
        async def raise_it() -> None:
            await trio.lowlevel.checkpoint()
            raise error

        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(raise_it)

    with pytest.raises(CannotMeasure, match="too slow"):
        run_async(fail, CannotMeasure("too slow"))
    with pytest.raises(CannotMeasure, match="nobody there"):
        run_async(fail, NotSent("nobody there"))
    with pytest.raises(BaseExceptionGroup):  # a bug of ours keeps its stack
        run_async(fail, AssertionError())


def test_the_log_tells_when_an_event_was_since_a_moment() -> None:
    first = time_in_log(LOG, "link_up", 0)
    assert time_in_log(LOG, "link_up", first + 1) == first + 1.25
    with pytest.raises(CannotMeasure, match="walk_started"):
        time_in_log(LOG, "walk_started", 0)


def test_a_figure_that_is_not_there_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["get", "nix"])
    assert ended.value.code == 2
    assert "'nix'; there are replica, get," in capsys.readouterr().err


def test_the_help_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    told = capsys.readouterr().out
    assert all(f"\n    {name} " in told for name in FIGURES)
