"""Bits back with a ladder: all levels by q from the top down, the image, then all levels by p from the bottom up.

A level's posterior depends on those above it, so no level can be pushed before the last one has been popped: an image
needs the initial bits of all levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from trainer.ans.cumulative import Cells, Integers
from trainer.ans.stack import Stack
from trainer.coding.base import ImageCoder, no_noise, pop_pixels, push_pixels
from trainer.coding.latents import relative_posterior, relative_prior, relative_value
from trainer.condition_values import Condition
from trainer.models.ladder.group import Group
from trainer.models.ladder.model import Features, Ladder


class _Walk(NamedTuple):
    """A walk down: parameters of p(x | z), and for each group from the top its symbols and posterior (if seen)."""

    output: Tensor
    symbols: list[Integers]
    posteriors: list[Cells]
    priors: list[Cells]


class LadderCoder(ImageCoder):
    """Pops z_T .. z_1 by q(z_t | z_>t, x), pushes x by p(x | z), pushes z_1 .. z_T by p(z_t | z_>t)."""

    def __init__(self, model: Ladder, device: torch.device):
        self.model, self.device = model, device

    def encode(self, stack: Stack, images: Tensor, condition: Condition) -> None:
        model, noise = self.model, no_noise(stack, self.device)
        given = model.given(condition, noise)
        features = model.encode(images, noise, given)
        walk = self._walk(stack, given, features, lambda level, q, p: stack.pop(cast(Cells, q)))
        push_pixels(stack, model.likelihood, walk.output, images)
        for prior, symbols in zip(reversed(walk.priors), reversed(walk.symbols), strict=True):
            stack.push(prior, symbols)

    def decode(self, stack: Stack, condition: Condition) -> Tensor:
        model, noise = self.model, no_noise(stack, self.device)
        given = model.given(condition, noise)
        drawn = self._walk(stack, given, None, lambda level, q, p: stack.pop(p))
        images = pop_pixels(stack, model.likelihood, drawn.output)
        features = model.encode(images, noise, given)
        walk = self._walk(stack, given, features, lambda level, q, p: drawn.symbols[level])
        for posterior, symbols in zip(reversed(walk.posteriors), reversed(walk.symbols), strict=True):
            stack.push(posterior, symbols)
        return images

    def _walk(
        self,
        stack: Stack,
        given: Tensor | None,
        features: Features | None,
        choose: Callable[[int, Cells | None, Cells], Integers],
    ) -> _Walk:
        """Walk down with the symbols of groups 0, 1, ... from the top that `choose` gives, from q (None without
        features) and p.
        """
        symbols: list[Integers] = []
        posteriors: list[Cells] = []
        priors: list[Cells] = []

        def latents(group: Group, h: Tensor, seen: Tensor | None) -> Tensor:
            p, h = group.prior(h, torch.zeros(self._shape(stack, len(symbols)), device=self.device))
            q = None if seen is None else relative_posterior(group.posterior(h, seen, p), p)
            priors.append(relative_prior(p))
            if q is not None:
                posteriors.append(q)
            symbols.append(choose(len(symbols), q, priors[-1]))
            return group.below(h, relative_value(symbols[-1], p))

        output = self.model.descend(stack.lanes, given, features, latents)
        return _Walk(output.float(), symbols, posteriors, priors)

    def _shape(self, stack: Stack, group: int) -> tuple[int, ...]:
        return (stack.lanes, *self.model.shapes[self.model.levels - 1 - group])
