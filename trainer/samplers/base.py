"""The interface of samplers: a denoiser as a function, a sequence of noise levels, and the steps they yield."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from trainer.noise import Noise


class Denoised(NamedTuple):
    """A denoiser's estimates of both parts of z = alpha x + sigma eps, of z's shape."""

    x: Tensor
    eps: Tensor


Denoise = Callable[[Tensor, Tensor], Denoised]  # (z [B, ...], gamma, a scalar) -> estimates


class SamplerStep(NamedTuple):
    """The latent at -log SNR gamma, and the estimate of x from which it was computed."""

    z: Tensor  # [B, ...]
    x: Tensor  # [B, ...]
    gamma: Tensor  # scalar


class Sampler(Protocol):
    """From z at gammas[0] down to gammas[-1], one step yielded for each of gammas[1:].

    `gammas` [steps + 1] decreases. `temperature` is the standard deviation of the noise that a sampler adds; those
    that add none solve the probability-flow equation, with the order given in their file.
    """

    def __call__(
        self, denoise: Denoise, z: Tensor, gammas: Tensor, noise: Noise, temperature: float = 1.0
    ) -> Iterator[SamplerStep]: ...
