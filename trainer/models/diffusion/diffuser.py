"""A diffusion over any x, pixels or another model's latents: its terms of the bound, and its samples.

Kingma et al. 2021 (VDM, arXiv 2107.00630): the hierarchy of the source text, equations 22-23, with q fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from trainer.condition_values import Condition
from trainer.config import Config
from trainer.distributed.interruption import interruption_point
from trainer.gaussian_process import alpha, diffuse, posterior, prior_rate, sigma
from trainer.images import ImageSpec
from trainer.models.base import Model, ModelConfigBase
from trainer.models.conditioned import Dropout, dropped
from trainer.models.diffusion.denoiser import DenoiserConfig
from trainer.models.diffusion.weightings import BoundConfig, WeightingConfig
from trainer.networks.conditioning import ConditionConfig, contained, rebuilt_as
from trainer.noise import Noise
from trainer.normal import Normal
from trainer.patches import Patches, sum_over_image
from trainer.samplers import SAMPLERS, SamplerStep, SamplingConfig, noise_levels
from trainer.samplers.base import Denoise, Denoised
from trainer.samplers.guidance import guided
from trainer.schedules import LinearConfig, NoiseScheduleConfig

CHAIN = 128  # steps of the importance-weighted bound of a model in continuous time


class DiffuserConfig(ModelConfigBase):
    SamplingOptions: ClassVar[type[Config]] = SamplingConfig
    CONDITIONS: ClassVar[str] = "denoiser.conditions"

    schedule: NoiseScheduleConfig = LinearConfig()
    """Noise schedule: gamma(t) = -log SNR."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """Network, prediction and conditions."""
    steps: PositiveInt | None = None
    """T, the number of latents of a discrete-time model. null: continuous time, the limit of infinitely many."""
    weighting: WeightingConfig = BoundConfig()
    """Weighting of the training loss over noise levels. The reported bound is not weighted."""
    condition_dropout: Dropout = 0.0
    """Probability that a training image's conditions are hidden, for guidance and unconditional samples: of all
    together, or of each by name."""
    sampling: SamplingConfig = SamplingConfig()
    """Defaults of sampling, in training and on the command line."""

    def with_conditions(self, conditions: dict[str, ConditionConfig]) -> Self:
        """The same model with other configurations of its conditions."""
        return self.model_copy(update={"denoiser": self.denoiser.model_copy(update={"conditions": conditions})})

    def rebuild(self, spec: ImageSpec, recorded: ModelConfigBase | None) -> Model | None:
        if not isinstance(recorded, DiffuserConfig):
            return self.build(spec)
        known = rebuilt_as(self.denoiser.conditions, recorded.denoiser.conditions)
        return self.with_conditions(known).build(spec)

    def contained_conditions(self, diffuser: Diffuser) -> Self:
        """This configuration with all that is needed to rebuild the conditions of `diffuser`."""
        return self.with_conditions(contained(self.denoiser.conditions, diffuser.denoiser.conditioning.conditions))

    @model_validator(mode="after")
    def _ends_need_the_bound(self) -> Self:
        if self.schedule.learn_ends and self.weighting.kind != "bound":
            raise ValueError(
                f"schedule.learn_ends: needs weighting.kind: bound, not {self.weighting.kind}: "
                "the ends of the schedule would learn to avoid the loss"
            )
        return self


class Rates(NamedTuple):
    """The diffusion's part of the bound, nats, [B] each."""

    prior: Tensor  # KL(q(z_1 | x) || N(0, I))
    diffusion: Tensor  # of all steps between z_1 and z_0, from one time an image
    objective: Tensor | None  # minimised instead of their sum


