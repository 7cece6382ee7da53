"""Every family returns every image bit for bit, and takes about as many bits as its bound."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from tests.trainer.models import ALL_MODELS, BINARY, GREY, batch, build
from trainer.ans.stack import Stack
from trainer.coding.streams import CODERS, coder_of, decode_images, encode_images
from trainer.condition_values import Condition
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.models import Model, ModelConfig
from trainer.models.latent import LatentConfig
from trainer.models.vae import VaeConfig
from trainer.noise import Noise

CPU = torch.device("cpu")
MLP = {"kind": "mlp", "hidden": [8]}
DENOISER = {"network": {"kind": "mlp", "width": 8, "depth": 1}}
FAMILIES: dict[str, dict[str, Any]] = {
    "vae": {"latent": 3, "encoder": MLP, "decoder": MLP},
    "hvae": {"latents": [4, 3, 2], "encoder": MLP, "decoder": MLP, "hidden": [6]},
    "ladder": {"stages": [{"width": 8, "latent": 2, "repeat": 3}]},
    "diffusion": {"denoiser": DENOISER, "steps": 4, "schedule": {"kind": "linear", "gamma_0": -6, "gamma_1": 4}},
}
LIKELIHOODS = ["bernoulli", "discretised_logistic", "discretised_gaussian", "logistic_mixture"]


def latent(spec: ImageSpec, likelihood: dict[str, Any], **denoiser: Any) -> Model:
    """A diffusion over the latents of a VAE, both untrained."""
    first = VaeConfig(kind="vae", likelihood=likelihood, **FAMILIES["vae"])
    mixture = DENOISER | {"prediction": {"kind": "mixture", "components": 2}} | denoiser
    stage = {"kind": "run", "url": "none", "model": first}
    model = LatentConfig(kind="latent", first_stage=stage, denoiser=mixture, steps=4).build(spec)
    model.scale.mean.fill_(0.3)
    model.scale.log_scale.fill_(-0.5)
    return model


def returned(model: Model, images: Tensor, condition: Condition = None, lanes: int = 3, width: int = 2) -> Stack:
    """The encoder's stack of `images`. Fails unless they are decoded from it."""
    model.eval()
    stack = Stack(lanes, width)
    encode_images(coder_of(model, CPU), stack, images, condition)
    decoder = Stack.restore(stack.heads, stack.words)
    assert torch.equal(decode_images(coder_of(model, CPU), decoder, len(images), condition, CPU), images)
    assert decoder.is_initial()
    return stack


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([*FAMILIES, "latent"]),
    st.sampled_from(LIKELIHOODS),
    st.integers(1, 3),
    st.integers(2, 5),
    st.integers(2, 4),
    st.sampled_from([2, 3, 17, 256]),
    st.integers(1, 9),
    st.floats(0.2, 4),
    st.integers(0, 1000),
)
def test_random_small_models_return_random_images(kind, likelihood, channels, height, width, levels, count, gain, seed):
    spec = ImageSpec(channels, height, width, 2 if likelihood == "bernoulli" else levels)
    torch.manual_seed(seed)
    pixels = {"kind": likelihood}
    if kind == "latent":
        model = latent(spec, pixels)
    else:
        config = FAMILIES[kind] | {"kind": kind} | ({} if kind == "diffusion" else {"likelihood": pixels})
        model = TypeAdapter(ModelConfig).validate_python(config).build(spec)
    for value in model.parameters():
        value.data = gain * value.data + 0.05 * torch.randn_like(value)  # further from where training starts
    if kind in ("diffusion", "latent"):
        model.diffuser.schedule.ends.data = torch.tensor([-6.0, 4.0])
    returned(model, torch.randint(0, spec.levels, (count, *spec.shape), dtype=torch.uint8))


