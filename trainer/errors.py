"""What can go wrong with a run that its owner can mend."""


class TrainingError(RuntimeError):
    """One line: what happened, to which run, what would be right."""
