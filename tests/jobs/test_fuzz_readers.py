"""Spoilt files of indexes, run folders and exports: a value, or one line; never a crash, a traceback or a hang.

FUZZ_SECONDS in the environment makes it go on for that long.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from datasets.order.order import Range
from datasets.reading.shard_reader import ShardReader
from datasets.shards.index import Index
from datasets.shards.indexing import index_shards
from jobs.cli import USER_ERRORS
from jobs.config.loading import config_of, load_config
from jobs.run.ending import finished
from jobs.run.training import train_rank
from tests.datasets.small_sets import write_set
from tests.jobs.conftest import BATCH
from trainer.checkpoints.export import load, load_untrained
from trainer.checkpoints.journal import read_metrics
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.reading import SavedState
from trainer.tracking.wandb_run import run_id

ROUNDS = 40
MEMORY = 2 << 30  # bytes that the process may grow by
VALUES = [None, True, -1, 0, 1 << 70, 1.5, 1e308, "", "x", "../..", "s3://a/b", "\0", "9" * 5000, [], {}, [[]], [None]]


def spoil(random: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, inserted, zeroed or doubled; a JSON value replaced; nesting."""
    how = random.randrange(9)
    spoilt = bytearray(data)
    place = random.randrange(len(data) + 1)
    if how == 0:
        return data[:place]
    if how == 1:
        return bytes(len(data))
    if how == 2:
        return b"[" * 100_000 if random.random() < 0.5 else b'{"a":' * 50_000
    if how == 3:
        spoilt[place:place] = random.randbytes(random.randrange(64))
    elif how == 4:
        spoilt[place : place + 8] = struct.pack("<q", random.choice([-1, 1 << 62, -(1 << 63), 1 << 40]))
    elif how == 5:
        spoilt[place : place + random.randrange(1, 64)] = b""
    elif how >= 7:
        return _other_value(random, data)
    else:
        for _ in range(random.randrange(1, 4)):
            spoilt[random.randrange(len(spoilt))] ^= 1 << random.randrange(8) if spoilt else 0
    return bytes(spoilt)


def _other_value(random: random.Random, data: bytes) -> bytes:
    """A value somewhere in a JSON text, or in one of its lines, replaced by another one."""
    lines = data.splitlines() if data.count(b"\n{") else [data]
    number = random.randrange(len(lines)) if lines else 0
    try:
        top = json.loads(lines[number])
    except (ValueError, IndexError):
        return data
    value, parent, key = top, None, None
    while isinstance(value, dict | list) and value and random.random() < 0.85:
        parent = value
        key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        value = value[key]
    if parent is None:
        top = random.choice(VALUES)
    elif random.random() < 0.2:
        del parent[key]
    else:
        parent[key] = random.choice(VALUES)
    return b"\n".join([*lines[:number], json.dumps(top).encode(), *lines[number + 1 :]])


def read_index(folder: Path) -> None:
    index = Index.open(str(folder))
    for number in range(len(index)):
        for row in range(int(index.counts[number])):
            reader = ShardReader(index)
            held = reader.read(Range(number, row, row + 1))
            reader.where(held, 0)
            reader.decode(held, 0, index.format)
    assert index.fingerprint
    assert index.mixed_colours is not None


def read_again(folder: Path) -> None:
    index_shards(str(folder), str(folder / "index"))
    read_index(folder)


def read_run(folder: Path) -> None:
    lineage = Lineage(Storage(str(folder)))
    for commit in lineage.history():
        SavedState(lineage.folder(commit))
    config_of(Storage(str(folder)))
    assert all(isinstance(row["images"], int) for row in read_metrics(Storage(str(folder))))
    assert run_id(Storage(str(folder)))


READERS: dict[str, list[Callable[[Path], object]]] = {
    "set": [read_index, read_again],
    "run": [
        read_run,
        lambda folder: load(str(folder)),
        lambda folder: load(str(folder), "raw"),
        lambda folder: load_untrained(str(folder)),
        lambda folder: finished(load_config(str(folder / "config.yaml"), [f"run={folder}"])),
    ],
    "run/final": [lambda folder: load(str(folder)), lambda folder: load_untrained(str(folder))],
}


@pytest.fixture
def originals(config_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A set, and a finished run with its final/, which is an export."""
    folder = tmp_path / "originals"
    write_set(folder / "set", [3, 4])
    config = load_config(str(config_file("run", trainer={"images": 2 * BATCH, "checkpoint_every": BATCH})))
    train_rank(config)
    shutil.copytree(config.run, folder / "run")
    return folder


def fuzz(originals: Path, scratch: Path, random: random.Random) -> None:
    name = random.choice(list(READERS))
    source, target = originals / name.partition("/")[0], scratch / name.partition("/")[0]
    shutil.copytree(source, target)
    files = sorted(
        path for path in (scratch / name).rglob("*") if path.is_file() and path.suffix not in (".png", ".tar")
    )
    path = random.choice(files)
    before = path.read_bytes()
    spoilt = spoil(random, before)
    path.write_bytes(spoilt)
    for read in READERS[name]:
        try:
            read(scratch / name)
        except USER_ERRORS as error:
            assert "\n" not in str(error), (path, spoilt[:200])  # noqa: PT017
        except BaseException:
            kept = Path(os.environ.get("FUZZ_KEEP", scratch.parent)) / "failing"
            kept.write_bytes(spoilt)
            print(f"{path.relative_to(scratch)} failed with the content of {kept}")
            raise
    shutil.rmtree(target)


def test_spoilt_files_are_one_line(originals, tmp_path):
    numbers = random.Random(0)
    for _ in range(ROUNDS):
        fuzz(originals, tmp_path / "scratch", numbers)


@pytest.mark.timeout(0)
@pytest.mark.skipif("FUZZ_SECONDS" not in os.environ, reason="FUZZ_SECONDS=1800 for half an hour of it")
def test_spoilt_files_for_a_given_time(originals, tmp_path):
    numbers = random.Random()
    deadline, rounds = time.monotonic() + float(os.environ["FUZZ_SECONDS"]), 0
    while time.monotonic() < deadline:
        fuzz(originals, tmp_path / "scratch", numbers)
        rounds += 1
    print(f"{rounds:,} spoilt files")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 < MEMORY
