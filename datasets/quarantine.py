"""Images expected, seen and quarantined in each epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datasets.errors import DataError


class Quarantined(NamedTuple):
    """A corrupt image that got weight zero."""

    epoch: int  # of its set
    position: int  # in the order of the whole job
    shard: str  # URL
    key: str
    reason: str


class EpochRow(NamedTuple):
    """A row of the data ledger; expected = seen + quarantined at the end of the epoch."""

    epoch: int
    expected: int  # images
    seen: int  # images that were trained on
    quarantined: int


def check_share(quarantined: Sequence[Quarantined], allowed: float) -> None:
    """Raise `DataError` if more than `allowed` images of an epoch are quarantined."""
    if not quarantined:
        return
    epoch, count = Counter(entry.epoch for entry in quarantined).most_common(1)[0]
    if count > allowed:
        last = quarantined[-1]
        raise DataError(
            f"{count} images quarantined in epoch {epoch}, more than data.bad_share allows; "
            f"the last one: {last.shard}: sample {last.key!r}: {last.reason}"
        )


def epoch_rows(images_of_set: int, images_seen: int, quarantined: Iterable[Quarantined]) -> list[EpochRow]:
    """A row for each epoch begun within the first `images_seen` images of the job, for a single set.

    `quarantined` has the entries of all ranks; those at positions from `images_seen` on are not counted.
    """
    counts = Counter(entry.epoch for entry in quarantined if entry.position < images_seen)
    rows = []
    for epoch in range(-(-images_seen // images_of_set)):
        met = min(images_seen - epoch * images_of_set, images_of_set)
        rows.append(EpochRow(epoch, images_of_set, met - counts[epoch], counts[epoch]))
    return rows
