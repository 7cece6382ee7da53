"""The bar chart of the rates, and levels that carry nothing."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.testbed.processes import REPOSITORY
from trainer.tracking.plots import bars
from trainer.training.evaluation import Evaluation

BLUE, RED = (0x3B, 0x6E, 0xA5), (0xB5, 0x53, 0x3C)


def bar_lengths(image, colour):
    """Lengths in pixels of the bars of a colour, from top to bottom."""
    counts = (np.abs(np.asarray(image.convert("RGB")).astype(int) - colour).max(2) < 30).sum(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (counts > 20).astype(int), [0]])))
    return [int(np.median(counts[start:stop])) for start, stop in edges.reshape(-1, 2)]


def test_bars_are_as_long_as_their_values():
    image = Image.open(io.BytesIO(bars({"z1": 4.0, "z2": 1.0, "z3": 0.0, "z4": -2.0}, "rates", "nats")))
    first, second = bar_lengths(image, BLUE)
    (negative,) = bar_lengths(image, RED)
    assert first > 200
    assert second == pytest.approx(first / 4, abs=2)
    assert negative == pytest.approx(first / 2, abs=2)


def test_the_picture_grows_with_the_number_of_levels():
    few, many = (Image.open(io.BytesIO(bars({f"z{i}": 1.0 for i in range(n)}, "rates"))) for n in (5, 45))
    assert many.height - few.height == pytest.approx(40 * 22, abs=2)
    assert len(bar_lengths(many, BLUE)) == 45


def test_matplotlib_is_not_imported_before_something_is_drawn():
    code = "import sys, jobs.train_local, trainer.tracking.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=120).returncode == 0


def test_levels_without_a_rate_are_named():
    rates = {"z1": 20.0, "z2": 0.004, "z3": 0.2, "z4": -0.001, "prior": 0.0}
    evaluation = Evaluation(10, 100.0, 1.0, 79.0, rates, 64, False)
    assert evaluation.collapsed == ["z2", "z4"]  # the prior term of a diffusion is no level
