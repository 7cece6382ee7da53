"""Writes what `diffusers` needs beside an export: the pipeline and, of a first stage of its own, the autoencoder."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.storage.storage import Storage
from trainer.checkpoints.tensor_files import to_safetensors
from trainer.models import Model
from trainer.models.latent import Latent
from trainer.models.latent.first_stages.autoencoder_kl import AutoencoderKlStage

INDEX = "model_index.json"  # by which diffusers knows a pipeline
MODEL = "model"  # folder of the export
_VERSION = "0.42.1"  # of diffusers that this was tested with


def write_pipeline(folder: Storage, model: Model) -> None:
    """Write all files but the export, which is in MODEL; the index last."""
    here = Path(__file__).parent
    folder.write("pipeline.py", (here / "pipeline.py").read_bytes())
    folder.folder(MODEL).write("lowerbound_model.py", (here / "lowerbound_model.py").read_bytes())
    if isinstance(model, Latent) and isinstance(model.first_stage, AutoencoderKlStage):
        _write_autoencoder(folder.folder("vae"), model.first_stage)
    index = {
        "_class_name": ["pipeline", "LowerboundPipeline"],
        "_diffusers_version": _VERSION,
        MODEL: ["lowerbound_model", "LowerboundModel"],
    }
    folder.write(INDEX, json.dumps(index, indent=1).encode())


def _write_autoencoder(folder: Storage, stage: AutoencoderKlStage) -> None:
    """In diffusers' own layout: AutoencoderKL.from_pretrained(FOLDER, subfolder="vae")."""
    folder.write("diffusion_pytorch_model.safetensors", to_safetensors(stage.model.state_dict()))
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": _VERSION, **stage.architecture}
    folder.write("config.json", json.dumps(config, indent=1).encode())
