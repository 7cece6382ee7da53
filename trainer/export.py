"""A model by itself: weights as safetensors, and the configuration that builds it."""

from __future__ import annotations

import json
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cluster.storage import MissingError, Storage
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.lineage import Lineage
from trainer.models import Model, ModelConfig

FINAL = "final"  # folder of a finished run

Weights = Literal["ema", "raw"]


def describe(model_config: Any, spec: ImageSpec) -> dict[str, Any]:
    """What rebuilds a model: its section of the configuration, and the images that it is for."""
    return {"model": model_config.model_dump(mode="json"), "images": spec._asdict()}


def write_model(folder: Storage, description: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write model.safetensors, then config.json."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    folder.write("model.safetensors", safetensors.torch.save(whole))
    folder.write("config.json", json.dumps(description, indent=1).encode())


def load(url: str, weights: Weights = "ema") -> Model:
    """The model of a run (finished, or at its newest checkpoint) or of an export, in evaluation mode on the CPU.

    Raises TrainingError or StorageError in one line if there is none, or if it cannot be read.
    """
    run = Storage(url)
    for folder in (run, run.folder(FINAL)) if weights == "ema" else ():
        try:
            description = json.loads(folder.read("config.json"))
            return _built(url, description, safetensors.torch.load(folder.read("model.safetensors")))
        except MissingError:
            continue
    lineage = Lineage(run)
    for commit in lineage.history():
        files = lineage.read_commit(commit)
        tensors = safetensors.torch.load(files["model.safetensors"])
        if weights == "ema":
            tensors |= safetensors.torch.load(files["ema.safetensors"])
        return _built(url, json.loads(run.read("model.json")), tensors)
    raise TrainingError(f"{url}: no model here; a run's folder or an exported one has a config.json or checkpoints")


def _built(url: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> Model:
    try:
        config = TypeAdapter(ModelConfig).validate_python(description["model"])
        model = config.build(ImageSpec(**description["images"]))
        model.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()})
    except (ValidationError, KeyError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise TrainingError(f"{url}: its model cannot be built by this version: {first}") from error
    return model.eval()
