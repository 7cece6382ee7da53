"""Diffusion over the latents of a VAE whose weights are frozen (Vahdat et al. 2021, LSGM, arXiv 2106.05931; Rombach et
al. 2022, arXiv 2112.10752), with the bound of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from trainer.condition_values import Condition
from trainer.conditions import ConditionUses
from trainer.config import Config
from trainer.elbo import Elbo
from trainer.gaussian_process import alpha
from trainer.images import ImageSpec
from trainer.models.base import Model, ModelConfigBase, Refinement
from trainer.models.decoding import DecodeOptions, decoded, words_with_decode
from trainer.models.diffusion.base import DiffusionBase
from trainer.models.diffusion.diffuser import Diffuser, DiffuserConfig
from trainer.models.vae import Vae, VaeConfig
from trainer.networks.conditioning import rebuilt_as
from trainer.noise import Noise
from trainer.normal import Normal
from trainer.samplers import SamplingConfig


class LatentSamplingConfig(SamplingConfig, DecodeOptions):
    """Defaults of sampling from a diffusion over latents; command-line options override them."""


class LatentConfig(DiffuserConfig):
    """A diffusion that replaces the standard normal prior of a trained VAE."""

    URLS: ClassVar[tuple[str, ...]] = ("vae",)
    SamplingOptions: ClassVar[type[Config]] = LatentSamplingConfig

    kind: Literal["latent"]
    vae: str
    """URL of the VAE's run or export: the frozen first stage, with averaged weights. Read when a run starts, never
    again."""
    sampling: LatentSamplingConfig = LatentSamplingConfig()
    """Defaults of sampling, in training and on the command line."""
    first_stage: VaeConfig | None = None
    """Architecture of that VAE, recorded in run folders and exports, whose tensors include its weights. Do not set."""

    def build(self, spec: ImageSpec) -> Latent:
        """Raises ValueError without `first_stage`: no URL is opened."""
        if self.first_stage is None:
            raise ValueError(
                "first_stage: is missing, as in folders written before latent models contained their first stage; "
                "resume the run once with this version, or load it with commit 6f6f0ee"
            )
        return Latent(self, spec, self.first_stage.build(spec))

    def build_new(self, spec: ImageSpec, load: Callable[[str], Model]) -> Latent:
        vae = load(self.vae)
        if not isinstance(vae, Vae):
            raise ValueError(f"vae: {self.vae} is a {type(vae).__name__}; a latent diffusion is made over a vae")
        if vae.conditions:
            raise ValueError(
                f"vae: {self.vae} is conditioned on {', '.join(vae.conditions)}; a first stage must not be"
            )
        if vae.spec[:4] != spec[:4]:
            raise ValueError(f"vae: {self.vae} is for images of {tuple(vae.spec[:4])}, these are {tuple(spec[:4])}")
        return Latent(self, spec, vae)

    def rebuild(self, spec: ImageSpec, recorded: ModelConfigBase | None) -> Latent | None:
        if not isinstance(recorded, LatentConfig) or recorded.first_stage is None:
            return None
        known = rebuilt_as(self.denoiser.conditions, recorded.denoiser.conditions)
        return self.with_conditions(known).model_copy(update={"first_stage": recorded.first_stage}).build(spec)

    def self_contained(self, model: Model) -> Self:
        assert isinstance(model, Latent)
        return self.contained_conditions(model.diffuser).model_copy(update={"first_stage": model.vae.config})


class Latent(DiffusionBase):
    """-log p(x) <= E_q(z|x)[-log p(x | z) + log q(z | x) - log p(z)], the last term again bounded by the diffusion.

    The last step of that is a density, p(z | z_0) = N(z; z_0 / alpha_0, (sigma_0 / alpha_0)^2 I); together with
    log q(z | x), a density of the same z, it leaves a probability of levels.
    """

    def __init__(self, config: LatentConfig, spec: ImageSpec, vae: Vae):
        super().__init__()
        self.spec = spec
        self.vae = vae.requires_grad_(False).eval()
        self.is_density = vae.is_density
        self.diffuser = Diffuser(config, (vae.latent_shape[0], 1, 1), spec, latent=True)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.vae.eval()
        return self

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        q = self.vae.encode(images, noise)
        z = q.sample(noise.normal("z", self.vae.latent_shape))
        distortion = -self.vae.likelihood.log_prob(self.vae.decode(z), images)  # [B]
        entropy = (q.log_scale + 0.5 * math.log(2 * math.pi * math.e)).sum(1)  # [B] of q(z | x)
        last = 0.5 * (self.gamma_0(z) + math.log(2 * math.pi * math.e)) * self.vae.latent_shape[0]  # -E log p(z | z_0)
        rates = self.diffuser(z[:, :, None, None], condition, noise)
        parts = {"posterior": -entropy, "z0": last.expand_as(entropy)}
        objective = None if rates.objective is None else distortion - entropy + last + rates.objective
        return Elbo(distortion, parts | {"prior": rates.prior, "diffusion": rates.diffusion}, objective)

    def diffused(self, images: Tensor, noise: Noise) -> Tensor:
        """A draw from the posterior of the VAE, the bound's own."""
        z = self.vae.encode(images, noise).sample(noise.normal("z", self.vae.latent_shape))
        return z[:, :, None, None]

    def shown(self, x: Tensor, noise: Noise) -> Tensor:
        return self.vae.likelihood.mean(self.vae.decode(x.flatten(1)))

    def drawn(self, x: Tensor, noise: Noise, sampling: SamplingConfig) -> Tensor:
        assert isinstance(sampling, LatentSamplingConfig)
        return decoded(self.vae.likelihood, self.vae.decode(x.flatten(1)), noise, sampling.decode)

    @property
    def picture_options(self) -> Mapping[str, Any]:
        return {"decode": "mean"}

    def samples_in_words(self, options: Mapping[str, Any], uses: ConditionUses) -> str:
        return words_with_decode(super().samples_in_words(options, uses), options)

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """The VAE's reconstructions; the diffusion has no part in them."""
        return self.vae.reconstruct(images, condition, noise)

    def last_refinements(self, images: Tensor, noise: Noise, elbo: Elbo) -> Iterator[Refinement]:
        """z itself, log q(z | x) - log p(z | z_0); then the image."""
        rate = elbo.rates["posterior"] + elbo.rates["z0"]
        yield Refinement("z", rate, self.vae.reconstruct(images, None, noise))
        yield from super().last_refinements(images, noise, elbo)

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        q = self.vae.encode(images, noise)
        weights = []
        for draw in range(k):
            own = noise.with_draw(draw, k)
            z = q.sample(own.normal("z", self.vae.latent_shape))
            gamma_0 = self.gamma_0(z)
            z_0, ratio = self.diffuser.log_ratio(z[:, :, None, None], condition, own)
            last = Normal(z_0.flatten(1) / alpha(gamma_0), (0.5 * gamma_0).expand_as(z)).log_prob(z)
            first = self.vae.likelihood.log_prob(self.vae.decode(z), images) - q.log_prob(z)
            weights.append(first + last + ratio)
        return torch.stack(weights, 1)
