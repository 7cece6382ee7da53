"""The bound of each image under a run or an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from datasets.conditions.condition import Condition, Sample, zeros
from datasets.encoding.encoder import Samples
from datasets.errors import DataError
from datasets.loading.batches import Batch, tensors_of
from datasets.loading.conditions import check_conditions, conditions_of
from datasets.shards.index import Index
from jobs.config.other_images import check_labels
from jobs.encoders.opened_run import OpenedRun
from jobs.errors import ConfigError
from trainer.conditions import all_given
from trainer.elbo import bits_per_dimension
from trainer.models.base import known_conditions
from trainer.training.image_bounds import Estimate, condition_by_use, evaluation_mode


class ImageBounds:
    """`bound.nats`, and `bound.bpd` unless the model is a density: the figures of `jobs.evaluate`, image by image.

    `samples`: draws of the latents of each image; `bound`: elbo, iw, or another bound of the model.
    """

    def __init__(self, run: str, weights: str = "ema", samples: str = "1", seed: str = "0", bound: str = "elbo"):
        for name, text, least in (("samples", samples, 1), ("seed", seed, 0)):
            if not text.isdecimal() or int(text) < least:
                raise ConfigError(f"--option {name}={text}: a number of at least {least}")
        self._run = OpenedRun(run, weights)
        self._estimate = Estimate(int(seed), int(samples), bound)
        self._estimate.check(self._run.model)
        self._conditions: tuple[Condition, ...] = ()
        self.identity = ("bound 1", self._run.digest, samples, seed, bound)
        self.members: tuple[str, ...] = ()

    def open(self, index: Index) -> None:
        """Raises ConfigError or DataError unless the set has images and conditions as the model takes them."""
        self._run.open(index)
        model, data = self._run.model, self._run.subject.config.data
        if known := known_conditions(model):
            check_labels(model, index)
            check_conditions(data, index)
            found = conditions_of(data, index, model.tokenizers, 0)
            self._conditions = tuple(condition for condition in found if condition.name in known)
            if missing := set(known) - {condition.name for condition in self._conditions}:
                raise ConfigError(f"{index.url}: nothing feeds the condition {min(missing)} of the model")
        self.members = tuple(
            dict.fromkeys(extension for condition in self._conditions for extension in condition.members)
        )

    def __call__(self, samples: Samples) -> Mapping[str, Sequence[float]]:
        model = self._run.model
        batch = self._batch(samples)
        with evaluation_mode(model):
            given = condition_by_use(model, batch, all_given(known_conditions(model)))
            nats = self._estimate.nats(model, batch, given).cpu()
        values = {"bound.nats": nats.tolist()}
        if not model.is_density:
            dimensions = model.spec.channels * model.spec.height * model.spec.width
            values["bound.bpd"] = [bits_per_dimension(value, dimensions) for value in values["bound.nats"]]
        return values

    def _batch(self, samples: Samples) -> Batch:
        arrays = zeros(self._conditions, len(samples.keys))
        for condition in self._conditions:
            choices = condition.choose(samples.positions).tolist()
            for row, image in enumerate(samples.images):
                sample = Sample(partial(_member, samples, row), (image.shape[0], image.shape[1]))
                try:
                    condition.read(sample, choices[row], arrays, row)
                except DataError as error:
                    raise DataError(f"sample {samples.keys[row]!r}: {error}") from error
            condition.adjust(arrays, np.arange(len(samples.keys)), samples.positions)
        images = self._run.images(samples.images, samples.positions)
        positions = torch.from_numpy(samples.positions)
        made = Batch(images, positions, torch.ones(len(positions)), tensors_of(arrays))
        return made.map(lambda tensor: tensor.to(self._run.device))


def _member(samples: Samples, row: int, extension: str) -> memoryview | None:
    data = samples.members[extension][row]
    return None if data is None else memoryview(data)
