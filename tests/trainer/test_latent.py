"""Diffusion over a VAE's latents: a bound that is exact where the latents are exactly normal."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from datasets.loading.batches import Batch
from tests.trainer.gaussian_data import FixedNoise, time_grid
from tests.trainer.test_ground_truth import LOG_EVIDENCE, evidence_setting, linear_vae
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.models import ModelConfig
from trainer.models.latent import Latent, LatentConfig
from trainer.models.latent.first_stages.run import stage_of
from trainer.models.latent.parts import decode_in_parts
from trainer.models.vae import VaeConfig
from trainer.noise import Noise
from trainer.training.evaluation import evaluate
from trainer.training.image_bounds import Estimate
from trainer.training.noise_levels import diffusion_by_level

MIXTURE = {"network": {"kind": "mlp", "width": 32, "depth": 1}, "prediction": {"kind": "mixture", "components": 1}}
START = torch.tensor(0.0)


def over(model, **settings):
    """A diffusion over the latents of `model`."""
    first_stage = {"kind": "run", "url": "none"}
    config = LatentConfig.model_validate({"kind": "latent", "first_stage": first_stage, "denoiser": MIXTURE} | settings)
    return Latent(config, stage_of(model), model.spec)


def over_linear_vae(**settings):
    """Probabilistic PCA with its true posterior, its prior N(0, 1) now an untrained diffusion that is the same."""
    narrow = {"schedule": {"kind": "linear", "gamma_0": -10, "gamma_1": 9}}
    return over(linear_vae(0.5, 0.1), **narrow | settings).double()


def expected_bound(model, images, nodes=4, times=200):
    """The bound of one image, nats, integrated over z ~ q, eps and t: exact where every value of z has its own term,
    which is a polynomial of the draws of that value.
    """
    points, shares = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(nodes))
    t, lengths = time_grid(model.diffuser.schedule, times)
    z, eps, t = torch.cartesian_prod(points, points, t).T
    weights = torch.cartesian_prod(shares / shares.sum(), shares / shares.sum(), lengths).prod(1)
    z, eps = (draw[:, None].expand(-1, math.prod(model.first_stage.shape)) for draw in (z, eps))
    with torch.no_grad():
        found = model(images.expand(len(t), *images.shape[1:]), None, FixedNoise(z=z, eps=eps, t=t), START)
    return -(found.negative_bound * weights).sum().item()


WIDE = {"kind": "linear", "gamma_0": -18, "gamma_1": 18}  # ends that cost under 1e-7 nats


def test_the_bound_of_the_whole_is_exact_where_the_latents_are_normal():
    model = over_linear_vae(schedule=WIDE)
    assert expected_bound(model, evidence_setting(1)[0]) == pytest.approx(LOG_EVIDENCE, abs=1e-6)


class Linear(torch.nn.Module):
    """q(z | x) and p(x | z) of maps by linear maps of 2 x 2 pixels, which do not overlap."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)


class LinearEncoder(Linear):
    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.weight, self.bias, stride=2)


class LinearDecoder(Linear):
    def forward(self, z):
        return torch.nn.functional.conv_transpose2d(z, self.weight, self.bias, stride=2)


