"""States of several gloo ranks: saved, restored, and how many bytes of the run folder each rank read for that."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.storage.storage import Storage
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.reading import SavedState
from trainer.checkpoints.retention import CheckpointConfig
from trainer.distributed.ranks import rank, shutdown, world_size

SHAPES = {"wide": (1001, 700), "kernel": (64, 32, 3, 3), "bias": (7,), "scale": (), "few rows": (3, 5), "none": (0, 4)}


def values(images: int) -> dict[str, Tensor]:
    """The tensors after so many images."""
    random = torch.Generator().manual_seed(images)
    return {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}


def placed(value: Tensor, sharding: str) -> Tensor:
    """The tensor as a rank holds it: a copy, or its part."""
    if sharding == "ddp" or value.ndim == 0 or world_size() == 1:
        return value
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world_size(),))
    return distribute_tensor(value.clone(), mesh, [Shard(0)], src_data_rank=None)


def state(images: int, sharding: str) -> dict[str, dict[str, Any]]:
    """A state after so many images."""
    tensors = {name: placed(value, sharding) for name, value in values(images).items()}
    return {"model": tensors, "ema": {"wide": tensors["wide"]}, "progress": {"images": images}}


@contextlib.contextmanager
def group(timeout: float = 600.0, ranks_per_node: int | None = None) -> Iterator[None]:
    """The ranks that `together` started, as one process group, on one node or several."""
    torch.set_num_threads(1)
    if ranks_per_node:
        me = int(os.environ["RANK"])
        os.environ |= {"LOCAL_RANK": str(me % ranks_per_node), "LOCAL_WORLD_SIZE": str(ranks_per_node)}
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    yield
    shutdown()


class Reads:
    """Counts the bytes read from storage, by kind of file."""

    def __init__(self) -> None:
        self.tensors = self.others = 0
        read, read_range = Storage.read, Storage.read_range

        def counted_read(storage: Storage, path: str, most: int | None = None) -> bytes:
            return self._counted(path, read(storage, path, most))

        def counted_range(storage: Storage, path: str, start: int, stop: int) -> memoryview:
            return self._counted(path, read_range(storage, path, start, stop))

        Storage.read, Storage.read_range = counted_read, counted_range  # type: ignore[method-assign]

    def _counted(self, path: str, data: Any) -> Any:
        if path.endswith(".safetensors"):
            self.tensors += len(data)
        else:
            self.others += len(data)
        return data


def checkpoints(url: str, warnings: list[str] | None = None) -> Checkpointer:
    """A checkpointer that keeps everything."""
    return Checkpointer(url, CheckpointConfig(keep=99), (warnings if warnings is not None else []).append)


def save(url: str, sharding: str, *images: int) -> None:
    """On every rank: continue the run with commits after so many images each."""
    with group():
        process = checkpoints(url)
        process.claim(lambda sections: None)
        for count in images:
            process.save(count, state(count, sharding), [])


def restore(url: str, sharding: str, report: str, ranks_per_node: int | None = None) -> None:
    """On every rank: restore the newest intact commit, compare it, and report what was read."""
    with group(ranks_per_node=ranks_per_node):
        reads, warnings = Reads(), list[str]()
        process = checkpoints(url, warnings)
        saved = process.claim(lambda sections: None)
        assert saved is not None
        mine = {"model": {name: placed(torch.empty(shape), sharding) for name, shape in SHAPES.items()}}
        if sharding == "ddp":
            mine["model"]["kernel"] = mine["model"]["kernel"].contiguous(memory_format=torch.channels_last)
        mine["ema"] = {"wide": placed(torch.empty(SHAPES["wide"]), sharding)}
        process.restore(lambda saved: saved.fill(mine))
        saved = process.saved
        assert saved is not None
        expected = state(saved.sections["progress"]["images"], sharding)
        for section in ("model", "ema"):
            for name, value in expected[section].items():
                found, wanted = ((v.to_local() if hasattr(v, "to_local") else v) for v in (mine[section][name], value))
                assert torch.equal(found, wanted), (section, name)
        if sharding == "ddp":
            assert mine["model"]["kernel"].is_contiguous(memory_format=torch.channels_last)
        seen = {"images": saved.commit.images, "tensors": reads.tensors, "others": reads.others, "warnings": warnings}
        Path(f"{report}-{rank()}.json").write_text(json.dumps(seen))


def whole(url: str, number: int = -1) -> SavedState:
    """The newest commit, or another one, opened in the test's own process."""
    from trainer.checkpoints.lineage import Lineage

    lineage = Lineage(Storage(url))
    return SavedState(lineage.folder(sorted(lineage.history())[number]))