def bits_and_bound(model: Model, images: Tensor, stack: Stack, draws: int) -> tuple[float, float]:
    """Bits of all images without initial bits, and their bound."""
    bits = 64 * stack.heads.size + 16 * len(stack.words) - stack.initial_bits
    with torch.no_grad():
        terms = model.bounds["elbo"].terms(images, None, Noise(0, "evaluate", torch.arange(len(images))), draws)
    return bits, sum(term.double().sum().item() for term in terms.values()) / math.log(2)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_kind_of_network_returns_images_and_keeps_to_its_bound(name):
    model, count = build(name).eval(), 16 if "unet" in name else 64
    if name.startswith("diffusion"):
        model.set_steps(3)
    images = batch(model.spec, count)
    stack = returned(model, images, lanes=7, width=2)
    bits, bound = bits_and_bound(model, images, stack, 16)
    unused = 16 * stack.heads.size  # of heads, at most
    assert bits <= 1.02 * bound + unused
    if not name.startswith("diffusion"):  # untrained in 3 steps: no value costs more than the 32 bits of one slot
        assert bits >= 0.98 * bound


def test_a_chain_of_diffusion_keeps_to_its_bound():
    """Noise levels that independent pixels, from which the network starts, predict well."""
    schedule = {"kind": "linear", "gamma_0": -4, "gamma_1": 6}
    config = {"kind": "diffusion", "denoiser": DENOISER, "schedule": schedule, "steps": 40}
    torch.manual_seed(0)
    model = TypeAdapter(ModelConfig).validate_python(config).build(BINARY).eval()
    images = batch(BINARY, 96)
    stack = returned(model, images, lanes=2, width=4)
    bits, bound = bits_and_bound(model, images, stack, 128)
    assert bits == pytest.approx(bound, rel=0.03)


def test_badly_predicted_images_do_not_choose_the_latents_after_them():
    """Latents are popped where pixels were pushed last: they must be draws from q all the same."""
    model = build("hvae").eval()
    images = batch(GREY, 64)
    bits, bound = bits_and_bound(model, images, returned(model, images, lanes=1, width=1), 64)
    assert bits == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize("kind", [*FAMILIES, "latent"])
def test_conditions_are_given_to_every_part(kind):
    spec = ImageSpec(1, 4, 4, 3, classes=5)
    torch.manual_seed(0)
    conditions = {"conditions": {"label": {"kind": "class"}}}
    if kind == "latent":
        model = latent(spec, {"kind": "discretised_logistic"}, **conditions)
    elif kind == "diffusion":
        config = FAMILIES[kind] | {"kind": kind, "denoiser": DENOISER | conditions}
        model = TypeAdapter(ModelConfig).validate_python(config).build(spec)
    else:
        model = TypeAdapter(ModelConfig).validate_python(FAMILIES[kind] | {"kind": kind} | conditions).build(spec)
    for value in model.parameters():
        value.data += 0.3 * torch.randn_like(value)
    images = torch.randint(0, 3, (8, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(8) % 5
    given = returned(model, images, {"label": labels})
    other = returned(model, images, {"label": labels.flip(0)})
    assert list(given.words) != list(other.words)


def test_no_more_initial_bits_than_one_level_of_a_markov_chain_needs():
    """Bit-Swap: with eight levels an image begins with hardly more bits than with two."""
    torch.manual_seed(0)
    drawn = []
    for levels in (2, 8):
        config = FAMILIES["hvae"] | {"kind": "hvae", "latents": [16] * levels}
        model = TypeAdapter(ModelConfig).validate_python(config).build(GREY)
        drawn.append(returned(model, batch(GREY, 1), lanes=1, width=1).drawn)
    assert drawn[0] > 5
    assert drawn[1] < 1.5 * drawn[0]


def test_a_family_without_a_coder_and_a_density_are_refused():
    config = FAMILIES["vae"] | {"kind": "vae", "likelihood": {"kind": "gaussian"}}
    with pytest.raises(TrainingError, match="density"):
        coder_of(TypeAdapter(ModelConfig).validate_python(config).build(GREY), CPU)
    with pytest.raises(TrainingError, match="no coder"):
        coder_of(Model(), CPU)
    assert {kind.__name__ for kind in CODERS} == {"Vae", "Hvae", "Ladder", "Diffusion", "Latent"}
