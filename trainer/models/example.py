"""Inputs of a model in training, of the right shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.condition_values import Condition, Tokens, Value
from trainer.models.base import Model, known_conditions
from trainer.noise import Noise


def example(model: Model, images: int) -> tuple[Tensor, Condition, Noise, Tensor]:
    """What `forward` takes for a batch of `images`; captions have as many tokens as they may have."""
    batch = torch.zeros(images, *model.spec.batch_shape, dtype=torch.uint8)
    texts = {text.name: text for text in model.spec.texts}
    condition: dict[str, Value] = {}
    for name in known_conditions(model):
        if name in texts:
            ids = torch.zeros(images, texts[name].max_tokens, dtype=torch.int32)
            condition[name] = Tokens(ids, torch.full((images,), texts[name].max_tokens, dtype=torch.int32))
        elif name == "label":
            condition[name] = torch.zeros(images, dtype=torch.int64)
    return batch, condition or None, Noise(0, "train", torch.arange(images), images), torch.zeros(())
