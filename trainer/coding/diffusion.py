"""Bits back with a diffusion over pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.ans.cumulative import Integers, Table, parameters
from trainer.ans.stack import Stack
from trainer.coding.base import ImageCoder
from trainer.coding.chain import Chain
from trainer.condition_values import Condition
from trainer.models.diffusion import Diffusion


class DiffusionCoder(ImageCoder):
    """Pops z_0 by q(z_0 | x), pushes x by p(x | z_0), then the chain above."""

    def __init__(self, model: Diffusion, device: torch.device):
        self.model, self.device = model, device
        self.chain = Chain(model.diffuser, 1.0, device)
        spec = model.spec
        self.values = spec.scaled(torch.arange(spec.levels)).double().numpy()  # [L]

    def encode(self, stack: Stack, images: Tensor, condition: Condition) -> None:
        symbols = self.chain.pop_first(stack, parameters(self.model.spec.scaled(images)))
        stack.push(self._pixels(symbols), images.flatten(1).cpu().numpy().astype(np.int64))
        self.chain.push(stack, symbols, condition)

    def decode(self, stack: Stack, condition: Condition) -> Tensor:
        symbols = self.chain.pop(stack, condition)
        levels = stack.pop(self._pixels(symbols))
        images = torch.from_numpy(levels.astype(np.uint8)).to(self.device).reshape(-1, *self.model.spec.shape)
        self.chain.push_first(stack, parameters(self.model.spec.scaled(images)), symbols)
        return images

    def _pixels(self, symbols: Integers) -> Table:
        """p(x | z_0), proportional to q(z_0 | x)."""
        distance = (self.chain.y_0(symbols)[..., None] - self.values) * (self.chain.alpha[0] / self.chain.sigma[0])
        logits = -0.5 * distance * distance
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return Table.of(weights / weights.sum(-1, keepdims=True))
