"""What a person runs or submits; the only folder that puts the others together."""
