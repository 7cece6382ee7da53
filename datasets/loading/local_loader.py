"""Read batches in the training process, without loader processes."""

from __future__ import annotations

import numpy as np
import torch

from datasets.conditions.condition import zeros
from datasets.loading.batches import FilledBatch
from datasets.reading.decoded_set import DecodedSet
from datasets.reading.step_reader import BatchArrays, ReadPlan, StepReader


class LocalLoader:
    """Reads and decodes in the calling thread. `pin`: into page-locked memory, which a GPU can read directly."""

    def __init__(self, plan: ReadPlan, decoded: DecodedSet | None, pin: bool):
        self._reader = StepReader(plan, decoded)
        self._plan, self._size, self._pin = plan, plan.steps.size, pin

    def next(self) -> FilledBatch:
        """The batch of the next step."""
        images = torch.empty((self._size, *self._plan.shape), dtype=torch.uint8, pin_memory=self._pin)
        positions, weights = np.zeros(self._size, dtype=np.int64), np.zeros(self._size, dtype=np.float32)
        conditions = zeros(self._plan.conditions, self._size)
        account = self._reader.read(BatchArrays(images.numpy(), positions, weights, conditions))
        return FilledBatch(images, positions, weights, conditions, account)

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()
