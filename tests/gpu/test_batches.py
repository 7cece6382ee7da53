"""Batches reach the rank's own GPU, and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.datasets.small_sets import write_set
from tests.testbed.processes import REPOSITORY

SCRIPT = """
import sys, torch
from datasets.config import DataConfig
from datasets.loading.build import training_batches
from datasets.shards.index import Index
last = torch.cuda.device_count() - 1
torch.cuda.set_device(last)
config = DataConfig(shards=sys.argv[1], streams=4, cache=0, workers=int(sys.argv[2]))
with training_batches(config, Index.open(config.shards), seed=1, batch=16, device=torch.device("cuda")) as batches:
    images = [next(batches) for _ in range(5)][-1].images
torch.cuda.synchronize()
assert images.device.index == last
assert images.is_contiguous(memory_format=torch.channels_last)
print([n for n in range(last + 1) if torch._C._cuda_hasPrimaryContext(n)])
"""


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_the_thread_that_copies_opens_no_context_on_another_gpu(tmp_path: Path, workers: int) -> None:
    index = write_set(tmp_path, [20, 20], channels=3)
    command = [sys.executable, "-c", SCRIPT, index.url, str(workers)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f"[{torch.cuda.device_count() - 1}]"
