"""Deep top-down hierarchies: ladder VAE, NVAE, VDVAE."""

from trainer.models.ladder.model import Ladder, LadderConfig

__all__ = ["Ladder", "LadderConfig"]
