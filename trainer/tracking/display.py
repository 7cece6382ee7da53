"""What a person sees of a running job: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from trainer.distributed.ranks import rank

LINE_SECONDS = 10.0  # in a log, at most one progress line in so many seconds


def say_on_rank_zero(line: str) -> None:
    """A line for the log, once, above a bar if there is one."""
    if rank() == 0:  # not by print, which Ray Train makes write twice
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


class Display:
    """Progress in images, with images/s, the bound and the time left; silent on all ranks but one."""

    def __init__(self, total: int, start: int):
        self.total, self.start, self.shown = total, start, rank() == 0
        self.began = time.monotonic()
        self.last_line = self.began - LINE_SECONDS
        on_terminal = self.shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, unit="img", unit_scale=True, disable=not on_terminal, leave=False)

    def update(self, images: int, row: Mapping[str, Any]) -> None:
        """`images` have been seen; of the row of figures the bound is shown beside that."""
        figures = _bound(row)
        self.bar.update(images - self.bar.n)
        self.bar.set_postfix_str(figures)
        now = time.monotonic()
        if self.shown and self.bar.disable and now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            pace = (images - self.start) / max(now - self.began, 1e-9)
            left = (self.total - images) / max(pace, 1e-9)
            say_on_rank_zero(f"{images:,}/{self.total:,} images  {figures}  {pace:,.0f} images/s  {_clock(left)} left")

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.close()


def _bound(row: Mapping[str, Any]) -> str:
    if "train/bpd" in row:
        return f"train {row['train/bpd']:.4f} bpd"
    return f"train {row['train/nats']:.2f} nats" if "train/nats" in row else "no finite bound"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
