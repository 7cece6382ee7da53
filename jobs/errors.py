"""What can be wrong with a command or its configuration."""


class ConfigError(ValueError):
    """One line that names the file and the key, and what would be right."""
