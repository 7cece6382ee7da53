"""How near the order comes to a full shuffle, by streams and windows: python -m tests.benchmarks.shuffle

The worst case: a set that lies sorted on disk, so that neighbours are alike. An image's feature is its place in the
sorted set, x in (0, 1). For batches of B images, relative to a full shuffle (where both figures are 1 and 0):
  spread   variance of a batch's mean of x, divided by that of B independent draws: above 1, batches are one-sided
  memory   correlation of the means of successive batches: above 0, the gradient drifts through the set
"""

from __future__ import annotations

import numpy as np

from datasets.order.shuffled import ShuffledOrder

SHARDS, IMAGES, BATCH, EPOCHS = 1024, 1000, 256, 3


def quality(streams: int, window: int, seed: int) -> tuple[float, float]:
    """(spread, memory) of the batches of some epochs."""
    order = ShuffledOrder(np.full(SHARDS, IMAGES), seed, streams, window)
    steps = EPOCHS * order.images // BATCH
    located = order.locate(order.places(np.arange(steps * BATCH)))
    x = (located.shard * IMAGES + located.index + 0.5) / order.images
    means = x.reshape(steps, BATCH).mean(axis=1)
    return float(means.var() / (1 / 12 / BATCH)), float(np.corrcoef(means[:-1], means[1:])[0, 1])


def main() -> None:
    print(f"{SHARDS} sorted shards of {IMAGES} images, batches of {BATCH}, {EPOCHS} epochs, 3 seeds")
    print("streams  window   images in memory   spread   memory")
    for streams in (1, 8, 32, 64, 128, 256):
        for window in (64, 256, 1024, 4096):
            spread, memory = np.mean([quality(streams, window, seed) for seed in range(3)], axis=0)
            print(f"{streams:7d} {window:7d} {streams * window:18d} {spread:8.2f} {memory:8.2f}", flush=True)


if __name__ == "__main__":
    main()
