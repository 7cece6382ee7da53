"""Several ranks on this machine, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.testbed.processes import REPOSITORY


def torchrun(ranks: int, module: str, *arguments: str | Path | int, timeout: float = 180.0) -> str:
    """Run a module on so many ranks to its end and return what they printed; AssertionError if one failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    ran = subprocess.run(
        [*command, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
