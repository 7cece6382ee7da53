"""Diffusion over a VAE's latents: a bound that is exact where the latents are exactly normal."""

import math

import numpy as np
import pytest
import torch

from datasets.loading.batches import Batch
from tests.trainer.gaussian_data import FixedNoise, time_grid
from tests.trainer.test_ground_truth import LOG_EVIDENCE, evidence_setting, linear_vae
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.models.latent import Latent, LatentConfig
from trainer.models.vae import VaeConfig
from trainer.noise import Noise
from trainer.training.evaluation import evaluate
from trainer.training.image_bounds import Estimate
from trainer.training.noise_levels import diffusion_by_level

MIXTURE = {"network": {"kind": "mlp", "width": 32, "depth": 1}, "prediction": {"kind": "mixture", "components": 1}}
START = torch.tensor(0.0)


def over_linear_vae(**settings):
    """Probabilistic PCA with its true posterior, its prior N(0, 1) now an untrained diffusion that is the same."""
    schedule = {"kind": "linear", "gamma_0": -10, "gamma_1": 9}
    config = LatentConfig(kind="latent", vae="", schedule=schedule, denoiser=MIXTURE, **settings)
    vae = linear_vae(0.5, 0.1)
    return Latent(config, vae.spec, vae).double()


def test_the_bound_of_the_whole_is_exact_where_the_latents_are_normal():
    """Integrated over z ~ q, eps and t; what is left of the gap is the schedule's ends."""
    model = over_linear_vae()
    nodes, shares = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(4))
    times, lengths = time_grid(model.diffuser.schedule, 60)
    z, eps, t = torch.cartesian_prod(nodes, nodes, times).T
    weights = torch.cartesian_prod(shares / shares.sum(), shares / shares.sum(), lengths).prod(1)
    images, _ = evidence_setting(len(z))
    elbo = -model(images, None, FixedNoise(z=z, eps=eps, t=t), START).negative_bound
    assert (elbo * weights).sum().item() == pytest.approx(LOG_EVIDENCE, abs=2e-4)
    assert (elbo * weights).sum().item() < LOG_EVIDENCE


def test_importance_weights_close_on_the_evidence():
    model = over_linear_vae(steps=25)
    images, noise = evidence_setting(500)
    with torch.no_grad():
        weights = model.log_weights(images, None, noise, 8)
    bounds = [(weights[:, :k].logsumexp(1) - math.log(k)).mean().item() for k in (1, 8)]
    assert bounds[0] + 0.05 < bounds[1]
    assert LOG_EVIDENCE - 0.3 < bounds[1] < LOG_EVIDENCE + 0.02


@pytest.fixture
def digits_like():
    torch.manual_seed(0)
    spec = ImageSpec(1, 4, 4, 17, classes=2)
    network = {"kind": "mlp", "hidden": [16]}
    return VaeConfig(kind="vae", latent=3, encoder=network, decoder=network).build(spec)


def latent(vae, **settings):
    return Latent(LatentConfig(kind="latent", vae="", denoiser=MIXTURE, **settings), vae.spec, vae)


def test_an_untrained_prior_costs_what_the_standard_normal_does(digits_like):
    """The diffusion starts as N(0, I): no training can begin above the VAE's own bound."""
    images = torch.randint(0, 17, (4000, 1, 4, 4), dtype=torch.uint8)
    noise = Noise(0, "evaluate", torch.arange(4000))
    model = latent(digits_like, schedule={"kind": "linear", "gamma_0": -10, "gamma_1": 9})
    with torch.no_grad():
        gap = model(images, None, noise, START).negative_bound - digits_like(images, None, noise, START).negative_bound
    assert gap.mean().item() == pytest.approx(0, abs=4 * gap.std().item() / math.sqrt(4000) + 0.01)


def test_noise_levels_add_up_to_the_diffusion_term_over_the_same_latents(digits_like):
    model, n = latent(digits_like), 50
    images = torch.randint(0, 17, (n, 1, 4, 4), dtype=torch.uint8)
    batches = [Batch(images, torch.arange(n), torch.ones(n), {})]
    found = diffusion_by_level(model, batches, Estimate(2), 4, [("unconditional", {})])
    assert found.total.values["unconditional"].mean == pytest.approx(
        evaluate(model, batches, 2, 4).rates["diffusion"], rel=1e-5
    )
    assert model.noise_levels.dimensions(torch.zeros(2, 1, 4, 4)).tolist() == [3, 3]


def test_the_first_stage_is_frozen(digits_like):
    model = latent(digits_like).train()
    assert not model.vae.training
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    elbo: Elbo = model(images, None, Noise(0, "train", torch.arange(4), 4), START)
    elbo.loss.sum().backward()
    assert all(parameter.grad is None for parameter in model.vae.parameters())
    assert any(parameter.grad is not None for parameter in model.diffuser.parameters())


def test_samples_reconstructions_and_trajectories_are_levels(digits_like):
    model = latent(digits_like, sampling={"steps": 3})
    noise = Noise(0, "sample", torch.arange(5))
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    for made in (model.sample(noise), model.reconstruct(images, None, noise), *model.trajectory(noise)):
        assert made.shape == (5, 1, 4, 4)
        assert made.dtype == torch.uint8
