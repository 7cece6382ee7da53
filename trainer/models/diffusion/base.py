"""Base of the models that sample by diffusion, over pixels or over latents."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.condition_values import Condition
from trainer.conditions import in_words, none_given
from trainer.config import Config
from trainer.elbo import Elbo
from trainer.gaussian_process import alpha, diffuse, prior_rate
from trainer.models.base import DISTORTION, Bound, Model, NoiseLevels, Picture, Refinement, known_conditions
from trainer.models.conditioned import shares
from trainer.models.diffusion.diffuser import Diffuser
from trainer.noise import Noise
from trainer.patches import Patches, grid_for, sampled_grids, sum_over_image
from trainer.samplers import SamplingConfig

TRAJECTORIES, COLUMNS = 6, 10  # of the picture that shows estimates of x on the way to a sample


class DiffusionBase(Model):
    """A model with a diffusion over some x, and a way to show x as an image."""

    diffuser: Diffuser

    def diffused(self, images: Tensor, noise: Noise) -> Tensor:
        """The x that is diffused, [B, *diffuser.shape], from levels uint8 [B, C, H, W]."""
        raise NotImplementedError

    def diffused_dimensions(self, images: Tensor) -> Tensor:
        """float64 [B]: values in the x of each image."""
        found = torch.full((len(images),), math.prod(self.diffuser.shape), dtype=torch.float64, device=images.device)
        return found if self.spec.patches is None else self.spec.dimensions_of(images)

    def shown(self, x: Tensor, noise: Noise) -> Tensor:
        """x, or an estimate of it, [B, *diffuser.shape] as levels of images, uint8 [B, C, H, W]."""
        raise NotImplementedError

    def drawn(self, x: Tensor, noise: Noise, sampling: SamplingConfig) -> Tensor:
        """The sample that ends in x, [B, *diffuser.shape], uint8 [B, C, H, W]."""
        return self.shown(x, noise)

    @property
    def conditions(self) -> Collection[str]:
        return self.diffuser.denoiser.conditioning.conditions.keys()

    @property
    def hidden_in_training(self) -> Mapping[str, float]:
        return shares(self.diffuser.condition_dropout, self.conditions)

    @property
    def bounds(self) -> Mapping[str, Bound]:
        found = super().bounds
        time = f"{self.diffuser.steps} steps" if self.diffuser.steps else "continuous time"
        chain = f"a chain of {self.diffuser.chain_steps} steps"
        of = {"elbo": time, "iw": chain}
        return {
            name: bound._replace(title=f"{bound.title}, {of[name]}") if name in of else bound
            for name, bound in found.items()
        }

    @property
    def noise_levels(self) -> NoiseLevels:
        low, high = self.diffuser.schedule.ends.tolist()
        return NoiseLevels((low, high), self.diffused_dimensions, self.diffuser.level, self._squared_error)

    def set_steps(self, steps: int) -> None:
        self.diffuser.steps = steps

    @property
    def sampling(self) -> SamplingConfig:
        return self.diffuser.sampling

    def sampling_with(self, options: Mapping[str, Any], conditioned: bool) -> Config:
        if options.get("guidance") not in (None, 1.0) and not conditioned:
            raise ValueError("guidance: needs a condition to guide to, such as a label or a prompt")
        chosen = super().sampling_with(options, conditioned)
        if (size := getattr(chosen, "size", None)) is not None:
            grid_for(self.spec, size)
        return chosen

    def sample(
        self,
        noise: Noise,
        condition: Condition = None,
        temperature: float = 1.0,
        negative: Condition = None,
        **options: Any,
    ) -> Tensor:
        """New images, uint8 [B, C, H, W]; `options` are fields of `sampling`. Guidance leads away from `negative`."""
        chosen = self._chosen(options)
        noise = self._with_shapes(noise, chosen)
        *_, last = self.diffuser.trajectory(noise, condition, temperature, chosen, negative)
        return self.drawn(last.z / alpha(last.gamma), noise, chosen)

    def trajectory(
        self,
        noise: Noise,
        condition: Condition = None,
        temperature: float = 1.0,
        negative: Condition = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """The estimates of x at every step and the sample, uint8 [B, C, H, W] each, one more than there are steps."""
        chosen = self._chosen(options)
        noise = self._with_shapes(noise, chosen)
        for step in self.diffuser.trajectory(noise, condition, temperature, chosen, negative):
            yield self.shown(step.x, noise)
        yield self.drawn(step.z / alpha(step.gamma), noise, chosen)

    def pictures(self, images: Tensor | None, condition: Condition, noise: Noise) -> dict[str, Picture]:
        shown = super().pictures(images, condition, noise)
        few = replace(noise, positions=noise.positions[:TRAJECTORIES])
        path = list(self.trajectory(few, **self.picture_options))
        kept = [path[round(i * (len(path) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
        of = f"estimates on the way to samples, {in_words(none_given(known_conditions(self)))}"
        return shown | {"trajectories": Picture(torch.stack(kept, 1).flatten(0, 1), COLUMNS, of)}

    def refinements(self, images: Tensor, condition: Condition, noise: Noise) -> Iterator[Refinement]:
        """z_T first, then each step of the chain (VDM, equation 14), with the estimate of x at each; at last the terms
        of the bound that are not the chain's.
        """
        noise = self.placed(noise, images)
        x, diffuser = self.diffused(images, noise), self.diffuser
        steps = diffuser.chain_steps
        gammas = diffuser.schedule(torch.linspace(1, 0, steps + 1, dtype=x.dtype, device=x.device))[0]
        denoise = diffuser.denoise(condition, noise)
        rate = prior_rate(x, gammas[0], noise.patches)
        for i, gamma in enumerate(gammas):
            eps = noise.normal(f"eps{i}", diffuser.shape)
            denoised = denoise(diffuse(x, eps, gamma), gamma)
            yield Refinement(f"z{steps - i}", rate, self.shown(denoised.x, noise))
            if i < steps:
                error = sum_over_image((eps - denoised.eps).square(), noise.patches)
                rate = 0.5 * torch.expm1(gamma - gammas[i + 1]) * error
        elbo = self(images, condition, noise, torch.zeros((), device=images.device))
        yield from self.last_refinements(images, noise, elbo)

    def last_refinements(self, images: Tensor, noise: Noise, elbo: Elbo) -> Iterator[Refinement]:
        """What follows z_0."""
        yield Refinement(DISTORTION, elbo.distortion, images)

    def gamma_0(self, like: Tensor) -> Tensor:
        """-log SNR of the least noisy latent, a scalar of the type of `like`."""
        return self.diffuser.schedule.ends.to(like.dtype)[0]

    def _squared_error(self, images: Tensor, condition: Condition, noise: Noise, gamma: Tensor) -> Tensor:
        noise = self.placed(noise, images)
        return self.diffuser.squared_error(self.diffused(images, noise), condition, noise, gamma)

    def placed(self, noise: Noise, images: Tensor) -> Noise:
        """The noise of a batch of images, which knows the places of their patches if they are in patches."""
        return noise if self.spec.patches is None else replace(noise, patches=Patches.of_images(images))

    def _with_shapes(self, noise: Noise, sampling: SamplingConfig) -> Noise:
        """The noise of new images, with the shapes that they are to have if the model's images are in patches."""
        if self.spec.patches is None or noise.patches is not None:
            return noise
        return replace(noise, patches=sampled_grids(self.spec, noise.uniform("grid"), sampling.size))

    def _chosen(self, options: dict[str, Any]) -> SamplingConfig:
        return type(self.sampling).model_validate(self.sampling.model_dump() | options)
