"""Base of the models with several levels of latents: pictures that show what each level determines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from trainer.condition_values import Condition
from trainer.models.base import DISTORTION, Picture, Refinement
from trainer.models.decoding import Decode, DecodingModel
from trainer.noise import Noise

COLUMNS = 8  # images in a row of a picture, and the largest number of rows of levels


class Hierarchy(DecodingModel):
    """A model of latents z_1 .. z_T with z_T the top."""

    levels: int  # T

    def pictures(self, images: Tensor | None, condition: Condition, noise: Noise) -> dict[str, Picture]:
        """Samples, reconstructions, and what each level determines.

        "levels": a row for each number of shared upper levels, from none (all images differ) to all but the lowest.
        "decided": a row for each held-out image: the image, then its reconstructions from more and more upper levels.
        """
        shown = super().pictures(images, condition, noise)
        few = replace(noise, positions=noise.positions[:COLUMNS])
        rows = [self.sample(few, shared_levels=held, **self.picture_options) for held in _spread(0, self.levels - 1)]
        of = "samples that share more and more upper levels, row by row"
        shown["levels"] = Picture(torch.cat(rows), len(few.positions), of)
        if images is not None:
            images = images[:COLUMNS]
            few = replace(noise, positions=noise.positions[: len(images)])
            made = [self.reconstruct(images, condition, few, levels=upper) for upper in _spread(1, self.levels)]
            of = "held-out images, each with its reconstructions from more and more upper levels"
            shown["decided"] = Picture(torch.stack([images, *made], dim=1).flatten(0, 1), 1 + len(made), of)
        return shown

    def refinements(self, images: Tensor, condition: Condition, noise: Noise) -> Iterator[Refinement]:
        """z_T first; of the levels that are missing the means of p."""
        elbo = self(images, condition, noise, torch.zeros((), device=images.device))
        for upper in range(1, self.levels + 1):
            name = f"z{self.levels + 1 - upper}"
            yield Refinement(name, elbo.rates[name], self.reconstruct(images, condition, noise, levels=upper))
        yield Refinement(DISTORTION, elbo.distortion, images)

    def sample(
        self,
        noise: Noise,
        condition: Condition = None,
        temperature: float = 1.0,
        shared_levels: int = 0,
        decode: Decode = "sample",
    ) -> Tensor:
        """New images; all share the upper `shared_levels` levels, those of position 0."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise, levels: int | None = None) -> Tensor:
        """Reconstructions from the images' own latents, or from their upper `levels` (1 .. T) only.

        The levels below those are then the means of p.
        """
        raise NotImplementedError


def held(noise: Noise, shared: bool) -> Noise:
    """`noise`, or if `shared` the noise of position 0 for every sample, in any batch."""
    return replace(noise, positions=torch.zeros_like(noise.positions)) if shared else noise


def _spread(first: int, last: int) -> list[int]:
    """At most COLUMNS evenly spaced integers from `first` to `last`."""
    count = min(COLUMNS, last - first + 1)
    return [first] if count == 1 else [round(first + i * (last - first) / (count - 1)) for i in range(count)]
