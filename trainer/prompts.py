"""Prompts: captions that a person writes, as conditions of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trainer.condition_values import TextSpec, Tokens
from trainer.models.base import Model

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Prompt = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""A prompt, or several; by name of the condition for models with several kinds of captions."""

SHOWN = 60  # characters of a prompt in a message

Captions = dict[str, str]
"""A prompt by name of the condition; a name that is missing: unknown."""


class EncodedPrompts(NamedTuple):
    """Prompts as tokens, a row for each."""

    tokens: dict[str, Tokens]  # int32 [prompts, T] each, T being the longest prompt's
    cut: list[str]  # a line for each prompt that has more tokens than the model reads


def text_names(model: Model) -> list[str]:
    """Names of the conditions of a model that are captions."""
    return [text.name for text in model.spec.texts if text.name in model.conditions]


def captions_of(model: Model, prompt: Prompt | None, argument: str = "prompt") -> list[Captions]:
    """The prompts one by one. Of several conditions those with one prompt have it beside every prompt of the others.

    Raises ValueError, which names the `argument`, for a model without such captions, and for blank prompts.
    """
    if prompt is None:
        return []
    names = text_names(model)
    if not names:
        raise ValueError(f"{argument}: the model is not conditioned on captions")
    if not isinstance(prompt, Mapping):
        if len(names) > 1:
            raise ValueError(f"{argument}: the model has captions {' and '.join(names)}; name the one that is meant")
        prompt = {names[0]: prompt}
    if unknown := [name for name in prompt if name not in names]:
        raise ValueError(f"{argument}: {unknown[0]}: the model has captions {' and '.join(names)}")
    columns = {name: [given] if isinstance(given, str) else list(given) for name, given in prompt.items()}
    count = max(map(len, columns.values()), default=0)
    for name, column in columns.items():
        if len(column) not in (1, count):
            raise ValueError(f"{argument}: {name} has {len(column)} prompts where another caption has {count}")
    rows = [{name: _text(column[i % len(column)], argument) for name, column in columns.items()} for i in range(count)]
    if not rows:
        raise ValueError(f"{argument}: the list is empty")
    return rows


def parse_prompts(model: Model, texts: Sequence[str], argument: str = "prompt") -> list[Captions]:
    """The prompts one by one, from texts: the caption or, for a model with several kinds of captions, NAME=caption.

    Raises ValueError like `captions_of`.
    """
    if not texts:
        return []
    names = text_names(model)
    if len(names) < 2:
        return captions_of(model, texts, argument)
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, caption = text.partition("=")
        if not equals or name not in names:
            raise ValueError(f"{argument}: {text!r}: write {' or '.join(f'{name}=...' for name in names)}")
        found.setdefault(name, []).append(caption)
    return captions_of(model, found, argument)


def encode(model: Model, captions: Sequence[Captions], argument: str = "prompt") -> EncodedPrompts:
    """Prompts as the tokens that the model was trained with.

    Raises ValueError, which names the `argument`, without the package `tokenizers` or a tokenizer, and for a prompt
    that has no token.
    """
    tokens, cut = {}, list[str]()
    for text in model.spec.texts:
        if not any(text.name in row for row in captions):
            continue
        tokenizer = _tokenizer(model, text, argument)
        encodings = [tokenizer.encode(row[text.name]) if text.name in row else None for row in captions]
        tokens[text.name] = _padded([encoding.ids if encoding else [] for encoding in encodings])
        for row, encoding in zip(captions, encodings, strict=True):
            if encoding is not None and not encoding.ids:
                raise ValueError(f"{argument}: {row[text.name]!r} has nothing that the tokenizer of {text.name} knows")
            if encoding is not None and encoding.overflowing:
                cut.append(_cut(row[text.name], encoding, text, argument))
    return EncodedPrompts(tokens, list(dict.fromkeys(cut)))


def in_one_line(captions: Captions) -> str:
    """A prompt for people: the caption, or `name: caption` of each where there are several."""
    if len(captions) == 1:
        return next(iter(captions.values()))
    return "; ".join(f"{name}: {caption}" for name, caption in captions.items())


def _text(text: str, argument: str) -> str:
    """A caption as data has it: with single spaces."""
    caption = " ".join(text.split())
    if not caption:
        raise ValueError(f"{argument}: an empty caption; leave it out for samples without one")
    return caption


def _tokenizer(model: Model, text: TextSpec, argument: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError(f"{argument}: needs the package tokenizers: pip install tokenizers") from error
    contents = model.tokenizers.get(text.name)
    if contents is None:
        raise ValueError(
            f"{argument}: the model has no tokenizer for {text.name}; trainer.load reads it with the model"
        )
    tokenizer = Tokenizer.from_str(contents)
    tokenizer.no_padding()
    tokenizer.enable_truncation(text.max_tokens)
    return tokenizer


def _cut(caption: str, encoding: Encoding, text: TextSpec, argument: str) -> str:
    end = max(end for _, end in encoding.offsets)
    kept = caption[:end] if len(caption[:end]) <= SHOWN else f"... {caption[end - SHOWN : end]}"
    return f"{argument}: cut after {text.max_tokens} tokens, the most that the model reads: {kept!r}"


def _padded(rows: Sequence[Sequence[int]]) -> Tokens:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    ids: Tensor = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return Tokens(ids, lengths)
