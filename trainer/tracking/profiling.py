"""A profile of some steps by torch.profiler, stored in the run folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from cluster.storage.errors import StorageError
from cluster.storage.storage import Storage
from trainer.distributed.ranks import rank

if TYPE_CHECKING:
    import torch.profiler  # takes time to import

FOLDER = "profiles"
WARM_UP = 5  # steps before the profile, which allocate memory and choose kernels


class Profiler:
    """Profiles `steps` steps after a warm-up, on rank 0, as a context manager.

    The trace is <run>/profiles/<images>.json.gz, for chrome://tracing or ui.perfetto.dev, with every allocation;
    <images> is the count at its end. On a GPU <images>-memory.pickle is a snapshot of the allocator, for
    pytorch.org/memory_viz. A process that ends before that writes none.
    """

    def __init__(self, run: Storage, steps: int, say: Callable[[str], None]):
        self.run, self.say = run, say
        self.images, self.cuda = 0, False
        self.profile: torch.profiler.profile | None = None
        if steps and rank() == 0:
            from torch.profiler import profile, schedule

            when = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
            self.profile = profile(schedule=when, record_shapes=True, profile_memory=True, on_trace_ready=self._store)
            self.cuda = torch.cuda.is_available()
            if self.cuda:
                torch.cuda.memory._record_memory_history()

    def __enter__(self) -> Profiler:
        if self.profile is not None:
            self.profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.profile is not None:
            self.profile.on_trace_ready = None
            self.profile.stop()

    def step(self, images: int) -> None:
        """A step has ended after `images` images."""
        self.images = images
        if self.profile is not None:
            self.profile.step()

    def _store(self, profile: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory(prefix="lowerbound-profile-") as folder:
            path = Path(folder) / "trace.json.gz"
            profile.export_chrome_trace(str(path))
            files = {f"{FOLDER}/{self.images:012d}.json.gz": path}
            if self.cuda:
                snapshot = Path(folder) / "memory.pickle"
                torch.cuda.memory._dump_snapshot(str(snapshot))
                torch.cuda.memory._record_memory_history(enabled=None)
                files[f"{FOLDER}/{self.images:012d}-memory.pickle"] = snapshot
            for name, file in files.items():
                try:
                    self.run.write(name, file)
                    self.say(f"profile: {self.run.url}/{name}")
                except StorageError as error:
                    self.say(f"the profile was not stored: {error}")
