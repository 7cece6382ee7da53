"""Samples in units: any process can make one, and none is made twice."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.storage.storage import Storage, join
from datasets.packing.encoding import encode_png
from datasets.packing.sources.source import Example
from datasets.packing.write import write_tar
from jobs.errors import ConfigError
from jobs.run.reports import weights_text
from trainer.checkpoints.export import Loaded, open_model
from trainer.conditions import ConditionUses, all_given, none_given
from trainer.distributed.device import ReportPrecision, report_precision
from trainer.images import pictured
from trainer.models import Model
from trainer.models.base import known_conditions
from trainer.noise import Noise
from trainer.patches import whole_images
from trainer.prompts import Captions, in_one_line
from trainer.sampling import SampleConditions, encode_conditions
from trainer.tracking.captions import with_prompt
from trainer.tracking.pictures import grid
from trainer.tracking.prompt_rows import prompt_rows

Format = Literal["grid", "images", "shards", "interpolation", "trajectory"]
NUMBERS = 10  # labels in a caption
PARTS = "parts"  # of a grid


@dataclass(frozen=True)
class SamplingPlan:
    """A request for samples. Image i depends on this and on i alone."""

    run: str
    weights: str
    fingerprint: str
    """Checksum of the weights: a run that has trained further is another model."""
    out: str
    format: Format
    count: int
    batch: int
    """Images that a process makes at once."""
    unit: int
    """Images of a unit, which a process makes and writes as one."""
    seed: int
    temperature: float
    precision: ReportPrecision = "fp32"
    labels: tuple[int, ...] = ()
    """Image i is conditioned on labels[i mod their number]; none: not conditioned."""
    prompts: tuple[Captions, ...] = ()
    """Image i is conditioned on prompts[i mod their number]; none: not conditioned."""
    negative: Captions = field(default_factory=dict)
    """What guidance leads away from; none: the unconditional estimate."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the model's `sample`."""

    @functools.cached_property
    def conditions(self) -> SampleConditions:
        """Labels and prompts as tensors."""
        model, negative = opened(self.run, self.weights).model, [self.negative] if self.negative else []
        return encode_conditions(model, self.labels, self.prompts, negative)[0]

    def prompt(self, i: int) -> Captions:
        """The prompt of image i; empty: none."""
        return self.prompts[i % len(self.prompts)] if self.prompts else {}

    def units(self) -> list[int]:
        """The first image of each unit."""
        return list(range(0, self.count, self.unit))

    def name(self, first: int) -> str:
        """The file that exists once a unit is finished."""
        if self.format == "images":
            return f"{min(first + self.unit, self.count) - 1:08d}.png"  # the last one of its images
        suffix = f"{first // self.unit:06d}"
        return f"{suffix}.tar" if self.format == "shards" else f"{PARTS}/{suffix}.safetensors"

    @property
    def record(self) -> str:
        """The file in `out` that holds the plan, so that samples of another plan are neither added nor replaced."""
        return f"{self.format}.json" if self.format in ("interpolation", "trajectory") else "sampling.json"

    def claim(self) -> None:
        """Write the plan to `out`. Raises ConfigError if there are samples of another plan."""
        storage = Storage(self.out)
        ours = json.loads(json.dumps(asdict(self) | {"out": ""}))
        if not storage.create(self.record, json.dumps(ours, indent=1).encode()):
            theirs = json.loads(storage.read(self.record))
            for key, value in ours.items():
                if theirs.get(key) != value:
                    held = f"holds samples with {key} {theirs.get(key)}, not {value}"
                    raise ConfigError(f"{join(storage.url, self.record)}: {held}; give --out another folder")

    def left(self) -> list[int]:
        """The units that are missing. Raises ConfigError if `out` holds samples of another plan."""
        self.claim()
        there = {entry.path for entry in Storage(self.out).list()}
        return [first for first in self.units() if self.name(first) not in there]


