"""The latents of an autoencoder: mean and log-scale of q(z | x) for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datasets.encoding.encoder import Samples
from datasets.shards.index import Index
from jobs.encoders.opened_run import OpenedRun
from jobs.errors import ConfigError
from trainer.models.autoencoder import Autoencoder
from trainer.noise import Noise


class Latents:
    """`latent.mean` and `latent.log_scale`, arrays of the latent's shape, given no condition."""

    def __init__(self, run: str, weights: str = "ema"):
        self._run = OpenedRun(run, weights)
        model = self._run.model
        if not isinstance(model, Autoencoder):
            raise ConfigError(f"{run}: a {type(model).__name__} does not encode images to one latent; a VAE does")
        self._model = model
        self.identity = f"latents 1 {self._run.digest}"

    def open(self, index: Index) -> None:
        """Raises ConfigError unless the model takes the images of a set."""
        self._run.open(index)

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Mapping[str, Sequence[Tensor]]:
        images = self._run.images(samples.images, samples.positions)
        noise = Noise(0, "evaluate", torch.from_numpy(samples.positions).to(self._run.device))
        q = self._model.encode(images, noise, self._model.given(None, noise))
        return {"latent.mean": list(q.mean.cpu()), "latent.log_scale": list(q.log_scale.cpu())}
