"""Everything that talks to Ray."""
