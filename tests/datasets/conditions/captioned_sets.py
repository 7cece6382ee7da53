"""Small sets of captioned images, as img2dataset writes them: NNNNN.jpg is a PNG here, NNNNN.txt, NNNNN.json."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets.reading.vocabulary import train_tokenizer
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from tests.datasets.small_sets import png, write_members

WORDS = ("folder", "heart", "lock", "arrow", "cloud", "outline", "filled", "thin")


def caption(number: int) -> str:
    """The caption in the .txt of sample `number`."""
    return f"{WORDS[number % 8]} {WORDS[number // 8 % 8]} {number}"


def recaption(number: int) -> str:
    """The one in its .json."""
    return f"a drawing of number {number}"


def members_of(number: int) -> dict[str, bytes]:
    """The members of a sample besides its image, by extension."""
    fields = {"caption": caption(number), "meta": {"recaption": recaption(number)}, "similarity": 0.3}
    return {
        "txt": caption(number).encode(),
        "json": json.dumps(fields).encode(),
        "clip.npy": npy(np.arange(3, dtype=np.float16) + number),
    }


def write_captioned(
    folder: Path, counts: list[int], members: Callable[[int], dict[str, bytes]] = members_of, label: bool = False
) -> Index:
    """Write shards with `counts` images and the members of each, and their index."""
    number = 0
    for shard, count in enumerate(counts):
        files = []
        for _ in range(count):
            of_sample = {"png": png(number)} | members(number)
            if label:
                of_sample["cls"] = str(number % 10).encode()
            files += [(f"{number:06d}.{extension}", data) for extension, data in of_sample.items()]
            number += 1
        write_members(folder / f"{shard:05d}.tar", files)
    index_shards(str(folder), str(folder / "index"))
    return Index.open(str(folder))


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tokenizer() -> str:
    """A tokenizer of the captions above."""
    return train_tokenizer([caption(number) for number in range(200)] + [recaption(7)], 320)