def linear_maps(seed: int, side: int = 4):
    """A first stage x = W z + b + noise with the true posterior under p(z) = N(m, s^2), two channels of z and three of
    x, and the log-evidence of an image.
    """
    random = torch.Generator().manual_seed(seed)
    columns = torch.linalg.qr(torch.randn(12, 2, generator=random, dtype=torch.float64))[0]
    columns = columns * (1 + torch.rand(2, generator=random, dtype=torch.float64))  # orthogonal: q is diagonal
    bias, mean = 0.3 * torch.randn(3, generator=random).double(), torch.randn(2, generator=random).double()
    scale, noise = 0.5 + torch.rand(2, generator=random).double(), 0.2 + 0.3 * torch.rand((), generator=random).double()
    config = VaeConfig.model_validate(
        {
            "kind": "vae",
            "latent": {"channels": 2, "downsample": 2},
            "encoder": {"kind": "resnet", "channels": [4, 4]},
            "decoder": {"kind": "resnet", "channels": [4, 4]},
            "likelihood": {"kind": "gaussian", "scale": noise.item()},
        }
    )
    model = config.build(ImageSpec(3, side, side, 256)).double()
    offset = bias.repeat_interleave(4)
    variance = 1 / (1 / scale.square() + columns.square().sum(0) / noise.square())
    gain = variance[:, None] * columns.T / noise.square()  # E[z | x] = gain (x - offset) + variance m / s^2
    log_scale = 5 * torch.atanh(0.5 * variance.log() / 5)  # through the bound of the log-scale
    start = variance * mean / scale.square() - gain @ offset
    weight = torch.cat([gain, torch.zeros_like(gain)]).reshape(4, 3, 2, 2)
    model.encoder = LinearEncoder(weight, torch.cat([start, log_scale]))
    model.decoder = LinearDecoder(columns.T.reshape(2, 3, 2, 2).clone(), bias)

    image = torch.randint(0, 256, (1, 3, side, side), generator=random, dtype=torch.uint8)
    x = torch.nn.functional.unfold(model.spec.scaled(image, torch.float64), 2, stride=2)[0].T  # [places, 12]
    covariance = columns * scale.square() @ columns.T + noise.square() * torch.eye(12, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(columns @ mean + offset, covariance).log_prob(x).sum().item()
    return model, mean, scale, image, evidence


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_over_maps_is_the_log_likelihood_of_a_linear_gaussian_model(seed):
    vae, mean, scale, image, evidence = linear_maps(seed)
    model = over(vae, schedule=WIDE).double()
    model.scale.mean.copy_(mean.reshape(2, 1, 1))
    model.scale.log_scale.copy_(scale.log().reshape(2, 1, 1))
    assert expected_bound(model, image) == pytest.approx(evidence, abs=1e-6)
    with torch.no_grad():
        vae.encoder.bias[0] += 0.1
    assert expected_bound(model, image) < evidence - 1e-3


def test_importance_weights_over_maps_close_on_the_log_likelihood():
    vae, mean, scale, image, evidence = linear_maps(0, side=2)
    model = over(vae, schedule={"kind": "linear", "gamma_0": -9, "gamma_1": 9}, steps=100).double()
    model.scale.mean.copy_(mean.reshape(2, 1, 1))
    model.scale.log_scale.copy_(scale.log().reshape(2, 1, 1))
    noise = Noise(0, "evaluate", torch.arange(150), dtype=torch.float64)
    with torch.no_grad():
        weights = model.log_weights(image.expand(150, -1, -1, -1), None, noise, 6)
    bounds = [(weights[:, :k].logsumexp(1) - math.log(k)).mean().item() for k in (1, 6)]
    assert bounds[0] + 0.1 < bounds[1]
    assert evidence - 0.25 < bounds[1] < evidence + 0.02


def test_measuring_gives_each_channel_mean_0_and_variance_1():
    model = over(linear_maps(0)[0]).double()
    batches = [torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8) for n in (300, 100)]
    model.measure(batches)
    images = torch.cat(batches)
    u = model.diffused(images, Noise(0, "evaluate", torch.arange(400), dtype=torch.float64))
    assert u.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=0.1)
    assert u.var((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.1)
    found = {name: value.clone() for name, value in model.state_dict().items()}
    model.measure([images[:150], images[150:]])  # however the images are divided
    assert all(torch.allclose(value, found[name], atol=1e-9) for name, value in model.state_dict().items())


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


LADDER = {"kind": "ladder", "stages": [{"width": 8, "latent": 2}, {"width": 8, "latent": 3, "groups": 2}]}
FIRST_STAGES = {
    "vae": {"kind": "vae", "latent": 3, "encoder": {"kind": "mlp"}, "decoder": {"kind": "mlp"}},
    "vae-maps": {
        "kind": "vae",
        "latent": {"channels": 2, "downsample": 2},
        "encoder": {"kind": "resnet", "channels": [4, 8], "blocks": 1},
        "decoder": {"kind": "resnet", "channels": [4, 8], "blocks": 1},
    },
    "ladder": LADDER | {"top_prior": "standard"},
    "ladder-maps": LADDER
    | {"cells": {"kind": "nvae"}, "stages": [LADDER["stages"][0], LADDER["stages"][1] | {"shrink": 2}]},
}


@pytest.fixture(params=FIRST_STAGES)
def first_stage(request):
    torch.manual_seed(0)
    config = TypeAdapter(ModelConfig).validate_python(FIRST_STAGES[request.param])
    model = config.build(ImageSpec(1, 4, 4, 17, classes=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    return model


def images_like(n: int) -> torch.Tensor:
    return torch.randint(0, 17, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_bound_of_the_first_stage_is_its_own(first_stage):
    """By the same draws: the topmost latent of a ladder has the name of its level."""
    top = f"z{getattr(first_stage, 'levels', 1)}"

    class SameDraws(Noise):
        def normal(self, name, shape):
            return super().normal(top if name == "z" else name, shape)

    model, images = over(first_stage), images_like(6)
    found = model.bounds["first_stage"].terms(images, None, SameDraws(0, "evaluate", torch.arange(6)), 2)
    expected = first_stage.bounds["elbo"].terms(images, None, Noise(0, "evaluate", torch.arange(6)), 2)
    assert found.pop("z") == pytest.approx(expected.pop(top), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first_stage", ["vae", "vae-maps", "ladder"], indirect=True)  # whose p(z) is N(0, I)
def test_an_untrained_prior_costs_what_the_first_stages_own_does(first_stage):
    """The diffusion starts as N(0, I): no training can begin above the bound of the first stage."""
    images, noise = images_like(3000), Noise(0, "evaluate", torch.arange(3000))
    model = over(first_stage, schedule={"kind": "linear", "gamma_0": -10, "gamma_1": 9})
    with torch.no_grad():
        alone = sum(model.bounds["first_stage"].terms(images, None, noise, 1).values())
        gap = model(images, None, noise, START).negative_bound - alone
    assert gap.mean().item() == pytest.approx(0, abs=4 * gap.std().item() / math.sqrt(3000) + 0.01)


def test_noise_levels_add_up_to_the_diffusion_term_over_the_same_latents(digits_like):
    model, n = over(digits_like), 50
    images = torch.randint(0, 17, (n, 1, 4, 4), dtype=torch.uint8)
    batches = [Batch(images, torch.arange(n), torch.ones(n), {})]
    found = diffusion_by_level(model, batches, Estimate(2), 4, [("unconditional", {})])
    assert found.total.values["unconditional"].mean == pytest.approx(
        evaluate(model, batches, 2, 4).rates["diffusion"], rel=1e-5
    )
    assert model.noise_levels.dimensions(torch.zeros(2, 1, 4, 4)).tolist() == [3, 3]


def test_the_first_stage_is_frozen(digits_like):
    model = over(digits_like).train()
    assert not model.first_stage.training
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    elbo: Elbo = model(images, None, Noise(0, "train", torch.arange(4), 4), START)
    elbo.loss.sum().backward()
    assert all(parameter.grad is None for parameter in model.first_stage.parameters())
    assert any(parameter.grad is not None for parameter in model.diffuser.parameters())


def test_samples_reconstructions_and_trajectories_are_levels(digits_like):
    model = over(digits_like, sampling={"steps": 3})
    noise = Noise(0, "sample", torch.arange(5))
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    for made in (model.sample(noise), model.reconstruct(images, None, noise), *model.trajectory(noise)):
        assert made.shape == (5, 1, 4, 4)
        assert made.dtype == torch.uint8


def test_a_ladder_takes_no_latents_from_columns():
    model = TypeAdapter(ModelConfig).validate_python(FIRST_STAGES["ladder"]).build(ImageSpec(1, 4, 4, 17))
    with pytest.raises(ValueError, match=r"^latents: the levels below z of a ladder need the image"):
        over(model, latents={})


@pytest.mark.parametrize(("rows", "tile"), [(2, None), (None, 4), (3, 5), (1, 64)])
def test_a_local_decoder_gives_the_same_in_parts(rows, tile):
    model, z = over(linear_maps(0, side=16)[0]).double(), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    noise = Noise(0, "sample", torch.arange(5), dtype=torch.float64)
    whole = model.first_stage.decode(z, noise).output
    torch.testing.assert_close(decode_in_parts(model.first_stage, z, noise, rows, tile), whole)


def test_levels_below_the_latent_are_the_same_in_slices(first_stage):
    model, noise = over(first_stage, sampling={"steps": 2}), Noise(0, "sample", torch.arange(5))
    assert torch.equal(model.sample(noise, decode_rows=2), model.sample(noise))


def test_tiles_are_refused_where_the_first_stage_decodes_no_parts():
    model = over(TypeAdapter(ModelConfig).validate_python(FIRST_STAGES["vae"]).build(ImageSpec(1, 4, 4, 17)))
    with pytest.raises(ValueError, match=r"^tile: this first stage .* use decode_rows"):
        model.sampling_with({"tile": 8}, False)
    with pytest.raises(ValueError, match=r"^sampling\.tile: this first stage"):
        over(model.first_stage.model, sampling={"tile": 8})
    with pytest.raises(ValueError, match=r"^tile: is 2, at least 4"):
        over(linear_maps(0)[0]).sampling_with({"tile": 2}, False)
