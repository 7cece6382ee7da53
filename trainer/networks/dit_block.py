"""Blocks of the diffusion transformer: of image tokens alone, or of image and text tokens together."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.attention import SelfAttention, merged
from trainer.networks.residual import zeroed
from trainer.networks.rotary import rotate
from trainer.networks.unit import Unit
from trainer.noise import Noise


class BlockConfig(NamedTuple):
    """The size of a block."""

    width: int
    heads: int
    dropout: float
    qk_norm: bool
    feedforward: Literal["gelu", "swiglu"]


class Modulated(NamedTuple):
    """What a stream keeps between its projection and the mixed values."""

    heads: tuple[Tensor, Tensor, Tensor]  # queries, keys and values [B, heads, n, width / heads]
    gate: Tensor  # [B, 1, width]
    second: tuple[Tensor, Tensor, Tensor]  # scale, shift and gate of the MLP


class Stream(nn.Module):
    """The weights of one kind of tokens: attention and an MLP, each scaled and shifted before and gated after by the
    embedding; gates start at zero."""

    def __init__(self, config: BlockConfig, embedding: int, name: str):
        super().__init__()
        width = config.width
        self.dropout, self.name, self.swiglu = config.dropout, name, config.feedforward == "swiglu"
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, config.heads)
        nn.init.xavier_uniform_(self.attention.outward.weight)  # the gate is zero already
        self.heads_norm = HeadsNorm(width // config.heads) if config.qk_norm else None
        hidden = 8 * width // 3 // 8 * 8 if self.swiglu else 4 * width
        self.first, self.second = nn.Linear(width, hidden * (1 + self.swiglu)), nn.Linear(hidden, width)
        self.modulation = zeroed(nn.Linear(embedding, 6 * width))

    def project(self, tokens: Tensor, embedding: Tensor, rotation: Tensor | None) -> Modulated:
        """`rotation`: angles of the tokens' positions; None: they have none here."""
        scale_1, shift_1, gate_1, *second = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        heads = self.attention.project(self.norm(tokens) * (1 + scale_1) + shift_1)
        return Modulated(normed_and_turned(heads, self.heads_norm, rotation), gate_1, (second[0], second[1], second[2]))

    def finish(self, tokens: Tensor, mixed: Tensor, modulated: Modulated, noise: Noise) -> Tensor:
        """`mixed`: the attention's values [B, n, width]."""
        scale_2, shift_2, gate_2 = modulated.second
        tokens = tokens + modulated.gate * self.attention.outward(mixed)
        inner = self.first(self.norm(tokens) * (1 + scale_2) + shift_2)
        if self.swiglu:
            gate, inner = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * inner
        else:
            inner = F.gelu(inner, approximate="tanh")
        if noise.purpose == "train":
            inner = noise.dropout(self.name, inner, self.dropout)
        return tokens + gate_2 * self.second(inner)


class DitBlock(Stream, Unit):
    """A block of image tokens [B, n, width]."""

    def forward(
        self,
        tokens: Tensor,
        embedding: Tensor,
        noise: Noise,
        rotation: Tensor | None = None,
        attended: Tensor | None = None,
    ) -> Tensor:
        """`attended`, bool [B, n]: the tokens that are no padding; None: all."""
        modulated = self.project(tokens, embedding, rotation)
        mask = None if attended is None else attended[:, None, None, :]
        mixed = F.scaled_dot_product_attention(*modulated.heads, attn_mask=mask)
        return self.finish(tokens, merged(mixed), modulated, noise)


class JointBlock(Unit):
    """A block of image and text tokens, which attend to each other. The last one leaves the text as it is."""

    def __init__(self, config: BlockConfig, embedding: int, name: str, last: bool):
        super().__init__()
        self.image = Stream(config, embedding, name)
        self.text = TextSource(config, embedding) if last else Stream(config, embedding, f"{name}/text")

    def forward(
        self,
        tokens: Tensor,
        words: Tensor,
        present: Tensor,
        embedding: Tensor,
        noise: Noise,
        rotation: Tensor | None = None,
        attended: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, n, width] and words [B, T, width], of which bool [B, T] are `present`.

        `attended`: as in DitBlock.
        """
        image = self.image.project(tokens, embedding, rotation)
        if attended is None:
            attended = present.new_ones(1).expand(len(tokens), tokens.shape[1])
        mask = torch.cat([present, attended], 1)[:, None, None, :]
        if isinstance(self.text, TextSource):
            query, key, value = image.heads
            text_key, text_value = self.text(words, embedding)
            mixed = F.scaled_dot_product_attention(
                query, torch.cat([text_key, key], 2), torch.cat([text_value, value], 2), attn_mask=mask
            )
            return self.image.finish(tokens, merged(mixed), image, noise), words
        text = self.text.project(words, embedding, None)
        query, key, value = (torch.cat(pair, 2) for pair in zip(text.heads, image.heads, strict=True))
        mixed = merged(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        of_text, of_image = mixed.split([words.shape[1], tokens.shape[1]], 1)
        tokens = self.image.finish(tokens, of_image, image, noise)
        return tokens, self.text.finish(words, of_text, text, noise)


class TextSource(nn.Module):
    """The text of the last block: only its keys and values are needed."""

    def __init__(self, config: BlockConfig, embedding: int):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(embedding, 2 * width))
        self.key_value = nn.Linear(width, 2 * width)
        self.key_norm = nn.RMSNorm(width // config.heads) if config.qk_norm else None

    def forward(self, words: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, T, width / heads]."""
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        projected = self.key_value(self.norm(words) * (1 + scale) + shift)
        key, value = projected.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (key if self.key_norm is None else self.key_norm(key).to(value.dtype)), value


class HeadsNorm(nn.Module):
    """Root mean square normalisation of queries and of keys, in each head."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.RMSNorm(width), nn.RMSNorm(width)


def normed_and_turned(
    heads: tuple[Tensor, Tensor, Tensor], norm: HeadsNorm | None, rotation: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys normalised in each head, then turned by their positions."""
    query, key, value = heads
    if norm is not None:
        query, key = norm.query(query).to(value.dtype), norm.key(key).to(value.dtype)
    if rotation is not None:
        query, key = rotate(query, rotation), rotate(key, rotation)
    return query, key, value
