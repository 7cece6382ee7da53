"""Tokenizers: read from a URL, or trained once on the captions of a set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
from datasets.conditions.captions import caption_of, encoder
from datasets.errors import DataError
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader
from datasets.shards.index import Index
from datasets.shards.json_fields import split_source

PADDING = "<pad>"  # token 0
_MOST_CAPTIONS = 50_000  # that a tokenizer is trained on
_AT_ONCE = 256  # samples of a range request


def read_tokenizer(url: str) -> str:
    """The contents of a tokenizer.json at a URL. Raises DataError if there is none."""
    folder, _, name = url.rpartition("/")
    try:
        text = Storage(folder or ".").read(name).decode()
    except (StorageError, UnicodeDecodeError) as error:
        raise DataError(f"{url}: no tokenizer.json can be read here ({error})") from error
    try:
        encoder(text, 1)
    except DataError as error:
        raise DataError(f"{url}: {error}") from error
    return text


def vocabulary_of(tokenizer: str) -> int:
    """One more than the largest id of a tokenizer."""
    return max(encoder(tokenizer, 1).get_vocab().values(), default=-1) + 1


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> str:
    """A byte-pair tokenizer of at most `vocabulary` tokens, as the contents of a tokenizer.json.

    Texts are lowercased; every text can be encoded, since the 256 bytes are tokens (Radford et al. 2019).
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    text: str = tokenizer.to_str()
    return text


def captions_of_set(index: Index, sources: tuple[str, ...]) -> Iterator[str]:
    """Captions of a set, at most 50,000: from ranges of samples spread evenly over its shards, all sources in turn."""
    members = tuple(dict.fromkeys(split_source(source)[0] for source in sources))
    reader = ShardReader(index, members=members)
    for wanted in spread(index, _MOST_CAPTIONS, _AT_ONCE):
        held = reader.read(wanted)
        for row in range(wanted.stop - wanted.start):
            found = {extension: reader.member(held, row, extension) for extension in members}
            for source in sources:
                if caption := caption_of(found[split_source(source)[0]], source).caption:
                    yield caption


def spread(index: Index, samples: int, at_once: int) -> Iterator[Range]:
    """Ranges of at most `at_once` samples, together about `samples`, spread evenly over the set."""
    total = index.images
    if total <= samples:
        for shard, images in enumerate(index.counts.tolist()):
            for first in range(0, images, at_once):
                yield Range(shard, first, min(first + at_once, images))
        return
    ends = np.cumsum(index.counts)
    ranges = -(-samples // at_once)
    for i in range(ranges):
        place = i * total // ranges
        shard = int(np.searchsorted(ends, place, side="right"))
        first = place - int(ends[shard] - index.counts[shard])
        yield Range(shard, first, min(first + at_once, int(index.counts[shard])))
