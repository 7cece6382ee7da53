"""How many streams a run has where its configuration leaves it open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets.reading.reader import memory_needed
from datasets.shards.index import Index

if TYPE_CHECKING:
    from datasets.config import DataConfig

_MOST, _ALWAYS = 64, 8  # streams: of 64 a sorted set is nearly as well mixed as can be; so few are not worth saving
_MEMORY = 1 << 30  # bytes of encoded images for all streams together


def streams_of(config: DataConfig, index: Index, batch: int) -> int:
    """C: `data.streams`, or for `auto` the largest divisor of the global batch (images) up to 64.

    Fewer, down to 8, where the windows of so many would not fit into 1 GiB. It depends on nothing that may change when
    a run goes on: neither on the ranks nor on `data.memory`.
    """
    if config.streams != "auto":
        return config.streams
    divisors = [number for number in range(min(_MOST, batch), 0, -1) if batch % number == 0]
    fit = (number for number in divisors if memory_needed(index, number, config.window) <= _MEMORY)
    few = next(number for number in divisors if number <= _ALWAYS)
    return max(next(fit, 1), few)
