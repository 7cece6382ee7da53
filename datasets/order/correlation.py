"""How much of an image's place in one epoch an order keeps in the next one."""

from __future__ import annotations

import numpy as np

from datasets.order.mixed import MixedOrder
from datasets.order.order import ImageOrder
from datasets.order.shuffled import ShuffledOrder

_IMAGES = 1 << 14  # that are looked up
_EPOCHS = 4
_MANY_SHARDS = 1 << 16  # are not looked at: pieces are many
_MOST = 0.1  # correlation that is not worth a warning


def epoch_correlation(order: ShuffledOrder, epoch: int) -> float:
    """The correlation of an image's time in an epoch with its time in the next epoch, by some thousand images.

    Times are uniform in an epoch, with variance 1/12; inside a window the order is random, so the middle of the window
    stands for all its images.
    """
    images = np.arange(min(_IMAGES, order.images)) * order.images // min(_IMAGES, order.images)
    now, then = (order.times(number, images) - 0.5 for number in (epoch, epoch + 1))
    return 12 * float((now * then).mean() - now.mean() * then.mean())


def typical_correlation(order: ShuffledOrder) -> float:
    """The root of the mean square of `epoch_correlation` over the first epochs."""
    return float(np.sqrt(np.mean([epoch_correlation(order, epoch) ** 2 for epoch in range(_EPOCHS)])))


def poor_shuffle(order: ImageOrder) -> str:
    """A warning if an image comes at nearly the same time in successive epochs; else ""."""
    orders = order.orders if isinstance(order, MixedOrder) else [order]
    for number, one in enumerate(orders, 1):
        assert isinstance(one, ShuffledOrder)
        if one.shards > _MANY_SHARDS or (found := typical_correlation(one)) < _MOST:
            continue
        of_set = f" of set {number} of the mixture" if len(orders) > 1 else ""
        if one.order_version == 1:
            why = f"the set has {one.shards} shards, and the run was started with an order that permutes whole shards"
            remedy = "a new run, also one from these weights (init_from), shuffles better"
        else:
            why = f"{one.images} images are few for data.streams={one.streams}, data.window={one.window}"
            remedy = "more streams or smaller windows shuffle better"
        effect = f"the time of an image{of_set} in an epoch correlates by {found:.2f} with its time in the next"
        return f"{effect}: {why}; {remedy}"
    return ""
