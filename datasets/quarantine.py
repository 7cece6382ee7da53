"""What has become of the images: how many were expected and seen in each epoch, and which were quarantined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datasets.errors import DataError


class Quarantined(NamedTuple):
    """An image that was met, could not be used and weighed nothing."""

    epoch: int  # of its set
    position: int  # in the whole job's order
    shard: str  # URL
    key: str
    reason: str


class EpochRow(NamedTuple):
    """An epoch of the ledger; expected = seen + quarantined once the epoch is over."""

    epoch: int
    expected: int  # images of an epoch
    seen: int  # that took part in the training
    quarantined: int


def check_share(quarantined: Sequence[Quarantined], allowed: float) -> None:
    """Raise `DataError` if more images of an epoch are among them than `allowed`."""
    if not quarantined:
        return
    epoch, count = Counter(entry.epoch for entry in quarantined).most_common(1)[0]
    if count > allowed:
        last = quarantined[-1]
        raise DataError(
            f"{count} images quarantined in epoch {epoch} are more than data.bad_share allows; "
            f"the last is {last.shard}: sample {last.key!r}: {last.reason}"
        )


def epoch_rows(images_of_set: int, images_seen: int, quarantined: Iterable[Quarantined]) -> list[EpochRow]:
    """The epochs begun after `images_seen` images of the job, for a single set.

    `quarantined` are the entries of all ranks up to there: what lies beyond is not counted.
    """
    counts = Counter(entry.epoch for entry in quarantined if entry.position < images_seen)
    rows = []
    for epoch in range(-(-images_seen // images_of_set)):
        met = min(images_seen - epoch * images_of_set, images_of_set)
        rows.append(EpochRow(epoch, images_of_set, met - counts[epoch], counts[epoch]))
    return rows
