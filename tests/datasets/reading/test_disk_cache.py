"""The disk cache returns the right bytes within its bound, whatever happens to other processes."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import resource
import time
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.reading.disk_cache import BLOCK, DiskCache
from datasets.shards.index import Index
from tests.datasets.small_sets import write_set
from tests.testbed.faults import Fault, FaultProxy

SIZE = 5 * BLOCK + 12345
DATA = random.Random(0).randbytes(SIZE)
BLOCKS = [DATA[i : i + BLOCK] for i in range(0, SIZE, BLOCK)]


class Source:
    """An object, and the ranges that were fetched from it."""

    def __init__(self, data: bytes = DATA):
        self.data, self.fetched = data, list[tuple[int, int]]()

    def __call__(self, start: int, stop: int) -> memoryview:
        self.fetched.append((start, stop))
        return memoryview(self.data)[start:stop]


def taken(folder: Path) -> int:
    """The bytes of all blocks, between two writes by any process."""
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in folder.glob("??/*"))


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, SIZE), (BLOCK, 2 * BLOCK), (BLOCK - 1, BLOCK + 1), (SIZE - 3, SIZE), (7, 4 * BLOCK)]
)
def test_the_second_read_comes_from_the_disk(tmp_path, start, stop):
    cache, source = DiskCache(str(tmp_path), 10 * SIZE), Source()
    assert cache.read("name", start, stop, SIZE, source) == DATA[start:stop]
    (whole,) = source.fetched
    assert whole == (start // BLOCK * BLOCK, min(-(-stop // BLOCK) * BLOCK, SIZE))
    assert DiskCache(str(tmp_path), 10 * SIZE).read("name", start, stop, SIZE, source) == DATA[start:stop]
    assert len(source.fetched) == 1
    assert cache.read("other", start, stop, SIZE, source) == DATA[start:stop]
    assert len(source.fetched) == 2


def test_only_missing_blocks_are_fetched(tmp_path):
    cache, source = DiskCache(str(tmp_path), 10 * SIZE), Source()
    for block in (1, 4):
        cache.read("name", block * BLOCK, (block + 1) * BLOCK, SIZE, source)
    source.fetched.clear()
    assert cache.read("name", 0, SIZE, SIZE, source) == DATA
    assert source.fetched == [(0, BLOCK), (2 * BLOCK, 4 * BLOCK), (5 * BLOCK, SIZE)]


def test_a_block_damaged_on_the_disk_is_fetched_again(tmp_path):
    cache, source = DiskCache(str(tmp_path), 10 * SIZE), Source()
    cache.read("name", 0, SIZE, SIZE, source)
    paths = sorted(tmp_path.glob("??/*"))
    for path, spoil in zip(paths, [b"", b"x", None], strict=False):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if spoil is None else spoil)
    source.fetched.clear()
    assert cache.read("name", 0, SIZE, SIZE, source) == DATA
    assert source.fetched == [(0, 3 * BLOCK)]


def test_a_short_block_is_not_cached(tmp_path):
    cache, short = DiskCache(str(tmp_path), 10 * SIZE), Source(DATA[: BLOCK + 5])
    assert cache.read("name", 0, 2 * BLOCK, SIZE, short) == DATA[: BLOCK + 5]
    assert [path.stat().st_size for path in tmp_path.glob("??/*")] == [BLOCK + 4]


def test_the_least_recently_used_blocks_are_evicted_and_the_bound_holds(tmp_path):
    cache, source = DiskCache(str(tmp_path), 4 * BLOCK), Source()
    for block in range(3):
        cache.read("name", block * BLOCK, (block + 1) * BLOCK, SIZE, source)
    for i, path in enumerate(sorted(tmp_path.glob("??/*"))):
        os.utime(path, (i + 1, i + 1))
    cache.read("name", 0, BLOCK, SIZE, source)  # used now
    cache.read("name", 3 * BLOCK, 4 * BLOCK, SIZE, source)
    assert {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("??/*")} == {0, 2, 3}
    assert taken(tmp_path) <= 4 * BLOCK


def test_a_bound_smaller_than_a_block_caches_nothing(tmp_path):
    cache = DiskCache(str(tmp_path / "cache"), 1000)
    assert cache.read("name", 0, SIZE, SIZE, Source()) == DATA
    assert not (tmp_path / "cache").exists()


# ---- several processes


def read_at_random(folder: str, size: int, seed: int, reads: int | None) -> None:
    """Read until killed, or a number of times; the exit status is 0 if every byte was right."""
    draw, cache, source = random.Random(seed), DiskCache(folder, size), Source()
    while reads is None or reads > 0:
        start = draw.randrange(SIZE)
        stop = min(SIZE, start + draw.randrange(1, 3 * BLOCK))
        if cache.read(f"name {draw.randrange(3)}", start, stop, SIZE, source) != DATA[start:stop]:
            os._exit(3)
        reads = reads and reads - 1
    os._exit(0)


def test_processes_share_the_cache_and_may_be_killed_at_any_moment(tmp_path):
    size, draw = 7 * BLOCK, random.Random(1)
    context = multiprocessing.get_context("fork")
    forks = [context.Process(target=read_at_random, args=(str(tmp_path), size, seed, None)) for seed in range(3)]
    try:
        for fork in forks:
            fork.start()
        for round in range(12):
            time.sleep(draw.random() * 0.1)
            victim = draw.randrange(3)
            assert forks[victim].exitcode is None, "a reader found wrong bytes"
            forks[victim].kill()
            forks[victim].join()
            assert taken(tmp_path) <= size
            arguments = (str(tmp_path), size, 10 + round, None)
            forks[victim] = context.Process(target=read_at_random, args=arguments)
            forks[victim].start()
    finally:
        for fork in forks:
            fork.kill()
            fork.join()
    last = context.Process(target=read_at_random, args=(str(tmp_path), size, 99, 30))
    last.start()
    last.join(60)
    assert last.exitcode == 0
    assert taken(tmp_path) <= size
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) <= 3  # lock, used, new: no litter


def test_a_full_disk_stops_the_cache_and_not_the_run(tmp_path, caplog):
    cache, source = DiskCache(str(tmp_path), 10 * SIZE), Source()
    cache.read("name", 0, BLOCK, SIZE, source)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK // 2, before[1]))  # a file's end in place of the disk's
    try:
        for _ in range(2):
            assert cache.read("name", 0, SIZE, SIZE, source) == DATA
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert source.fetched == [(0, BLOCK), (BLOCK, SIZE), (BLOCK, SIZE)]
    message = f"{tmp_path}: cannot write to the disk cache ({os.strerror(errno.EFBIG)}); continuing without it"
    assert [record.getMessage() for record in caplog.records] == [message]


# ---- in the loader


def test_the_second_epoch_reads_nothing_from_the_store(tmp_path, s3_environment, monkeypatch):
    local = write_set(tmp_path / "set", [40, 40, 40])
    url = f"{s3_environment.bucket('cached')}/{tmp_path.name}"
    for path in sorted((tmp_path / "set").rglob("*")):
        if path.is_file():
            Storage(url).write(str(path.relative_to(tmp_path / "set")), path)
    settings = {"streams": 4, "window": 16, "cache": 0, "workers": 0}

    def take(index: Index, **more: object) -> list[bytes]:
        config = DataConfig(shards=index.url, **settings, **more)
        with training_batches(config, index, seed=2, batch=24) as batches:
            return [next(batches).images.numpy().tobytes() for _ in range(10)]

    with FaultProxy(s3_environment.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        remote = Index.open(url)
        proxy.add(Fault("corrupt", path=r"\.tar", after=700, times=2))  # a flipped byte is kept, found and dropped
        kept = {"disk_cache": {"folder": str(tmp_path / "kept")}}
        assert take(remote, **kept) == take(local)
        proxy.forget()
        assert take(remote, **kept) == take(local)
        assert len([request for request in proxy.requests if request.target.endswith(".tar")]) <= 2  # what was dropped
        proxy.forget()
        assert take(remote, **kept) == take(local)
        assert not [request.target for request in proxy.requests if request.target.endswith(".tar")]
