"""The hot path: read and decode one step after another into the rows of a batch."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.conditions.condition import Arrays, Condition, Field, Sample
from datasets.errors import DataError
from datasets.images.decode import Format, Pixels
from datasets.images.patches import PatchTransform
from datasets.images.transform import Transform
from datasets.order.order import Integers, Places, Range, Window
from datasets.order.steps import Step, Steps, look_up
from datasets.quarantine import Quarantined
from datasets.reading.background import Background
from datasets.reading.decoded_set import DecodedSet
from datasets.reading.disk_cache import DiskCache
from datasets.reading.shard_reader import EncodedRange, ShardReader
from datasets.reading.windows import WindowReader
from datasets.shards.index import Index

Floats = NDArray[np.float32]

_SAMPLE_THREADS = 16  # concurrent requests where every sample is a request


class BatchArrays(NamedTuple):
    """A rank's batch in numpy, padding included."""

    images: Pixels  # uint8 [n, H, W, C] or [n, N, 2 + P * P * C]
    positions: Integers  # int64 [n]
    weights: Floats  # float32 [n]
    conditions: Arrays  # [n, ...] each

    def clear(self, rows: slice) -> None:
        """Zeros in some rows."""
        columns: list[NDArray[Any]] = [self.images, self.positions, self.weights, *self.conditions.values()]
        for column in columns:
            column[rows] = 0


class Account(NamedTuple):
    """What a step's images lacked."""

    quarantined: list[Quarantined]
    unknown: Counter[str]
    """How many conditions had no value, by NAME/REASON: caption/missing. Cut captions are caption/truncated."""


@dataclass(frozen=True)
class ReadPlan:
    """What to read and how: all that a loader process needs. Can be pickled."""

    index: Index
    steps: Steps
    transform: Transform | PatchTransform | None = None
    quarantine: bool = False  # report bad images instead of raising
    by_sample: bool = False  # one request per image: slower, less memory
    disk_cache: tuple[str, int] | None = None  # folder and size limit in bytes
    conditions: tuple[Condition, ...] = ()
    skip: int = 0  # steps at the beginning that another process has read

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image in a batch: (height, width, channels), or (patches, bytes of each)."""
        return self.transform.row_shape(self.index.channels) if self.transform else self.index.format.shape

    @property
    def layout(self) -> dict[str, Field]:
        """The arrays of a batch besides the images, positions and weights."""
        return {name: field for condition in self.conditions for name, field in condition.layout.items()}

    def split(self, readers: int) -> list[ReadPlan]:
        """The plans of a rank's loader processes."""
        return [replace(self, steps=steps) for steps in self.steps.split(readers)]


