"""What a machine says of itself when jobs.doctor asks; runs on every machine of a cluster."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
import uuid
from importlib import metadata
from typing import Any, NamedTuple

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.shards.index import Index

PACKAGES = ("torch", "ray", "accelerate", "obstore", "pyarrow", "wandb")
ALL_REDUCE_BYTES = 1 << 28


class NodeReport(NamedTuple):
    """A machine, as seen from inside."""

    host: str
    versions: dict[str, str]
    gpus: int  # that torch can use
    gpus_there: int  # that the driver lists
    shared_memory: int  # bytes free in /dev/shm
    wandb_key: bool
    store: str = ""  # "ok", or what went wrong; "" if nothing was asked
    probe: str = ""  # the name of the file that it left in the run folder, if that is a local one
    clock_offset: float = 0.0  # seconds that its clock is ahead; filled in by who asked


def inspect(run: str | None, data: DataConfig | None) -> NodeReport:
    """Look at this machine; with a run's folder and data also at the store as seen from here."""
    import torch

    store, probe = _try_store(run, data) if run and data else ("", "")
    return NodeReport(
        host=socket.gethostname(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        gpus_there=_gpus_there(),
        shared_memory=shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0,
        wandb_key=bool(os.environ.get("WANDB_API_KEY")),
        store=store,
        probe=probe,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _gpus_there() -> int:
    """GPUs that the driver lists, whether or not torch can use them."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _try_store(run: str, data: DataConfig) -> tuple[str, str]:
    """Open the indexes, read the first shard's beginning, write into the run folder."""
    try:
        index = Index.of(data)
        if data.validation:
            Index.open(data.validation)
        index.members(0)
        folder, name = Storage(run), f"doctor-{uuid.uuid4().hex[:12]}"
        folder.write(name, b"written by jobs.doctor, which removes it")
        if folder.local_path() is not None:
            return "ok", name  # who asked looks whether it lies on one disk for all, and removes it
        folder.delete(name)
    except (DataError, StorageError) as error:
        return str(error), ""
    return "ok", ""


def all_reduce_bandwidth(_: dict[str, Any] | None = None) -> None:
    """The train function of a Ray job: reports the bus bandwidth of an all-reduce in gigabytes a second."""
    import ray.train
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    values = torch.zeros((ALL_REDUCE_BYTES if gpu else ALL_REDUCE_BYTES >> 10) // 4, device="cuda" if gpu else "cpu")
    seconds = []
    for _turn in range(8):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    ranks, middle = dist.get_world_size(), sorted(seconds)[len(seconds) // 2]
    # Each byte of a ring all-reduce passes the bus 2 (n - 1) / n times; the figure that nccl-tests calls busbw.
    bus = values.numel() * 4 * 2 * (ranks - 1) / ranks / middle
    ray.train.report({"gigabytes_per_second": bus / 1e9})
