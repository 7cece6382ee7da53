"""Initial weights from another run or export."""

from __future__ import annotations

from trainer.checkpoints.export import load, load_untrained
from trainer.errors import TrainingError
from trainer.models import Model


def check_fits(model: Model, url: str) -> None:
    """Raises TrainingError in one line unless the model at `url` has weights of the same names and shapes as `model`.

    Reads its description, not its weights.
    """
    theirs, mine = (
        {name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (load_untrained(url), model)
    )
    for name in sorted(theirs.keys() | mine.keys(), key=lambda name: (name in mine and name in theirs, name)):
        if theirs.get(name) != mine.get(name):
            there, here = (f"of shape {has[name]}" if name in has else "not there" for has in (theirs, mine))
            told = f"its {name} is {there}, this run's {here}; their `model:` must agree"
            raise TrainingError(f"init_from: {url}: is another model: {told}")


def warm_start(model: Model, url: str, weights: str) -> None:
    """Load the weights of the run or export at `url` into `model`. Raises TrainingError or StorageError in one line."""
    check_fits(model, url)
    model.load_state_dict(load(url, weights).state_dict())
