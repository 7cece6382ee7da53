"""CIFAR-10 (Krizhevsky 2009), binary version: records of 3,073 bytes. The pickled version is not read."""

from __future__ import annotations

import numpy as np

from cluster.storage.storage import Storage, is_local
from datasets.errors import DataError
from datasets.packing.sources.source import Example, InMemory, fetch, shuffled
from datasets.shards.index_files import Meta

_RECORD = 1 + 3 * 32 * 32
_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin", "test_first_1000.bin")


class Cifar10(InMemory):
    """Train: those of data_batch_1.bin ... data_batch_5.bin that exist; test: test_batch.bin. Plain or .gz."""

    def __init__(self, folder: str):
        self._records = {
            "train": np.concatenate([_records(fetch(folder, name), name) for name in _present(folder, _TRAINING)]),
            "test": np.concatenate([_records(fetch(folder, name), name) for name in _present(folder, _TEST)[:1]]),
        }
        counts = " and ".join(f"{len(records):,} {split}" for split, records in self._records.items())
        self.meta = Meta(3, 32, 32, 256, 10, _NAMES, "", f"CIFAR-10, binary version: {counts} images")
        self._orders = {split: shuffled(self.count(split), f"cifar10/{split}") for split in self._records}

    def count(self, split: str) -> int:
        return len(self._records.get(split, ()))

    def example(self, split: str, i: int) -> Example:
        record = self._records[split][self._orders[split][i]]
        return Example(record[1:].reshape(3, 32, 32).transpose(1, 2, 0), int(record[0]))


def _present(folder: str, names: tuple[str, ...]) -> list[str]:
    """Which of the files exist, plain or gzipped; over http, which has no listing, all are expected."""
    if folder.startswith(("http://", "https://")):
        return list(names)
    listed = {entry.path for entry in Storage(folder).list()}
    found = [name for name in names if name in listed or f"{name}.gz" in listed]
    if not found:
        hint = "" if not is_local(folder) else " (the pickled Python version is not supported)"
        raise DataError(f"{folder}: none of {', '.join(names)} exists, plain or .gz{hint}")
    return found


def _records(data: bytes, name: str) -> np.ndarray:
    if not data or len(data) % _RECORD:
        raise DataError(f"{name}: {len(data)} bytes are not records of {_RECORD}; is this the binary version?")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() >= len(_NAMES):
        raise DataError(f"{name}: label {records[:, 0].max()} is outside the classes 0..9")
    return records
