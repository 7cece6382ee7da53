"""The precision of what is reported does not depend on how a model trains."""

import contextlib

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from trainer.distributed.device import full_precision, report_precision
from trainer.distributed.sharding import Parallel
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.models.base import Model

CPU = torch.device("cpu")


@pytest.fixture
def backend_settings():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_full_precision_turns_reduced_products_off_and_restores_the_settings(matmul, backend_settings):
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
