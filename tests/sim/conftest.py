"""Figures of the simulated runs, told at the end of a test run."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how fast the seeds ran and how many of them each planted bug took."""
    properties = [pair for report in terminalreporter.getreports("passed") for pair in report.user_properties]
    runs = [value for name, value in properties if name == "simulated"]
    if runs:
        hours, minutes = sum(run[0] for run in runs) / 3600, sum(run[1] for run in runs) / 60
        terminalreporter.write_line(
            f"simulated: {len(runs)} seeds, {hours:.2f} cluster-hours, {hours / minutes:.1f} a real minute"
        )
    for name, value in properties:
        if name == "planted bug":
            terminalreporter.write_line(f"{name} {value}")
