"""Read batches in the training process, without loader processes."""

from __future__ import annotations

import numpy as np
import torch

from datasets.loading.batches import FilledBatch
from datasets.reading.decoded_set import DecodedSet
from datasets.reading.step_reader import BatchArrays, ReadPlan, StepReader


class LocalLoader:
    """Reads and decodes in the calling thread. `pin`: into page-locked memory, which a GPU can read directly."""

    def __init__(self, plan: ReadPlan, decoded: DecodedSet | None, pin: bool):
        self._reader = StepReader(plan, decoded)
        self._size, self._shape, self._pin = plan.steps.size, plan.shape, pin

    def next(self) -> FilledBatch:
        """The batch of the next step."""
        images = torch.empty((self._size, *self._shape), dtype=torch.uint8, pin_memory=self._pin)
        labels, positions = np.zeros((2, self._size), dtype=np.int64)
        weights = np.zeros(self._size, dtype=np.float32)
        quarantined = self._reader.read(BatchArrays(images.numpy(), labels, positions, weights))
        return FilledBatch(images, labels, positions, weights, quarantined)

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()
