"""From `jobs.submit` to the first step: python -m tests.benchmarks.start [CONFIG] [key=value ...]

Two tables. The first is of one process of this machine, in seconds of its CPU time: imports of other people's packages,
our own, the configuration, the data, the model, the first step. With RAY_API_SERVER_ADDRESS (a cluster that is up and
has run something before) the second is of a submitted job, in seconds on the clock between the lines that it prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from tests.testbed.processes import REPOSITORY

PROCESS = """
import sys, time
began = time.process_time()
def lap(name):
    global began
    now = time.process_time()
    print(f"{now - began:8.2f}  {name}", flush=True)
    began = now

import accelerate, numpy, obstore, PIL, pyarrow, pydantic, safetensors, torch, tqdm, yaml
import torch.distributed.tensor, torch._dynamo  # AdamW imports them
lap("imports of others: torch, accelerate, pyarrow, pydantic ...")
import jobs.train_local, trainer.tracking.flops
lap("imports of ours")
from jobs.config.loading import load_config
config = load_config(sys.argv[1], sys.argv[2:])
lap("ours: the configuration")
from datasets.shards.index import Index
index = Index.of(config.data)
lap("ours: the index of the data")
from datasets.loading.transforms import output_format
from trainer.images import ImageSpec
config.model.build(ImageSpec(*output_format(config.data, index)[:5]))
lap("ours: the model")
from trainer.distributed.requests import Requests
class FirstStep(Requests):
    asked = False
    def stop(self):
        if not self.asked:
            lap("ours: the rest, to the end of the first step")
        self.asked = True
        return True
jobs.train_local.train_rank(config, FirstStep())
"""

# What a submitted job prints when a part of the way lies behind it.
MARKS = (
    ("submit: imports, checks, packing, sending", r"^submitted "),
    (
        "Ray: the job's environment, its process; the driver's imports",
        r"Connecting to existing Ray cluster",
    ),
    ("Ray Train: the ranks' processes, their imports", r"worker group of size"),
    ("ours and imports of a rank: index, model", r"parameters on "),
    ("ours: data, the first step", r"images/s"),
)


def main(arguments: list[str]) -> None:
    config = arguments[0] if arguments else "jobs/configs/digits-vae.yaml"
    with tempfile.TemporaryDirectory(prefix="lb-start-") as folder:
        settings = [*arguments[1:], "tracking.mode=off", f"run={folder}/run", "trainer.log_every=1"]
        print("one process, seconds of CPU time", flush=True)
        subprocess.run([sys.executable, "-c", PROCESS, config, *settings], cwd=REPOSITORY, check=True)
        if not os.environ.get("RAY_API_SERVER_ADDRESS"):
            return
        settings[-2] = f"run={folder}/submitted"
        print("submitted, seconds on the clock")
        for name, seconds in laps([*settings, "trainer.images=1000"], config):
            print(f"{seconds:8.2f}  {name}", flush=True)


def laps(settings: list[str], config: str) -> Iterator[tuple[str, float]]:
    """The parts of the way of a submitted job."""
    before = time.monotonic()
    command = [sys.executable, "-m", "jobs.submit", config, *settings, "--follow"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        assert job.stdout
        left = list(MARKS)
        for line in job.stdout:
            if left and re.search(left[0][1], line):
                now = time.monotonic()
                yield left.pop(0)[0], now - before
                before = now
    assert not left, f"the job never printed {left[0][1]!r}"


if __name__ == "__main__":
    main(sys.argv[1:])
