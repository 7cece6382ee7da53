"""Bounds that are known exactly, for the production code in float64."""

import math

import pytest
import torch

from trainer.images import ImageSpec
from trainer.likelihoods.discretised import DiscretisedGaussian, DiscretisedLogistic
from trainer.models.vae import VaeConfig
from trainer.noise import Noise

LOG_EVIDENCE = -4.158108146  # log N((1,1,1); 0, W W^T + I) with W = (1, 2, 2)


def linear_vae(mean: float, variance: float):
    """Probabilistic PCA, W = (1, 2, 2)^T, unit noise, with q(z | x = (1,1,1)) = N(mean, variance)."""
    network = {"kind": "mlp", "hidden": []}
    config = VaeConfig(
        kind="vae", latent=1, encoder=network, decoder=network, likelihood={"kind": "gaussian", "scale": 1.0}
    )
    model = config.build(ImageSpec(channels=1, height=1, width=3, levels=2)).double()
    encoder, decoder = model.encoder[1][0], model.decoder[0][0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        decoder.weight[:, 0] = torch.tensor([1.0, 2.0, 2.0])
        encoder.bias[0] = mean
        encoder.bias[1] = 5 * math.atanh(0.5 * math.log(variance) / 5)  # through the bound of the log-scale
    return model


def evidence_setting(n: int):
    images = torch.ones(n, 1, 1, 3, dtype=torch.uint8)  # level 1 of 2 is x = +1
    return images, Noise(0, "evaluate", torch.arange(n), dtype=torch.float64)


def test_linear_vae_with_the_true_posterior_has_no_gap():
    model = linear_vae(0.5, 0.1)
    images, noise = evidence_setting(200_000)
    elbo = -model(images, None, noise, torch.tensor(0.0)).negative_bound
    assert elbo.mean().item() == pytest.approx(LOG_EVIDENCE, abs=4 * elbo.std().item() / math.sqrt(len(elbo)))


def test_importance_weights_of_the_true_posterior_have_no_variance():
    model = linear_vae(0.5, 0.1)
    images, noise = evidence_setting(64)
    weights = model.log_weights(images, None, noise, k=5)
    assert weights.shape == (64, 5)
    torch.testing.assert_close(weights, torch.full_like(weights, LOG_EVIDENCE), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("mean", "variance"), [(0.2, 0.1), (0.5, 0.4), (-0.3, 0.02)])
def test_the_gap_of_the_bound_is_the_kl_to_the_posterior(mean, variance):
    """Equations 9-15: log p(x) - ELBO = KL(q || p(z | x)), and importance-weighted bounds close it from below."""
    model = linear_vae(mean, variance)
    images, noise = evidence_setting(200_000)
    bound = -model(images, None, noise, torch.tensor(0.0)).negative_bound
    gap = 0.5 * (variance / 0.1 + (mean - 0.5) ** 2 / 0.1 - 1 - math.log(variance / 0.1))
    error = 4 * bound.std().item() / math.sqrt(len(bound))
    assert LOG_EVIDENCE - bound.mean().item() == pytest.approx(gap, abs=error)

    images, noise = evidence_setting(20_000)
    weights = model.log_weights(images, None, noise, k=64)
    bounds = [(weights[:, :k].logsumexp(1) - math.log(k)).mean().item() for k in (1, 4, 16, 64)]
    assert bounds == sorted(bounds)
    assert bounds[-1] < LOG_EVIDENCE + 0.01


@pytest.mark.parametrize("likelihood", [DiscretisedLogistic, DiscretisedGaussian])
@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 0.5])
@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.999])
def test_probabilities_of_the_levels_sum_to_one(likelihood, log_scale, mean):
    levels = torch.arange(256, dtype=torch.uint8)
    full = torch.full((256,), mean, dtype=torch.float64)
    log_probs = likelihood(ImageSpec(1, 1, 1)).log_prob_values(full, torch.full_like(full, log_scale), levels)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("level", "bits"), [(128, 6.115010), (0, 10.577816)])
def test_discretised_logistic_has_the_exact_cost(level, bits):
    with_bound = DiscretisedLogistic(ImageSpec(1, 1, 1))
    mean, log_scale = torch.zeros(1, dtype=torch.float64), torch.full((1,), -2.0, dtype=torch.float64)
    nats = -with_bound.log_prob_values(mean, log_scale, torch.tensor([level], dtype=torch.uint8))
    assert nats.item() / math.log(2) == pytest.approx(bits, abs=1e-6)
