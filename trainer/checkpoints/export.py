"""Models loaded from a run or an export, and written as weights (safetensors) with a description to rebuild them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cluster.storage.errors import MissingError, TooLargeError
from cluster.storage.json_files import MOST_JSON_BYTES
from cluster.storage.storage import Storage, join
from trainer.checkpoints.bounds import Bounds
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.journal import read_metrics
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.reading import SavedState
from trainer.checkpoints.records import parse_record
from trainer.checkpoints.snapshots import reconstruct
from trainer.checkpoints.stored_shapes import Shapes, check_shapes, shapes_in_file
from trainer.checkpoints.tensor_files import from_safetensors, to_safetensors
from trainer.checkpoints.weights import width_of
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.models import Model, ModelConfig
from trainer.models.base import ModelConfigBase

CHECKPOINTS = "checkpoints"  # folder of a run's commits
FINAL = "final"  # folder of a finished run
DESCRIPTION = "model.json"  # of a run: what rebuilds its model
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of an export
BEST = "best"  # folder in that, if the best evaluation was not the last one

logger = logging.getLogger(__name__)


def describe(config: ModelConfigBase, model: Model) -> dict[str, Any]:
    """What rebuilds a model without any other folder: its section of the configuration, its images and classes."""
    names = list(model.class_names)
    description = config.self_contained(model).model_dump(mode="json")
    return {"model": description, "images": model.spec._asdict(), "class_names": names}


def tokenizer_file(name: str) -> str:
    """Where a run's folder or an export has the tokenizer of a condition."""
    return f"tokenizers/{name}.json"


def write_model(
    folder: Storage, description: dict[str, Any], tensors: dict[str, Tensor], tokenizers: Mapping[str, str]
) -> None:
    """Write the tokenizers and model.safetensors, then config.json."""
    for name, tokenizer in tokenizers.items():
        folder.write(tokenizer_file(name), tokenizer.encode())
    folder.write(WEIGHTS, to_safetensors(tensors))
    folder.write(CONFIG, json.dumps(description, indent=1).encode())


def description_of(folder: Storage) -> dict[str, Any]:
    """What an export says of its model. Raises TrainingError if it cannot be read."""
    try:
        return _description(folder, CONFIG)
    except MissingError as error:
        raise TrainingError(f"{folder.url}: no {CONFIG}, which describes a model") from error


def _description(folder: Storage, path: str) -> dict[str, Any]:
    """The content of model.json or config.json. Raises MissingError, or TrainingError if it describes no model."""
    try:
        facts: dict[str, Any] = parse_record("description", folder.read(path, MOST_JSON_BYTES))
    except (TooLargeError, ValueError) as error:
        raise TrainingError(f"{folder.url}: its model cannot be built by this version: {path}: {error}") from error
    return facts


class Loaded(NamedTuple):
    """A model and which of a run's weights it has, as every figure of it reports."""

    model: Model
    weights: str  # ema, best, raw, or posthoc:WIDTH
    images: int | None  # trained on; None for an export that does not record it


def load(url: str, weights: str = "ema") -> Model:
    """The model of a run or of an export; `open_model` without the facts."""
    return open_model(url, weights).model


def open_model(url: str, weights: str = "ema") -> Loaded:
    """The model of a run (finished, or at its newest checkpoint), of one of its checkpoints (`RUN/checkpoints/NAME`) or
    of an export, in evaluation mode on the CPU.

    `weights`: ema, best (ema at the best evaluation), raw or, of a run with snapshots of averages, posthoc:WIDTH. Where
    the newest checkpoint is damaged, the one before is taken, with a warning in the log.

    Raises TrainingError or StorageError in one line if there is none, or if it cannot be read.
    """
    width_of(weights)  # raises if there are no such weights
    above, _, name = url.rstrip("/").rpartition(f"/{CHECKPOINTS}/")
    if commit := Commit.named(name):
        return _open_commit(Storage(above), commit, weights)
    run = Storage(url)
    lineage = Lineage(run)
    if weights == BEST and (stored := _stored_best(run, lineage)):
        return stored
    if weights == "ema":
        # A run is its commits, even if a model was exported into its folder at some time.
        if not run.exists(DESCRIPTION) and (exported := _read_model(run)):
            return exported
        if final := _final(run, lineage):
            return final
    if next(lineage.history(), None) is None:
        raise _no_model(run)
    description = _description(run, DESCRIPTION)
    images, tensors = newest_weights(lineage, weights, lambda shapes: _check_shapes(run, description, shapes))
    return Loaded(_built(run, description, tensors), weights, images)


def _open_commit(run: Storage, commit: Commit, weights: str) -> Loaded:
    """The model of a run at one of its commits."""
    if weights == BEST or width_of(weights):
        raise TrainingError(f"{run.url}: {weights} weights are of a run; of a checkpoint there are ema and raw")
    description = _description(run, DESCRIPTION)
    images, tensors = weights_at(Lineage(run), commit, weights, lambda shapes: _check_shapes(run, description, shapes))
    return Loaded(_built(run, description, tensors), weights, images)


def _read_model(folder: Storage) -> Loaded | None:
    """The model of an export or of a finished run's final/; None if there is none."""
    try:
        facts, shapes = _description(folder, CONFIG), shapes_in_file(folder, WEIGHTS)
        _check_shapes(folder, facts, shapes)
        data = folder.read(WEIGHTS)
    except MissingError:
        return None
    model = _built(folder, facts, from_safetensors(join(folder.url, WEIGHTS), data))
    return Loaded(model, facts.get("weights", "ema"), facts.get("images_seen"))


