"""Compiling unit by unit: identical blocks are compiled once, and the bound equals the eager model's."""

from __future__ import annotations

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.trainer.models import BINARY, batch, training_noise
from trainer.models.diffusion.model import DiffusionConfig
from trainer.networks.unit import units
from trainer.training.compilation import compile_model
from trainer.training.recomputation import recompute


def transformer(depth: int):
    network = {"kind": "dit", "width": 16, "depth": depth, "heads": 2}
    torch.manual_seed(0)
    config = {"kind": "diffusion", "denoiser": {"network": network, "embedding": 16}}
    return DiffusionConfig.model_validate(config).build(BINARY)


def test_blocks_that_are_alike_are_compiled_once():
    torch._dynamo.reset()
    inputs = batch(BINARY), None, training_noise(), torch.zeros(())
    graphs = []
    for depth in (2, 4):
        counter = CompileCounterWithBackend("aot_eager")
        model, plain = transformer(depth), transformer(depth)
        compile_model(model, "units", "ddp", backend=counter)
        recompute(units(model)[1])
        losses = [each(*inputs).loss.mean() for each in (model, plain)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1] > 0
    torch._dynamo.reset()
