"""What this process counts, as plain integers since it started.

Decides: the names of the samples, and the buckets of the latency histograms.
Keeps true: I9, the set of samples is bounded: methods and statuses come from closed lists.
In and out: increments on the hot path, a mapping from Prometheus sample (labels included) to integer once a second. The
    node sums the processes, so everything here is a sum; microseconds, because the sums are integers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

# Microseconds. From one LMDB read to the longest wait that a request may have (deadline and hold).
BUCKETS_US: Final = (
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    1_000_000,
    10_000_000,
)
METHODS: Final = frozenset({b"GET", b"HEAD", b"PUT", b"DELETE", b"POST", b"OPTIONS"})


class Histogram:
    """Latencies of one kind of request."""

    __slots__ = ("_counts", "_name", "_sum_us")

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts = [0] * (len(BUCKETS_US) + 1)
        self._sum_us = 0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count `times` requests that took so long each."""
        microseconds = int(seconds * 1e6)
        self._counts[bisect_left(BUCKETS_US, microseconds)] += times
        self._sum_us += microseconds * times

    def samples(self) -> dict[str, int]:
        """Return the cumulative buckets, the count and the sum."""
        result = {}
        total = 0
        for bound, count in zip((*map(str, BUCKETS_US), "+Inf"), self._counts, strict=True):
            total += count
            result[f'{self._name}_bucket{{le="{bound}"}}'] = total
        return {**result, f"{self._name}_count": total, f"{self._name}_sum": self._sum_us}


class Counters:
    """All counters of one gateway process. `values_read` are the GETs that the hot path answered with 200."""

    def __init__(self) -> None:
        self.values_read = 0
        self.connections_accepted = 0
        self.connections_refused = 0
        self.connections_open = 0
        self.connections_timed_out = 0
        self.streams_cut = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.reads = Histogram("kvp2p_gateway_read_microseconds")
        self.writes = Histogram("kvp2p_gateway_write_microseconds")
        self._requests: Counter[tuple[bytes, int]] = Counter()

    def count(self, method: bytes, status: int) -> None:
        """Count one answer; a method that the data port does not know counts as `other`."""
        self._requests[method if method in METHODS else b"other", status] += 1

    def samples(self) -> dict[str, int]:
        """Return every sample by its Prometheus name."""
        requests = self._requests.copy()
        requests[b"GET", 200] += self.values_read
        result = {
            f'kvp2p_gateway_requests_total{{method="{method.decode("ascii")}",status="{status}"}}': count
            for (method, status), count in sorted(requests.items())
        }
        for name in ("accepted", "refused", "timed_out"):
            result[f"kvp2p_gateway_connections_{name}_total"] = getattr(self, f"connections_{name}")
        result["kvp2p_gateway_connections_open"] = self.connections_open
        result["kvp2p_gateway_streams_cut_total"] = self.streams_cut
        result["kvp2p_gateway_received_bytes_total"] = self.bytes_received
        result["kvp2p_gateway_sent_bytes_total"] = self.bytes_sent
        return {**result, **self.reads.samples(), **self.writes.samples()}
