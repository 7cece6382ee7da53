"""Progress of a running job: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from trainer.distributed.ranks import rank
from trainer.tracking.streams import say

BAR_SECONDS, LINE_SECONDS = 1.0, 30.0  # between two updates of the bar, and between two lines in a log


def say_on_rank_zero(line: str) -> None:
    """Print a line once, above a bar if there is one."""
    if rank() == 0:
        say(line)


class Display:
    """Progress in images, with images/s, the bound and the time left; silent on all ranks but rank 0."""

    def __init__(self, total: int, start: int, clock: Callable[[], float] = time.monotonic):
        self.total, self.start, self.clock = total, start, clock
        on_terminal = rank() == 0 and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, unit="img", unit_scale=True, disable=not on_terminal, leave=False)
        self.every = BAR_SECONDS if on_terminal else LINE_SECONDS
        self.began = clock()
        self.next = self.began + self.every
        self.figures = ""  # of the last row

    def tick(self, images: int) -> None:
        """A step has ended after `images` images. Shows progress if it is time; asks nothing of the device."""
        if self.clock() >= self.next:
            self._show(images)

    def update(self, images: int, row: Mapping[str, Any]) -> None:
        """A row of metrics: its bound is shown from now on. The first one is shown at once."""
        first, self.figures = not self.figures, _bound(row)
        if first:
            self._show(images)
        else:
            self.tick(images)

    def _show(self, images: int) -> None:
        now = self.clock()
        self.next = now + self.every
        if not self.bar.disable:
            self.bar.set_postfix_str(self.figures, refresh=False)
            self.bar.update(images - self.bar.n)
            return
        seconds = max(now - self.began, 1e-9)
        rate = (images - self.start) / seconds
        left = (self.total - images) / max(rate, 1e-9)
        parts = [f"{images:,}/{self.total:,} images", self.figures, f"{rate:,.0f} images/s"]
        say_on_rank_zero(
            "  ".join(part for part in [*parts, f"{_duration(seconds)} elapsed, {_duration(left)} left"] if part)
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.close()


def _bound(row: Mapping[str, Any]) -> str:
    if "train/bpd" in row:
        bound = f"train {row['train/bpd']:.4f} bpd"
    elif "train/nats" in row:
        bound = f"train {row['train/nats']:.2f} nats"
    else:
        return "no finite bound"
    return f"{bound}, {row['train/conditions']}" if "train/conditions" in row else bound


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
