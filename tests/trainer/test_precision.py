"""What stays in float32 under autocast to bfloat16, and what decides the memory format."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from tests.trainer.models import COLOUR, batch, build, training_noise
from trainer.models import ModelConfig
from trainer.networks.normalisation import pointwise_group_norm

NETWORKS = {
    "mlp": ({"kind": "mlp", "width": 32, "depth": 1}, "inner", "outer"),
    "unet": ({"kind": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "dropout": 0}, "inward", "outward"),
    "vdm_unet": ({"kind": "vdm_unet", "channels": 4, "depth": 1, "dropout": 0}, "inward", "outward"),
    "dit": ({"kind": "dit", "width": 16, "depth": 1, "heads": 2}, "inward", "outward"),
}


def types_seen(network, prediction):
    """Types of the input of the first layer, of the outputs of the first and the last and of the level's embedding,
    and of those of the other linear layers and convolutions."""
    config, first, last = NETWORKS[network]
    denoiser = {"network": config, "prediction": {"kind": prediction}, "embedding": 16}
    model = TypeAdapter(ModelConfig).validate_python({"kind": "diffusion", "denoiser": denoiser}).build(COLOUR)
    types: dict[str, list[torch.dtype]] = {"first": [], "last": [], "level": [], "others": []}
    whole = model.diffuser.denoiser
    named = {
        getattr(whole.network, first): "first",
        getattr(whole.network, last): "last",
        **dict.fromkeys(whole.conditioning.level.modules(), "level"),
    }

    def look(layer, inputs, output):
        role = named.get(layer, "others")
        types[role].append(output.dtype)
        if role == "first":
            types[role].append(inputs[0].dtype)

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        elbo = model(batch(COLOUR), None, training_noise(), torch.tensor(0.0))
    assert all(rate.dtype == torch.float32 for rate in (elbo.distortion, *elbo.rates.values(), elbo.loss))
    return {role: set(found) for role, found in types.items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("prediction", "last"), [("eps", torch.float32), ("levels", torch.bfloat16)])
def test_a_denoiser_sees_z_and_its_noise_level_in_float32(network, prediction, last):
    """The last layer is in float32 too where it gives an estimate; not where it gives logits."""
    seen = types_seen(network, prediction)
    assert seen == {"first": {torch.float32}, "level": {torch.float32}, "last": {last}, "others": {torch.bfloat16}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
def test_a_pointwise_group_norm_is_pytorchs_and_keeps_the_memory_format(dtype, last):
    torch.manual_seed(0)
    memory_format = torch.channels_last if last else torch.contiguous_format
    x = (2 + 3 * torch.randn(5, 12, 6, 4)).to(dtype).to(memory_format=memory_format).requires_grad_()
    weight, bias = torch.randn(12, requires_grad=True), torch.randn(12, requires_grad=True)
    y = pointwise_group_norm(x, 3, weight, bias, 1e-5)
    assert y.is_contiguous(memory_format=memory_format)
    reference = torch.nn.functional.group_norm(x.double(), 3, weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(y.double(), reference, rtol=1e-5, atol=1e-5)
    probe = torch.randn_like(reference)
    mine = torch.autograd.grad((y.double() * probe).sum(), (x, weight, bias))
    theirs = torch.autograd.grad((reference * probe).sum(), (x, weight, bias))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 if dtype != torch.bfloat16 else 0.05)
    assert mine[0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", ["vae-resnet", "ladder-nvae", "diffusion-unet"])
@pytest.mark.parametrize("last", [True, False])
def test_the_weights_decide_the_memory_format_and_not_the_batch(name, last):
    """Loaders deliver NHWC images; a convolution would follow its input."""
    memory_format = torch.channels_last if last else torch.contiguous_format
    model = build(name).to(memory_format=memory_format)
    images = batch(model.spec).to(memory_format=torch.channels_last)
    outputs = []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.out_channels > 1:
            layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    model(images, None, training_noise(), torch.tensor(0.0))
    large = [output for output in outputs if min(output.shape[1:]) > 1]
    assert large
    assert all(output.is_contiguous(memory_format=memory_format) for output in large)
