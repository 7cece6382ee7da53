"""Batches follow the order, however they are read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.batches import Batch
from datasets.loading.build import evaluation_batches, training_batches
from datasets.order.shuffled import ShuffledOrder
from datasets.order.streams import memory_needed
from datasets.shards.index import Index
from tests.datasets.small_sets import image_of, locate, number_of, write_set
from tests.testbed.processes import REPOSITORY

COUNTS = [13, 0, 40, 7, 25, 31]
IMAGES = sum(COUNTS)
SETTINGS = {"streams": 4, "window": 8, "cache": 0, "workers": 0}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_set(tmp_path_factory.mktemp("set"), COUNTS)


def config(index: Index, **settings: object) -> DataConfig:
    return DataConfig(shards=index.url, **{**SETTINGS, **settings})


def take(index: Index, steps: int, settings: dict[str, object] | None = None, **arguments: object) -> list[Batch]:
    arguments = {"seed": 5, "batch": 16} | arguments
    with training_batches(config(index, **(settings or {})), index, **arguments) as batches:
        return [next(batches) for _ in range(steps)]


def take_more(batches: Iterator[Batch], steps: int) -> list[Batch]:
    return [next(batches) for _ in range(steps)]


def same(some: list[Batch], others: list[Batch]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a, b)
        for x, y in zip(some, others, strict=True)
        for a, b in zip(x.tensors(), y.tensors(), strict=True)
    )


def numbers_of(batch: Batch) -> list[int]:
    """The numbers in the images of a batch, without padding."""
    return [number_of(image.numpy()) for image, weight in zip(batch.images, batch.weights, strict=True) if weight]


def test_batches_have_the_images_of_the_order_for_three_epochs(index):
    steps = 3 * IMAGES // 16
    order = ShuffledOrder(index.counts, 5, 4, 8)
    first = np.concatenate([[0], np.cumsum(COUNTS)])
    for step, batch in enumerate(take(index, steps)):
        assert batch.positions.tolist() == list(range(16 * step, 16 * step + 16))
        located = locate(order, batch.positions.numpy())
        numbers = (first[located.shard] + located.index).tolist()
        assert numbers_of(batch) == numbers
        assert batch.conditions["label"].tolist() == [number % 10 for number in numbers]
        assert batch.weights.tolist() == [1.0] * 16
        assert (batch.images.dtype, batch.conditions["label"].dtype) == (torch.uint8, torch.int64)
        assert batch.images.shape == (16, 1, 4, 6)
        assert batch.images.is_contiguous()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_loader_processes_change_nothing(index, workers):
    assert same(take(index, 30), take(index, 30, {"workers": workers}))


def test_caching_decoded_images_changes_nothing(index):
    assert same(take(index, 40), take(index, 40, {"cache": "1MiB"}))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_ranks_shares_make_up_the_global_batch_and_have_one_shape(index, ranks):
    whole = take(index, 20)
    shares = [take(index, 20, ranks=ranks, rank=rank, micro_batch=3) for rank in range(ranks)]
    for step in range(20):
        parts = [share[step] for share in shares]
        assert len({part.images.shape for part in parts}) == 1
        assert len(parts[0].weights) % 3 == 0
        seen = sorted((int(p), n) for part in parts for p, n in zip(part.positions, numbers_of(part), strict=False))
        assert seen == sorted(zip(whole[step].positions.tolist(), numbers_of(whole[step]), strict=True))


def test_padding_is_black_with_weight_zero(index):
    batch = take(index, 1, micro_batch=5)[0]
    assert batch.weights.tolist() == [1.0] * 16 + [0.0] * 4
    assert not batch.images[16:].any()
    assert not batch.positions[16:].any()
    assert not batch.conditions["label"][16:].any()


@pytest.mark.parametrize("settings", [{}, {"cache": "1MiB"}])
@pytest.mark.parametrize("step", [1, 7, 8, 23])
def test_a_restart_continues_with_the_next_batch(index, settings, step):
    assert same(take(index, 30)[step:], take(index, 30 - step, settings, start=16 * step))


def test_a_restart_may_change_the_number_of_loader_processes(index):
    assert same(take(index, 30)[13:], take(index, 17, {"workers": 2}, start=16 * 13))


def test_colour_images_come_channels_first(tmp_path):
    index = write_set(tmp_path / "colour", [5, 6], channels=3)
    images = take(index, 1, batch=4)[0].images
    assert images.shape == (4, 3, 4, 6)
    known = {image_of(number, 3).transpose(2, 0, 1).tobytes() for number in range(11)}
    assert all(image.numpy().tobytes() in known for image in images)


def test_a_set_without_labels_has_label_zero(tmp_path):
    index = write_set(tmp_path / "plain", [9], labels=False)
    assert index.classes == 0
    assert take(index, 1, batch=8)[0].conditions == {}


def test_a_set_smaller_than_a_batch_is_repeated_in_it(tmp_path):
    index = write_set(tmp_path / "small", [3])
    numbers = [number for batch in take(index, 3, batch=16) for number in numbers_of(batch)]
    assert sorted(numbers) == [0] * 16 + [1] * 16 + [2] * 16


@pytest.mark.parametrize(
    ("ranks", "workers", "limit"),
    [(ranks, 0, limit) for ranks in (1, 2, 3, 5) for limit in (None, 50, 3)] + [(2, 2, None), (1, 3, 50)],
)
def test_an_evaluation_has_every_image_once_in_batches_of_one_shape(index, ranks, workers, limit):
    seen, lengths, shapes = [], set(), set()
    for rank in range(ranks):
        batches = list(
            evaluation_batches(config(index, workers=workers), index, batch=7, ranks=ranks, rank=rank, limit=limit)
        )
        lengths.add(len(batches))
        shapes |= {batch.images.shape for batch in batches}
        for batch in batches:
            positions = batch.positions[batch.weights > 0].tolist()
            assert numbers_of(batch) == positions  # the place in the set is the number
            assert batch.conditions["label"][batch.weights > 0].tolist() == [position % 10 for position in positions]
            seen += positions
    assert len(lengths) == 1
    assert shapes == {(7, 1, 4, 6)}
    assert len(set(seen)) == len(seen) == min(limit or IMAGES, IMAGES)
    assert limit or sorted(seen) == list(range(IMAGES))


def test_a_limited_evaluation_is_spread_over_the_set(index):
    batches = evaluation_batches(config(index), index, batch=10, limit=10)
    positions = next(batches).positions
    assert positions[0] == 0
    assert positions[-1] == IMAGES - 1
    assert positions.diff().min() > IMAGES / 10 - 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_raises_a_one_line_error(tmp_path, workers):
    index = write_set(tmp_path / "bad", [20, 20])
    shard = tmp_path / "bad" / "0001.tar"
    data = shard.read_bytes()
    place = data.index(b"IDAT") + 8
    shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    batches = training_batches(config(index, workers=workers), index, seed=1, batch=16)
    with pytest.raises(
        DataError, match=r"0001\.tar: sample '0000\d\d': png does not match its checksum: the shard has changed"
    ) as error:
        take_more(batches, 5)
    assert "\n" not in str(error.value)
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"streams": 3}, {}, "data.streams=3 must divide the global batch of 16 images: 2 does|4 does"),
        ({}, {"ranks": 5, "rank": 0}, "at least 5 streams"),
    ],
)
def test_a_wrong_number_of_streams_is_refused_at_once(index, settings, arguments, message):
    with pytest.raises(DataError, match=message):
        training_batches(config(index, **settings), index, **{"seed": 1, "batch": 16} | arguments)


def test_batches_describe_themselves_and_count_the_time_waited(index):
    with training_batches(config(index), index, seed=1, batch=16) as batches:
        assert batches.waited == 0
        next(batches)
        assert batches.waited > 0
        assert "4 streams in windows of 8 images" in batches.describe()
        assert "\n" not in batches.describe()


def test_auto_decodes_a_small_set_in_this_process_and_a_large_one_in_loader_processes(index):
    with training_batches(config(index, workers="auto", cache="1MiB"), index, seed=1, batch=16) as batches:
        assert "kept decoded" in batches.describe()
        assert "process" in batches.describe()
    with training_batches(config(index, workers="auto", cache=0), index, seed=1, batch=16) as batches:
        assert "loader process" in batches.describe()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_closing_ends_the_loader_processes_at_once(index):
    before = set(children(os.getpid()))
    batches = training_batches(config(index, workers=3), index, seed=1, batch=16)
    assert len(set(children(os.getpid())) - before) == 3
    next(batches)
    batches.close()
    assert set(children(os.getpid())) <= before
    batches.close()


@pytest.mark.parametrize(
    ("cores", "ranks", "batch", "workers", "processes"),
    [
        (3, 1, 30, "auto", 3),
        (6, 2, 15, "auto", 3),
        (1, 1, 30, "auto", 1),
        (64, 1, 30, "auto", 4),  # there are four steps
        (64, 1, 6, "auto", 8),
        (1, 1, 30, 2, 2),
        (1, 1, 30, 50, 4),
    ],
)
def test_an_evaluation_has_loader_processes_for_the_cores_of_the_machine(
    index, monkeypatch, cores, ranks, batch, workers, processes
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    before = set(children(os.getpid()))
    settings = config(index, workers=workers)
    with evaluation_batches(settings, index, batch=batch, ranks=ranks, rank=0) as batches:
        assert len(set(children(os.getpid())) - before) == processes
        assert f"{processes} loader process" in batches.describe()
        assert sum(int(batch.weights.sum()) for batch in batches) == -(-IMAGES // ranks)


def test_the_loader_processes_of_an_evaluation_share_the_bound_on_memory(index):
    settings = config(index, workers=4, memory=2 * memory_needed(index, 1, 20))
    with evaluation_batches(settings, index, batch=20) as batches:
        assert "2 loader processes" in batches.describe()


SCRIPT = """
    import sys
    from datasets.config import DataConfig
    from datasets.shards.index import Index
    from datasets.loading.build import training_batches
    url, workers, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    config = DataConfig(shards=url, streams=4, window=8, cache=0, workers=workers)
    batches = training_batches(config, Index.open(url), seed=1, batch=16)
    for step, batch in enumerate(batches):
        if step == 3:
            print(open(f"/proc/self/task/{__import__('os').getpid()}/children").read(), flush=True)
            if end == "raise":
                raise KeyError("the consumer has failed")
            if end == "kill":
                __import__("os").kill(__import__("os").getpid(), 9)
            break
