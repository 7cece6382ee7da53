"""FLOPs counted from shapes: exact for convolutions, those of a real pass for every model; MFU is a share of a peak."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.trainer.models import ALL_MODELS, batch, build, training_noise
from trainer.tracking.flops import _ModelFlops, measure, peak_of, utilisation


def counted(name: str, images: int, backward: bool = True) -> int:
    """FLOPs of a pass that really computes, with the backward pass of convolutions corrected."""
    model = build(name)
    if getattr(model, "config", None) and getattr(model.config, "checkpoint_gradients", False):
        model.config = model.config.model_copy(update={"checkpoint_gradients": False})
    labels = {"label": torch.zeros(images, dtype=torch.int64)} if model.spec.classes else None
    with _ModelFlops() as flops:
        loss = model(batch(model.spec, images), labels, training_noise(images), torch.zeros(())).loss.sum()
        if backward:
            loss.backward()
    return flops.get_total_flops()


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_count_equals_a_real_pass_and_does_not_change_the_model(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measured = measure(model, torch.float32)
    assert 8 * measured.flops == pytest.approx(counted(name, 10) - counted(name, 2), rel=1e-6)
    assert measured.activations > 0
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_compiled_model_is_counted_as_written() -> None:
    model = build("vae-mlp")
    plain = measure(model, torch.float32)
    model.compile(backend="eager", fullgraph=True)
    assert measure(model, torch.float32) == plain


def test_the_share_of_the_peak_is_flops_over_peak_and_unknown_on_a_cpu() -> None:
    model = build("vae-mlp")
    assert utilisation(model, bf16=False, peak=None) is None
    assert utilisation(model, bf16=False, peak=2e9) == measure(model, torch.float32).flops / 2e9


def test_a_model_that_cannot_be_traced_is_reported_and_has_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("vae-mlp")
    monkeypatch.setattr(model, "forward", lambda *inputs: inputs[0].sum().item())
    said: list[str] = []
    assert utilisation(model, bf16=False, peak=1e9, say=said.append) is None
    (line,) = said
    assert line.startswith("no MFU: the model's FLOPs cannot be counted (")


def convolution_flops(layer: nn.Module, image: bool) -> tuple[int, int]:
    """FLOPs of a forward and of a backward pass of a layer over [3, 12, 10, 10]; `image`: no gradient of the input."""
    with _ModelFlops() as forward:
        out = layer(torch.randn(3, 12, 10, 10, requires_grad=not image))
    with _ModelFlops() as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize(
    ("layer", "flops"),
    [
        (nn.Conv2d(12, 24, 3, padding=1), 2 * 3 * 100 * 24 * 12 * 9),
        (nn.Conv2d(12, 12, 5, padding=2, groups=12), 2 * 3 * 100 * 12 * 25),  # depthwise
        (nn.Conv2d(12, 24, 3, padding=1, groups=4, stride=2), 2 * 3 * 25 * 24 * 3 * 9),
        (nn.ConvTranspose2d(12, 24, 2, stride=2, groups=3), 2 * 3 * 100 * 12 * 8 * 4),
    ],
    ids=["dense", "depthwise", "grouped", "transposed"],
)
def test_a_convolution_costs_as_much_forward_as_for_each_gradient(layer: nn.Module, flops: int, image: bool) -> None:
    assert convolution_flops(layer, image) == (flops, flops if image else 2 * flops)


def test_a_backward_pass_costs_about_twice_the_forward_pass() -> None:
    """NVAE's cells are depthwise convolutions of 5 x 5, whose weight gradients torch counts as dense."""
    forward, both = (counted("ladder-nvae", 2, backward) for backward in (False, True))
    assert 2.5 < both / forward < 3


def test_recomputation_by_checkpointing_is_not_counted() -> None:
    model = build("ladder-vdvae")
    assert model.config.checkpoint_gradients
    again = measure(model, torch.float32)
    model.config = model.config.model_copy(update={"checkpoint_gradients": False})
    once = measure(model, torch.float32)
    assert again.flops == once.flops
    assert again.activations < once.activations


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GH200 144G HBM3e", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("Tesla V100-SXM2-32GB", None),
        ("Tesla T4", None),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10M", None),
    ],
)
def test_peaks_belong_to_exact_product_names(name: str, tera: float | None) -> None:
    assert peak_of(name) == (None if tera is None else tera * 1e12)
