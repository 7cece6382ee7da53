"""What can go wrong with a run that its owner can mend."""


class TrainingError(RuntimeError):
    """One line: what happened, to which run, what would be right."""


class SupersededError(TrainingError):
    """A newer process has taken the run over."""


class DivergedError(TrainingError):
    """The gradients have not been usable for many steps in a row; `steps` had been made when that began."""

    def __init__(self, message: str, steps: int = 0):
        super().__init__(message)
        self.steps = steps
