"""Noise as a function of the image, not of the rank.

Every draw is a pure function of (seed, purpose, name, position of the image, draw), so one rank or eight, any
micro-batch and any number of sampling workers draw the same numbers, and there is no random state to save.
The generator is counter-based: a 32-bit integer hash of (key of the image, element), the finaliser "lowbias32" of
C. Wellons, with a second 32-bit key of the image injected between its two rounds; normals are by Box and Muller (1958).
The integers are the same on every device.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from trainer.patches import Patches

Purpose = Literal["train", "evaluate", "sample"]

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive counters

_SILVER = 0x6A09E667  # 2^32 (sqrt 2 - 1): spreads consecutive draws


@dataclass(frozen=True)
class Noise:
    """The noise of a batch of images.

    `positions` are the images' indices in the global order (training), in the set (evaluation) or among the samples.
    """

    seed: int
    purpose: Purpose
    positions: Tensor  # [B] int64
    batch: int = 1  # the GLOBAL batch size: training positions [kB, (k+1)B) make step k
    draw: int = 0  # which of several draws for the same images (importance samples, diffusion times)
    draws: int = 1  # how many there are
    dtype: torch.dtype = torch.float32
    patches: Patches | None = None  # of images in patches: the noise of a patch belongs to its place in its image

    def with_draw(self, draw: int, draws: int) -> Noise:
        """The same images' noise for draw number `draw` of `draws`."""
        return replace(self, draw=draw, draws=draws)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal values, [B, *shape]; independent for each name.

        Of images in patches `shape` is that of their strips, and each has the noise of a whole image of its shape.
        """
        if self.patches is not None:
            return self._normal_in_patches(name, shape, self.patches)
        n = math.prod(shape)
        half = (n + 1) // 2
        bits = self._bits(name, 2 * half)
        values = self._box_muller(bits[:, :half], bits[:, half:])
        return values[:, :n].reshape(-1, *shape)

    def _normal_in_patches(self, name: str, shape: tuple[int, ...], patches: Patches) -> Tensor:
        channels, _, side = shape
        index, values = patches.elements(channels, side)  # in the image; [B, *shape] and [B]
        half = ((values + 1) // 2).to(torch.int32)[:, None]
        most = (math.prod(shape) + 1) // 2
        element = torch.arange(most, dtype=torch.int32, device=index.device)
        radius = self._hash(name, self.positions, self.draw, element)
        angle = self._hash(name, self.positions, self.draw, element + half)
        index, half = index.flatten(1), half.long()
        source = torch.where(index < half, index, index - half + most)
        drawn = self._box_muller(radius, angle).gather(1, source).reshape(-1, *shape)
        return torch.where(patches.pixels(side), drawn, 0)

    def _box_muller(self, first: Tensor, second: Tensor) -> Tensor:
        """Normal values [B, 2 n] from two words [B, n] for each pair."""
        # u in (0, 1]: 31 bits reach out to 6.6 standard deviations
        u = ((first & 0x7FFFFFFF).to(self.dtype) + 1) * 2.0**-31
        angle = (second & 0xFFFFFF).to(self.dtype) * (2 * math.pi * 2.0**-24)
        radius = torch.sqrt(-2 * torch.log(u.clamp(max=1)))
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform values in [0, 1), [B, *shape], multiples of 2^-24."""
        bits = self._bits(name, math.prod(shape))
        return ((bits & 0xFFFFFF).to(self.dtype) * 2.0**-24).reshape(-1, *shape)

    def stratified(self, name: str) -> Tensor:
        """Uniform values in [0, 1), [B], spread evenly (Kingma et al. 2021, appendix I.1).

        Training: (u0(step) + place in the GLOBAL batch / B) mod 1, so that each of the B cells of [0, 1) holds one
        image over all ranks together. Else: (u(image) + k / K) mod 1 for the k-th of K draws of an image.
        """
        zero = torch.zeros(1, dtype=torch.int32, device=self.positions.device)
        if self.purpose == "train":
            step = torch.div(self.positions, self.batch, rounding_mode="floor")
            u = _unit(self._hash(name, step, 0, zero), self.dtype)[:, 0]
            offset = (self.positions - step * self.batch).to(self.dtype) / self.batch
        else:
            u = _unit(self._hash(name, self.positions, 0, zero), self.dtype)[:, 0]
            offset = torch.full_like(u, self.draw / self.draws)
        return torch.remainder(u + offset, 1.0)

    def dropout(self, name: str, x: Tensor, p: float) -> Tensor:
        """`x` [B, ...] with each value set to zero with probability p and the others divided by 1 - p."""
        if p == 0:
            return x
        keep = self.uniform(name, tuple(x.shape[1:])) >= p
        return x * keep.to(x.dtype) / (1 - p)

    def _bits(self, name: str, n: int) -> Tensor:
        elements = torch.arange(n, dtype=torch.int32, device=self.positions.device)
        return self._hash(name, self.positions, self.draw, elements)

    def _hash(self, name: str, counter: Tensor, draw: int, elements: Tensor) -> Tensor:
        """int32 [B, n] from elements int32 [n] or [B, n], all 32 bits random."""
        first, second = _words(self.seed, f"{self.purpose}/{name}")
        low, high = counter.to(torch.int32), (counter >> 32).to(torch.int32)
        low = _mix(low + _signed(first + draw * _GOLDEN))
        key = _mix(low ^ _mix(high + _signed(second)))[:, None]
        element = elements * _signed(_GOLDEN)
        # The draw enters twice, with different multipliers: two images that collide in one differ in the other.
        return _mix(element + key, inject=_mix(low + _signed(second + draw * _SILVER))[:, None])


def _unit(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return (bits & 0xFFFFFF).to(dtype) * 2.0**-24


def _signed(word: int) -> int:
    """A 32-bit word as the int32 with the same bits."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _mix(x: Tensor, inject: Tensor | None = None) -> Tensor:
    """lowbias32: every bit of the result depends on every bit of x (int32; products wrap)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    if inject is not None:
        x = x ^ inject
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _signed(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


def _words(seed: int, name: str) -> tuple[int, int]:
    """Two 32-bit words from the seed and a name; constants of a compiled graph."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


# torch.compiler.assume_constant_result, without the seconds that it takes to import the compiler
_words._dynamo_marked_constant = True  # type: ignore[attr-defined]
