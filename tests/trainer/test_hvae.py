"""The Markovian hierarchy against the linear-Gaussian chain whose bound is known exactly."""

import math

import pytest
import torch

from trainer.images import ImageSpec
from trainer.models.hvae import HvaeConfig
from trainer.noise import Noise
from trainer.normal import at_least, at_most

# z_3 -> z_2 -> z_1 -> x: N(a_t z_t, s_t^2) with an exact q, at x = 1.3. An image's pixel is x = 1 here: the last step
# is that of x / 1.3, whose density is 1.3 times that of x.
A, S2, X = (0.9, 0.8, 0.7), (0.3, 0.5, 0.2), 1.3
LOG_EVIDENCE = -1.744490507 + math.log(X)


def variances():
    """v_0 .. v_3 with v_3 = 1 and v_t-1 = a^2 v_t + s^2."""
    v = [1.0]
    for a, s2 in zip(A[::-1], S2[::-1], strict=True):
        v.insert(0, a**2 * v[0] + s2)
    return v


def set_conditional(layer, slope, variance):
    """The linear map that gives N(slope * input, variance), through the bound of the log-scale."""
    layer.weight.zero_()
    layer.weight[0, 0] = slope
    layer.bias[0] = 0
    layer.bias[1] = 5 * math.atanh(0.5 * math.log(variance) / 5)


@torch.no_grad()
def linear_chain(skew: float = 0.0):
    """The production model as that chain; with `skew` q(z_1 | x) is off by that much in its mean."""
    linear = {"kind": "mlp", "hidden": []}
    config = HvaeConfig(
        kind="hvae",
        latents=[1, 1, 1],
        encoder=linear,
        decoder=linear,
        hidden=[],
        likelihood={"kind": "gaussian", "scale": math.sqrt(S2[0]) / X},
    )
    model = config.build(ImageSpec(channels=1, height=1, width=1, levels=2)).double()
    v = variances()
    posterior = [(a * v[t + 1] / v[t], v[t + 1] * s2 / v[t]) for t, (a, s2) in enumerate(zip(A, S2, strict=True))]
    set_conditional(model.encoder[1][0], posterior[0][0] * X, posterior[0][1])
    model.encoder[1][0].bias[0] += skew
    for t in (1, 2):
        set_conditional(model.up[t - 1].linear, *posterior[t])
        set_conditional(model.down[t - 1].linear, A[t], S2[t])
    model.decoder[0][0].weight.fill_(A[0] / X)
    model.decoder[0][0].bias.zero_()
    return model


def setting(n: int):
    return torch.ones(n, 1, 1, 1, dtype=torch.uint8), Noise(0, "evaluate", torch.arange(n), dtype=torch.float64)


def test_importance_weights_of_the_exact_chain_have_no_variance():
    images, noise = setting(64)
    weights = linear_chain().log_weights(images, None, noise, k=3)
    torch.testing.assert_close(weights, torch.full_like(weights, LOG_EVIDENCE), atol=1e-8, rtol=0)


def test_bound_of_the_exact_chain_has_no_gap():
    images, noise = setting(200_000)
    bound = -linear_chain()(images, None, noise, torch.tensor(0.0)).negative_bound
    assert bound.mean().item() == pytest.approx(LOG_EVIDENCE, abs=4 * bound.std().item() / math.sqrt(len(bound)))
    assert bound.std().item() < 1  # the sampled rates cancel most of the distortion's spread


def test_each_rate_is_the_divergence_of_its_own_factor():
    """E[log q(z_t | z_t-1) - log p(z_t | z_t+1)] of the chain, in closed form from its joint normal distribution."""
    images, noise = setting(200_000)
    rates = linear_chain()(images, None, noise, torch.tensor(0.0)).rates
    assert list(rates) == ["z1", "z2", "z3"]
    v = variances()
    mean, variance = X, 0.0  # of z_t under q, from x up
    for t, (a, s2) in enumerate(zip(A, S2, strict=True)):
        slope, noise_variance = a * v[t + 1] / v[t], v[t + 1] * s2 / v[t]
        mean, variance = slope * mean, slope**2 * variance + noise_variance
        entropy = 0.5 * math.log(2 * math.pi * math.e * noise_variance)
        if t < 2:  # z_t - a z_t+1 under q(z_t) q(z_t+1 | z_t)
            above_slope, above_noise = A[t + 1] * v[t + 2] / v[t + 1], v[t + 2] * S2[t + 1] / v[t + 1]
            gap = 1 - A[t + 1] * above_slope
            squares = gap**2 * (mean**2 + variance) + A[t + 1] ** 2 * above_noise
            cross_entropy = 0.5 * (math.log(2 * math.pi * S2[t + 1]) + squares / S2[t + 1])
        else:
            cross_entropy = 0.5 * (math.log(2 * math.pi) + mean**2 + variance)
        rate = rates[f"z{t + 1}"]
        error = 4 * rate.std().item() / math.sqrt(len(rate))
        assert rate.mean().item() == pytest.approx(cross_entropy - entropy, abs=error)


