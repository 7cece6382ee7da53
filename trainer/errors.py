"""Errors of a run that its user can correct; the message is one line."""


class TrainingError(RuntimeError):
    """One line: what happened, to which run, what would be right."""


class DamagedError(TrainingError):
    """A checkpoint's content is not what its manifest says, or part of it is missing."""


class SupersededError(TrainingError):
    """A newer process has taken the run over."""


class DivergedError(TrainingError):
    """The gradients have not been usable for many steps in a row; `steps` had been made when that began."""

    def __init__(self, message: str, steps: int = 0):
        super().__init__(message)
        self.steps = steps
