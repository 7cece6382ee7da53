"""What captions cost the loader: python -m tests.benchmarks.captions SHARDS [--workers N] [--rounds N] [--images N] ...

SHARDS have .txt members and an index (docs/icons.md makes some). Batches with captions and without them are read by
turns, and the CPU-seconds of this process and its loader processes are compared. `--warm N` reads N images first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.reading.vocabulary import captions_of_set, train_tokenizer
from datasets.shards.index import Index

BATCH = 128


def seconds(
    config: DataConfig, index: Index, tokenizers: dict[str, str], warm: int, images: int
) -> tuple[float, float]:
    """CPU and wall seconds per 1,000 images, after `warm` images."""
    with training_batches(config, index, seed=0, batch=BATCH, tokenizers=tokenizers) as batches:
        for _ in range(warm // BATCH + 1):
            next(batches)
        before, began = _cpu(), time.perf_counter()
        for _ in range(images // BATCH):
            next(batches)
        scale = 1000 / (images // BATCH * BATCH)
        return (_cpu() - before) * scale, (time.perf_counter() - began) * scale


def _cpu() -> float:
    """CPU seconds of this process and of its children that live."""
    ticks = os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    of_children = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children]
    return time.process_time() + sum(int(fields[11]) + int(fields[12]) for fields in of_children) / ticks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=12_800, help="in a round")
    parser.add_argument("--warm", type=int, default=0, help="images before, to reach a second epoch")
    options = parser.parse_args()
    index = Index.open(options.shards)
    plain = {"shards": options.shards, "streams": 8, "workers": options.workers, "cache": 0}
    text = plain | {"conditions": {"caption": {"kind": "text", "max_tokens": 16}}}
    tokenizers = {"caption": train_tokenizer(captions_of_set(index, ("txt",)), 2048)}
    rounds = []
    for _ in range(options.rounds):
        without = seconds(DataConfig.model_validate(plain), index, {}, options.warm, options.images)
        given = seconds(DataConfig.model_validate(text), index, tokenizers, options.warm, options.images)
        rounds.append([*without, *given])
        print(" ".join(f"{value:.3f}" for value in rounds[-1]), flush=True)
    cpu = statistics.median(given / without for without, _, given, _ in rounds)
    wall = statistics.median(given / without for _, without, _, given in rounds)
    print(f"with captions / without: CPU-seconds {cpu:.3f}, wall {wall:.3f} (medians of {options.rounds} rounds)")


if __name__ == "__main__":
    main()
