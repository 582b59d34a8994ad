"""The figures of a run, as a document and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kvp2p.client import LatencySummary
from kvp2p.client.load import percentile
from scripts.survival.history import History
from scripts.survival.trial import print_lines
from scripts.survival.verdicts import invented, lost, sides, windows


def describe(
    history: History, nodes: Sequence[str], summary: LatencySummary, violations: Sequence[str]
) -> dict[str, Any]:
    """Return the figures of a run as one document."""
    counted = windows(history)
    latencies_ms = sorted(
        (write.ended_s - write.due_s) * 1000
        for write in history.writes
        if write.outcome == "acked" and int(write.due_s) in counted
    )
    return {
        "nodes": len(nodes),
        "leader": history.leader,
        "rate": history.rate,
        "seconds": history.seconds,
        "outcomes": summary.outcomes,
        "codes": dict(Counter(f"{write.outcome} {write.code}" for write in history.writes if write.code)),
        "generator_lag_ms_max": round(summary.start_lag_ms_max, 1),
        "windows": counted,
        "acked_per_s_min": min(counted.values(), default=0),
        "acked_per_s_mean": round(sum(counted.values()) / max(len(counted), 1), 1),
        "p50_ms": round(percentile(latencies_ms, 50), 2),
        "p99_ms": round(percentile(latencies_ms, 99), 2),
        "kills": [asdict(kill) for kill in sorted(history.kills, key=lambda kill: kill.killed_s)],
        "cuts": [asdict(cut) for cut in sorted(history.cuts, key=lambda cut: cut.asked_s)],
        "side_windows": sides(history),
        "lost": sum(1 for _ in lost(history)),
        "invented": sum(1 for _ in invented(history)),
        "equal_after_s": history.equal_after_s,
        "keys_compared": sum(len(rows) for rows in history.standing.values()),
        "violations": list(violations),
    }


def print_table(document: Mapping[str, Any]) -> None:
    """Print the figures for people."""
    kills = ", ".join(
        f"{kill['node']} at {kill['killed_s']:.1f} s (ready at {kill['ready_s']:.1f})" for kill in document["kills"]
    )
    cuts = ", ".join(
        f"{' | '.join(map(','.join, cut['groups']))} at {cut['cut_s']:.1f} to {cut['heal_s']:.1f} s"
        for cut in document["cuts"]
    )
    equal = document["equal_after_s"]
    on_side = [sum(counts) for counts in zip(*document["side_windows"].values(), strict=True)] or [0, 0]
    lines = [
        ("seed", document["seed"]),
        ("nodes", document["nodes"]),
        ("offered", f"{document['rate']:g}/s for {document['seconds']:g} s, through nodes that do not lead"),
        ("outcomes", ", ".join(f"{count} {word}" for word, count in sorted(document["outcomes"].items()))),
        ("not acknowledged", ", ".join(f"{count} {code}" for code, count in document["codes"].items()) or "none"),
        ("SIGKILL" if document["suspend_s"] is None else f"SIGSTOP for {document['suspend_s']:g} s", kills or "none"),
        ("partitions", cuts or "none"),
        ("windows with a leader", f"{len(document['windows'])} whole seconds"),
        ("acknowledged in them", f"mean {document['acked_per_s_mean']:.0f}/s, least {document['acked_per_s_min']}/s"),
        ("latency in them", f"p50 {document['p50_ms']} ms, p99 {document['p99_ms']} ms"),
        (
            "on its side of a cut",
            f"{on_side[0]} of {on_side[1]} acknowledged in {len(document['side_windows'])} whole seconds",
        ),
        ("generator late by", f"{document['generator_lag_ms_max']} ms at most"),
        ("all nodes equal after", "never" if equal is None else f"{equal:.2f} s"),
        ("lost, invented", f"{document['lost']} acknowledged writes missing, {document['invented']} values of nobody"),
        ("comparisons", f"{document['keys_compared']} values read over HTTP (keys × nodes)"),
    ]
    print_lines(lines, document["violations"])
