"""What a rank, or one of its loader processes, is to read and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datasets.cache import DecodedSet
from datasets.index import Index
from datasets.reader import Reader, ReaderOptions
from datasets.schedule import Ahead, Schedule
from datasets.transform import Transform


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
