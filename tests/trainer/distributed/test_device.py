"""Precision and memory format of a process; what is reported does not depend on how a model trains."""

from __future__ import annotations

import contextlib

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from trainer.distributed.device import full_precision, make_accelerator, report_precision, to_device
from trainer.distributed.sharding import Parallel
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.models.base import Model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def backend_settings():
    AcceleratorState._reset_state()  # it refuses a second precision
    backends = torch.backends
    before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32, backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(before[0])
    backends.cudnn.allow_tf32, backends.cudnn.benchmark = before[1:]
    AcceleratorState._reset_state()


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "tf32"])
def test_only_tf32_rounds_float32_to_tf32(precision):
    """PyTorch's default is TF32 in convolutions."""
    torch.backends.cudnn.allow_tf32 = True
    make_accelerator(precision)
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    assert torch.backends.cudnn.conv.fp32_precision == ("tf32" if precision == "tf32" else "none")


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_full_precision_turns_reduced_products_off_and_restores_the_settings(matmul):
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = True
    inside = []
    with contextlib.suppress(ValueError), full_precision(CPU):
        inside = [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32]
        inside.append(torch.backends.cudnn.allow_tf32)
        raise ValueError
    assert inside == ["highest", False, False]
    assert torch.get_float32_matmul_precision() == matmul
    assert torch.backends.cudnn.allow_tf32


def test_full_precision_leaves_an_outer_autocast():
    layer, x = nn.Linear(64, 8), torch.randn(3, 64)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(CPU):
            assert torch.equal(layer(x), exact)
        assert layer(x).dtype == torch.bfloat16
    with report_precision("bf16", CPU):
        assert layer(x).dtype == torch.bfloat16
    with report_precision("fp32", CPU):
        assert layer(x).dtype == torch.float32


class Linear(Model):
    def __init__(self):
        super().__init__()
        self.spec = ImageSpec(1, 2, 2, 17)
        self.layer = nn.Linear(64, 1)

    def forward(self, images, condition, noise, progress):
        return Elbo(self.layer(images).float()[:, 0], {}, None)


def test_a_model_that_trains_in_bfloat16_is_evaluated_in_float32():
    model, x = Linear(), torch.randn(16, 64)
    exact = model(x, None, None, None).distortion
    parallel = Parallel(model, Accelerator(cpu=True, mixed_precision="bf16"), "ddp")
    assert (parallel(x, None, None, None).distortion - exact).abs().max() > 1e-4
    with full_precision(CPU):
        assert torch.equal(model(x, None, None, None).distortion, exact)


def network(normalised=False):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8) if normalised else nn.SiLU(), nn.Conv2d(8, 4, 3))


@pytest.mark.parametrize(("choice", "last"), [(True, True), (False, False), ("auto", False)])
def test_the_memory_format_is_chosen(choice, last):
    model = network()
    to_device(model, CPU, choice, "ddp")
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_automatic_channels_last_is_for_plain_convolutions_on_a_gpu(monkeypatch, normalised, sharding):
    model = network(normalised)
    monkeypatch.setattr(model, "to", lambda *args, **formats: chosen.append(formats))
    chosen = []
    to_device(model, torch.device("cuda"), "auto", sharding)
    assert ({"memory_format": torch.channels_last} in chosen) == (not normalised and sharding == "ddp")
