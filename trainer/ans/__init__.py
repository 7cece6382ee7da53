"""The entropy coder: integer cumulative distributions, and an ANS stack that codes symbols by them. NumPy only."""
