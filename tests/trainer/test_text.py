"""Captions in models: padding says nothing, unknown is no caption, every weight learns, and all kinds of network."""

from __future__ import annotations

import pytest
import torch

from trainer.condition_values import Condition, TextSpec, Tokens, hidden
from trainer.images import ImageSpec
from trainer.models.diffusion import DiffusionConfig
from trainer.noise import Noise

SPEC = ImageSpec(1, 8, 8, 2, texts=(TextSpec("caption", 50, 6),))
DIT = {"kind": "dit", "patch": 4, "width": 16, "depth": 2, "heads": 2}
NETWORKS = {
    "dit": DIT,
    "dit-rotary": DIT | {"positions": "rotary", "qk_norm": True, "feedforward": "swiglu", "bottleneck": 8},
    "dit-vector": DIT | {"captions": "vector", "layout": True},
    "unet": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "heads": 2},
    "vdm_unet": {"kind": "vdm_unet", "channels": 8, "depth": 1, "heads": 2},
    "mlp": {"kind": "mlp", "width": 16, "depth": 1},
}
ENCODER = {"kind": "transformer", "width": 8, "depth": 2, "heads": 2}


TEXT = {"kind": "text", "encoder": ENCODER}


def built(network="dit", spec=SPEC, caption=TEXT, **settings):
    """A small model with weights that are nowhere zero."""
    torch.manual_seed(0)
    conditions = {"caption": caption}
    denoiser = {"network": NETWORKS[network], "embedding": 8, "conditions": conditions, "prediction": {"kind": "eps"}}
    model = DiffusionConfig(kind="diffusion", denoiser=denoiser, **settings).build(spec)
    for parameter in model.diffuser.denoiser.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return model


def batch(n=12, purpose="evaluate"):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 2, (n, 1, 8, 8), generator=generator).to(torch.uint8)
    lengths = torch.arange(n, dtype=torch.int32) % 7
    ids = torch.randint(1, 50, (n, 6), generator=generator, dtype=torch.int32)
    ids = torch.where(torch.arange(6) < lengths[:, None], ids, 0)
    return images, {"caption": Tokens(ids, lengths)}, Noise(0, purpose, torch.arange(n), batch=n)


def bound(model, images, condition: Condition, noise):
    return model(images, condition, noise, torch.tensor(0.0)).negative_bound


@pytest.mark.parametrize("network", NETWORKS)
def test_a_caption_matters_and_its_padding_does_not(network):
    model = built(network)
    images, condition, noise = batch(42)
    ids, lengths = condition["caption"]
    found = bound(model, images, condition, noise)
    junk = torch.where(torch.arange(6) < lengths[:, None], ids, 7)
    torch.testing.assert_close(bound(model, images, {"caption": Tokens(junk, lengths)}, noise), found)
    short = lengths < 4
    cut = {"caption": Tokens(ids[short, :3], lengths[short])}
    some = Noise(0, "evaluate", torch.arange(42)[short], batch=42)
    torch.testing.assert_close(bound(model, images[short], cut, some), found[short])
    other = {"caption": Tokens(ids.flip(0), lengths.flip(0))}
    assert (~torch.isclose(bound(model, images, other, noise), found)).sum() > 20
    full = lengths == 6
    order = {"caption": Tokens(torch.where(full[:, None], ids.flip(1), ids), lengths)}
    differs = ~torch.isclose(bound(model, images, order, noise), found)
    assert differs[full].sum() > 3  # the order of its words matters, too
    assert not differs[~full].any()


@pytest.mark.parametrize("network", NETWORKS)
def test_unknown_is_the_same_however_it_is_said(network):
    model = built(network)
    images, condition, noise = batch()
    without = bound(model, images, None, noise)
    nothing = {"caption": hidden(condition["caption"], torch.ones(12, dtype=torch.bool))}
    torch.testing.assert_close(bound(model, images, nothing, noise), without)
    torch.testing.assert_close(bound(model, images, {}, noise), without)
    given = bound(model, images, condition, noise)
    torch.testing.assert_close(given[condition["caption"].lengths == 0], without[condition["caption"].lengths == 0])


@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_learns(network):
    """DDP waits for the gradient of every parameter."""
    model = built(network)
    images, condition, noise = batch(purpose="train")
    model(images, condition, noise, torch.tensor(0.0)).loss.sum().backward()
    lacking = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not lacking


def test_an_image_does_not_depend_on_the_rest_of_its_batch():
    model = built("dit-rotary")
    images, condition, noise = batch()
    whole = bound(model, images, condition, noise)
    rows = slice(3, 5)
    part = {"caption": Tokens(*(column[rows] for column in condition["caption"]))}
    alone = bound(model, images[rows], part, Noise(0, "evaluate", torch.arange(3, 5), batch=12))
    torch.testing.assert_close(alone, whole[rows])


def test_conditions_are_hidden_each_by_its_own_probability():
    images, condition, noise = batch(64, "train")
    given, without = (bound(built(), images, c, noise) for c in (condition, None))
    mixed = bound(built(condition_dropout={"caption": 0.4}), images, condition, noise)
    drop = noise.uniform("condition/caption") < 0.4
    assert 0 < drop.sum() < 64
    torch.testing.assert_close(mixed, torch.where(drop, without, given))


def test_captions_must_be_declared():
    with pytest.raises(ValueError, match=r"conditions\.caption: the images have no captions of this name"):
        built(spec=SPEC._replace(texts=()))


def test_the_specification_survives_json():
    import json

    assert ImageSpec.from_json(json.loads(json.dumps(SPEC._asdict()))) == SPEC
