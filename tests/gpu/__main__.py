"""Everything that can only be seen on a GPU: python -m tests.gpu [--device cuda] [--steps 200] [--only fsdp,noise]

Needs torch, accelerate, safetensors, pydantic, PyYAML, NumPy and Pillow, and obstore for the run folders (one wheel;
`make gpu-wheels` puts it into .gpu/). Each check is a process of its own and prints one line; then comes the table of
tests.gpu.speed. Exits with 1 if a check failed. Less than ten minutes on one GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.gpu import checks
from tests.trainer.models import ALL_MODELS

ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}

Check = Callable[[torch.device, Path, int], str]


def all_checks() -> dict[str, Check]:
    """By name, in the order in which they run."""
    found: dict[str, Check] = {
        "noise": lambda device, folder, steps: checks.check_noise(device),
        "full precision": lambda device, folder, steps: checks.check_full_precision(device),
    }
    for name in ALL_MODELS:
        found[f"family {name}"] = lambda *run, name=name: checks.check_family(name, *run)
    for name in ("vae-conv", "diffusion-unet"):
        found[f"channels_last {name}"] = lambda *run, name=name: checks.check_family(name, *run, channels_last=True)
        found[f"fsdp {name}"] = lambda *run, name=name: checks.check_fsdp(name, *run)
    for name in ("diffusion-dit", "ladder-vdvae"):
        found[f"recomputation {name}"] = lambda *run, name=name: checks.check_recomputation(name, *run)
        found[f"memory {name}"] = lambda *run, name=name: checks.check_memory(name, *run)
    for name in checks.COMPILED:
        found[f"compile {name}"] = lambda *run, name=name: checks.check_compile(name, *run)
    return found


def run_here(name: str, device: torch.device, steps: int) -> None:
    """One check in this process. Raises what it raises."""
    if name.startswith("fsdp"):
        os.environ.update(ONE_RANK)
    with tempfile.TemporaryDirectory() as folder:
        print(all_checks()[name](device, Path(folder), steps))


def main() -> int:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=about)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", help="parts of the names of the checks, separated by commas")
    parser.add_argument("--check", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.check:
        run_here(options.check, device, options.steps)
        return 0
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was checked (--device cpu rehearses)")
        return 1
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    failed = 0
    for name in all_checks():
        if not any(part in name for part in options.only.split(",")):
            continue
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.gpu", "--device", options.device, "--steps", str(options.steps)]
        ran = subprocess.run([*command, "--check", name], capture_output=True, text=True, timeout=300)
        said = (ran.stdout if ran.returncode == 0 else ran.stderr).strip().splitlines() or ["no output"]
        failed += ran.returncode != 0
        verdict = "ok    " if ran.returncode == 0 else "FAILED"
        print(f"{verdict} {name:28} {time.monotonic() - began:5.1f} s  {said[-1]}", flush=True)
        if ran.returncode:
            print(ran.stderr[-3000:], flush=True)
    if not options.only:
        table = [sys.executable, "-m", "tests.gpu.speed", "--device", options.device]
        failed += subprocess.run(table).returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code)
