"""What can be wrong with data that its owner can mend."""


class DataError(ValueError):
    """One line that names the shard, key or field, and what would be right."""
