"""A model of a run or an export and the images that it is evaluated on, as one rank sees them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.storage.storage import absolute
from datasets.config import DataConfig
from datasets.loading.batches import Batches
from datasets.loading.build import evaluation_batches
from datasets.loading.conditions import kinds_of
from datasets.shards.index import Index
from jobs.config.other_images import check_format, check_labels
from jobs.errors import ConfigError
from jobs.run.ledger import left_out
from jobs.run.reports import OWN_SPLITS, Subject, file_name, split_name, subject_of
from trainer.checkpoints.export import Loaded, open_model
from trainer.conditions import ConditionUse, ConditionUses, given_names, in_words, parse_uses, shuffled_names
from trainer.distributed.device import make_accelerator
from trainer.distributed.ranks import rank, world_size
from trainer.models.base import Model, known_conditions
from trainer.training.condition_table import ConditionTable, PartnerConditions, read_conditions
from trainer.training.evaluation import batch_size
from trainer.training.image_bounds import Estimate


@dataclass(frozen=True)
class Opened:
    """What an evaluation is of. `settings`: the options of the command."""

    settings: dict[str, Any]
    subject: Subject
    data: DataConfig
    index: Index
    loaded: Loaded
    device: torch.device
    uses: dict[str, ConditionUse]

    @property
    def model(self) -> Model:
        """In evaluation mode, on the device."""
        return self.loaded.model

    @property
    def estimate(self) -> Estimate:
        """The estimate of -log p(x) that the options choose."""
        chosen = self.settings
        return Estimate(chosen["seed"], chosen["samples"], chosen["bound"], chosen["precision"])

    @property
    def taken(self) -> int:
        """Images that are evaluated, over all ranks."""
        return min(self.settings["images"] or self.index.images, self.index.images)

    def batches(self) -> Batches:
        """This rank's part of the set."""
        trainer = self.subject.config.trainer
        return evaluation_batches(
            self.data,
            self.index,
            batch=self.settings["batch"] or batch_size(trainer.images_at_once, trainer.batch, world_size()),
            ranks=world_size(),
            rank=rank(),
            device=self.device,
            limit=self.settings["images"],
            tokenizers=self.model.tokenizers,
        )

    def table(self, names: Collection[str]) -> ConditionTable:
        """The conditions `names` of all images that are evaluated. All ranks together."""
        with self.batches() as batches:
            return read_conditions(batches, names)

    def partners(self, uses: ConditionUses) -> PartnerConditions | None:
        """The conditions of other images, if `uses` shuffles any. All ranks together."""
        names = shuffled_names(uses)
        return PartnerConditions(self.table(names), self.settings["seed"]) if names else None

    def warnings(self, uses: ConditionUses, counted: int) -> list[str]:
        """What to know about figures of `counted` images. Raises DataError if too many are missing."""
        found = self.subject.warnings(self.index) if self.settings["split"] != "train" else []
        found += left_out(self.data, self.index, counted, self.taken)
        never = [name for name, use in uses.items() if use == "none" and not self.model.hidden_in_training[name]]
        if never:
            found.append(f"training never hid {' and '.join(never)}: the model has not learned to do without")
        return found

    def facts(self, images: int) -> dict[str, Any]:
        """What a report of `images` images is of."""
        split, index, chosen = self.settings["split"], self.index, self.settings
        report = {"split": split if split in OWN_SPLITS else absolute(split), "set": index.fingerprint}
        report |= {name: chosen[name] for name in ("bound", "samples", "steps", "seed", "precision")}
        title = self.model.bounds[chosen["bound"]].title.format(draws=chosen["samples"])
        report |= {"estimate": title, "weights": self.loaded.weights, "images_seen": self.loaded.images}
        report |= {"conditions": self.uses, "binarisation": index.meta.binarised or None}
        return report | {"levels": index.levels, "images": images}

    def name(self, *parts: object) -> str:
        """The name of a report about this and `parts`."""
        chosen = self.settings
        return file_name(
            split_name(chosen["split"], self.index),
            chosen["images"] and f"{self.taken}images",
            *((chosen["bound"], chosen["samples"]) if chosen["by_noise_level"] is None else ()),
            chosen["steps"] and f"{chosen['steps']}steps",
            *(f"{name}-{use}" for name, use in self.uses.items() if use != "given"),
            *(self.loaded.weights, self.loaded.images, chosen["seed"] and f"seed{chosen['seed']}"),
            chosen["precision"] != "fp32" and chosen["precision"],
            *parts,
        )

    def same_conditions(self, partners: PartnerConditions | None) -> list[str]:
        """A line about images whose partner has the same conditions."""
        if partners is None or not (same := partners.same):
            return []
        names = " and ".join(partners.table.values)
        return [f"shuffled: {same:,} of {len(partners.table):,} images were given a {names} equal to their own"]

    def in_words(self) -> str:
        """What figures are conditional on."""
        return in_words(self.uses)


def opened(settings: dict[str, Any]) -> Opened:
    """The model and the images that the options name. Raises ConfigError if they do not fit each other."""
    subject = subject_of(settings["run"])
    device = make_accelerator("fp32").device
    if subject.config.trainer.threads:
        torch.set_num_threads(subject.config.trainer.threads)
    index = subject.index(settings["split"], settings["index"])
    return _opened(settings, subject, subject.config.data, index, device)


def open_other(first: Opened, settings: dict[str, Any], data: DataConfig | None = None) -> Opened:
    """Another model, or other conditions, on the images of `first`. `data`: where it has captions from; default: its
    own configuration, or of an export that of `first`.

    Raises ConfigError if it does not see the same images.
    """
    subject = subject_of(settings["run"])
    data = data or (subject.config.data if subject.is_run else first.data)
    if data.transform != first.data.transform:
        raise ConfigError(
            f"{subject.folder.url}: its data.transform differs from {first.subject.folder.url}'s; bounds are compared "
            "on the same images"
        )
    same = settings["run"] == first.settings["run"] and settings["weights"] == first.settings["weights"]
    if same:
        uses = parse_uses(settings["condition"], known_conditions(first.model))
        other = replace(first, settings=settings, data=data, uses=uses)
        _check(other)
        return other
    return _opened(settings, subject, data, first.index, first.device)


def _opened(settings: dict[str, Any], subject: Subject, data: DataConfig, index: Index, device: torch.device) -> Opened:
    loaded = open_model(subject.folder.url, settings["weights"])
    model = loaded.model.to(device)
    uses = parse_uses(settings["condition"], known_conditions(model))
    found = Opened(settings, subject, data, index, loaded, device, uses)
    _check(found)
    if settings["steps"]:
        model.set_steps(settings["steps"])
    return found


def _check(found: Opened) -> None:
    check_format(found.model.spec, found.data, found.index)
    names = given_names(found.uses)
    if not names:
        return
    check_labels(found.model, found.index)
    fed = kinds_of(found.data, found.index)
    for name in names:
        if name not in fed:
            has = f"it has {', '.join(fed)}" if fed else "it has none"
            raise ConfigError(
                f"{found.subject.folder.url}: nothing feeds the condition {name} ({has}); --condition {name}=none "
                "leaves it out, and a run folder says where captions are, an export does not"
            )
