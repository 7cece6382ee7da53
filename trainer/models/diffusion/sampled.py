"""What every model whose samples a diffusion makes has in common, whatever it is a diffusion over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from trainer.gaussian_process import alpha
from trainer.models.base import Condition, Model, Picture
from trainer.models.diffusion.diffuser import Diffuser
from trainer.noise import Noise
from trainer.samplers import SamplingConfig, Step

TRAJECTORIES, COLUMNS = 6, 10  # of the picture that shows estimates of x on the way to a sample


class DiffusionModel(Model):
    """A model with a diffusion over some x, and a way to show x as an image."""

    diffuser: Diffuser

    def shown(self, x: Tensor) -> Tensor:
        """x, or an estimate of it, [B, *diffuser.shape] as levels of images, uint8 [B, C, H, W]."""
        raise NotImplementedError

    def sample(self, noise: Noise, condition: Condition = None, temperature: float = 1.0, **sampling: object) -> Tensor:
        """New images, uint8 [B, C, H, W]; `sampling` changes fields of the configuration's SamplingConfig."""
        *_, last = self._steps(noise, condition, temperature, sampling)
        return self.shown(last.z / alpha(last.gamma))

    def trajectory(
        self, noise: Noise, condition: Condition = None, temperature: float = 1.0, **sampling: object
    ) -> Iterator[Tensor]:
        """The estimates of x on the way and the sample last, uint8 [B, C, H, W] each, one more than there are steps."""
        for step in self._steps(noise, condition, temperature, sampling):
            yield self.shown(step.x)
        yield self.shown(step.z / alpha(step.gamma))

    def pictures(self, images: Tensor | None, condition: Condition, noise: Noise) -> dict[str, Picture]:
        shown = super().pictures(images, condition, noise)
        few = replace(noise, positions=noise.positions[:TRAJECTORIES])
        path = list(self.trajectory(few))
        kept = [path[round(i * (len(path) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
        return shown | {"trajectories": Picture(torch.stack(kept, 1).flatten(0, 1), COLUMNS)}

    def gamma_0(self, like: Tensor) -> Tensor:
        """-log SNR of the least noisy latent, a scalar of the type of `like`."""
        return self.diffuser.schedule.ends.to(like.dtype)[0]

    def _steps(
        self, noise: Noise, condition: Condition, temperature: float, sampling: dict[str, object]
    ) -> Iterator[Step]:
        chosen = SamplingConfig.model_validate(self.diffuser.sampling.model_dump() | sampling)
        return self.diffuser.trajectory(noise, condition, temperature, chosen)
