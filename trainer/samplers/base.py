"""What all samplers share: a denoiser as a function, a line of noise levels, and the steps that they yield."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from trainer.noise import Noise


class Denoised(NamedTuple):
    """A denoiser's answer for z = alpha x + sigma eps: estimates of both parts, of z's shape."""

    x: Tensor
    eps: Tensor


Denoise = Callable[[Tensor, Tensor], Denoised]  # (z [B, ...], gamma, a scalar) -> estimates


class Step(NamedTuple):
    """Where a sampler stands: the latent at -log SNR gamma, and the estimate of x that it was made with."""

    z: Tensor  # [B, ...]
    x: Tensor  # [B, ...]
    gamma: Tensor  # scalar


class Sampler(Protocol):
    """From z at gammas[0] down to gammas[-1], one step yielded for each of gammas[1:].

    `gammas` [steps + 1] falls. `temperature` is the standard deviation of the noise that a sampler adds; those that
    add none are the probability-flow equation's solvers, of the order that their file says.
    """

    def __call__(
        self, denoise: Denoise, z: Tensor, gammas: Tensor, noise: Noise, temperature: float = 1.0
    ) -> Iterator[Step]: ...
