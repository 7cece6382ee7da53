"""Samples that cannot be used: how many there may be, and how they are named to a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage.storage import join
from datasets.errors import DataError
from datasets.shards.index_files import Shard

_NAMED = 8  # reasons that a summary names
_VARIABLE = re.compile(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|(?<![\w.])\d[\d,.]*")  # names and numbers in a reason


class BadSamplesError(DataError):
    """Too many samples that cannot be used."""

    def __init__(self, url: str, shards: Sequence[Shard], quarantine: pa.Table, why: str) -> None:
        self.url, self.quarantine = url, quarantine
        if quarantine.num_rows == 1:
            super().__init__(f"{next(describe_quarantine(url, quarantine))}; {why}")
        else:
            super().__init__(f"{url}: {summarise(shards, quarantine)}; {why}")


def check_quarantine(url: str, shards: Sequence[Shard], quarantine: pa.Table, stop: bool, max_bad: float) -> None:
    """Raise `BadSamplesError` if more samples or shards than the fraction `max_bad` are bad, or any if `stop`."""
    if not quarantine.num_rows:
        return
    if stop:
        raise BadSamplesError(url, shards, quarantine, "--on-bad quarantine leaves them out")
    samples = sum(shard.images + shard.quarantined for shard in shards)
    bad = quarantine.num_rows - (broken := _broken(quarantine))
    if bad > max_bad * samples or broken > max_bad * len(shards):
        raise BadSamplesError(url, shards, quarantine, f"more than --max-bad {max_bad:g} allows")


def summarise(shards: Sequence[Shard], quarantine: pa.Table) -> str:
    """One line: 3 of 800 samples cannot be used (2: 0.tar: sample 'a': '': the image does not decode, ...)."""
    samples = sum(shard.images + shard.quarantined for shard in shards)
    broken = _broken(quarantine)
    parts = []
    if quarantine.num_rows > broken:
        parts.append(f"{quarantine.num_rows - broken:,} of {samples:,} samples cannot be used")
    if broken:
        parts.append(f"{broken:,} of {len(shards):,} shards cannot be read to the end")
    kinds = reasons(quarantine)
    named = [f"{count:,} like {example}" for count, example in kinds[:_NAMED]]
    if len(kinds) > _NAMED:
        named.append(f"and {len(kinds) - _NAMED} other reasons")
    return f"{' and '.join(parts)} ({'; '.join(named)})"


def reasons(quarantine: pa.Table) -> list[tuple[int, str]]:
    """Why samples cannot be used: how many for a reason, and the first of them, the most frequent reason first."""
    kinds: Counter[str] = Counter()
    first: dict[str, str] = {}
    for shard, key, reason in _rows(quarantine):
        kind = _kind(reason)
        kinds[kind] += 1
        first.setdefault(kind, f"{shard}: {f'sample {key!r}: ' * bool(key)}{reason}")
    return [(count, first[kind]) for kind, count in kinds.most_common()]


def describe_quarantine(url: str, quarantine: pa.Table) -> Iterator[str]:
    """A line for each sample that cannot be used, with its shard's URL and its key."""
    for shard, key, reason in _rows(quarantine):
        yield f"{join(url, shard)}: {f'sample {key!r}: ' * bool(key)}{reason}"


def _kind(reason: str) -> str:
    return _VARIABLE.sub("", reason)


def _broken(quarantine: pa.Table) -> int:
    """Shards that cannot be read to the end."""
    return int(pc.sum(pc.equal(quarantine.column("key"), "")).as_py() or 0)


def _rows(quarantine: pa.Table) -> Iterator[tuple[str, str, str]]:
    for batch in quarantine.to_batches(max_chunksize=1 << 14):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
