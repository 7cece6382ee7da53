"""Samplers, one file each; the configuration or the command line chooses by name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from trainer.config import Config
from trainer.samplers.ancestral import ancestral
from trainer.samplers.base import Denoise, Denoised, Sampler, SamplerStep
from trainer.samplers.ddim import ddim
from trainer.samplers.dpm_solver import dpm_solver
from trainer.samplers.heun import heun
from trainer.schedules import NoiseSchedule

SamplerName = Literal["ancestral", "ddim", "dpm_solver", "heun"]
Spacing = Literal["time", "log_snr", "karras"]

SAMPLERS: dict[SamplerName, Sampler] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "heun": heun,
}


class SamplingConfig(Config):
    """Defaults of sampling from a diffusion model; command-line options override them."""

    sampler: SamplerName = "ancestral"
    """Sampler."""
    steps: PositiveInt = 128
    """Steps of the sampler."""
    spacing: Spacing = "time"
    """Spacing of the noise levels: even in the schedule's t, in log SNR, or in (sigma / alpha)^(1/7) (Karras et al.
    2022)."""
    guidance: float = 1.0
    """Scale of classifier-free guidance: 0 ignores the condition, 1 is the model itself, larger values exaggerate the
    condition."""
    guidance_from: NonNegativeFloat = 0.0
    """Noise level sigma / alpha above which guidance applies; at and below it the model itself samples (Kynkaanniemi et
    al. 2024)."""
    guidance_to: PositiveFloat | None = None
    """Noise level sigma / alpha up to which guidance applies; above it the model itself samples. null: no limit."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share by which each image's guided estimate of x gets the standard deviation of the conditional one, against
    contrast that guidance exaggerates (Lin et al. 2023, section 3.4)."""

    size: tuple[int, int] | None = None
    """Height and width of the samples in pixels, of models of images of any shape (`data.transform.patches`). null: the
    shapes of the training set, in proportion."""

    @model_validator(mode="after")
    def _ordered_interval(self) -> Self:
        if self.guidance_to is not None and self.guidance_to <= self.guidance_from:
            raise ValueError(f"guidance_to: {self.guidance_to:g} is not above guidance_from, {self.guidance_from:g}")
        return self


def noise_levels(schedule: NoiseSchedule, steps: int, spacing: Spacing, dtype: torch.dtype = torch.float32) -> Tensor:
    """[steps + 1] gamma, decreasing from the schedule's noisy end to the other."""
    line = torch.linspace(1, 0, steps + 1, dtype=dtype, device=schedule.ends.device)
    if spacing == "time":
        return schedule(line)[0]
    low, high = schedule.ends.to(dtype)
    if spacing == "log_snr":
        return low + (high - low) * line
    power = 2 * 7  # of sigma / alpha = exp(gamma / 2)
    return power * torch.log(torch.exp(low / power) + line * (torch.exp(high / power) - torch.exp(low / power)))


__all__ = ["SAMPLERS", "Denoise", "Denoised", "Sampler", "SamplerName", "SamplerStep", "SamplingConfig", "Spacing"]
