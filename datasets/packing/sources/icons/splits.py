"""Which icons are held out: some by image, some by name, some by a combination of words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from datasets.packing.sources.icons.captions import Words, hash_of

IMAGES, NAMES = 0.07, 0.035  # shares of the icons in `validation` and in `names`
COMBINATIONS = 400  # icons in `combinations`, at least
LEAST = 4  # times that each word of their captions occurs in training
_SUBJECTS, _MODIFIERS = 8, 40  # other words that the two words of a combination occur with, at least
_MOST = 16  # icons with a combination
# words that do not name a thing or a sign that one can see
# fmt: off
_VAGUE = frozenset({
    "and", "back", "bottom", "center", "from", "front", "horizontal", "in", "left", "of", "on", "right", "simple", "to",
    "top", "two", "up", "variant", "vertical", "with",
})
# fmt: on

Pair = tuple[str, str]


class Splits(NamedTuple):
    """Numbers of the icons of each split, and the held-out combinations."""

    train: list[int]
    validation: list[int]
    names: list[int]
    combinations: list[int]
    pairs: list[Pair]


def split_icons(icons: Sequence[Words]) -> Splits:
    """Assign each icon to a split, by hashes of its words.

    `validation`: single drawings; training often has the same icon in another style. `names`: all styles that a family
    has of an icon, so that training has none of them. `combinations`: all icons, of every family and style, whose names
    have both words of a held-out pair such as (cloud, off). Training has no icon with both, and each word of their
    captions `LEAST` times.
    """
    by_name = {i for i, words in enumerate(icons) if _falls(f"{words.family}/{words.name}", NAMES)}
    by_image = {i for i, words in enumerate(icons) if _falls("/".join(words), IMAGES)} - by_name
    held_out = by_name | by_image
    counts = Counter(word for i, words in enumerate(icons) if i not in held_out for word in caption_words(words))
    pairs, taken = _choose_pairs(icons, held_out, counts)
    train = set(range(len(icons))) - held_out - taken
    return Splits(sorted(train), sorted(by_image - taken), sorted(by_name - taken), sorted(taken), sorted(pairs))


def _falls(key: str, share: float) -> bool:
    """Whether the hash of a key is in the first `share` of its range."""
    return hash_of(key) < share * 2**64


def caption_words(words: Words) -> set[str]:
    """The words of a caption without colours."""
    return {word for part in words for word in part.split()}


def _choose_pairs(
    icons: Sequence[Words], held_out: Collection[int], counts: Counter[str]
) -> tuple[list[Pair], set[int]]:
    """Pairs in the order of their hashes, until their icons are enough. `counts`: icons of training with each word."""
    by_pair = _by_pair(icons)
    pairs: list[Pair] = []
    taken: set[int] = set()
    needed: set[str] = set()  # words that must stay in training
    for pair in sorted(_candidates(by_pair), key=lambda pair: (hash_of(" ".join(pair)), pair)):
        if len(taken) >= COMBINATIONS:
            break
        new = [i for i in by_pair[pair] if i not in taken]
        words = needed.union(*(caption_words(icons[i]) for i in new))
        left = counts.copy()
        left.subtract(word for i in new if i not in held_out for word in caption_words(icons[i]))
        if new and all(left[word] >= LEAST for word in words):
            counts, needed = left, words
            pairs.append(pair)
            taken.update(new)
    return pairs, taken


def _by_pair(icons: Sequence[Words]) -> dict[Pair, list[int]]:
    """Icons whose names have both words, by pair of words in alphabetical order."""
    by_pair = defaultdict(list)
    for i, words in enumerate(icons):
        for pair in combinations(sorted(set(words.name.split())), 2):
            by_pair[pair].append(i)
    return dict(by_pair)


def _candidates(by_pair: dict[Pair, list[int]]) -> Iterator[Pair]:
    """Pairs of a common word and a very common one, each of which occurs with many others."""
    partners = Counter(word for pair in by_pair for word in pair)
    for pair, icons in by_pair.items():
        fewer, more = sorted(partners[word] for word in pair)
        if fewer >= _SUBJECTS and more >= _MODIFIERS and 2 <= len(icons) <= _MOST and _are_words(pair):
            yield pair


def _are_words(pair: Iterable[str]) -> bool:
    return all(word.isalpha() and len(word) > 1 and word not in _VAGUE for word in pair)
