"""Variational diffusion over the levels of images (Kingma et al. 2021, VDM, arXiv 2107.00630)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor

from trainer.condition_values import Condition
from trainer.elbo import Elbo
from trainer.gaussian_process import alpha, diffuse
from trainer.images import ImageSpec
from trainer.models.base import Bound, Model
from trainer.models.diffusion.base import DiffusionBase
from trainer.models.diffusion.diffuser import Diffuser, DiffuserConfig
from trainer.models.diffusion.flow import flow_log_density
from trainer.models.diffusion.reconstruction import level_log_prob, reconstruction_cost
from trainer.networks.dit import DitConfig
from trainer.noise import Noise
from trainer.patches import as_batch, grid_for, strips, sum_over_image
from trainer.samplers import noise_levels

FLOW_STEPS = 100


class DiffusionConfig(DiffuserConfig):
    """A hierarchy of T latents, or of infinitely many, whose encoder is fixed Gaussian noising."""

    kind: Literal["diffusion"]

    @property
    def takes_patches(self) -> bool:
        return isinstance(self.denoiser.network, DitConfig)

    def build(self, spec: ImageSpec) -> Diffusion:
        if self.sampling.size is not None:
            try:
                grid_for(spec, self.sampling.size)
            except ValueError as error:
                raise ValueError(f"sampling.{error}") from error
        return Diffusion(self, spec)

    def self_contained(self, model: Model) -> Self:
        assert isinstance(model, Diffusion)
        return self.contained_conditions(model.diffuser)


class Diffusion(DiffusionBase):
    """-log p(x) <= E[-log p(x | z_0)] + KL(q(z_1 | x) || p(z_1)) + diffusion loss (VDM, equation 11)."""

    def __init__(self, config: DiffusionConfig, spec: ImageSpec):
        super().__init__()
        self.spec = spec
        self.diffuser = Diffuser(config, spec.shape, spec)

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        noise = self.placed(noise, images)
        x = self.diffused(images, noise)
        # 1. reconstruction: p(x | z_0), exact in z_0
        distortion = reconstruction_cost(self.spec, self._levels(images), self.gamma_0(x), noise.patches)  # [B]
        # 2. prior, and 3. diffusion, at one time an image
        rates = self.diffuser(x, condition, noise)
        objective = None if rates.objective is None else distortion + rates.objective
        dimensions = None if noise.patches is None else self.spec.dimensions_of(images)
        return Elbo(distortion, {"prior": rates.prior, "diffusion": rates.diffusion}, objective, dimensions)

    def diffused(self, images: Tensor, noise: Noise) -> Tensor:
        """The scaled levels, as strips where the images are in patches: 0 at padding."""
        x = self.spec.scaled(self._levels(images), noise.dtype)
        return x if noise.patches is None else torch.where(noise.patches.pixels(x.shape[-1]), x, 0)

    def shown(self, x: Tensor, noise: Noise) -> Tensor:
        levels = self.spec.nearest_level(x)
        return levels if noise.patches is None else as_batch(levels, noise.patches)

    def _levels(self, images: Tensor) -> Tensor:
        """uint8 [B, *diffuser.shape]"""
        return images if self.spec.patches is None else strips(images, self.spec)

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """The denoiser's estimate from the middle latent, z_t at t = 1/2."""
        noise = self.placed(noise, images)
        x = self.diffused(images, noise)
        gamma = self.diffuser.schedule(torch.full_like(x[:, 0, 0, 0], 0.5))[0]
        z = diffuse(x, noise.normal("eps", self.spec.shape), gamma)
        return self.shown(self.diffuser.denoiser(z, gamma, condition, noise).x, noise)

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        noise = self.placed(noise, images)
        x, levels = self.diffused(images, noise), self._levels(images)
        gamma_0 = self.gamma_0(x)
        weights = []
        for draw in range(k):
            z_0, ratio = self.diffuser.log_ratio(x, condition, noise.with_draw(draw, k))
            weights.append(ratio + level_log_prob(self.spec, levels, z_0 / alpha(gamma_0), gamma_0, noise.patches))
        return torch.stack(weights, 1)

    @property
    def bounds(self) -> Mapping[str, Bound]:
        title = f"probability-flow likelihood (an estimate, no bound), {self._flow_steps} solver steps"
        flow = Bound(title + ", mean of {draws} draws", self._flow)
        return {**super().bounds, "flow": flow}

    def flow_cost(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """[B] nats: -log p(x) with the probability flow in the place of the hierarchy above z_0; never the bound.

        E_q(z_0 | x)[-log p(x | z_0) + log q(z_0 | x) - log p(z_0)], p(z_0) by the flow, of one z_0 an image.
        The solver takes T steps, in continuous time 100.
        """
        noise = self.placed(noise, images)
        x, levels = self.diffused(images, noise), self._levels(images)
        gammas = noise_levels(self.diffuser.schedule, self._flow_steps, "log_snr", x.dtype).flip(0).detach()
        eps = noise.normal("z0", self.spec.shape)
        y = x + torch.exp(gammas[0] / 2) * eps
        entropy = sum_over_image(
            0.5 * (eps.square() + math.log(2 * math.pi) + gammas[0]), noise.patches
        )  # -log q(y_0 | x)
        log_p = flow_log_density(self.diffuser.denoise(condition, noise), y, gammas, noise)
        return -level_log_prob(self.spec, levels, y, gammas[0], noise.patches) - entropy - log_p

    @property
    def _flow_steps(self) -> int:
        return self.diffuser.steps or FLOW_STEPS

    def _flow(self, images: Tensor, condition: Condition, noise: Noise, draws: int) -> dict[str, Tensor]:
        """[B] nats: the flow's cost, averaged over the draws."""
        costs = [self.flow_cost(images, condition, noise.with_draw(draw, draws)) for draw in range(draws)]
        return {"flow": torch.stack(costs).mean(0)}
