"""One measurement of the data path or of a peer, in a process of its own: see data.py.

    python data_cells.py SYSTEM FORMAT WORKERS FOLDER SECONDS

prints a JSON object. Peers run under the python of an environment of their own, where only theirs is installed.
"""

from __future__ import annotations

import glob
import io
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch

BATCH = 128
SHAPES = {"png": (32, 32, 3), "jpg": (256, 256, 3)}


def pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ---- the systems: each an endless iterator of batches


def ours(format: str, workers: int, folder: str) -> Iterator[int]:
    from datasets.config import DataConfig
    from datasets.loading.build import training_batches
    from datasets.shards.index import Index

    config = DataConfig(shards=f"{folder}/{format}", workers=workers, cache=0)
    for batch in training_batches(config, Index.open(config.shards), seed=0, batch=BATCH):
        yield len(batch.images)


def _decode_for_ever(format: str, folder: str, count: Any, stop: Any) -> None:
    from datasets.images.decode import Format, decode_image

    torch.set_num_threads(1)
    shape = SHAPES[format]
    blobs = encoded_images(f"{folder}/{format}", 2048)
    batch = np.empty((BATCH, *shape), dtype=np.uint8)
    wanted = Format(shape[2], shape[0], shape[1])
    while not stop.is_set():
        for i, blob in enumerate(blobs[:BATCH]):
            image = decode_image(blob, format, wanted, batch[i])
            if image.base is not batch:
                batch[i] = image
        blobs = blobs[BATCH:] + blobs[:BATCH]
        with count.get_lock():
            count.value += BATCH


def limit(format: str, workers: int, folder: str) -> Iterator[int]:
    """Only decoding, from bytes in memory, by the same decoder: what no loader can pass."""
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    arguments = (format, folder, count, stop)
    processes = [context.Process(target=_decode_for_ever, args=arguments, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    while count.value < workers * BATCH:
        assert all(process.is_alive() for process in processes), "a process has ended; what it said is above"
        time.sleep(0.01)
    seen = count.value
    while True:
        yield count.value - seen
        seen += count.value - seen
        time.sleep(0.02)


def encoded_images(folder: str, most: int) -> list[bytes]:
    import tarfile

    blobs: list[bytes] = []
    for path in sorted(glob.glob(f"{folder}/*.tar")):
        with tarfile.open(path) as tar:
            blobs += [tar.extractfile(member).read() for member in tar if not member.name.endswith(".cls")]
        if len(blobs) >= most:
            break
    return blobs[:most]


def webdataset(format: str, workers: int, folder: str) -> Iterator[int]:
    import webdataset

    shards = sorted(glob.glob(f"{folder}/{format}/*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=100, empty_check=False).shuffle(1000).decode("rgb8")
    data = data.to_tuple(format, "cls").batched(BATCH, partial=False).repeat()
    for images, _ in torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers):
        yield len(torch.as_tensor(images))


def streaming(format: str, workers: int, folder: str) -> Iterator[int]:
    from streaming import StreamingDataset

    class Decoded(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(at)
            return torch.from_numpy(pillow(sample["image"]).copy()), sample["label"]

    data = Decoded(local=f"{folder}/mds-{format}", shuffle=True, batch_size=BATCH)
    while True:
        for images, _ in torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True):
            yield len(images)


def litdata(format: str, workers: int, folder: str) -> Iterator[int]:
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoded(StreamingDataset):
        def __getitem__(self, at: Any) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(at)
            return torch.from_numpy(pillow(sample["image"]).copy()), sample["label"]

    data = Decoded(f"{folder}/lit-{format}", shuffle=True)
    while True:
        for images, _ in StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True):
            yield len(images)


SYSTEMS = {system.__name__: system for system in (ours, limit, webdataset, streaming, litdata)}


# ---- conversion for the peers


def _lit_sample(item: tuple[bytes, int]) -> dict[str, Any]:
    return {"image": item[0], "label": item[1]}


def convert(format: str, folder: str) -> None:
    """Write the images of the shards in the peers' own formats, the encoded bytes as they are."""
    blobs = encoded_images(f"{folder}/{format}", sys.maxsize)
    if not os.path.isdir(f"{folder}/mds-{format}"):
        from streaming import MDSWriter

        with MDSWriter(out=f"{folder}/mds-{format}", columns={"image": "bytes", "label": "int"}) as writer:
            for number, blob in enumerate(blobs):
                writer.write({"image": blob, "label": number % 10})
    if not os.path.isdir(f"{folder}/lit-{format}"):
        from litdata import optimize

        items = [(blob, number % 10) for number, blob in enumerate(blobs)]
        optimize(_lit_sample, items, f"{folder}/lit-{format}", chunk_bytes="16MB", num_workers=1)


# ---- the measurement


def cpu_seconds() -> float:
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def peak_memory(stop: threading.Event, peak: list[int]) -> None:
    me = psutil.Process()
    while not stop.wait(0.2):
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], total)


def measure(system: str, format: str, workers: int, folder: str, seconds: float) -> dict[str, float]:
    torch.set_num_threads(1)
    began = time.perf_counter()
    batches = SYSTEMS[system](format, workers, folder)
    next(batches)
    first = time.perf_counter() - began
    settle = time.perf_counter() + min(2.0, seconds / 2)
    while time.perf_counter() < settle:  # caches, queues
        next(batches)
    stop, peak = threading.Event(), [0]
    watcher = threading.Thread(target=peak_memory, args=(stop, peak))
    watcher.start()
    cpu, began, images = cpu_seconds(), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        images += next(batches)
    elapsed, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    stop.set()
    watcher.join()
    return {
        "images_per_s": images / elapsed,
        "cpu_s_per_1000": 1000 * cpu / max(images, 1),
        "first_batch_s": first,
        "peak_rss_MB": peak[0] / 1e6,
    }


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(sys.argv[2], sys.argv[3])
    else:
        name, kind, count, place, length = sys.argv[1:6]
        print(json.dumps(measure(name, kind, int(count), place, float(length))), flush=True)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(0)
