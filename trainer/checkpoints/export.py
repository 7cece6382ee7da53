"""A model by itself: weights as safetensors, and the configuration that builds it."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.reading import SavedState
from trainer.checkpoints.snapshots import reconstruct
from trainer.checkpoints.tensors import pack, unpack
from trainer.checkpoints.weights import width_of
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.models import Model, ModelConfig

FINAL = "final"  # folder of a finished run

logger = logging.getLogger(__name__)


def describe(model_config: Any, spec: ImageSpec) -> dict[str, Any]:
    """What rebuilds a model: its section of the configuration, and the images that it is for."""
    return {"model": model_config.model_dump(mode="json"), "images": spec._asdict()}


def write_model(folder: Storage, description: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write model.safetensors, then config.json."""
    folder.write("model.safetensors", pack(tensors))
    folder.write("config.json", json.dumps(description, indent=1).encode())


class Loaded(NamedTuple):
    """A model and which of a run's weights it has, as every figure of it reports."""

    model: Model
    weights: str  # ema, raw, or posthoc:WIDTH
    images: int | None  # trained on; None for an export that does not record it


def load(url: str, weights: str = "ema") -> Model:
    """The model of a run or of an export; `open_model` without the facts."""
    return open_model(url, weights).model


def open_model(url: str, weights: str = "ema") -> Loaded:
    """The model of a run (finished, or at its newest checkpoint) or of an export, in evaluation mode on the CPU.

    `weights`: ema, raw or, of a run with snapshots of averages, posthoc:WIDTH (weights.py). Where the newest checkpoint
    is damaged, the one before is taken, with a warning in the log.

    Raises TrainingError or StorageError in one line if there is none, or if it cannot be read.
    """
    width_of(weights)  # raises if there are no such weights
    run = Storage(url)
    for folder in (run, run.folder(FINAL)) if weights == "ema" else ():
        try:
            description, data = folder.read("config.json"), folder.read("model.safetensors")
        except MissingError:
            continue
        model = _built(folder.url, description, unpack(f"{folder.url}/model.safetensors", data))
        facts = json.loads(description)
        return Loaded(model, facts.get("weights", weights), facts.get("images_seen"))
    lineage, failure = Lineage(run), _no_model(run)
    for commit in lineage.history():
        try:
            images, tensors = weights_at(lineage, commit, weights)
        except TrainingError as error:
            logger.warning("%s; taking the checkpoint before", error)
            failure = error
            continue
        return Loaded(_built(run.url, run.read("model.json"), tensors), weights, images)
    raise failure


def weights_at(lineage: Lineage, commit: Commit, weights: str) -> tuple[int, dict[str, Tensor]]:
    """The weights of a commit by name, and the images after which they are what they are.

    Those of `posthoc:WIDTH` are of the last snapshot, only what was not trained is the commit's. Raises TrainingError.
    """
    saved = SavedState(lineage.folder(commit), ("model", "ema") if weights == "ema" else ("model",))
    model = saved.tensors("model")
    if width := width_of(weights):
        averaged = reconstruct(lineage.run, width)
        return averaged.images, model | averaged.tensors
    return commit.images, model | saved.tensors("ema")


def load_untrained(url: str) -> Model:
    """The model that `load` would give, with initial weights: reads nothing but what describes it.

    Raises TrainingError or StorageError in one line if there is none, or if it cannot be built.
    """
    run = Storage(url)
    for path in ("config.json", f"{FINAL}/config.json", "model.json"):
        try:
            description = run.read(path)
        except MissingError:
            continue
        with _told(run.url):
            return _build(description)
    raise _no_model(run)


def _no_model(run: Storage) -> TrainingError:
    return TrainingError(f"{run.url}: no model here; a run's folder has checkpoints")


def _built(url: str, description: bytes, tensors: dict[str, Tensor]) -> Model:
    with _told(url):
        model = _build(description)
        model.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()})
    return model.eval()


def _build(description: bytes) -> Model:
    facts = json.loads(description)
    return TypeAdapter[ModelConfig](ModelConfig).validate_python(facts["model"]).build(ImageSpec(**facts["images"]))


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong in building the model of `url` as a TrainingError of one line."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", *first["loc"])))
        raise TrainingError(f"{url}: its model cannot be built by this version: {key}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())[:300]  # PyTorch names every weight
        raise TrainingError(f"{url}: its model cannot be built by this version: {reason}") from error
