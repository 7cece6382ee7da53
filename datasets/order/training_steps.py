"""The steps of a training run: consecutive global batches, whose streams are dealt to ranks and loader processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from datasets.order.dealing import check_batch, deal, largest_share
from datasets.order.mixed import MixedOrder
from datasets.order.order import ImageOrder, Integers
from datasets.order.shuffled import ShuffledOrder
from datasets.order.steps import Share
from datasets.order.versions import NEWEST
from datasets.shards.index import Index


@dataclass(frozen=True)
class TrainingSteps:
    """Step k has the positions [kB, (k+1)B) of the job; a rank takes those of its streams. Endless.

    Raises `DataError` if the streams do not divide the batch or there are more ranks than streams.
    """

    seed: int
    batch: int  # B, images, over all ranks
    all_streams: int  # C
    window: int  # W, images
    ranks: int = 1
    rank: int = 0
    first: int = 0  # step
    micro_batch: int | None = None  # images; the rows of a batch are a multiple of it
    weights: tuple[int, ...] = (1,)  # of the sets that are mixed
    order_version: int = NEWEST
    readers: int = 1
    reader: int = 0  # takes some of the streams of the rank

    def __post_init__(self) -> None:
        check_batch(self.batch, self.all_streams)
        deal(self.all_streams, self.ranks, self.rank)

    @property
    def end(self) -> int | None:
        return None

    @cached_property
    def size(self) -> int:
        share, micro_batch = largest_share(self.batch, self.all_streams, self.ranks), self.micro_batch or 1
        return -(-share // micro_batch) * micro_batch

    @property
    def max_readers(self) -> int:
        return len(self.streams_of_rank)

    @cached_property
    def streams_of_rank(self) -> range:
        """The streams of this rank, all readers together."""
        return deal(self.all_streams, self.ranks, self.rank)

    def share(self, step: int) -> Share:
        first = self._first_share
        return first._replace(positions=first.positions + step * self.batch)

    def split(self, readers: int) -> list[Self]:
        return [replace(self, readers=readers, reader=reader) for reader in range(readers)]

    def order(self, index: Index) -> ImageOrder:
        order = self.seed, self.all_streams, self.window, self.order_version
        if len(self.weights) == 1:
            return ShuffledOrder(index.counts, *order)
        return MixedOrder(index.counts, index.set_bounds, self.weights, *order)

    @cached_property
    def _first_share(self) -> Share:
        """The share of step 0. A round is one image of every stream."""
        rounds = self.batch // self.all_streams
        of_rank, mine = self.streams_of_rank, deal(len(self.streams_of_rank), self.readers, self.reader)
        positions = _rounds(rounds, self.all_streams, range(of_rank.start + mine.start, of_rank.start + mine.stop))
        images = rounds * len(of_rank)
        padding = slice(images if self.reader == 0 else self.size, self.size)
        return Share(positions, _rounds(rounds, len(of_rank), mine), padding)


def _rounds(rounds: int, length: int, part: range) -> Integers:
    """The numbers of some columns of a [rounds, length] table numbered row by row: int64 [rounds * len(part)]."""
    starts = np.arange(rounds, dtype=np.int64)[:, None] * length
    return (starts + np.arange(part.start, part.stop, dtype=np.int64)).ravel()