def _final(run: Storage, lineage: Lineage) -> Loaded | None:
    """The model of final/ unless the run has made newer commits since: it was extended, or continued from before."""
    folder = run.folder(FINAL)
    try:
        facts = _description(folder, CONFIG)
    except MissingError:
        return None
    return _read_model(folder) if _is_newest(facts, lineage) else None


def _is_newest(final: dict[str, Any], lineage: Lineage) -> bool:
    """Whether the run has no newer commit than the one that `final`, the description in final/, is made of."""
    listable = not lineage.run.url.startswith(("http://", "https://"))
    newest = next(lineage.history(), None) if listable else None
    if newest is None or final.get("commit") == newest.name:
        return True
    return "commit" not in final and final.get("images_seen") == newest.images  # of an older version


def _stored_best(run: Storage, lineage: Lineage) -> Loaded | None:
    """The model of the best evaluation from an export or from final/; None if it must be looked for in the commits."""
    folder = run.folder(FINAL) if run.exists(DESCRIPTION) else run
    try:
        facts = _description(folder, CONFIG)
    except (MissingError, TrainingError):
        return None
    best: dict[str, Any] = facts.get("best") or {}
    is_best = facts.get("weights") == BEST
    if not is_best and (not best or (folder is not run and not _is_newest(facts, lineage))):
        return None
    here = is_best or best["images"] == facts.get("images_seen")
    found = _read_model(folder if here else folder.folder(BEST))
    return found and found._replace(weights=BEST)


def best_commit(lineage: Lineage) -> Commit:
    """The commit that was evaluated best. Raises TrainingError if the run has no evaluation or did not keep it."""
    best = Bounds(read_metrics(lineage.run)).best
    if best is None:
        raise TrainingError(f"{lineage.run.url}: no best weights: nothing was evaluated; data.validation makes it so")
    for commit in lineage.history():
        if commit.images == best.images:
            return commit
    raise TrainingError(
        f"{lineage.run.url}: the weights of the best evaluation ({best.nats:.2f} nats after {best.images:,} images) "
        "were not kept; trainer.checkpoints.keep_best keeps them"
    )


def newest_weights(
    lineage: Lineage, weights: str, check: Callable[[Shapes], None] = lambda shapes: None
) -> tuple[int, dict[str, Tensor]]:
    """The images seen and the tensors of the newest commit that can be read; a damaged one is passed over with a
    warning in the log. Raises TrainingError if there is none. `check` sees the shapes before any tensor is read.
    """
    failure = _no_model(lineage.run)
    for commit in [best_commit(lineage)] if weights == BEST else lineage.history():
        try:
            return weights_at(lineage, commit, weights, check)
        except TrainingError as error:
            if weights == BEST:
                raise
            logger.warning("%s; taking the checkpoint before", error)
            failure = error
    raise failure


def weights_at(
    lineage: Lineage, commit: Commit, weights: str, check: Callable[[Shapes], None] = lambda shapes: None
) -> tuple[int, dict[str, Tensor]]:
    """The images seen and the weights of a commit, by name.

    `posthoc:WIDTH` is computed from snapshots, up to the last one; the commit adds what was not trained. Raises
    TrainingError.
    """
    saved = SavedState(lineage.folder(commit), ("model", "ema") if weights in ("ema", BEST) else ("model",))
    check({name: stored.shape for name, stored in saved.layout.get("model", {}).items()})
    model = saved.tensors("model")
    if width := width_of(weights):
        averaged = reconstruct(lineage.run, width)
        return averaged.images, model | averaged.tensors
    return commit.images, model | saved.tensors("ema")


def load_untrained(url: str) -> Model:
    """The model that `load` would give, with initial weights: reads only its description.

    Raises TrainingError or StorageError in one line if there is none, or if it cannot be built.
    """
    run = Storage(url)
    for path in (DESCRIPTION, CONFIG, f"{FINAL}/{CONFIG}"):
        try:
            description = _description(run, path)
        except MissingError:
            continue
        with _build_errors(run.url):
            return _build(description)
    raise _no_model(run)


def recorded_config(run: Storage) -> ModelConfigBase | None:
    """The model's configuration as a run folder describes it; None if it does not, or not for this version."""
    try:
        return TypeAdapter[ModelConfig](ModelConfig).validate_python(_description(run, DESCRIPTION)["model"])
    except (MissingError, TrainingError, ValueError):
        return None


def _no_model(run: Storage) -> TrainingError:
    return TrainingError(f"{run.url}: no model here; a run's folder has checkpoints")


def _check_shapes(folder: Storage, description: dict[str, Any], stored: Shapes) -> None:
    with _build_errors(folder.url):
        check_shapes(lambda: _build(description), stored)


def _built(folder: Storage, description: dict[str, Any], tensors: dict[str, Tensor]) -> Model:
    with _build_errors(folder.url):
        model = _build(description)
        model.tokenizers = {
            text.name: folder.read(tokenizer_file(text.name)).decode()
            for text in model.spec.texts
            if text.name in model.conditions
        }
        model.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()})
    return model.eval()


def _build(facts: dict[str, Any]) -> Model:
    config = TypeAdapter[ModelConfig](ModelConfig).validate_python(facts["model"])
    model = config.build(ImageSpec.from_json(facts["images"]))
    model.class_names = tuple(map(str, facts.get("class_names", ())))
    return model


@contextlib.contextmanager
def _build_errors(url: str) -> Iterator[None]:
    """Turn errors of building the model of `url` into a TrainingError of one line."""
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
