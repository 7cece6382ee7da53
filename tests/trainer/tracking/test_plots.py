"""The bar chart of the rates, and levels that carry nothing."""

from __future__ import annotations

import io

from PIL import Image

from trainer.tracking.plots import LABEL, bars
from trainer.training.evaluation import Evaluation

BLUE, RED = (0x3B, 0x6E, 0xA5), (0xB5, 0x53, 0x3C)


def test_bars_are_as_long_as_their_values():
    with Image.open(io.BytesIO(bars({"z1": 4.0, "z2": 1.0, "z3": 0.0, "z4": -2.0}, "rates"))) as opened:
        image = opened.convert("RGB")
    lengths = []
    for i, colour in enumerate((BLUE, BLUE, BLUE, RED), start=1):
        y = i * 22 + 4
        row = [image.getpixel((x, y)) for x in range(LABEL, image.width)]
        lengths.append(sum(pixel == colour for pixel in row) - 1)
    assert lengths[1] == round(lengths[0] / 4)
    assert lengths[2] == 0
    assert lengths[3] == lengths[0] // 2


def test_levels_without_a_rate_are_named():
    rates = {"z1": 20.0, "z2": 0.004, "z3": 0.2, "z4": -0.001, "prior": 0.0}
    evaluation = Evaluation(10, 100.0, 1.0, 79.0, rates, 64, False)
    assert evaluation.collapsed == ["z2", "z4"]  # the prior term of a diffusion is no level
