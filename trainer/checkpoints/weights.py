"""Names of a run's weights: `ema`, `best`, `raw`, or `posthoc:WIDTH`."""

from __future__ import annotations

from trainer.checkpoints.profiles import WIDEST
from trainer.errors import TrainingError

HELP = (
    "ema: averaged with optim.ema's half-life (default); best: those averages at the run's best evaluation; raw; or "
    "posthoc:0.08, averaged over that relative width"
)
_WORDS = {"ema": "averaged (EMA)", "best": "best averaged (EMA)", "raw": "raw"}


def width_of(weights: str) -> float | None:
    """The relative width of `posthoc:WIDTH`; None for `ema`, `best`, `raw`. Raises TrainingError for anything else."""
    if weights in _WORDS:
        return None
    kind, _, text = weights.partition(":")
    try:
        width = float(text)
    except ValueError:
        width = -1.0
    if kind != "posthoc" or not 0 < width < WIDEST:
        raise TrainingError(f"weights {weights}: are ema, best, raw, or posthoc:WIDTH with 0 < WIDTH < {WIDEST:.3f}")
    return width


def in_words(weights: str) -> str:
    """A name of weights as text for reports."""
    width = width_of(weights)
    return f"averaged (post hoc, relative width {width:g})" if width else _WORDS[weights]
