"""What a rank, or one of its loader processes, is to read and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datasets.order.schedule import Ahead, Schedule
from datasets.reading.decoded_set import DecodedSet
from datasets.reading.reader import Reader, ReaderOptions
from datasets.reading.transform import Transform
from datasets.shards.index import Index


@dataclass(frozen=True)
class Work:
    """Everything that a reader needs; can be pickled."""

    index: Index
    schedule: Schedule
    options: ReaderOptions
    transform: Transform | None
    shape: tuple[int, int, int]  # (height, width, channels) of the images that come out

    def reader(self, cache: DecodedSet | None = None) -> Reader:
        """A reader for it."""
        order = Ahead(self.schedule.order(self.index), self.schedule)
        return Reader(self.index, order, self.options, self.transform, cache)

    def split(self, readers: int) -> list[Work]:
        """The same work dealt to loader processes."""
        return [replace(self, schedule=schedule) for schedule in self.schedule.split(readers)]
