"""The slowest rank is named, and each rank's waiting for it is a share of the time."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.testbed.ranks import together
from trainer.distributed import stragglers
from trainer.distributed.ranks import rank, shutdown
from trainer.distributed.stragglers import OwnTime, memory_row

CPU = torch.device("cpu")


def _row() -> None:
    dist.init_process_group("gloo")
    said: list[str] = []
    own, now = OwnTime(CPU, said.append), 0.0
    stragglers.time = type("Clock", (), {"monotonic": staticmethod(lambda: now)})
    for _ in range(2):
        for step in range(5):
            now = 10.0 * step  # a step of 10 s, of 20 images
            own.begin_step()
            now += 2.0 + rank()
            own.meets_others()
            now = 10.0 * step + 9
            own.end_step(20)
        row = own.row(images_per_second=2.0, data_wait=0.4 if rank() == 1 else 0.0)
        assert row["ranks/slowest"] == 1
        assert row["ranks/waits"] == pytest.approx([0.5, 0.0, 0.3])  # own: 0.2, 0.7, 0.4
        assert row["ranks/wait"] == pytest.approx(0.8 / 3)
    assert said == ["rank 1 is slower than the others, which wait for it 30% of the time"]
    held = memory_row(CPU)["memory/peak"]
    ballast = torch.ones(100 << 20, dtype=torch.uint8) if rank() == 2 else None
    assert memory_row(CPU)["memory/peak"] > held + (90 << 20)  # the most of any rank
    del ballast
    shutdown()


def test_three_ranks_know_the_slowest():
    together(3, _row)


def test_one_rank_waits_for_nobody():
    own = OwnTime(CPU)
    own.begin_step()
    own.meets_others()
    own.end_step(8)
    assert own.row(1.0, 0.0) == {}