"""


@pytest.mark.parametrize(
    ("workers", "end", "status"),
    [(0, "leave", 0), (0, "raise", 1), (1, "leave", 0), (1, "raise", 1), (2, "kill", -9)],
)
def test_the_process_exits_cleanly_while_batches_are_being_prepared(index, workers, end, status):
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), index.url, str(workers), end],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert ran.returncode == status, ran.stderr
    assert ("KeyError" in ran.stderr) == (end == "raise")
    assert end == "raise" or not ran.stderr
    started = [int(pid) for pid in ran.stdout.split()]
    assert len(started) == workers
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and _is_loader(pid) for pid in started):
        assert time.monotonic() < deadline, "a loader process outlived its parent"
        time.sleep(0.05)


def _is_loader(pid: int) -> bool:
    try:
        return b"datasets.loading.loader_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def children_of_all_threads() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_loader_process_is_started_again_where_it_was(index, number, workers, caplog):
    with training_batches(config(index, workers=0), index, seed=1, batch=16) as batches:
        expected = take_more(batches, 40)
    before = children_of_all_threads()
    with training_batches(config(index, workers=workers), index, seed=1, batch=16) as batches:
        taken = take_more(batches, 10)
        for count in (20, 10):
            os.kill(min(children_of_all_threads() - before), number)
            taken += take_more(batches, count)
    assert same(taken, expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"a loader process was killed ({number.name}) and is started again where it was (1 of 3)"
    ] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_request_to_stop_is_not_for_loader_processes(index, number):
    before = set(children(os.getpid()))
    with training_batches(config(index, workers=2), index, seed=1, batch=16) as batches:
        for child in set(children(os.getpid())) - before:  # while they start
            os.kill(child, number)
        take_more(batches, 3)
        for child in set(children(os.getpid())) - before:
            os.kill(child, number)
        take_more(batches, 20)


def test_a_loader_process_killed_three_times_in_a_row_ends_the_work(index, monkeypatch):
    import datasets.loading.loader_pool as loader_pool

    monkeypatch.setattr(loader_pool, "_MAIN", "import os; os.kill(os.getpid(), 9)")
    with (
        training_batches(config(index, workers=1), index, seed=1, batch=16) as batches,
        pytest.raises(DataError, match=r"was killed \(SIGKILL\) 3 times in a row, .* fewer data.workers"),
    ):
        next(batches)


def test_a_loader_process_reports_an_index_that_cannot_be_opened(tmp_path):
    index = write_set(tmp_path, COUNTS)
    shutil.rmtree(tmp_path / "index")
    with (
        training_batches(config(index, workers=2), index, seed=1, batch=16) as batches,
        pytest.raises(DataError, match=r"python -m jobs\.index"),
    ):
        next(batches)
    assert not [child for child in children(os.getpid()) if _is_loader(child)]
