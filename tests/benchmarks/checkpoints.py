"""What checkpoints cost the loop, and what they take of memory.

    python -m tests.benchmarks.checkpoints [--rounds N] [--megabytes N] [--every SECONDS] [--seconds SECONDS]

Each round trains the same model twice for so many seconds, with a checkpoint of its whole state to the local disk every
so many seconds and without any, in turns; the figure is the median of the ratios of their steps a second. Memory is
by how much more the process grows with checkpoints than without, as a multiple of the state. With --clock cpu the pace
is by the CPU time of the training thread, for a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.distributed.requests import Requests
from trainer.tracking.listener import Listener

NEVER = 1 << 40
WARM_UP = 5  # steps
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=200.0, help="of the whole state: weights, EMA, moments")
    parser.add_argument("--every", type=float, default=20.0, help="seconds from one checkpoint to the next")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a measurement")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of the training thread, on a busy machine"
    )
    parser.add_argument("--one", choices=["with", "without"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked)))
        return
    ratios, grown = [], []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "jobs.pack", "--source", "digits", "--out", f"{folder}/digits"], check=True
        )
        for number in range(asked.rounds):
            order = ("with", "without") if number % 2 else ("without", "with")
            found = {which: one(asked, folder, which) for which in order}
            ratios.append(found["with"]["pace"] / found["without"]["pace"])
            grown.append((found["with"]["peak"] - found["without"]["peak"]) / found["with"]["state"])
            shown = f"{found['with']['commits']} commits of {found['with']['state'] / 1e6:.0f} MB"
            print(
                f"{found['with']['pace']:.2f} steps/s with {shown}, {found['without']['pace']:.2f} without", flush=True
            )
    loss = 1 - statistics.median(ratios)
    print(f"lost to checkpoints: {loss:.2%} (ratios {', '.join(f'{ratio:.3f}' for ratio in ratios)})")
    print(f"memory: {statistics.median(grown):.2f} copies of the state at the peak")


def one(asked: argparse.Namespace, folder: str, which: str) -> dict[str, float]:
    """A measurement in a process of its own."""
    options = [f"--megabytes={asked.megabytes}", f"--every={asked.every}", f"--seconds={asked.seconds}"]
    options += [f"--clock={asked.clock}"]
    command = [sys.executable, "-m", "tests.benchmarks.checkpoints", *options, f"--one={which}", f"--folder={folder}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(asked: argparse.Namespace) -> dict[str, float]:
    """Steps a second after the warm-up, bytes of the state and of the process at its peak, and commits made."""
    run = Path(asked.folder, f"{asked.one}-{time.time_ns()}")
    width = round((asked.megabytes * 1e6 / 16 / 4) ** 0.5)  # four square matrices, four numbers of 4 bytes a weight
    network = {"kind": "mlp", "hidden": [width, width, width]}
    values = {
        "run": str(run),
        "model": {"kind": "vae", "latent": 8, "encoder": network, "decoder": network},
        "data": {"shards": f"{asked.folder}/digits/train", "streams": 8},
        "trainer": {"images": NEVER, "batch": 64, "threads": 1, "log_every": 640}
        | {"evaluate_every": NEVER, "checkpoint_every": NEVER},
        "tracking": {"mode": "off"},
    }
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    times: list[tuple[float, float]] = []  # wall, and the chosen clock
    saved, peak, over = 0.0, 0, threading.Event()
    commits: list[Commit] = []

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            peak = max(peak, pages * os.sysconf("SC_PAGE_SIZE"))

    class Measured(Requests):
        def save(self) -> bool:
            nonlocal saved
            times.append((time.perf_counter(), CLOCKS[asked.clock]()))
            now = times[-1][0]
            if len(times) > WARM_UP and now - times[WARM_UP][0] > asked.seconds:
                over.set()  # the commit at the end is no part of it
            if asked.one == "without" or len(times) <= WARM_UP or now - saved < asked.every:
                return False
            saved = now
            return True

        def stop(self) -> bool:
            return over.is_set()

    class Commits(Listener):
        def on_commit(self, commit: Commit) -> None:
            commits.append(commit)

    threading.Thread(target=watch, daemon=True).start()
    train_rank(load_config(str(path)), Measured(), [Commits()])
    files = Lineage(Storage(str(run))).folder(commits[-1]).manifest().files.values()
    pace = (len(times) - 1 - WARM_UP) / (times[-1][1] - times[WARM_UP][1])
    return {"pace": pace, "state": sum(file.bytes for file in files), "peak": peak, "commits": len(commits) - 1}


if __name__ == "__main__":
    main()
