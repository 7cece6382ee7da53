"""The cells that ladders are made of, one file each; the configuration chooses by `kind`."""

from typing import Annotated

from pydantic import Field

from trainer.networks.cells.base import Cells
from trainer.networks.cells.mlp import MlpCells
from trainer.networks.cells.nvae import NvaeCells
from trainer.networks.cells.vdvae import VdvaeCells

CellsConfig = Annotated[MlpCells | NvaeCells | VdvaeCells, Field(discriminator="kind")]

__all__ = ["Cells", "CellsConfig"]
