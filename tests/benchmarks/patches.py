"""Images of any shape: nothing is lost, padding, mixing, and the speed of loading and training.

python -m tests.benchmarks.patches set FOLDER          5,000 images of many shapes, made from shared/data
python -m tests.benchmarks.patches order FOLDER        each once an epoch over a stop and other ranks; padding; mixing
python -m tests.benchmarks.patches decode [JPEG ...]   whole against reduced decoding, CPU time and pixels
python -m tests.benchmarks.patches train               a step in patches against one of images of one size
"""

from __future__ import annotations

import gzip
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter

from datasets.config import DataConfig, PatchesConfig
from datasets.images.decode import Format, decode_image, decode_reduced
from datasets.images.patches import PLACE, PatchTransform
from datasets.loading.build import training_batches
from datasets.loading.transforms import grids_of
from datasets.order.training_steps import TrainingSteps
from datasets.packing.sources.source import Example
from datasets.packing.write import write_tar
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.images.test_patches import image_in, photograph, shapes
from tests.trainer.models import batch
from trainer.images import ImageSpec, PatchSpec
from trainer.models import Model, ModelConfig
from trainer.noise import Noise

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
IMAGES, SHARD = 5000, 500
TRANSFORM = PatchesConfig(patches=256, patch=16)


def write_set(folder: Path) -> None:
    """Images of CIFAR-10 and Fashion-MNIST, resized to shapes of 1:4 to 4:1, sides of 16 to 400; sorted by shape.

    Shards are sorted by aspect ratio on purpose: the worst case of mixing.
    """
    data = np.frombuffer(gzip.decompress((SHARED / "cifar10" / "data_batch_1.bin.gz").read_bytes()), np.uint8).reshape(
        -1, 3073
    )
    sizes = sorted(shapes(IMAGES, 16, 400), key=lambda size: size[0] / size[1])
    for shard in range(IMAGES // SHARD):
        examples = []
        for number in range(shard * SHARD, (shard + 1) * SHARD):
            height, width = sizes[number]
            image = Image.fromarray(data[number, 1:].reshape(3, 32, 32).transpose(1, 2, 0))
            pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
            examples.append((f"{number:05d}", Example(pixels, None, f"{number}".encode())))
        folder.mkdir(parents=True, exist_ok=True)
        write_tar(folder / f"{shard:03d}.tar", iter(examples))
    index_shards(str(folder), str(folder / "index"))


def order(folder: Path) -> None:
    """Two ranks up to the middle of an epoch, then three from there."""
    index = Index.open(str(folder))
    config = DataConfig(shards=str(folder), streams=50, window=64, workers=0, transform=TRANSFORM)
    share, half, end = 250, 10, 20
    seen: Counter[int] = Counter()
    grids: Counter[tuple[int, int]] = Counter()
    ratios, shape = [], set()
    steps = TrainingSteps(1, share, 50, 64)
    places = steps.order(index)
    began = time.process_time()
    for ranks, first, last in ((2, 0, half), (3, half, end)):
        for rank in range(ranks):
            with training_batches(
                config, index, seed=1, batch=share, ranks=ranks, rank=rank, start=first * share
            ) as batches:
                for _ in range(first, last):
                    found = next(batches)
                    shape.add((ranks, tuple(found.images.shape[1:])))
                    real = found.weights > 0
                    located = places.locate(places.places(found.positions[real].numpy()))
                    seen.update((located.shard * SHARD + located.index).tolist())
                    for row in found.images[real]:
                        grids[tuple(row[:, :PLACE].amax(0).tolist())] += 1
                    counts = (found.images[real][..., 0] > 0).sum(1).double()
                    rows = found.images[real][..., 0].amax(1).double()
                    ratios += list(zip((rows**2 / counts).log().tolist(), found.positions[real].tolist(), strict=True))
    padding = 1 - sum(r * c * n for (r, c), n in grids.items()) / (seen.total() * TRANSFORM.patches)
    computed = grids_of(TRANSFORM, index)
    expected = 1 - sum(r * c * n for (r, c), n in computed.items()) / (index.images * TRANSFORM.patches)
    print(
        f"{seen.total():,} images, {len(seen):,} different ones, most often {max(seen.values())}; dropped: "
        f"{index.images - len(seen)}; row shapes {shape}"
    )
    print(f"padding {padding:.2%} measured, {expected:.2%} computed from the index; {len(grids)} grids")
    values = np.array([value for value, _ in sorted(ratios, key=lambda pair: pair[1])]).reshape(end, share)
    between, shuffled = values.mean(1).var(ddof=1), values.var(ddof=1) / share * (1 - share / IMAGES)
    print(
        f"variance of a batch's mean log ratio: {between / shuffled:.2f} times that of a full shuffle (1 +- "
        f"{math.sqrt(2 / (end - 1)):.2f}); {time.process_time() - began:.0f} CPU-seconds"
    )


def cpu_seconds(functions: list[Callable[[], object]], rounds: int, repeats: int) -> list[float]:
    """The least CPU time of each, interleaved."""
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, times in zip(functions, found, strict=True):
            began = time.process_time()
            for _ in range(repeats):
                function()
            times.append((time.process_time() - began) / repeats)
    return [min(times) for times in found]


def decode(paths: list[str]) -> None:
    """Photographs of 1 to 2 megapixels to 256 patches of 16 x 16."""
    colour = Format(3, 0, 0)
    transform = PatchTransform(TRANSFORM, colour, None)
    pictures = {path: Path(path).read_bytes() for path in paths}
    sizes = ((800, 1250), (1000, 1500), (1200, 1600))
    for name, data in (pictures or {f"made {size}": photograph(*size) for size in sizes}).items():

        def reduced(data: bytes = data) -> np.ndarray:
            image, size = decode_reduced(data, "jpg", colour, lambda *size: transform.least(*size, 0))
            return transform(image, 0, size)

        def whole(data: bytes = data) -> np.ndarray:
            image = decode_image(data, "jpg", colour)
            return transform(image, 0, image.shape[:2])

        slow, fast = cpu_seconds([whole, reduced], 5, 4)
        error = image_in(reduced(), 16, 3).astype(float) - image_in(whole(), 16, 3)
        print(
            f"{name}: {1000 * slow:.1f} ms whole, {1000 * fast:.1f} ms reduced: {slow / fast:.2f} times as fast; "
            f"RMS difference {np.sqrt((error**2).mean()):.2f} of 255, largest {np.abs(error).max():.0f}"
        )


def train() -> None:
    """CPU time of a training step at equal real patches: 64 images of one size, and as many patches in any shapes."""
    network = {"kind": "dit", "patch": 4, "width": 192, "depth": 4, "heads": 4, "positions": "rotary"}
    config = {"kind": "diffusion", "denoiser": {"network": network, "prediction": {"kind": "v"}, "embedding": 192}}

    def step(model: Model, images: torch.Tensor) -> Callable[[], object]:
        noise = Noise(0, "train", torch.arange(len(images)), batch=len(images))

        def run() -> None:
            model(images, None, noise, torch.zeros(())).loss.sum().backward()

        return run

    torch.set_num_threads(1)
    most = 64
    known = grids_of_ratio(most)
    spec = ImageSpec(3, 0, 0, patches=PatchSpec(most, 4))
    builder = TypeAdapter(ModelConfig).validate_python(config)
    any_shape = torch.zeros(64, *spec.batch_shape, dtype=torch.uint8)
    patches = 0
    for row, (rows, columns) in zip(any_shape, known, strict=True):
        count = rows * columns
        patches += count
        row[:count, 0] = torch.arange(count) // columns + 1
        row[:count, 1] = torch.arange(count) % columns + 1
        row[:count, 2:] = torch.randint(0, 256, (count, 48), dtype=torch.uint8)
    one_size = batch(ImageSpec(3, 32, 32), 64)
    steps = [step(builder.build(ImageSpec(3, 32, 32)), one_size), step(builder.build(spec), any_shape)]
    fixed, free = cpu_seconds(steps, 7, 1)
    share = patches / (64 * most)
    print(
        f"{64 * most:,} patches in {fixed:.3f} s in one size; {patches:,} real ones in {free:.3f} s in any shape "
        f"({1 - share:.1%} padding): {fixed / free * share:.3f} of the throughput"
    )


def grids_of_ratio(most: int) -> list[tuple[int, int]]:
    """64 grids of shapes from 1:3 to 3:1."""
    from datasets.images.patches import grid_of

    ratios = np.exp(np.linspace(-math.log(3), math.log(3), 64))
    return [grid_of(round(3000 * math.sqrt(r)), round(3000 / math.sqrt(r)), most, 4, 1) for r in ratios]


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "set":
        write_set(Path(rest[0]))
    elif command == "order":
        order(Path(rest[0]))
    elif command == "decode":
        decode(rest)
    else:
        train()
