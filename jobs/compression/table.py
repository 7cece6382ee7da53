"""A compressed file beside the model's bound, PNG, WebP and JPEG XL on the same images: a table, a plot, a report."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.compression.container import Container
from jobs.evaluating.opened import Opened
from jobs.run.reports import keep, split_name, weights_text
from trainer.elbo import bits_per_dimension
from trainer.images import visible
from trainer.tracking.plots import bars
from trainer.training.evaluation import evaluate

Pixels = NDArray[np.uint8]  # [H, W, 3], or [H, W] if grey
Encoder = Callable[[Pixels, bool], bytes]  # (pixels, whether they are black and white only) -> a file

_NO_JXL = "no JPEG XL: imagecodecs is not installed (dependency group bench)"


class Size(NamedTuple):
    """A row of the table."""

    name: str
    bytes: float
    bpd: float


def report_table(
    own: Opened, images: Tensor, container: Container, size: int, speeds: tuple[float, float], draws: int
) -> list[str]:
    """Measure, write the report and the plot; lines for the user. `speeds`: images/s of encoding and decoding."""
    dimensions, header = own.model.spec.dimensions, container.header
    total = dimensions * len(images)

    def row(name: str, size: float) -> Size:
        return Size(name, size, 8 * size / total)

    initial = container.stack.initial_bits / 8
    bound = _bound(own, draws) * total / 8
    rows = [row("the model's bound", bound), row("file without initial bits", size - initial), row("file", size)]
    lines = []
    for name, measured in yardsticks(images, own.model.spec.levels):
        if measured is None:
            lines.append(_NO_JXL)
        else:
            rows.append(row(name, measured))
    stream = size - initial - header.condition_bytes
    overhead = (stream - bound) / bound
    report = own.facts(len(images)) | {"steps": header.steps}
    report["compression"] = {"lanes": header.lanes, "width": header.width, "file_bytes": size}
    report["rows"] = [each._asdict() for each in rows]
    report["figures"] = {
        "compress/bpd": 8 * size / total,
        "compress/bpd_without_initial": 8 * (size - initial) / total,
        "compress/bound_bpd": 8 * bound / total,
        "compress/overhead": overhead,
        "compress/encode_images_per_second": speeds[0],
        "compress/decode_images_per_second": speeds[1],
    }
    split = split_name(own.settings["split"], own.index)
    title = f"{len(images):,} images of {split}, {weights_text(own.loaded)}"
    plot = bars({each.name: each.bpd for each in rows}, title, "bits per dimension")
    name = own.name("compress", header.steps and f"chain{header.steps}")
    return [*_as_text(rows, overhead, draws), *lines, *keep(own.subject, name, report, plot)]


def yardsticks(images: Tensor, levels: int) -> Iterator[tuple[str, float | None]]:
    """Bytes of images, uint8 [N, C, H, W], in other lossless formats, by name; None where it is not installed.

    Each image as a file of its own, and all in one picture, where a file's header counts once.
    """
    shown = visible(images, levels) if levels == 2 else images
    if shown.shape[1] not in (1, 3):
        shown = shown.flatten(1, 2)[:, None]  # all channels below one another
    singles = [_squeezed(image) for image in shown]
    mosaic = _squeezed(_mosaic(shown))
    for name, encode in (("PNG", _png), ("WebP", _webp), ("JPEG XL", _jxl())):
        if encode is None:
            yield name, None
            continue
        yield f"{name}, a file an image", sum(len(encode(each, levels == 2)) for each in singles)
        yield f"{name}, all in one picture", len(encode(mosaic, levels == 2))


def _bound(own: Opened, draws: int) -> float:
    """The bound in bits per dimension, of T steps for a diffusion that was compressed by T."""
    with own.batches() as batches:
        found = evaluate(own.model, batches, 0, draws, "elbo", "fp32", own.settings["condition"], None)
    return bits_per_dimension(found.nats, own.model.spec.dimensions)


def _as_text(rows: list[Size], overhead: float, draws: int) -> list[str]:
    width = max(len(each.name) for each in rows)
    lines = [f"  {each.name:<{width}} {each.bytes:14,.0f} bytes {each.bpd:9.4f} bpd" for each in rows]
    lines.append(f"without initial bits the file is {overhead:+.2%} from the bound (mean of {draws} draws)")
    return lines


def _squeezed(image: Tensor) -> Pixels:
    """[C, H, W] as [H, W, 3] or [H, W]."""
    array: Pixels = image.permute(1, 2, 0).contiguous().numpy()
    return array[:, :, 0] if array.shape[2] == 1 else array


def _mosaic(images: Tensor) -> Tensor:
    """All images [N, C, H, W] in one about square picture [C, H', W'], the rest of it zero."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    filled = images.new_zeros((rows * columns, channels, height, width))
    filled[:count] = images
    grid = filled.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def _png(pixels: Pixels, binary: bool) -> bytes:
    image = Image.fromarray(pixels)
    return _saved(image.convert("1", dither=Image.Dither.NONE) if binary else image, format="PNG", optimize=True)


def _webp(pixels: Pixels, binary: bool) -> bytes:
    return _saved(Image.fromarray(pixels).convert("RGB"), format="WEBP", lossless=True, quality=100, method=6)


def _saved(image: Image.Image, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **how)  # type: ignore[arg-type]
    return buffer.getvalue()


def _jxl() -> Encoder | None:
    """JPEG XL with the most effort that libjxl spends by default; None if it is not installed."""
    try:
        import imagecodecs
    except ImportError:
        return None

    def encode(pixels: Pixels, binary: bool) -> bytes:
        found = imagecodecs.jpegxl_encode(
            np.ascontiguousarray(pixels), lossless=True, effort=9, numthreads=1, bitspersample=1 if binary else None
        )
        return bytes(found)

    return encode