def weights_checksum(model: Model) -> str:
    """A checksum of a model's weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_unit(plan: SamplingPlan, first: int) -> int:
    """Make the unit that begins with image `first` and write it; the number of its images."""
    images: list[Tensor] = []
    last = min(first + plan.unit, plan.count)
    for start in range(first, last, plan.batch):
        positions = torch.arange(start, min(start + plan.batch, last))
        images.append(sample(plan, positions))
    _write(plan, first, torch.cat(images))
    return last - first


@torch.no_grad()
def sample(plan: SamplingPlan, positions: Tensor) -> Tensor:
    """The images at `positions`, uint8 levels [B, C, H, W] on the CPU."""
    model, device = model_here(plan)
    noise = Noise(plan.seed, "sample", positions.to(device))
    given = plan.conditions.at(noise.positions)
    with report_precision(plan.precision, device):
        return model.sample(noise, temperature=plan.temperature, **given, **plan.settings).cpu()


@functools.lru_cache(maxsize=1)
def opened(run: str, weights: str) -> Loaded:
    """The model of a run, kept from one unit to the next."""
    return open_model(run, weights)


def model_here(plan: SamplingPlan) -> tuple[Model, torch.device]:
    """The model on the device of this process: its current GPU, or the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # a process per core; and sums of one thread are the same everywhere
    return opened(plan.run, plan.weights).model.to(device), device


def uses_of(plan: SamplingPlan, model: Model) -> ConditionUses:
    """Which of the model's conditions the samples of a plan are given."""
    given = {name for captions in plan.prompts for name in captions} | ({"label"} if plan.labels else set())
    return none_given(known_conditions(model)) | all_given(given)


def in_words(plan: SamplingPlan, loaded: Loaded) -> str:
    """What the samples of a plan are: "samples, unconditional, draws of p(x | z), averaged (EMA) weights ..."."""
    more = "..." if len(plan.labels) > NUMBERS else ""
    labels = f", label {','.join(map(str, plan.labels[:NUMBERS]))}{more}" if plan.labels else ""
    what = loaded.model.samples_in_words(plan.settings, uses_of(plan, loaded.model))
    temperature = f", temperature {plan.temperature:g}" if plan.temperature != 1 else ""
    return f"{what}{labels}{_prompts_in_words(plan)}{temperature}, {weights_text(loaded)}, {plan.precision}"


def _prompts_in_words(plan: SamplingPlan) -> str:
    negative = f", negative prompt {in_one_line(plan.negative)!r}" if plan.negative else ""
    if len(plan.prompts) == 1:
        return f", prompt {in_one_line(plan.prompts[0])!r}{negative}"
    return f", {len(plan.prompts):,} prompts{negative}" if plan.prompts else negative


def assemble_grid(plan: SamplingPlan, loaded: Loaded) -> str:
    """Join the finished units into one PNG; its URL."""
    storage = Storage(plan.out)
    names = [plan.name(first) for first in plan.units()]
    images = torch.cat([safetensors.torch.load(storage.read(name))["images"] for name in names])
    storage.write("grid.png", _grid(plan, images, loaded))
    return join(storage.url, "grid.png")


def _grid(plan: SamplingPlan, images: Tensor, loaded: Loaded) -> bytes:
    """A PNG: with prompts a row of images for each, with labels a column for each."""
    caption = in_words(plan, loaded)
    if plan.prompts:
        return prompt_rows(images, loaded.model.spec, list(map(in_one_line, plan.prompts)), caption)
    return grid(images, loaded.model.spec, len(plan.labels) if len(plan.labels) > 1 else None, caption)


def _write(plan: SamplingPlan, first: int, images: Tensor) -> None:
    storage, name = Storage(plan.out), plan.name(first)
    if plan.format == "grid":
        storage.write(name, safetensors.torch.save({"images": images.contiguous()}))
        return
    spec = opened(plan.run, plan.weights).model.spec
    whole = whole_images(images, spec)
    if plan.format == "images":
        for i, image in enumerate(whole):
            png = encode_png(pictured(image[None], spec.levels)[0].permute(1, 2, 0).numpy())
            prompt = plan.prompt(first + i)
            storage.write(f"{first + i:08d}.png", with_prompt(png, in_one_line(prompt)) if prompt else png)
    else:
        pairs = enumerate((image.permute(1, 2, 0).numpy() for image in whole), first)
        examples = ((f"{i:08d}", _example(plan, i, image)) for i, image in pairs)
        with tempfile.TemporaryDirectory() as folder:
            write_tar(Path(folder) / "shard.tar", examples)
            storage.write(name, Path(folder) / "shard.tar")


def _example(plan: SamplingPlan, i: int, image: NDArray[np.uint8]) -> Example:
    """Image i with its class and its prompt: in .txt, and several kinds of captions in .json by name too."""
    label = plan.labels[i % len(plan.labels)] if plan.labels else None
    captions = plan.prompt(i)
    if not captions:
        return Example(image, label)
    fields = json.dumps(captions, ensure_ascii=False).encode() if len(captions) > 1 else None
    return Example(image, label, next(iter(captions.values())).encode(), fields)
