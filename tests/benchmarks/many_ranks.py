"""What grows with the number of ranks, for ranks that do not exist: python -m tests.benchmarks.many_ranks [RANKS]

The functions that real ranks call, for imagenet256-dit-1b: each rank's part of the order, the ranks' layouts of a
checkpoint as one, its layout.json, and the plan by which a rank of another number of ranks restores its part.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.order.shuffled import ShuffledOrder
from datasets.order.training_steps import TrainingSteps
from jobs.config.loading import load_config
from jobs.sizing.setting import described
from trainer.checkpoints.read_plan import Request, Target, plan
from trainer.checkpoints.tensor_files import (
    CHUNK,
    Layout,
    Piece,
    StoredTensor,
    file_of,
    layout_json,
    merged,
    parsed_layout,
)

T = TypeVar("T")
CONFIG = "jobs/configs/imagenet256-dit-1b.yaml"
BATCH, WINDOW, SHARDS, IMAGES = 8192, 256, 100_000, 10_000


def main(ranks: int) -> None:
    steps(ranks)
    for over in (8, ranks):
        checkpoint(ranks, over)


def steps(ranks: int) -> None:
    """The positions of every rank, and where one rank finds its images."""
    counts = np.full(SHARDS, IMAGES)

    def dealt() -> list[TrainingSteps]:
        return [TrainingSteps(0, BATCH, ranks, WINDOW, ranks, rank) for rank in range(ranks)]

    every, seconds = timed(dealt)
    shares, of_all = timed(lambda: [each.share(7).positions for each in every])
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(7 * BATCH, 8 * BATCH))  # each position once
    order, opened = timed(lambda: ShuffledOrder(counts, 0, ranks, WINDOW))
    _, located = timed(lambda: order.locate(order.places(shares[ranks // 2])))
    each = (seconds + of_all) / ranks * 1e6
    print(f"{ranks:,} ranks, {SHARDS:,} shards, {SHARDS * IMAGES:,} images, a global batch of {BATCH:,}")
    print(f"  order: dealt to all ranks in {seconds + of_all:.2f} s, {each:.0f} us a rank")
    print(f"  one rank: order made in {opened:.2f} s, its {len(shares[0])} images of a step located in {located:.3f} s")


def checkpoint(ranks: int, over: int) -> None:
    """A commit of `ranks` that share each copy of the state over `over`, and how half as many restore it."""
    with FakeTensorMode():
        model = described(load_config(CONFIG), "3x256x256", 1000).build()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    sections = {"model": shapes, "ema": shapes, "optimizer": {}}
    for name, shape in shapes.items():
        sections["optimizer"] |= {f"{name}.exp_avg": shape, f"{name}.exp_avg_sq": shape}
    layouts, _ = timed(lambda: [_layout(sections, rank, ranks, over) for rank in range(ranks)])
    whole, joined = timed(lambda: merged(layouts))
    content, written = timed(lambda: layout_json(whole))
    parsed, read = timed(lambda: parsed_layout(json.loads(content)))
    fewer = max(over // 2, 1)
    wanted = {name: _rows(shape[0], fewer // 2, fewer) for name, shape in shapes.items()}

    def target(tensor: StoredTensor, first: int, last: int) -> Target:
        value = torch.empty(last - first, *tensor.shape[1:], device="meta")
        return Target(tensor, value, (first, *[0] * (len(tensor.shape) - 1)))

    def planned() -> list[Request]:
        both = [(name, tensor) for section in ("model", "ema") for name, tensor in parsed[section].items()]
        return plan(target(tensor, *wanted[name]) for name, tensor in both if wanted[name][1] > wanted[name][0])

    requests, plan_seconds = timed(planned)
    size = sum(4 * math.prod(shape) for tensors in sections.values() for shape in tensors.values())
    mine = sum(request.stop - request.start for request in requests)
    pieces = sum(len(tensor.pieces) for tensors in whole.values() for tensor in tensors.values())
    print(f"  checkpoint of {size / 2**30:.1f} GiB, each copy of the state over {over:,} ranks:")
    print(f"    {pieces:,} pieces in up to {ranks * len(sections):,} files; layout.json {len(content) / 2**20:.1f} MiB")
    print(f"    rank 0 joins the layouts in {joined:.2f} s, writes them in {written:.2f} s; reading takes {read:.2f} s")
    print(
        f"    one of {fewer:,} ranks reads {mine / 2**20:.1f} MiB of weights and averages in {len(requests):,} requests"
    )
    print(f"    planned in {plan_seconds:.2f} s", flush=True)


def _layout(sections: dict[str, dict[str, tuple[int, ...]]], rank: int, ranks: int, over: int) -> Layout:
    """What a rank reports of its share: each sharded tensor is written by one of the copies of the state."""
    copies, copy = ranks // over, rank // over
    layout: Layout = {}
    number = 0
    for section, tensors in sections.items():
        start = 0
        for name, shape in tensors.items():
            number += 1
            first, last = _rows(shape[0], rank % over, over)
            if number % copies != copy or first == last:
                continue
            part = (last - first, *shape[1:])
            size = 4 * math.prod(part)
            crc32 = (0,) * -(-size // CHUNK)
            piece = Piece(file_of(section, rank, ranks), (first, *[0] * (len(shape) - 1)), part, start, crc32)
            layout.setdefault(section, {})[name] = StoredTensor(torch.float32, shape, (piece,))
            start += size
    return layout


def _rows(length: int, part: int, parts: int) -> tuple[int, int]:
    """As FSDP2 splits rows."""
    each = -(-length // parts)
    return min(part * each, length), min((part + 1) * each, length)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result, and seconds of CPU."""
    began = time.process_time()
    result = call()
    return result, time.process_time() - began


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
