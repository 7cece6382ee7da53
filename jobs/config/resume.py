"""What may change when a run is resumed: each field says so itself (`MayChange`); everything else is fixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from datasets.order.versions import NEWEST
from jobs.config.resolved import ResolvedRun
from jobs.config.schema import RunConfig
from jobs.config.shard_changes import ShardChange, accepted_changes
from trainer.errors import TrainingError
from trainer.training.optimizer import learning_rate_rise

ORDER_VERSION = "data.order_version"  # among the fixed settings of a fingerprint; runs without it have version 1
BATCH = "trainer.batch"  # `data.streams: auto` follows from it
COLUMNS = "columns"  # in a fingerprint; runs without it have none
QUIET = ("run", "tracking", "ray")  # changes in these are not reported: they do not affect training


def fingerprint(run: ResolvedRun) -> dict[str, Any]:
    """The settings that a checkpoint was made with, as JSON, by dotted key.

    "config": those that are fixed for the life of a run. "changeable": the others. "data": a hash of the training set;
    "columns": of what `data.columns` joins to it.
    """
    changeable = {key: value for key, value in _changeable(run.config) if key.partition(".")[0] not in QUIET}
    return {
        "config": fixed_settings(run.config) | {ORDER_VERSION: run.order_version},
        "changeable": changeable | {"trainer.precision": run.precision},
        "data": run.index.fingerprint,
        COLUMNS: run.index.joins.fingerprint(),
    }


def check_same_run(run: ResolvedRun, saved: dict[str, Any]) -> list[ShardChange]:
    """Returns the changes of the training set since the fingerprint `saved` that `data.accept_changes` allows.

    Raises TrainingError in one line if a fixed setting or the training set differs otherwise.
    """
    if (number := continued(run, saved).order_version) > NEWEST:
        raise TrainingError(
            f"{run.config.run}: was started by a newer release: {ORDER_VERSION} is {number} in the run; this release "
            f"knows versions up to {NEWEST}"
        )
    settings = {key: value for key, value in saved["config"].items() if key != ORDER_VERSION}
    if differs := difference(completed(settings, run.config), fixed_settings(run.config)):
        raise TrainingError(f"{run.config.run}: {differs}; use another run folder (run=...), or the run's own settings")
    if saved.get(COLUMNS, "") != run.index.joins.fingerprint() and not run.config.data.accept_changes:
        listed = ", ".join(run.config.data.columns) or "none"
        raise TrainingError(
            f"{run.config.run}: was started with other results of encoders in data.columns (now {listed}): another "
            "encoder, other options or other images; use the run's own, or another run folder (run=...)"
        )
    return accepted_changes(run, saved["data"])


def continued(run: ResolvedRun, saved: dict[str, Any]) -> ResolvedRun:
    """`run` as it continues from the fingerprint `saved`: with that run's order of the training images."""
    return replace(run, order_version=saved["config"].get(ORDER_VERSION, 1))


def check_resume(run: ResolvedRun, saved: dict[str, Any], images: int) -> list[str]:
    """Check that `run` may continue from the fingerprint `saved` with a checkpoint after `images` images.

    Returns what changes, as lines for the user: shards, each setting, and the learning rate if a larger budget raises
    it.

    Raises TrainingError in one line if a fixed setting or the training set differs, or if `trainer.precision: auto`
    means another precision on this machine than the run was trained in so far.
    """
    lines = [f"training shards: {change}" for change in check_same_run(run, saved)]
    config = run.config
    before, now = _changeable_of(saved), fingerprint(run)["changeable"]
    precision = before.get("trainer.precision", "auto")
    if config.trainer.precision == "auto" and precision not in ("auto", run.precision):
        raise TrainingError(
            f"{config.run}: trainer.precision is {precision} in the run, and auto means {run.precision} on this "
            f"machine; set trainer.precision={precision} to keep it, or trainer.precision={run.precision} to change it"
        )
    if precision == "auto":  # of a version that did not record what it meant
        before.pop("trainer.precision", None)
    changed = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
    lines += [f"{key} changes from {_shown(before, key)} to {_shown(now, key)}" for key in changed]
    budget_before = before.get("trainer.images", config.trainer.images)
    if rise := learning_rate_rise(config.optim, images, budget_before, config.trainer.images):
        lines.append(rise)
    return lines


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """Every setting that is fixed for the life of a run, by dotted key."""
    return dict(_flattened(_fixed(config)))


def difference(saved: dict[str, Any], mine: dict[str, Any]) -> str | None:
    """The first setting in which two sets of fixed settings differ, in words; None if they agree."""
    keys = sorted(saved.keys() | mine.keys(), key=lambda key: (key != BATCH, key))
    for key in keys:
        if saved.get(key) != mine.get(key):
            return f"{key} is {_shown(saved, key)} in the run and {_shown(mine, key)} here"
    return None


def completed(saved: dict[str, Any], mine: RunConfig) -> dict[str, Any]:
    """The fixed settings that an older version saved: with the defaults of newer settings, without those that may
    change now.
    """
    values: dict[str, Any] = {}
    for key, value in (dict(_changeable(mine)) | saved).items():
        section = values
        *path, name = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    _fill_lists(values, mine.model_dump(mode="json"))
    try:
        return fixed_settings(RunConfig.model_validate(values))
    except ValidationError:  # settings that this version does not know are reported as a difference
        return saved


def may_change(field: FieldInfo) -> bool:
    """Whether a field is marked `MayChange`."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("may_change"))


def _fixed(value: Any) -> Any:
    """A section as JSON, without the fields that may change."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: _fixed(getattr(value, name)) for name, field in fields if not may_change(field)}
    if isinstance(value, dict):
        return {name: _fixed(inner) for name, inner in value.items()}
    return [_fixed(item) for item in value] if isinstance(value, tuple | list) else value


def _changeable(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a section that may change, as JSON by dotted key; not those of the items of a list."""
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if may_change(field):
            yield from _flattened({name: dumped[name]}, prefix)
        elif isinstance(value, BaseModel):
            yield from _changeable(value, f"{prefix}{name}.")


def _changeable_of(saved: dict[str, Any]) -> dict[str, Any]:
    """The settings of a saved fingerprint, among them those that may change, which were fixed in some older version."""
    return {**saved["config"], **saved.get("changeable", {})}


def _fill_lists(values: Any, current: Any) -> None:
    """Give the sections in lists the keys that they lack, which may change: those of the same place in `current`."""
    for name, value in values.items() if isinstance(values, dict) else ():
        other = current.get(name) if isinstance(current, dict) else None
        if isinstance(value, dict):
            _fill_lists(value, other)
        elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
            values[name] = [
                other_item | item if isinstance(item, dict) and isinstance(other_item, dict) else item
                for item, other_item in zip(value, other, strict=True)
            ]


def _flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"
