"""Autoencoders of the package `diffusers` as first stages (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator
from torch import Tensor

from trainer.config import Config, MayChange, absolute_folder
from trainer.images import ImageSpec
from trainer.likelihoods.discretised import DiscretisedGaussian, DiscretisedLogistic
from trainer.likelihoods.fixed_scale import FixedScale
from trainer.models.base import Model
from trainer.models.latent.first_stages.base import Decoded, Encoding, FirstStage
from trainer.noise import Noise
from trainer.normal import Normal

LIKELIHOODS = {"discretised_logistic": DiscretisedLogistic, "discretised_gaussian": DiscretisedGaussian}


class DiffusersStageConfig(Config):
    """An AutoencoderKL of `diffusers` (`pip install --group diffusers`)."""

    kind: Literal["diffusers"]
    path: Annotated[str, AfterValidator(absolute_folder), MayChange]
    """Folder of the autoencoder (config.json, *.safetensors) or of a pipeline that has one in vae/; or its name on the
    hub. Read when a run starts, never again: its weights are part of checkpoints and exports. Weights are only read
    from safetensors."""
    likelihood: Literal["discretised_logistic", "discretised_gaussian"] = "discretised_logistic"
    """Distribution of the pixels around the decoder's output, with a scale for each channel that is fitted to training
    images when a run starts."""
    architecture: dict[str, Any] | None = None
    """The autoencoder's own configuration, recorded in run folders and exports. Do not set."""

    def build(self, spec: ImageSpec) -> FirstStage:
        """From the recorded architecture, with arbitrary weights. Raises ValueError if none is recorded."""
        if self.architecture is None:
            raise ValueError("first_stage.architecture: is missing; run folders and exports have it")
        return self._stage(_class().from_config(self.architecture), spec)

    def open(self, spec: ImageSpec, load: Callable[[str], Model]) -> FirstStage:
        """With the weights at `path`. Raises ValueError if they cannot be read or are not for the images."""
        return self._stage(read_autoencoder(self.path), spec)

    def recorded(self, stage: FirstStage) -> Self:
        """This configuration with all that `build` needs to rebuild `stage`."""
        assert isinstance(stage, AutoencoderKlStage)
        return self.model_copy(update={"architecture": stage.architecture})

    def rebuilt_as(self, other: Config) -> Self | None:
        """This configuration with the architecture that `other` has recorded; None if it has not."""
        if not isinstance(other, DiffusersStageConfig) or other.architecture is None:
            return None
        return self.model_copy(update={"architecture": other.architecture})

    def _stage(self, autoencoder: Any, spec: ImageSpec) -> FirstStage:
        try:
            return AutoencoderKlStage(autoencoder, FixedScale(LIKELIHOODS[self.likelihood](spec)))
        except ValueError as error:
            raise ValueError(f"first_stage.path: {self.path} {error}") from error


class AutoencoderKlStage(FirstStage):
    """z is the latent of an AutoencoderKL, before `scaling_factor`."""

    model: Any
    likelihood: FixedScale

    def __init__(self, autoencoder: Any, likelihood: FixedScale):
        spec, config = likelihood.spec, autoencoder.config
        for name, channels in (("takes", config.in_channels), ("makes", config.out_channels)):
            if channels != spec.channels:
                raise ValueError(f"{name} images of {channels} channels, these have {spec.channels}")
        downsample = 1 << (len(config.block_out_channels) - 1)
        if spec.height % downsample or spec.width % downsample:
            raise ValueError(f"reduces images by {downsample}, which does not divide {spec.height} x {spec.width}")
        shape = config.latent_channels, spec.height // downsample, spec.width // downsample
        super().__init__(autoencoder, spec, likelihood, shape)

    def encode(self, images: Tensor, noise: Noise) -> Encoding:
        found = self.model.encode(2 * images.to(noise.dtype) / (self.spec.levels - 1) - 1).latent_dist
        return Encoding(Normal(found.mean.to(noise.dtype), 0.5 * found.logvar.to(noise.dtype)))

    def decode(self, z: Tensor, noise: Noise, encoding: Encoding | None = None) -> Decoded:
        x = self.model.decode(z).sample.to(z.dtype)  # level v at 2 v / (L - 1) - 1
        levels = self.spec.levels
        return Decoded(((levels - 1) * (x + 1) + 1) / levels - 1, {})

    @property
    def architecture(self) -> dict[str, Any]:
        """The autoencoder's own configuration."""
        return {name: value for name, value in self.model.config.items() if not name.startswith("_")}

    @property
    def takes_tiles(self) -> bool:
        return True

    def prior(self, like: Tensor) -> None:
        """Its training had a weight of the rate near 0, so that N(0, I) is none."""

    def sums(self, images: Tensor, z: Tensor, noise: Noise) -> Tensor:
        return self.likelihood.sums(self.decode(z, noise).output, images)

    def fit(self, sums: Tensor) -> None:
        self.likelihood.fit(sums)


def read_autoencoder(path: str) -> Any:
    """An AutoencoderKL from a folder or the hub. Raises ValueError."""
    kind, local = _class(), Path(path).is_dir()
    inside = {"subfolder": "vae"} if (Path(path) / "vae" / "config.json").is_file() else {}
    try:
        return kind.from_pretrained(
            path, use_safetensors=True, local_files_only=local, torch_dtype=torch.float32, **inside
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        where = "cannot be read" if local else "is no folder here, and the hub has no such model or cannot be reached"
        raise ValueError(f"first_stage.path: {path} {where}: {reason}") from error


def _class() -> Any:
    try:
        return importlib.import_module("diffusers").AutoencoderKL
    except ImportError as error:
        raise ValueError(
            "first_stage.kind: diffusers needs the package diffusers, which is not installed: "
            "pip install --group diffusers"
        ) from error