class Diffuser(nn.Module):
    """Noise schedule and denoiser: the chain z_1 .. z_0 above any x [B, *shape], its part of the bound, its samples."""

    def __init__(self, config: DiffuserConfig, shape: tuple[int, int, int], images: ImageSpec, latent: bool = False):
        """`shape` of x; `images`: the data set's, which x are the scaled levels of unless x is `latent`."""
        super().__init__()
        self.shape, self.steps, self.weighting = shape, config.steps, config.weighting
        self.sampling, self.condition_dropout = config.sampling, config.condition_dropout
        self.schedule = config.schedule.build()
        self.denoiser = config.denoiser.build(shape, images, latent)

    def forward(self, x: Tensor, condition: Condition, noise: Noise) -> Rates:
        if noise.purpose == "train":
            condition = dropped(condition, noise, self.condition_dropout)
        gamma, slope = self.level(noise.stratified("t"))
        error = self.squared_error(x, condition, noise, gamma)
        prior, diffusion = prior_rate(x, self.schedule.ends.to(x.dtype)[1], noise.patches), 0.5 * slope * error
        if noise.purpose != "train":
            return Rates(prior, diffusion, None)
        return Rates(prior, diffusion, self._objective(prior, diffusion, gamma, slope, noise.patches))

    def squared_error(self, x: Tensor, condition: Condition, noise: Noise, gamma: Tensor) -> Tensor:
        """[B]: |eps - eps'|^2 of the denoiser's estimate from z at gamma [B]."""
        eps = noise.normal("eps", self.shape)
        denoised = self.denoiser(diffuse(x, eps, gamma), gamma, condition, noise)
        return sum_over_image((eps - denoised.eps).square(), noise.patches)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma at random times t in [0, 1), [B], and twice the weight of the squared error of eps there.

        Continuous time: the slope (VDM, equation 17). T steps: T (SNR(s) / SNR(t) - 1) (equation 14).
        """
        if self.steps is None:
            return self.schedule(t)
        later = (torch.floor(t * self.steps) + 1) / self.steps
        gamma = self.schedule(later)[0]
        return gamma, self.steps * torch.expm1(gamma - self.schedule(later - 1 / self.steps)[0])

    def _objective(
        self, prior: Tensor, diffusion: Tensor, gamma: Tensor, slope: Tensor, patches: Patches | None
    ) -> Tensor | None:
        weight = self.weighting.weight(gamma, slope)
        loss = diffusion if weight is None else weight * diffusion
        dimensions: int | Tensor = self.shape[0] * self.shape[1] * self.shape[2]
        if patches is not None:
            dimensions = (patches.counts * (self.shape[0] * self.shape[2] ** 2)).clamp(min=1).to(loss.dtype)
        variance = self.schedule.variance_objective(gamma, loss / dimensions)
        if weight is None and variance is None:
            return None
        return prior + loss + (0 if variance is None else dimensions * variance)

    def denoise(self, condition: Condition, noise: Noise) -> Denoise:
        """The denoiser as samplers call it."""

        def estimate(z: Tensor, gamma: Tensor) -> Denoised:
            interruption_point()
            return self.denoiser(z, gamma.expand(len(z)), condition, noise)

        return estimate

    def trajectory(
        self,
        noise: Noise,
        condition: Condition,
        temperature: float,
        sampling: SamplingConfig,
        negative: Condition = None,
    ) -> Iterator[SamplerStep]:
        """From z_1 ~ N(0, temperature^2 I) to z_0, one step at a time; guided away from `negative`."""
        gammas = noise_levels(self.schedule, sampling.steps, sampling.spacing, noise.dtype)
        z = temperature * noise.normal("z1", self.shape)
        conditional, other = self.denoise(condition, noise), self.denoise(negative, noise)
        interval = sampling.guidance_from, sampling.guidance_to
        denoise = guided(conditional, other, sampling.guidance, interval, sampling.guidance_rescale, noise.patches)
        return SAMPLERS[sampling.sampler](denoise, z, gammas, noise, temperature)

    @property
    def chain_steps(self) -> int:
        """Steps of the chain of an importance-weighted bound."""
        return self.steps or CHAIN

    def log_ratio(self, x: Tensor, condition: Condition, noise: Noise) -> tuple[Tensor, Tensor]:
        """z_0 [B, ...] of a whole chain drawn from q, and [B] nats: log p(z_0..z_1) - log q(z_0..z_1 | x).

        The chain has T steps; a model in continuous time is taken at T = 128, which bounds log p(x) too.
        """
        steps = self.chain_steps
        gammas = self.schedule(torch.linspace(1, 0, steps + 1, dtype=x.dtype, device=x.device))[0]
        z = diffuse(x, noise.normal("z1", self.shape), gammas[0])
        q = Normal(alpha(gammas[0]) * x, torch.log(sigma(gammas[0])).expand_as(x))
        prior, q_density = Normal.standard(z).log_prob_elements(z), q.log_prob_elements(z)
        ratio = sum_over_image(prior, noise.patches) - sum_over_image(q_density, noise.patches)
        denoise = self.denoise(condition, noise)
        for i in range(steps):
            p_mean, scale = posterior(z, denoise(z, gammas[i]).x, gammas[i], gammas[i + 1])
            q_mean, _ = posterior(z, x, gammas[i], gammas[i + 1])
            eps = noise.normal(f"chain{i}", self.shape)
            z = q_mean + scale * eps
            shift = (q_mean - p_mean) / scale
            ratio = ratio - sum_over_image(0.5 * shift.square() + shift * eps, noise.patches)
        return z, ratio
