"""Frechet distance, precision and recall, where they are known."""

import pytest
import torch

from trainer.errors import TrainingError
from trainer.images import visible
from trainer.training.sample_quality import compare, coverage, features, frechet_distance, pixels


def exactly(mean: torch.Tensor, covariance: torch.Tensor, n: int = 500) -> torch.Tensor:
    """n points whose sample mean and covariance are those given."""
    raw = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = (raw - raw.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_normals_is_the_formulas():
    """Covariances with the same axes: |m|^2 + sum (s_a - s_b)^2."""
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    a, b = (torch.tensor(s, dtype=torch.float64) for s in ([1.0, 2.0, 0.5], [2.0, 0.3, 0.5]))
    shift = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    points = exactly(torch.zeros(3).double(), turn @ torch.diag(a**2) @ turn.T)
    others = exactly(shift, turn @ torch.diag(b**2) @ turn.T)
    expected = shift.square().sum() + (a - b).square().sum()
    assert frechet_distance(points, others) == pytest.approx(expected.item(), abs=1e-9)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)


def test_coverage_counts_the_points_among_the_others():
    line = torch.arange(10, dtype=torch.float64)[:, None]  # every radius is 1, 2 at the ends, for 2 neighbours
    points = torch.tensor([[0.5], [9.5], [10.9], [11.1], [-3.0]], dtype=torch.float64)
    assert coverage(points, line, neighbours=2) == pytest.approx(3 / 5)


def test_lost_variety_costs_recall_and_not_precision():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(1000, 2, generator=generator)
    narrow = compare(0.2 * torch.randn(1000, 2, generator=generator), real)
    wide = compare(5 * torch.randn(1000, 2, generator=generator), real)
    assert narrow.precision > 0.95 > 0.6 > narrow.recall
    assert wide.precision < 0.6
    assert wide.recall > 0.9


def test_features_are_named():
    images = torch.randint(0, 17, (5, 1, 16, 16), dtype=torch.uint8)
    shown = visible(images, 17)
    assert shown.max() <= 255
    assert features("pixels")(shown).shape == (5, 64)
    assert features("trainer.training.sample_quality:pixels") is pixels
    with pytest.raises(TrainingError, match="features nowhere:f: no such function"):
        features("nowhere:f")


def test_too_few_images_are_an_error():
    with pytest.raises(TrainingError, match="3 images: precision and recall need more than 3"):
        coverage(torch.zeros(2, 2), torch.zeros(3, 2))
