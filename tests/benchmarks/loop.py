"""Steps a second of our loop against a bare PyTorch loop, and of a Ray worker against our local loop.

    python -m tests.benchmarks.loop [--rounds 10] [--steps 100] [--batch 256] [--clock wall|cpu] [--ray]

The bare loop has the same model, batch and images, all in memory: forward, backward, clip, fused AdamW, and nothing
else (no averaged weights, no guard, no figures). Each has a process; they take turns, so that what else the machine
does hits both. Every round gives a ratio, and the median is the result.

Measured (2026-11-24, 2 CPU cores, load 1 to 2, wall): 1.041 of the bare loop's pace (0.939 to 1.126 in 10 rounds of 100
steps), which does not keep the memory that it frees (trainer.distributed.device; where it does the ratio was 0.946);
one Ray worker 1.011 of the local loop's (0.979 to 1.145 in 3 rounds).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from cluster.storage.storage import Storage
from datasets.loading.build import training_batches
from datasets.packing.pack import pack
from datasets.packing.sources.digits import Digits
from datasets.shards.index import Index
from jobs.config.loading import load_config
from jobs.config.schema import RunConfig
from jobs.run.training import train_rank
from tests.benchmarks.turns import Served, System, compared
from trainer.checkpoints.journal import read_metrics
from trainer.images import ImageSpec
from trainer.noise import Noise

WARM_UP = 50  # steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loop", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--ray", action="store_true", help="also measure one Ray worker against the local loop")
    parser.add_argument("--serve", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.serve:
            measure(folder, options)
            return
        pack(Digits(), f"{folder}/digits")
        SYSTEMS[options.serve](config_in(folder, "run", options), options.batch)


def measure(folder: str, options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.loop", "--batch", str(options.batch), "--serve"]
    systems = [System([*command, name]) for name in SYSTEMS]
    times = compared(systems, WARM_UP, options.rounds, options.steps, options.clock)
    report(f"our loop / bare loop, {options.clock} clock", [(1 / ours, 1 / bare) for ours, bare in times], "steps/s")
    if options.ray:
        pack(Digits(), f"{folder}/digits")
        pairs = [ray_pair(folder, i, options) for i in range(min(options.rounds, 3))]
        report("one Ray worker / local loop", pairs, "images/s")


def report(name: str, pairs: list[tuple[float, float]], unit: str) -> None:
    """A line for the screen: the median ratio, and the figures behind it."""
    ratios = [mine / other for mine, other in pairs]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    spread = f"{min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds"
    print(f"{name}: {statistics.median(ratios):.3f} ({spread}; {medians[0]:.1f} / {medians[1]:.1f} {unit})", flush=True)


def config_in(folder: str, name: str, options: argparse.Namespace) -> RunConfig:
    """A VAE of a common size, and a budget that a round does not reach."""
    never = 1 << 40
    network = {"kind": "mlp", "hidden": [1024, 1024]}
    values: dict[str, Any] = {
        "run": f"{folder}/{name}",
        "model": {"kind": "vae", "latent": 40, "encoder": network, "decoder": network},
        "data": {"shards": f"{folder}/digits/train", "streams": 8},
        "trainer": {"images": never, "batch": options.batch, "threads": 1, "log_every": 100 * options.batch}
        | {"evaluate_every": never, "checkpoint_every": never},
        "tracking": {"mode": "off"},
    }
    path = Path(folder) / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(str(path))


def our_loop(config: RunConfig, batch: int) -> None:
    """Serve: the whole of `work`, as a command runs it."""
    train_rank(config, Served().between_steps())


def bare_loop(config: RunConfig, batch: int) -> None:
    """Serve: what one would write by hand for one process."""
    served = Served()
    index = Index.of(config.data)
    spec = ImageSpec(*index.format[:5])
    with training_batches(config.data, index, seed=0, batch=1528 // 8 * 8) as batches:
        images = next(batches).images
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = config.model.build(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    progress = torch.zeros(())
    taken = 0

    def steps(count: int) -> None:
        nonlocal taken
        for step in range(taken, taken + count):
            chosen = torch.randint(len(images), (batch,))
            noise = Noise(0, "train", torch.arange(batch) + step * batch, batch)
            optimizer.zero_grad(set_to_none=True)
            model(images[chosen], None, noise, progress).negative_bound.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
            optimizer.step()
        taken += count

    served.serve(steps)


SYSTEMS = {"ours": our_loop, "bare": bare_loop}


def ray_pair(folder: str, number: int, options: argparse.Namespace) -> tuple[float, float]:
    """(images/s of one Ray worker, of the local loop), each the median of its own metrics without the first row."""
    paces = []
    for launcher, extra in (("train", ["ray.workers=1"]), ("train_local", [])):
        config = config_in(folder, f"{launcher}-{number}", options)
        images = 5 * options.steps * options.batch
        command = [sys.executable, "-m", f"jobs.{launcher}", f"{config.run}.yaml", f"trainer.images={images}", *extra]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows = read_metrics(Storage(config.run))
        paces.append(statistics.median(row["images_per_second"] for row in rows[1:]))
    return paces[0], paces[1]


if __name__ == "__main__":
    main()
