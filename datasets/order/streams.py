"""The number of streams of a run with `data.streams: auto`, and the memory that streams need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets.shards.index import Index

if TYPE_CHECKING:
    from datasets.config import DataConfig

_MOST = 64  # streams: a sorted set is then nearly as well mixed as by a full shuffle
_FEWEST = 8  # streams that are kept whatever memory they need
_MEMORY = 1 << 30  # bytes of encoded images for all streams together


def memory_needed(index: Index, streams: int, window: int) -> int:
    """An upper bound on the encoded bytes that readers of some streams hold, the windows read ahead included.

    Two windows a stream, of images as large as the mean of the shard with the largest; never more than the whole set.
    """
    images = min(2 * streams * window, index.images)
    return int(images * index.bytes_per_image)


def streams_of(config: DataConfig, index: Index, batch: int) -> int:
    """C: `data.streams`, or for `auto` the largest divisor of the global batch (images) up to 64.

    Fewer, down to 8, if the windows of more would not fit into 1 GiB. It depends on nothing that may change when a run
    is resumed: neither on the number of ranks nor on `data.memory`.
    """
    if config.streams != "auto":
        return config.streams
    divisors = [number for number in range(min(_MOST, batch), 0, -1) if batch % number == 0]
    fit = (number for number in divisors if memory_needed(index, number, config.window) <= _MEMORY)
    fewest = next(number for number in divisors if number <= _FEWEST)
    return max(next(fit, 1), fewest)
