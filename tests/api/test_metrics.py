"""Samples by name into the families of Prometheus."""

import pytest

from kvp2p.api.metrics import exposition, families, parse_sample
from kvp2p.errors import RemoteProtocolError


def test_labels_keep_commas_quotes_and_line_ends() -> None:
    assert parse_sample('a_total{x="1,2",y="say \\"hi\\"\\n",z="back\\\\slash"}') == (
        "a_total",
        {"x": "1,2", "y": 'say "hi"\n', "z": "back\\slash"},
    )
    assert parse_sample("plain") == ("plain", {})


@pytest.mark.parametrize("sample", ["", "1a", "a{", "a{x=1}", 'a{x="1"y="2"}', "a b"])
def test_what_is_no_sample_is_an_error(sample: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_sample(sample)


def test_names_tell_counters_histograms_and_gauges_apart() -> None:
    samples = {
        'r_bucket{le="1"}': 2,
        'r_bucket{le="+Inf"}': 3,
        "r_count": 3,
        "r_sum": 9,
        "requests_total": 5,
        "open_count": 1,
    }
    assert {metric.name: metric.type for metric in families(samples)} == {
        "r": "histogram",
        "requests": "counter",
        "open_count": "gauge",
    }


def test_exposition_holds_every_sample_once() -> None:
    text = exposition({'r_bucket{le="+Inf"}': 3, "r_count": 3, "r_sum": 9, "requests_total": 5}).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert sorted(lines) == ['r_bucket{le="+Inf"} 3.0', "r_count 3.0", "r_sum 9.0", "requests_total 5.0"]


def test_buckets_stand_in_the_order_of_their_bounds() -> None:
    bounds = ["+Inf", "100", "50", "1000"]
    samples = {f'r_bucket{{route="{route}",le="{bound}"}}': 1 for bound in bounds for route in "ab"}
    (metric,) = families(samples)
    assert [(one.labels["route"], one.labels["le"]) for one in metric.samples] == [
        (route, bound) for route in "ab" for bound in ("50", "100", "1000", "+Inf")
    ]
    with pytest.raises(RemoteProtocolError):
        families({'r_bucket{le="many"}': 1})
