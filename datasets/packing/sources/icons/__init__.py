"""Captioned icons, drawn from the fonts that QtAwesome contains."""
