"""The report of a machine for jobs.doctor; runs on every machine of a cluster."""

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
    """The state of a machine, as seen from inside."""

    host: str
    versions: dict[str, str]
    gpus: int  # usable by torch
    gpus_listed: int  # by the driver
    shared_memory: int  # bytes free in /dev/shm
    wandb_key: bool
    store: str = ""  # "ok", or the error; "" if not checked
    probe: str = ""  # name of the file that it left in a local run folder
    clock_offset: float = 0.0  # seconds that its clock is ahead; filled in by the caller


def inspect(run: str | None, data: DataConfig | None) -> NodeReport:
    """Inspect this machine; with a run folder and data also the store, as seen from here."""
    import torch

    store, probe = _try_store(run, data) if run and data else ("", "")
    return NodeReport(
        host=socket.gethostname(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        gpus_listed=_gpus_listed(),
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


def _gpus_listed() -> int:
    """Number of GPUs that the driver lists, whether torch can use them or not."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _try_store(run: str, data: DataConfig) -> tuple[str, str]:
    """Open the indexes, read the members of the first shard, write to the run folder: ("ok" or the error, probe)."""
    try:
        index = Index.of(data)
        Index.held_out(data)
        index.members(0)
        folder, name = Storage(run), f"doctor-{uuid.uuid4().hex[:12]}"
        folder.write(name, b"written by jobs.doctor, which deletes it")
        if folder.local_path() is not None:
            return "ok", name  # the caller checks that all machines see it, and deletes it
        folder.delete(name)
    except (DataError, StorageError) as error:
        return str(error), ""
    return "ok", ""


def all_reduce_bandwidth(_: dict[str, Any] | None = None) -> None:
    """Train function of a Ray job: report the bus bandwidth of an all-reduce, in GB/s."""
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
    # Each byte of a ring all-reduce crosses the bus 2 (n - 1) / n times: nccl-tests' busbw.
    bus = values.numel() * 4 * 2 * (ranks - 1) / ranks / middle
    ray.train.report({"gigabytes_per_second": bus / 1e9})
