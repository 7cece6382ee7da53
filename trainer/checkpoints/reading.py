"""The state of a run, loaded from the newest of its commits that holds; nothing loaded is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from trainer.checkpoints.lineage import Commit, Lineage
from trainer.checkpoints.staging import LAYOUT, Assembly, State
from trainer.checkpoints.tensors import unpack
from trainer.errors import TrainingError


def newest_whole(
    lineage: Lineage,
    history: list[Commit],
    check: Callable[[State], None],
    warn: Callable[[str], None],
    trouble: int | None = None,
) -> tuple[Commit | None, State]:
    """The best commit of the history that holds, and its state; (None, {}) at the start of a run.

    `check` sees the state and raises if this process must not go on from it. Where the run goes back because its steps
    were bad after `trouble` images, commits made from then on are passed over, and those made between skipped steps.

    Raises TrainingError if there are commits and none can be read, or if they are gone.
    """
    tried = []
    for commit in history:
        if trouble is not None and commit.images >= trouble:
            continue
        try:
            state = read_state(lineage, commit)
        except TrainingError as error:
            warn(f"{error}; going back to the commit before")
            tried.append(commit.name)
            continue
        if trouble is not None and not state["progress"].get("healthy", True):
            continue
        check(state)
        return commit, state
    if tried:
        raise TrainingError(f"{lineage.run.url}: none of the checkpoints {', '.join(tried)} can be read")
    attempts = lineage.attempts()
    begun = attempts[max(attempts)].start if attempts else lineage.commits()
    if not history and begun:
        gone = "its checkpoints are" if attempts else "the folder of its attempts is"
        raise TrainingError(f"{lineage.run.url}: the run has begun, but {gone} gone; take another run folder (run=...)")
    return None, {}


def inherited(lineage: Lineage) -> dict[str, Any]:
    """What an earlier attempt's rollback has changed for all that follow."""
    attempts = lineage.attempts()
    facts = attempts[max(attempts)].facts if attempts else {}
    return {name: facts[name] for name in ("noise_salt", "lr_factor") if name in facts}


def read_state(lineage: Lineage, commit: Commit, only: tuple[str, ...] = ()) -> State:
    """What a commit holds, or those sections that `only` names, whole tensors in host memory.

    Raises TrainingError if that cannot be read.
    """
    names = list(lineage.manifest(commit).files)
    where = f"{lineage.run.url}/checkpoints/{commit.name}"
    layout = _json(f"{where}/{LAYOUT}", lineage.read_commit(commit, [LAYOUT])[LAYOUT]) if LAYOUT in names else {}
    assembly = Assembly(layout)
    wanted = [name for name in names if name != LAYOUT and (not only or name.split(".")[0].split("-")[0] in only)]
    try:
        for name, data in lineage.files(commit, wanted):
            section, kind = name.rsplit(".", 1)
            if kind == "safetensors":
                assembly.add(name, unpack(f"{where}/{name}", data))
            else:
                assembly.state[section] = _json(f"{where}/{name}", data)
        return assembly.whole(only)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{where}: its parts do not fit together ({error})") from error


def _json(where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise TrainingError(f"{where}: is not JSON ({error})") from error
