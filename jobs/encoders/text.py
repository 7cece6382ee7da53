"""Captions through a text encoder of `transformers`: one vector for each token, not padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets.conditions.captions import caption_of, encoder
from datasets.encoding.encoder import Samples
from datasets.shards.json_fields import split_source
from jobs.encoders.opened_run import device, digest_of
from jobs.errors import ConfigError
from trainer.networks.conditioning.pretrained import read_encoder


class TextEncoder:
    """`text`, float [T, width] with T tokens of the caption; no value for a sample without a usable caption.

    `path`: folder of an encoder (config.json, *.safetensors, tokenizer.json). `source`: the member that has the
    caption, or a field of the .json: txt, json.caption. Longer captions are cut to `max_tokens`.
    """

    images = False

    def __init__(self, path: str, source: str = "txt", max_tokens: str = "77"):
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(f"--with text:{path}: a folder with config.json, *.safetensors and tokenizer.json")
        if not max_tokens.isdecimal() or int(max_tokens) < 1:
            raise ConfigError(f"--option max_tokens={max_tokens}: a number of at least 1")
        text = file.read_text()
        self._tokenizer = encoder(text, int(max_tokens))
        try:
            model = read_encoder(path)
        except ValueError as error:
            raise ConfigError(f"--with text:{path}: {error}") from error
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and int(max_tokens) > longest:
            raise ConfigError(f"--option max_tokens={max_tokens}: {path} takes {longest} tokens")
        self.identity = ("text 1", digest_of(model), text, source, max_tokens)
        self._device = device()
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._source = source
        self.members = (split_source(source)[0],)

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Mapping[str, Sequence[Tensor | None]]:
        (texts,) = samples.members.values()
        captions = [caption_of(data, self._source).caption for data in texts]
        ids = [self._tokenizer.encode(caption).ids if caption else [] for caption in captions]
        longest = max(map(len, ids))
        if not longest:
            return {"text": [None] * len(ids)}
        padded = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros_like(padded)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : max(len(tokens), 1)] = 1  # a row without tokens would be softmax over nothing
        output = self._model(input_ids=padded.to(self._device), attention_mask=mask.to(self._device))
        hidden = output.last_hidden_state.float().cpu()
        return {"text": [hidden[row, : len(tokens)] if tokens else None for row, tokens in enumerate(ids)]}
