"""Deep top-down hierarchies: ladder VAE, NVAE, VDVAE."""

from trainer.models.ladder.config import LadderConfig
from trainer.models.ladder.model import Ladder

__all__ = ["Ladder", "LadderConfig"]
