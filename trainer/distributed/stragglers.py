"""Which rank the others wait for, and how much memory the ranks use: read and exchanged once a row of metrics."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from trainer.distributed.ranks import rank, world_size

NOTABLE = 0.1  # of the time: by so much more than the median rank the slowest one is named in the log
LISTED = 64  # ranks up to which a row has the figure of each
Moment = torch.cuda.Event | float


class OwnTime:
    """How long this rank computes in a step before it first needs another one: until the end of the last forward pass
    with DDP, until the first gathering of weights with FSDP2. On a GPU by events, which are read once a row.
    """

    def __init__(self, device: torch.device, say: Callable[[str], None] = lambda line: None):
        self.device, self.say = device, say
        self.spans: list[tuple[Moment, Moment]] = []
        self.images = 0
        self._begin: Moment | None = None
        self._met: Moment | None = None
        self._named: int | None = None

    def begin_step(self) -> None:
        """A step begins; its batch is there."""
        self._begin, self._met = self._now(), None

    def meets_others(self) -> None:
        """This rank now needs others; of several calls in a step the last one counts."""
        self._met = self._now()

    def end_step(self, images: int) -> None:
        """The step has ended, of a global batch of `images`."""
        self.images += images
        if self._begin is not None and self._met is not None:
            self.spans.append((self._begin, self._met))

    def row(self, images_per_second: float, data_wait: float) -> dict[str, Any]:
        """The share of the time that the ranks wait for the slowest on the average, which it is, and the share of each;
        resets. Waiting for data (`data_wait`, a share) counts as a rank's own time. All ranks together.
        """
        seconds = self.images / max(images_per_second, 1e-9)
        own = sum(_seconds(*span) for span in self.spans) / max(seconds, 1e-9) + data_wait
        self.spans, self.images = [], 0
        if world_size() == 1:
            return {}
        shares = _of_all_ranks(own, self.device)
        slowest = max(range(len(shares)), key=shares.__getitem__)
        waits = [shares[slowest] - share for share in shares]
        behind = shares[slowest] - statistics.median(shares)
        if behind > NOTABLE and self._named != slowest:
            self.say(f"rank {slowest} is slower than the others, which wait for it {behind:.0%} of the time")
            self._named = slowest
        row: dict[str, Any] = {"ranks/wait": statistics.mean(waits), "ranks/slowest": slowest}
        return row | ({"ranks/waits": [round(wait, 4) for wait in waits]} if len(waits) <= LISTED else {})

    def _now(self) -> Moment:
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def memory_row(device: torch.device) -> dict[str, int]:
    """Bytes in use, of the rank with the most: on a GPU what PyTorch's allocator has given out, has reserved, and had
    given out at most since the row before; on a CPU what is resident, now and at most. All ranks together.
    """
    if device.type == "cuda":
        found = {
            "memory/allocated": torch.cuda.memory_allocated(device),
            "memory/reserved": torch.cuda.memory_reserved(device),
            "memory/peak": torch.cuda.max_memory_allocated(device),
        }
        torch.cuda.reset_peak_memory_stats(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found = {"memory/peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    most = torch.tensor(list(found.values()), dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return dict(zip(found, map(int, most.tolist()), strict=True))


def _seconds(begin: Moment, end: Moment) -> float:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return float(begin.elapsed_time(end)) / 1000
    assert isinstance(begin, float)
    assert isinstance(end, float)
    return end - begin


def _of_all_ranks(value: float, device: torch.device) -> list[float]:
    shares = torch.zeros(world_size(), dtype=torch.float64, device=device)
    shares[rank()] = value
    dist.all_reduce(shares)
    return shares.tolist()
