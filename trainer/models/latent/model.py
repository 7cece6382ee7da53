"""Diffusion over the latents of a frozen first stage (Vahdat et al. 2021, LSGM, arXiv 2106.05931; Rombach et al. 2022,
arXiv 2112.10752), with the bound of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from trainer.condition_values import Condition
from trainer.conditions import ConditionUses
from trainer.config import Config
from trainer.distributed.ranks import all_reduce_sum
from trainer.elbo import Elbo
from trainer.gaussian_process import alpha
from trainer.images import ImageSpec
from trainer.likelihoods import Likelihood
from trainer.models.base import DISTORTION, Bound, Model, ModelConfigBase, Refinement
from trainer.models.decoding import DecodeOptions, decoded, words_with_decode
from trainer.models.diffusion.base import DiffusionBase
from trainer.models.diffusion.diffuser import Diffuser, DiffuserConfig
from trainer.models.latent.first_stages import FirstStage, FirstStageConfig
from trainer.models.latent.first_stages.base import Decoded, Encoding, reshaped
from trainer.models.latent.parts import check_tile, decode_in_parts
from trainer.models.latent.scale import LatentScale
from trainer.networks.conditioning import rebuilt_as
from trainer.noise import Noise
from trainer.normal import Normal
from trainer.samplers import SamplingConfig


class LatentSamplingConfig(SamplingConfig, DecodeOptions):
    """Defaults of sampling from a diffusion over latents; command-line options override them."""

    decode_rows: PositiveInt | None = None
    """Images that the first stage decodes at once, where memory is short. null: all."""
    tile: PositiveInt | None = None
    """Height and width of the parts of the latent that are decoded one after another and blended, where memory is very
    short; images then differ a little. null: the whole latent."""


class LatentColumns(Config):
    """Names of `data.conditions` of kind vector that have q(z | x), made by `jobs.encode --with latents:`."""

    mean: str = "latent_mean"
    """The mean."""
    log_scale: str = "latent_log_scale"
    """The logarithm of the standard deviation."""


class LatentConfig(DiffuserConfig):
    """A diffusion over the latents of a frozen first stage, in place of their prior."""

    SamplingOptions: ClassVar[type[Config]] = LatentSamplingConfig

    kind: Literal["latent"]
    first_stage: FirstStageConfig
    """The model that encodes images to latents and decodes them, chosen by `kind`. The run contains it: checkpoints and
    exports need no other folder."""
    measured_images: NonNegativeInt = 4096
    """Training images that the mean and scale of each channel of the latents, on which they are diffused, are measured
    on when a run starts; and the scale of the likelihood of a `diffusers` first stage. 0: not measured."""
    latents: LatentColumns | None = None
    """Columns to take q(z | x) from, which saves the pass through the encoder; null: it is computed. The same draws
    follow. They have the images as they are stored: not for a `data.transform` with random parts."""
    sampling: LatentSamplingConfig = LatentSamplingConfig()
    """Defaults of sampling, in training and on the command line."""

    @model_validator(mode="before")
    @classmethod
    def _first_stage_has_a_section(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "vae" in values:
            raise ValueError(
                "vae: is now first_stage: {kind: run, url: ...}; run folders and exports that have the key are read by "
                "commit ea2aabe"
            )
        return values

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.latents is None else (self.latents.mean, self.latents.log_scale)

    def build(self, spec: ImageSpec) -> Latent:
        """Raises ValueError where the first stage is not recorded: no URL is opened."""
        return Latent(self, self.first_stage.build(spec), spec)

    def build_new(self, spec: ImageSpec, load: Callable[[str], Model]) -> Latent:
        return Latent(self, self.first_stage.open(spec, load), spec)

    def rebuild(self, spec: ImageSpec, recorded: ModelConfigBase | None) -> Latent | None:
        if not isinstance(recorded, LatentConfig):
            return None
        first_stage = self.first_stage.rebuilt_as(recorded.first_stage)
        if first_stage is None:
            return None
        known = rebuilt_as(self.denoiser.conditions, recorded.denoiser.conditions)
        return self.with_conditions(known).model_copy(update={"first_stage": first_stage}).build(spec)

    def self_contained(self, model: Model) -> Self:
        assert isinstance(model, Latent)
        first_stage = self.first_stage.recorded(model.first_stage)
        return self.contained_conditions(model.diffuser).model_copy(update={"first_stage": first_stage})


class Latent(DiffusionBase):
    """-log p(x) <= E_q(z|x)[-log p(x | z) + log q(z | x) - log p(z)], the last term again bounded by the diffusion.

    The diffusion is over u = (z - m) / s, each channel by constants of the training set, so log p(z) = log p(u) -
    log s. Its last step is a density, p(u | u_0) = N(u; u_0 / alpha_0, (sigma_0 / alpha_0)^2 I); together with
    log q(z | x), a density of the same z, it leaves a probability of levels. Levels of a ladder below z add their own
    rates.
    """

    def __init__(self, config: LatentConfig, first_stage: FirstStage, spec: ImageSpec):
        super().__init__()
        self.spec = spec
        self.first_stage = first_stage
        self.is_density = first_stage.likelihood.is_density
        self.measured_images, self.columns = config.measured_images, config.columns
        if self.columns and not first_stage.posterior_suffices:
            raise ValueError("latents: the levels below z of a ladder need the image; leave it out")
        self.scale = LatentScale(first_stage.shape)
        self.diffuser = Diffuser(config, first_stage.shape, spec, latent=True)
        try:
            check_tile(first_stage, config.sampling.tile)
        except ValueError as error:
            raise ValueError(f"sampling.{error}") from error

    @property
    def likelihood(self) -> Likelihood:
        """p(x | z)"""
        return self.first_stage.likelihood

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        scale, first_stage = [], []
        for images in batches:
            places = torch.arange(len(images), device=images.device)
            noise = Noise(0, "evaluate", places, dtype=self.scale.mean.dtype)
            q = self.first_stage.encode(images, noise).q
            scale.append(self.scale.sums(q))
            first_stage.append(self.first_stage.sums(images, self._draw(q, noise), noise))
        self.scale.fit(all_reduce_sum(torch.stack(scale).sum(0)))
        self.first_stage.fit(all_reduce_sum(torch.stack(first_stage).sum(0)))

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        encoding = self._encoding(images, condition, noise)
        z = self._draw(encoding.q, noise)
        found = self.first_stage.decode(z, noise, encoding)
        distortion = -self.likelihood.log_prob(found.output, images)  # [B]
        entropy = (encoding.q.log_scale + 0.5 * math.log(2 * math.pi * math.e)).flatten(1).sum(1)  # [B] of q(z | x)
        # -E log p(z | u_0)
        last = 0.5 * (self.gamma_0(z) + math.log(2 * math.pi * math.e)) * z[0].numel() + self.scale.log_volume.to(z)
        rates = self.diffuser(self.scale(z), condition, noise)
        parts = {"posterior": -entropy, **_rates(found), "z0": last.expand_as(entropy)}
        objective = None if rates.objective is None else distortion + sum(parts.values()) + rates.objective
        return Elbo(distortion, parts | {"prior": rates.prior, "diffusion": rates.diffusion}, objective)

    def diffused(self, images: Tensor, noise: Noise) -> Tensor:
        """u of a draw from the posterior of the first stage, the bound's own."""
        return self.scale(self._draw(self.first_stage.encode(images, noise).q, noise))

    def shown(self, x: Tensor, noise: Noise) -> Tensor:
        return self.likelihood.mean(self._decoded(x, noise, self.sampling))

    def drawn(self, x: Tensor, noise: Noise, sampling: SamplingConfig) -> Tensor:
        assert isinstance(sampling, LatentSamplingConfig)
        return decoded(self.likelihood, self._decoded(x, noise, sampling), noise, sampling.decode)

    def sampling_with(self, options: Mapping[str, Any], conditioned: bool) -> Config:
        chosen = super().sampling_with(options, conditioned)
        assert isinstance(chosen, LatentSamplingConfig)
        check_tile(self.first_stage, chosen.tile)
        return chosen

    @property
    def picture_options(self) -> Mapping[str, Any]:
        return {"decode": "mean"}

    def samples_in_words(self, options: Mapping[str, Any], uses: ConditionUses) -> str:
        return words_with_decode(super().samples_in_words(options, uses), options)

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """The first stage's reconstructions; the diffusion has no part in them."""
        encoding = self.first_stage.encode(images, noise)
        return self.likelihood.mean(self.first_stage.decode(self._draw(encoding.q, noise), noise, encoding).output)

    @property
    def bounds(self) -> Mapping[str, Bound]:
        title = "-ELBO of the first stage by itself, mean of {draws} draws"
        return {**super().bounds, "first_stage": Bound(title, self._first_stage_terms)}

    def last_refinements(self, images: Tensor, noise: Noise, elbo: Elbo) -> Iterator[Refinement]:
        """z itself, log q(z | x) - log p(z | u_0), with the levels below it; then the image."""
        rate = elbo.negative_bound - elbo.distortion - elbo.rates["prior"] - elbo.rates["diffusion"]
        yield Refinement("z", rate, self.reconstruct(images, None, noise))
        yield from super().last_refinements(images, noise, elbo)

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        encoding = self.first_stage.encode(images, noise)
        weights = []
        for draw in range(k):
            own = noise.with_draw(draw, k)
            z = self._draw(encoding.q, own)
            gamma_0 = self.gamma_0(z)
            u_0, ratio = self.diffuser.log_ratio(self.scale(z), condition, own)
            last = Normal(u_0 / alpha(gamma_0), (0.5 * gamma_0).expand_as(z)).log_prob(self.scale(z))
            found = self.first_stage.decode(z, own, encoding)
            first = self.likelihood.log_prob(found.output, images) - encoding.q.log_prob(z)
            weights.append(first + _log_ratio(found) + last - self.scale.log_volume.to(z) + ratio)
        return torch.stack(weights, 1)

    def _encoding(self, images: Tensor, condition: Condition, noise: Noise) -> Encoding:
        """Of the columns where they are given."""
        given = [condition.get(name) if condition else None for name in self.columns]
        tensors = [value.to(noise.dtype) for value in given if isinstance(value, Tensor)]
        if len(tensors) < 2:
            return self.first_stage.encode(images, noise)
        return Encoding(reshaped(Normal(*tensors), self.first_stage.shape))

    def _draw(self, q: Normal, noise: Noise) -> Tensor:
        return q.sample(noise.normal("z", self.first_stage.shape))

    def _decoded(self, u: Tensor, noise: Noise, sampling: SamplingConfig) -> Tensor:
        """The parameters of p(x | z), the levels below z drawn from their priors."""
        assert isinstance(sampling, LatentSamplingConfig)
        return decode_in_parts(self.first_stage, self.scale.inverse(u), noise, sampling.decode_rows, sampling.tile)

    def _first_stage_terms(self, images: Tensor, condition: Condition, noise: Noise, draws: int) -> dict[str, Tensor]:
        """[B] nats each: distortion and rates with the first stage's own p(z), or N(m, s^2) if it has none."""
        total: dict[str, Tensor] = {}
        for draw in range(draws):
            own = noise.with_draw(draw, draws)
            encoding = self.first_stage.encode(images, own)
            z = self._draw(encoding.q, own)
            found = self.first_stage.decode(z, own, encoding)
            prior = self.first_stage.prior(z) or self.scale.normal(z)
            terms = {DISTORTION: -self.likelihood.log_prob(found.output, images), **_rates(found)}
            for name, value in (terms | {"z": encoding.q.kl(prior)}).items():
                total[name] = total.get(name, 0) + value / draws
        return total


def _rates(found: Decoded) -> dict[str, Tensor]:
    """[B] nats each: KL(q || p) of the levels below z."""
    rates = {}
    for name, (_, p, q) in found.below.items():
        assert q is not None
        rates[name] = q.kl(p)
    return rates


def _log_ratio(found: Decoded) -> Tensor | float:
    """[B] nats: log p - log q of the levels below z."""
    total: Tensor | float = 0.0
    for z, p, q in found.below.values():
        assert q is not None
        total = total + p.log_prob(z) - q.log_prob(z)
    return total
