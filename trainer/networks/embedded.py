"""Conditions as networks see them: a vector, and captions as sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Text(NamedTuple):
    """Captions as sequences of vectors."""

    tokens: Tensor  # [B, T, text width]
    present: Tensor  # bool [B, T]; false for padding. The first token is always present


class Embedded(NamedTuple):
    """The conditions of a batch."""

    vector: Tensor | None  # [B, width], all conditions together; None: there are no conditions
    text: Text | None  # None: none of them is text


def joined(texts: Sequence[Text]) -> Text | None:
    """Several captions of an image, one after the other; None if there are none."""
    if len(texts) < 2:
        return texts[0] if texts else None
    return Text(torch.cat([text.tokens for text in texts], 1), torch.cat([text.present for text in texts], 1))
