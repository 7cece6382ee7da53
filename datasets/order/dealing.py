"""Deal streams to ranks and loader processes, and global batches to streams."""

from __future__ import annotations

from datasets.errors import DataError


def deal(streams: int, readers: int, reader: int) -> range:
    """The streams of one of several readers (ranks, or loader processes of a rank): contiguous, sizes differ by one.

    Raises `DataError` if there are more readers than streams.
    """
    if readers > streams:
        raise DataError(f"data.streams={streams} cannot be dealt to {readers} ranks: use at least {readers} streams")
    return range(reader * streams // readers, (reader + 1) * streams // readers)


def check_batch(batch: int, streams: int) -> None:
    """Raise `DataError` unless the number of streams divides the global batch (images)."""
    if batch < 1 or batch % streams:
        near = min((d for d in range(1, batch + 1) if batch % d == 0), key=lambda d: (abs(d - streams), d), default=1)
        raise DataError(f"data.streams={streams} must divide the global batch of {batch} images: {near} does")


def largest_share(batch: int, streams: int, ranks: int) -> int:
    """The largest share of a global batch that any rank has: images."""
    return batch // streams * -(-streams // ranks)
