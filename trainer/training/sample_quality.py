"""Distances between two sets of images on chosen features; called the FID only on Inception's features.

Frechet distance: Dowson and Landau 1982, for images Heusel et al. 2017 (arXiv 1706.08500). Precision and recall:
Kynkaanniemi et al. 2019 (arXiv 1904.06991).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from trainer.errors import TrainingError

Features = Callable[[Tensor], Tensor]  # uint8 [B, 3 or C, H, W] of 0..255 to float [B, F]

POOLED = 8  # rows and columns of the feature "pixels"
INCEPTION = "inception"
NEIGHBOURS = 3  # of precision and recall, as in the paper


class Quality(NamedTuple):
    """How a set of samples compares with a set of real images on some features."""

    frechet: float
    precision: float  # share of the samples within the real images
    recall: float  # share of the real images within the samples


def features(name: str) -> Features:
    """`pixels` (8 x 8 means), `inception` (torch-fidelity's network, as in the FID), or a function `module:name`.

    Raises TrainingError if the function does not exist, or torch-fidelity is not installed.
    """
    if name == "pixels":
        return pixels
    if name == INCEPTION:
        return _inception()
    module, _, function = name.partition(":")
    try:
        return cast(Features, getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        known = f"pixels, {INCEPTION}, or package.module:function"
        raise TrainingError(f"features {name}: no such function ({error}); allowed: {known}") from error


def pixels(images: Tensor) -> Tensor:
    """Means over an 8 x 8 grid of an image, in [0, 1]; float64 [B, C * 64]."""
    return torch.nn.functional.adaptive_avg_pool2d(images.double() / 255, POOLED).flatten(1)


def compare(samples: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> Quality:
    """The quality of samples with features [N, F], compared with real images with features [M, F]."""
    samples, real = samples.double(), real.double()
    return Quality(
        frechet_distance(samples, real),
        coverage(samples, real, neighbours),
        coverage(real, samples, neighbours),
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) for two sets of features [N, F], float64."""
    covariance_a, covariance_b = (torch.cov(x.T, correction=1).reshape(x.shape[1], -1) for x in (a, b))
    # (C_a C_b)^(1/2) has the trace of (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric
    root = _root(covariance_a)
    between = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + covariance_a.trace() + covariance_b.trace() - 2 * between)


def coverage(points: Tensor, of: Tensor, neighbours: int = NEIGHBOURS, chunk: int = 1024) -> float:
    """Share of `points` [N, F] within the k-nearest-neighbour ball of a member of `of` [M, F]. Raises TrainingError."""
    if len(of) <= neighbours:
        raise TrainingError(f"{len(of)} images: precision and recall need more than {neighbours}")
    radii = torch.cat([torch.cdist(part, of).kthvalue(neighbours + 1, dim=1).values for part in torch.split(of, chunk)])
    inside = [(torch.cdist(part, of) <= radii).any(1) for part in torch.split(points, chunk)]
    return float(torch.cat(inside).double().mean())


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _inception() -> Features:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise TrainingError(f"features {INCEPTION}: pip install torch-fidelity, which has the network") from error
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"features {INCEPTION}: torch-fidelity cannot get its weights ({reason})") from error

    def extract(images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = network.to(images.device)(images.expand(-1, 3, -1, -1))[0]
            return found

    return extract
