"""The latents of a first stage: mean and log-scale of q(z | x) for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datasets.encoding.encoder import Samples
from datasets.shards.index import Index
from jobs.encoders.opened_run import OpenedRun
from jobs.errors import ConfigError
from trainer.models.latent import Latent
from trainer.models.latent.first_stages.base import reshaped
from trainer.models.latent.first_stages.run import stage_of
from trainer.models.vae import Vae
from trainer.noise import Noise


class Latents:
    """`latent.mean` and `latent.log_scale`, arrays of the latent's shape, of a VAE or a latent model's first stage."""

    def __init__(self, run: str, weights: str = "ema"):
        self._run = OpenedRun(run, weights)
        model = self._run.model
        if isinstance(model, Latent):
            self._stage = model.first_stage
        elif isinstance(model, Vae) and not model.conditions:
            self._stage = stage_of(model)
        else:
            kind = type(model).__name__
            raise ConfigError(f"{run}: a {kind} has no latents of images alone; a vae or a latent model has")
        self.identity = f"latents 1 {self._run.digest}"

    def open(self, index: Index) -> None:
        """Raises ConfigError unless the model takes the images of a set."""
        self._run.open(index)

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Mapping[str, Sequence[Tensor]]:
        images = self._run.images(samples.images, samples.positions)
        noise = Noise(0, "evaluate", torch.from_numpy(samples.positions).to(self._run.device))
        q = self._stage.encode(images, noise).q
        q = reshaped(q, self._stage.natural_shape)
        return {"latent.mean": list(q.mean.cpu()), "latent.log_scale": list(q.log_scale.cpu())}
