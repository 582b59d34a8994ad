"""The node's samples in the text format of Prometheus.

Decides: which kind of metric a sample belongs to, by its name: `_total` is a counter, what has `_bucket` is a histogram, all else
    is a gauge.
Keeps true: what the node says is passed on, nothing is added; a sample that cannot be read is an error, not left out.
In and out: a mapping from sample (`name{label="value",…}`) to number, summed by the node over its processes; bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from kvp2p.errors import RemoteProtocolError

_SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?", re.DOTALL)
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)', re.DOTALL)
_ESCAPED: Final = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
_HISTOGRAM_PARTS: Final = ("_bucket", "_count", "_sum")
_HELP: Final = "Summed over the processes of this node, since each has started."


def parse_sample(sample: str) -> tuple[str, dict[str, str]]:
    """Split a sample into name and labels; raises RemoteProtocolError when it is none."""
    found = _SAMPLE.fullmatch(sample)
    if found is None:
        raise RemoteProtocolError(f"{sample[:200]!r} is no name of a sample")
    labels: dict[str, str] = {}
    text, at = found[2] or "", 0
    while at < len(text):
        label = _LABEL.match(text, at)
        if label is None:
            raise RemoteProtocolError(f"the labels of {sample[:200]!r} cannot be read")
        labels[label[1]] = re.sub(r"\\.", lambda escape: _ESCAPED.get(escape[0], escape[0]), label[2])
        at = label.end()
    return found[1], labels


def families(samples: Mapping[str, float]) -> list[Metric]:
    """Group samples into metrics, in the order of their names."""
    parsed = sorted(((*parse_sample(sample), value) for sample, value in samples.items()), key=_place)
    histograms = {name.removesuffix("_bucket") for name, _, _ in parsed if name.endswith("_bucket")}
    found: dict[str, Metric] = {}
    for name, labels, value in parsed:
        base, kind = _family(name, histograms)
        metric = found.setdefault(base, Metric(base, _HELP, kind))
        metric.add_sample(name, labels, value)
    return [found[base] for base in sorted(found)]


def _place(sample: tuple[str, dict[str, str], float]) -> tuple[str, list[tuple[str, str]], float]:
    """Order samples by name and labels, but the buckets of a histogram by their bounds, as readers expect them."""
    name, labels, _ = sample
    others = sorted((label, text) for label, text in labels.items() if label != "le")
    try:
        return name, others, float(labels.get("le", "0"))
    except ValueError as error:
        raise RemoteProtocolError(f"{labels['le'][:80]!r} is no bound of a bucket") from error


def _family(name: str, histograms: set[str]) -> tuple[str, str]:
    for part in _HISTOGRAM_PARTS:
        if name.endswith(part) and name.removesuffix(part) in histograms:
            return name.removesuffix(part), "histogram"
    if name.endswith("_total"):
        return name.removesuffix("_total"), "counter"
    return name, "gauge"


class _Samples(Collector):
    """Hands samples that were collected elsewhere to prometheus-client."""

    def __init__(self, samples: Mapping[str, float]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        return iter(families(self._samples))


def exposition(samples: Mapping[str, float]) -> bytes:
    """Return the text that a Prometheus server reads (`CONTENT_TYPE_LATEST`)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(samples))
    return generate_latest(registry)