def test_importance_weighted_bounds_rise_to_the_evidence():
    images, noise = setting(20_000)
    weights = linear_chain(skew=0.5).log_weights(images, None, noise, k=64)
    bounds = [(weights[:, :k].logsumexp(1) - math.log(k)).mean().item() for k in (1, 4, 16, 64)]
    assert bounds == sorted(bounds)
    assert bounds[0] < LOG_EVIDENCE - 0.1
    assert bounds[-1] == pytest.approx(LOG_EVIDENCE, abs=0.02)


@pytest.mark.parametrize("latents", [(3,), (4, 3), (5, 4, 3, 2)])
def test_there_is_one_rate_for_each_level(latents):
    model = HvaeConfig(kind="hvae", latents=latents, hidden=[8]).build(ImageSpec(1, 4, 4, 17))
    images = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4) % 17
    noise = Noise(0, "train", torch.arange(2), batch=2)
    assert list(model(images, None, noise, torch.tensor(0.0)).rates) == [f"z{t + 1}" for t in range(len(latents))]
    assert model.sample(noise).shape == images.shape


def test_lower_levels_cannot_change_what_is_shared_above():
    """With all levels shared all samples are one; with none all differ; the first is the same however many are."""
    torch.manual_seed(0)
    model = HvaeConfig(kind="hvae", latents=[8, 4, 2], hidden=[16]).build(ImageSpec(1, 8, 8, 256))
    noise = Noise(0, "sample", torch.arange(6))
    pictures = [model.sample(noise, shared_levels=k, decode="mean") for k in range(4)]
    assert [len(picture.unique(dim=0)) for picture in pictures] == [6, 6, 6, 1]
    for picture in pictures:
        torch.testing.assert_close(picture[0], pictures[0][0])


def test_reconstruction_from_the_upper_levels_knows_nothing_of_the_lower_draws():
    """z_3 alone decides: of two images whose chains meet in z_3, one reconstruction."""
    torch.manual_seed(0)
    model = HvaeConfig(kind="hvae", latents=[8, 4, 2], hidden=[16]).build(ImageSpec(1, 8, 8, 256))
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    noise = Noise(0, "evaluate", torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():  # q(z_3 | z_2) forgets z_2
        for parameter in model.up[1].parameters():
            parameter.zero_()
    top = model.reconstruct(images, None, noise, levels=1)
    assert torch.equal(top[0], top[1])
    assert not torch.equal(*model.reconstruct(images, None, noise, levels=2))
    torch.testing.assert_close(model.reconstruct(images, None, noise, levels=3), model.reconstruct(images, None, noise))


@pytest.mark.parametrize("sign", [-1, 1])
def test_one_image_cannot_blow_up_the_bound(sign):
    """Log-scales far out on either side, and means that miss each other by 100 in every dimension."""
    torch.manual_seed(0)
    latents = (8, 4)
    model = HvaeConfig(kind="hvae", latents=latents, hidden=[], encoder={"kind": "mlp", "hidden": []}).build(
        ImageSpec(1, 4, 4, 17)
    )
    with torch.no_grad():
        for transition, outputs in ((model.up[0], 4), (model.down[0], 8)):
            transition.linear.weight.zero_()
            transition.linear.bias[outputs:] = sign * 1e4
        model.down[0].linear.bias[:8] = 100.0
        model.encoder[1][0].bias[8:] = 1e4  # q(z_1 | x)
    images = torch.zeros(64, 1, 4, 4, dtype=torch.uint8)
    rates = model(images, None, Noise(0, "evaluate", torch.arange(64)), torch.tensor(0.0)).rates
    farthest = 100 + 5 * math.exp(2.0)
    assert rates["z1"].max() < 8 * (farthest**2 * math.exp(6) / 2 + 10)  # e^10 / 2 before
    assert rates["z2"].max() < 4 * 5  # 4 * e^10 / 2 before: a posterior of scale e^-5 costs 4.5 nats, of e 2.2
    assert all(rate.isfinite().all() for rate in rates.values())


def test_trained_scales_are_not_touched():
    scales = torch.linspace(-2.5, 0.5, 101, dtype=torch.float64)
    assert torch.equal(at_most(scales, 1.0), scales)
    assert torch.equal(at_least(scales, -3.0), scales)
    wild = torch.tensor([-1e6, -5.0, 5.0, 1e6], dtype=torch.float64, requires_grad=True)
    both = at_least(at_most(wild, 1.0), -3.0)
    assert both.tolist() == pytest.approx([-3.0, -3.0, 1.0, 1.0], abs=1e-3)
    both.sum().backward()
    assert wild.grad.isfinite().all()
