"""`make gpu-check`, rehearsed on the CPU in a few steps, so that on a GPU only the device is new."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import checks, speed
from tests.gpu.__main__ import all_checks
from tests.testbed.processes import REPOSITORY
from tests.testbed.ranks import together

CPU = torch.device("cpu")
ABSENT = ("ray", "webdataset", "wandb", "pyarrow", "simplejpeg", "matplotlib", "sklearn", "braceexpand", "boto3")


def rehearse(name: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.compiler.set_default_backend("aot_eager")  # the kernels themselves take minutes
    said = all_checks()[name](CPU, Path(folder), 4)
    assert said


@pytest.mark.parametrize(
    "name",
    [
        "family vae-conv",
        "channels_last diffusion-unet",
        "fsdp vae-conv",
        "recomputation diffusion-dit",
        "memory diffusion-dit",
    ],
)
def test_a_check_passes_on_the_cpu(name, tmp_path):
    together(1, rehearse, name, str(tmp_path))


def test_a_compiled_model_passes_on_the_cpu(tmp_path):
    together(1, rehearse, "compile vae-conv", str(tmp_path))


@pytest.mark.parametrize("check", [checks.check_noise, checks.check_full_precision])
def test_arithmetic_passes_on_the_cpu(check):
    assert check(CPU)


def table() -> None:
    torch.set_num_threads(1)
    heading, *rows = speed.rows(CPU, size=4, steps=1, small=True)
    assert "images/s" in heading
    assert len(rows) == 4 * len(speed.SMALL)
    for row in rows:
        pace, _, allocated, predicted = row.split("|")[3:]
        assert float(pace) > 0
        assert allocated.strip() == "-"
        assert float(predicted) >= 0
    assert all("installed" in row or "images/s" in row for row in speed.peers(CPU, size=2, steps=1, channels=32))


def test_the_table_of_pace_can_be_made_on_the_cpu():
    together(1, table)


def test_the_checks_need_few_packages():
    """A GPU machine may have just torch, accelerate and what they install; obstore comes with `make gpu-wheels`."""
    blocked = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))  # an import of one of them fails
sys.argv[1:] = ["--device", "cpu", "--steps", "2", "--check", "family vae-mlp"]
import tests.gpu.speed, tests.gpu.__main__ as gpu
sys.exit(gpu.main())
"""
    ran = subprocess.run([sys.executable, "-c", blocked], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "nats in training" in ran.stdout


@pytest.mark.gpu
def test_every_check_passes_on_the_gpu():
    ran = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--only", "noise,full,family,channels,fsdp,compile"], cwd=REPOSITORY
    )
    assert ran.returncode == 0
