"""A 64-bit hash that images share which look alike: pHash (Zauner 2010, "Implementation and benchmarking of perceptual
image hash functions"), the signs of low frequencies.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from datasets.images.decode import decode_file

_SIDE, _LOW = 32, 8
_TIE = 1e-6  # above the rounding errors of a flat image's frequencies, far below a grey level
_DCT = np.cos(math.pi / _SIDE * np.outer(np.arange(_LOW), np.arange(_SIDE) + 0.5))  # type II, [8, 32]


def perceptual_hash(data: bytes) -> int:
    """The hash of an encoded image: bit 8 i + j is 1 where frequency (i, j) of 8 x 8 is above their median.

    The image is scaled to 32 x 32 grey pixels. Raises `DataError` if it does not decode.
    """
    pixels = decode_file(data)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    grey = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    frequencies = _DCT @ np.asarray(grey, dtype=np.float64) @ _DCT.T
    bits = (frequencies > np.median(frequencies) + _TIE).reshape(-1)
    return int(np.packbits(bits, bitorder="little").view("<u8")[0])
