"""The tokenizers of a run: in its folder once it has started, else from a URL, or trained on the set's captions."""

from __future__ import annotations

from cluster.storage.errors import MissingError
from cluster.storage.storage import Storage
from datasets.conditions.config import TextConfig
from datasets.config import DataConfig
from datasets.reading.vocabulary import captions_of_set, read_tokenizer, train_tokenizer, vocabulary_of
from datasets.shards.index import Index
from trainer.checkpoints.export import tokenizer_file
from trainer.condition_values import TextSpec
from trainer.tracking.display import say_on_rank_zero


def text_conditions(config: DataConfig) -> dict[str, TextConfig]:
    """The conditions of a run that are text."""
    return {name: given for name, given in config.conditions.items() if isinstance(given, TextConfig)}


def known_tokenizers(config: DataConfig, run: Storage) -> dict[str, str]:
    """The tokenizers that exist, by name of the condition: those in the run folder, else those named by URL.

    Raises DataError for a URL that holds none.
    """
    found = {}
    for name, given in text_conditions(config).items():
        try:
            found[name] = run.read(tokenizer_file(name)).decode()
        except MissingError:
            if given.tokenizer:
                found[name] = read_tokenizer(given.tokenizer)
    return found


def texts_of(config: DataConfig, tokenizers: dict[str, str]) -> tuple[TextSpec, ...]:
    """What a model has to know of the captions. A tokenizer that is still to be trained has the largest vocabulary."""
    texts = []
    for name, given in text_conditions(config).items():
        size = given.vocabulary if not given.tokenizer else vocabulary_of(tokenizers[name])
        texts.append(TextSpec(name, size, given.max_tokens))
    return tuple(texts)


def write_tokenizers(config: DataConfig, index: Index, run: Storage) -> None:
    """Write the tokenizers that the run folder lacks; on one rank. Those without a URL are trained first."""
    known = known_tokenizers(config, run)
    for name, given in text_conditions(config).items():
        if name not in known:
            say_on_rank_zero(f"training a tokenizer of at most {given.vocabulary:,} tokens on captions of {index.url}")
            known[name] = train_tokenizer(captions_of_set(index, given.members), given.vocabulary)
        run.create(tokenizer_file(name), known[name].encode())
