"""A text encoder that was trained elsewhere, frozen: T5, CLIP's text tower, or another encoder of `transformers`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, PositiveInt
from torch import Tensor, nn

from trainer.config import Config, MayChange, absolute_folder
from trainer.networks.conditioning.sequence_encoder import SequenceEncoder
from trainer.networks.unit import as_unit
from trainer.noise import Noise


class PretrainedConfig(Config):
    """An encoder of the package `transformers`, frozen. Its weights are part of checkpoints and exports, so that a
    run needs no other folder. `data.conditions` must name its tokenizer.json."""

    kind: Literal["pretrained"]
    path: Annotated[str, AfterValidator(absolute_folder), MayChange]
    """Folder of the encoder (config.json, *.safetensors), or its name on the hub of `transformers`. Read when a run
    starts, never again. Weights are only read from safetensors, and no code is run from the folder."""
    width: PositiveInt = 256
    """Width that its tokens are projected to; the projection is trained."""
    architecture: dict[str, Any] | None = None
    """The encoder's own configuration, recorded in run folders and exports. Do not set."""

    def build(self, name: str, vocabulary: int, max_tokens: int) -> PretrainedEncoder:
        """The encoder with its weights; of a recorded `architecture` with arbitrary ones, to be restored.

        Raises ValueError where it cannot be read, or does not know all ids of the tokenizer.
        """
        encoder = read_encoder(self.path) if self.architecture is None else _from_architecture(self.architecture)
        known = encoder.get_input_embeddings().num_embeddings
        if vocabulary > known:
            raise ValueError(f"encoder.path: {self.path} knows {known:,} tokens, the tokenizer has {vocabulary:,}")
        longest = getattr(encoder.config, "max_position_embeddings", None)
        if longest is not None and max_tokens > longest:
            raise ValueError(f"encoder.path: {self.path} takes {longest} tokens; max_tokens is {max_tokens}")
        return PretrainedEncoder(encoder, self.width)

    def recorded(self, module: PretrainedEncoder) -> Self:
        """This configuration with all that `build` needs to rebuild `module`."""
        return self.model_copy(update={"architecture": module.frozen.config.to_dict()})


class PretrainedEncoder(SequenceEncoder):
    """Ids int32 [B, T] to [B, 1 + T, width]: a summary, and the tokens in their context."""

    def __init__(self, encoder: Any, width: int):
        hidden: int = encoder.config.hidden_size
        super().__init__(hidden, width)
        self.frozen = encoder.requires_grad_(False).eval()
        for layers in [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                as_unit(layer)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, ids: Tensor, present: Tensor, noise: Noise) -> Tensor:
        """`present`, bool [B, 1 + T]: false for padding."""
        if not ids.shape[1]:
            return super().forward(ids, present, noise)
        with torch.no_grad():
            hidden = self.frozen(input_ids=ids.long(), attention_mask=present[:, 1:].long()).last_hidden_state
        return self.project(hidden, present)


def read_encoder(path: str) -> Any:
    """An encoder of `transformers` from a folder or the hub, its weights from safetensors. Raises ValueError."""
    transformers = _transformers()
    transformers.utils.logging.disable_progress_bar()
    local = Path(path).is_dir()
    try:
        kind = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=local).model_type
        encoder = _class_of(kind).from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, local_files_only=local, dtype=torch.float32
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        where = "cannot be read" if local else "is no folder here, and the hub has no such encoder or cannot be reached"
        raise ValueError(f"encoder.path: {path} {where}: {reason}") from error
    return encoder


def _from_architecture(architecture: dict[str, Any]) -> Any:
    transformers = _transformers()
    config = transformers.AutoConfig.for_model(**architecture)
    made = _class_of(config.model_type)
    return made.from_config(config) if made is transformers.AutoModel else made._from_config(config)


def _class_of(kind: str) -> Any:
    """The class of an encoder by its `model_type`."""
    transformers = _transformers()
    if kind in ("clip", "clip_text_model"):
        return transformers.CLIPTextModel
    encoders = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    return getattr(transformers, encoders.get(kind, "AutoModel"))


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(
            "encoder.kind: pretrained needs the package transformers, which is not installed: "
            "pip install --group pretrained"
        ) from error