class StepReader:
    """Reads the steps of a plan, each once, in order. Not safe for use by several threads.

    Raises `DataError` naming shard and key for anything that is not an image of the index's format, unless such images
    are quarantined.
    """

    def __init__(self, plan: ReadPlan, decoded: DecodedSet | None = None):
        """With `decoded`, every image is decoded once and kept there."""
        order = plan.steps.order(plan.index)
        members = {extension for condition in plan.conditions for extension in condition.members}
        self.shards = ShardReader(plan.index, DiskCache(*plan.disk_cache) if plan.disk_cache else None, members)
        self.windows = WindowReader(
            order, self.shards, lambda window: decoded is None or not decoded.holds(order.ranges(window))
        )
        self._plan = plan
        self._order = order
        self._format: Format = plan.index.format
        self._decoded = decoded
        self._steps = look_up(plan.steps, order, plan.skip)
        self._samples = Background(_SAMPLE_THREADS) if plan.by_sample else None

    def close(self) -> None:
        """Stop reading ahead."""
        self.windows.close()
        if self._samples is not None:
            self._samples.close()

    def read(self, batch: BatchArrays) -> Account:
        """Read the next step into its rows of `batch`, and clear the padding if that is this reader's task.

        Quarantined images are black, and their weight and conditions are 0.
        """
        step = next(self._steps)
        positions, rows, padding = step.share
        if self._decoded is not None:
            account = self._read_decoded(self._decoded, step, batch)
        else:
            account = self._read(step, batch)
        for condition in self._plan.conditions:
            condition.adjust(batch.conditions, rows, positions)
        batch.positions[rows] = positions
        batch.weights[rows] = 1
        if bad := account.quarantined:
            lost = rows[np.searchsorted(positions, [entry.position for entry in bad])]
            for column in (batch.weights, *batch.conditions.values()):
                column[lost] = 0
        if padding.start < padding.stop:
            batch.clear(padding)
        return account

    def _read(self, step: Step, batch: BatchArrays) -> Account:
        positions, rows, _ = step.share
        chosen = [(condition, condition.choose(positions).tolist()) for condition in self._plan.conditions]
        unknown: Counter[str] = Counter()

        def read_conditions(sample: Sample, i: int, row: int) -> None:
            for condition, choices in chosen:
                if reason := condition.read(sample, choices[i], batch.conditions, row):
                    unknown[f"{condition.name}/{reason}"] += 1

        images, transform = batch.images, self._plan.transform
        return Account(self._decode(step.places, positions, rows, images, read_conditions, transform), unknown)

    def _read_decoded(self, decoded: DecodedSet, step: Step, batch: BatchArrays) -> Account:
        positions, to, _ = step.share
        located = self._order.locate(step.places)
        rows = decoded.rows(located)
        missing = ~decoded.filled[rows]
        if missing.any():
            _, first = np.unique(rows[missing], return_index=True)  # a small set is several times in a batch
            first.sort()
            fresh, asked = rows[missing][first], positions[missing][first]
            places = Places(*(column[missing][first] for column in step.places))
            bad = self._decode(places, asked, fresh, decoded.images, decoded.read_conditions, None)
            decoded.bad |= {int(fresh[np.searchsorted(asked, entry.position)]): entry for entry in bad}
            decoded.filled[fresh] = True
        if self._plan.transform is None:
            np.take(decoded.images, rows, axis=0, out=batch.images[: len(rows)])  # one reader: rows 0..n-1
        else:
            for i, row in zip(to.tolist(), rows.tolist(), strict=True):
                image = decoded.images[row]
                batch.images[i] = self._plan.transform(image, int(positions[i]), image.shape[:2])
        unknown = decoded.take_conditions(rows, positions, batch.conditions, to)
        if not decoded.bad:
            return Account([], unknown)
        bad = [
            decoded.bad[row]._replace(epoch=int(located.epoch[i]), position=int(positions[i]))
            for i, row in enumerate(rows.tolist())
            if row in decoded.bad
        ]
        return Account(bad, unknown)

    def _decode(
        self,
        places: Places,
        positions: Integers,
        rows: Integers,
        images: Pixels,
        read_conditions: Callable[[Sample, int, int], None],
        transform: Transform | PatchTransform | None,
    ) -> list[Quarantined]:
        """Decode the images at `places` to `rows` of `images`.

        `read_conditions(sample, i, row)` is called for the i-th of them.
        """
        quarantined: list[Quarantined] = []
        sources = self._from_windows(places) if self._samples is None else self._one_by_one(places, self._samples)
        pairs = zip(sources, positions.tolist(), rows.tolist(), strict=True)
        for i, ((epoch, part, row), position, to) in enumerate(pairs):
            try:
                out = images[to] if transform is None else None
                if transform is None:
                    pixels = self.shards.decode(part, row, self._format, out)
                    size = pixels.shape[0], pixels.shape[1]
                else:
                    least = partial(transform.least, position=position)
                    pixels, size = self.shards.decode_reduced(part, row, self._format, least)
                if self._plan.conditions:
                    read_conditions(Sample(partial(self.shards.member, part, row), size), i, to)
                if transform is not None:
                    images[to] = transform(pixels, position, size)
                elif pixels is not out:
                    images[to] = pixels
            except DataError as error:
                shard, key = self.shards.where(part, row)
                if not self._plan.quarantine:
                    remedy = "data.on_bad=quarantine continues without such images"
                    raise DataError(f"{shard}: sample {key!r}: {error}; {remedy}") from error
                images[to] = 0
                quarantined.append(Quarantined(epoch, position, shard, key, str(error)))
        return quarantined

    def _from_windows(self, places: Places) -> Iterator[tuple[int, EncodedRange, int]]:
        """(epoch, part of a window, row in that part) of each place."""
        *names, slots = (column.tolist() for column in places)
        held, read = self.windows.held, self.windows.read
        for name, slot in zip(zip(*names, strict=True), slots, strict=True):
            window = held.get(name) or read(Window(*name))
            part = bisect_right(window.firsts, slot) - 1
            yield name[1], window.parts[part], slot - window.firsts[part]

    def _one_by_one(self, places: Places, samples: Background) -> Iterator[tuple[int, EncodedRange, int]]:
        """The same with a request for each image."""
        located = self._order.locate(places)
        pairs = zip(located.shard.tolist(), located.index.tolist(), strict=True)
        futures = [samples.submit(self.shards.read, Range(shard, i, i + 1)) for shard, i in pairs]
        for epoch, future in zip(located.epoch.tolist(), futures, strict=True):
            yield epoch, future.result(), 0
