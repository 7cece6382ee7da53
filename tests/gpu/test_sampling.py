"""jobs.sample and jobs.quality use every GPU of the machine, one process each, and compute in full float32."""

from __future__ import annotations

import os

import pytest
import torch

from jobs.ray.tasks import each
from trainer.distributed.device import full_precision

pytestmark = pytest.mark.gpu


def where(item: int) -> tuple[int, int, int]:
    """The item, the process and the GPU on which a tensor of "cuda" lies."""
    return item, os.getpid(), torch.zeros(1, device="cuda").device.index


def test_every_gpu_has_a_process_of_its_own():
    gpus, items = torch.cuda.device_count(), range(20 * torch.cuda.device_count())
    made = list(each(where, items, gpu=True))
    assert sorted(item for item, _, _ in made) == list(items)
    places = {(process, gpu) for _, process, gpu in made}
    assert len({process for process, _ in places}) == len(places)  # no process uses two GPUs
    assert len(places) <= gpus
    assert {gpu for _, gpu in places} <= set(range(gpus))


def test_processes_can_share_a_gpu():
    made = list(each(where, range(40), processes=2, gpu=True))
    assert len({process for _, process, _ in made}) == 2


def test_full_precision_computes_convolutions_without_tf32():
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    torch.backends.cudnn.allow_tf32 = True
    with full_precision(torch.device("cuda")):
        found = torch.nn.functional.conv2d(x.cuda(), weight.cuda(), padding=1)
    error = (found.cpu().double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-5  # TF32: about 5e-4
