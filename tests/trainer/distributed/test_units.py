"""Sharding unit by unit: the gradients and steps of DDP, on any arrangement of the ranks, for every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.testbed.ranks import together
from tests.trainer.models import ALL_MODELS, batch, build
from trainer.distributed.device import full_precision, make_accelerator
from trainer.distributed.ranks import all_reduce_sum, rank, shutdown, world_size
from trainer.distributed.sharding import Parallel, Sharding, ShardOver, gathered, gathered_tensor, is_sharded, local
from trainer.models import Model
from trainer.networks.unit import units
from trainer.noise import Noise
from trainer.training.image_bounds import evaluation_mode
from trainer.training.optimizer import OptimConfig, adamw

BATCH, STEPS = 8, 2


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_family_has_units_that_share_no_parameters(name):
    found = units(build(name))
    parameters = [id(parameter) for unit in found for parameter in unit.parameters()]
    assert len(parameters) == len(set(parameters)) > 0


def _steps(parallel: Parallel, model: Model, images: Tensor, micro: int) -> tuple[dict[str, Tensor], list[float]]:
    """The gradients of the first step, and the mean loss of each of some steps."""
    optimizer = adamw(model, OptimConfig(lr=1e-3))
    mine = list(range(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size()))
    first: dict[str, Tensor] = {}
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for place in range(0, len(mine), micro):
            part = mine[place : place + micro]
            noise = Noise(0, "train", step * BATCH + torch.tensor(part), BATCH)
            with parallel.exchanging(place + micro >= len(mine)):
                loss = parallel(images[part], None, noise, torch.tensor(100.0)).loss.sum() / BATCH
                (world_size() * loss).backward()
            total += loss.detach()
        if not step:
            grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
            first = {name: gathered_tensor(value).clone() for name, value in grads.items()}
        optimizer.step()
        losses.append(all_reduce_sum(total).item())
    return first, losses


def _compare(
    names: list[str], arrangements: list[tuple[Sharding, ShardOver]], precision: str, tolerance: float
) -> None:
    accelerator = make_accelerator(precision)
    for name in names:
        images = batch(ALL_MODELS[name][0], BATCH)
        expected: tuple[dict[str, Tensor], list[float]] | None = None
        for sharding, over in arrangements:
            model = build(name)
            parallel = Parallel(model, accelerator, sharding, over)
            found = _steps(parallel, model, images, BATCH // world_size() // 2)
            if sharding == "fsdp":
                assert all(is_sharded(parameter) for parameter in model.parameters())
            expected = expected or found
            size = torch.stack([value.norm() for value in expected[0].values()]).norm()
            for key, value in expected[0].items():
                assert (found[0][key] - value).norm() < tolerance * size, (name, sharding, over, key)
            torch.testing.assert_close(found[1], expected[1], rtol=tolerance, atol=0, msg=f"{name} {sharding} {over}")
    shutdown()


def test_every_family_takes_the_steps_of_ddp_sharded_and_in_two_copies():
    together(4, _compare, list(ALL_MODELS), [("ddp", "auto"), ("fsdp", 4), ("fsdp", 2)], "fp32", 2e-4)


def test_in_bfloat16_the_gradients_are_those_of_ddp():
    names = ["diffusion-dit", "diffusion-unet", "ladder-nvae", "vae-resnet"]
    together(2, _compare, names, [("ddp", "auto"), ("fsdp", 2)], "bf16", 3e-2)


def _evaluate() -> None:
    accelerator = make_accelerator("bf16")
    name = "diffusion-unet"
    images = batch(ALL_MODELS[name][0], 2, seed=rank())
    alone, model = build(name), build(name)
    with torch.no_grad():
        for module in (alone, model):
            for number, value in enumerate(module.parameters()):
                value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
    parallel = Parallel(model, accelerator, "fsdp")
    noise = Noise(0, "evaluate", torch.arange(2))
    before = parallel(images, None, noise, torch.zeros(())).loss
    before.sum().backward()
    with full_precision(torch.device("cpu")):
        with evaluation_mode(alone):
            exact = alone(images, None, noise, torch.zeros(())).loss
        with evaluation_mode(model):
            assert torch.equal(model(images, None, noise, torch.zeros(())).loss, exact)
        with gathered(model), torch.no_grad():
            if rank() == 0:  # the others make no call: nothing is gathered on the way
                assert torch.equal(model.log_weights(images, None, noise, 1), alone.log_weights(images, None, noise, 1))
                assert torch.equal(model.sample(noise), alone.sample(noise))
    assert all(local(value).numel() < value.numel() for value in model.parameters() if value.numel() > 1)
    assert not torch.equal(before, exact)
    after = parallel(images, None, noise, torch.zeros(())).loss
    after.sum().backward()  # ranks that prefetch in different orders would hang
    assert torch.equal(before, after)
    shutdown()


def test_an_evaluation_and_pictures_see_float32_weights_after_training_in_bfloat16():
    together(2, _evaluate)
