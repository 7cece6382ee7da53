"""Tests that need a GPU are skipped without one, and one line at the end says so."""

from __future__ import annotations

import pytest
import torch

REASON = "no CUDA GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = sum(REASON in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(
            f"skipped {skipped} tests: {REASON} here; `make gpu-check` runs them where there is one"
        )
