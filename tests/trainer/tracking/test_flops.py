"""FLOPs counted from shapes are those of a real pass, for every model, compiled or not; MFU is a share of the peak."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.models import ALL_MODELS, batch, build, training_noise
from trainer.tracking.flops import measure, utilisation


def counted(name: str, images: int) -> int:
    """FLOPs of a forward and backward pass that really computes."""
    model = build(name)
    labels = {"label": torch.zeros(images, dtype=torch.int64)} if model.spec.classes else None
    with FlopCounterMode(display=False) as flops:
        model(batch(model.spec, images), labels, training_noise(images), torch.zeros(())).loss.sum().backward()
    return flops.get_total_flops()


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_count_is_that_of_a_real_pass_and_leaves_the_model_alone(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measured = measure(model, torch.float32)
    assert 8 * measured.flops == pytest.approx(counted(name, 10) - counted(name, 2), rel=1e-6)
    assert measured.activations > 0
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_is_to_be_compiled_is_counted_as_it_was_written() -> None:
    model = build("vae-mlp")
    plain = measure(model, torch.float32)
    model.compile(backend="eager", fullgraph=True)
    assert measure(model, torch.float32) == plain


def test_the_share_of_the_peak_is_flops_over_peak_and_unknown_on_a_cpu() -> None:
    model = build("vae-mlp")
    assert utilisation(model, bf16=False, peak=None) is None
    assert utilisation(model, bf16=False, peak=2e9) == measure(model, torch.float32).flops / 2e9


def test_what_cannot_be_traced_is_said_and_trains_without_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("vae-mlp")
    monkeypatch.setattr(model, "forward", lambda *inputs: inputs[0].sum().item())
    said: list[str] = []
    assert utilisation(model, bf16=False, peak=1e9, say=said.append) is None
    (line,) = said
    assert line.startswith("no MFU: the model's FLOPs cannot be counted (")
