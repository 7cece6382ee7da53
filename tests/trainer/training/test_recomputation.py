"""Activation checkpointing: the same gradients to the bit, fewer activations; as few units as a budget needs."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from tests.testbed.ranks import together
from tests.trainer.models import ALL_MODELS, batch, build, training_noise
from trainer.distributed.device import make_accelerator
from trainer.distributed.ranks import shutdown
from trainer.distributed.sharding import Parallel, gathered_tensor
from trainer.networks.unit import units
from trainer.tracking.flops import measure
from trainer.training.recomputation import ActivationCheckpointing, recompute, recomputed_units


def gradients(model, parallel=None):
    loss = (parallel or model)(batch(model.spec, 4), None, training_noise(4), torch.zeros(())).loss.mean()
    loss.backward()
    return [None if value.grad is None else gathered_tensor(value.grad) for value in model.parameters()]


def same(one, other):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ALL_MODELS)
def test_recomputed_units_give_the_same_gradients(name):
    plain, again = build(name), build(name)
    for unit in units(again):
        recompute(unit)
    assert same(gradients(plain), gradients(again))


@pytest.mark.parametrize("name", ["vae-resnet", "diffusion-dit"])
def test_less_is_kept_and_the_same_flops_are_counted(name):
    again = build(name)
    for unit in units(again):
        recompute(unit)
    kept, less = measure(build(name), torch.float32), measure(again, torch.float32)
    assert less.activations < kept.activations
    assert less.flops == kept.flops


def _sharded_and_recomputed() -> None:
    accelerator = make_accelerator("fp32")
    for name in ("diffusion-dit", "ladder-nvae", "diffusion-unet"):
        plain, again = build(name), build(name)
        for unit in units(again):
            recompute(unit)
        both = [gradients(model, Parallel(model, accelerator, "fsdp")) for model in (plain, again)]
        assert same(*both), name
    shutdown()


def test_recomputed_units_that_are_sharded_give_the_same_gradients():
    together(2, _sharded_and_recomputed)


def parsed(value) -> ActivationCheckpointing:
    return TypeAdapter(ActivationCheckpointing).validate_python(value)


def test_every_nth_unit_is_chosen():
    model = build("ladder-vdvae")
    found = units(model)
    assert recomputed_units(model, parsed("none"), 4, torch.float32) == ([], "")
    assert recomputed_units(model, parsed("all"), 4, torch.float32) == (found, "")
    assert recomputed_units(model, parsed({"every": 2}), 4, torch.float32) == (found[1::2], "")


def test_a_budget_recomputes_as_few_units_as_it_needs():
    model = build("vae-resnet")
    whole = 16 * measure(model, torch.float32).activations
    counts = []
    for share in (1.0, 0.7, 0.0):
        budget = parsed({"budget": round(share * whole)})
        chosen, line = recomputed_units(model, budget, 16, torch.float32)
        counts.append(len(chosen))
        assert f"{len(chosen)} of {len(units(model))} units are recomputed" in line
        changed = build("vae-resnet")
        for unit in recomputed_units(changed, budget, 16, torch.float32)[0]:
            recompute(unit)
        assert 16 * measure(changed, torch.float32).activations <= share * whole or share == 0
    assert counts[0] == 0 < counts[1] < counts[2]
    assert "more than the budget of 0 bytes; lower trainer.micro_batch" in line
