"""Our diffusion training step against those of denoising-diffusion-pytorch and diffusers, at one size of network.

    python -m tests.benchmarks.diffusion [--peers PYTHON] [--rounds 5] [--steps 4] [--channels 64] [--batch 16]

Ours is the whole of `jobs.run.training.train_rank`: shards read and decoded, averaged weights, guard, figures. Theirs
are their own loops with images in memory (diffusion_peers.py). All have a U-Net for 32x32 colour images, the same loss
(the squared error of eps), batch and precision (float32), and one thread. The systems take turns; each round gives a
ratio of times a step, and the median is the result.

Measured (2026-11-24, 2 CPU cores at a load of 5, --clock cpu --rounds 6 --steps 2): 0.979 (0.880 to 1.002) of
diffusers' time, 6.95 million parameters each; 0.933 (0.905 to 1.001) of denoising-diffusion-pytorch's, 6.95 million
parameters against its 5.25. With --channels 32 and 3 rounds 1.009 and 0.728.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from datasets.packing.pack import pack
from datasets.packing.sources.source import Example, InMemory
from datasets.shards.index import Meta
from jobs.config.loading import load_config
from jobs.run.training import train_rank
from tests.benchmarks.diffusion_peers import PEERS, our_model
from tests.benchmarks.turns import Served, System, compared
from tests.testbed.processes import REPOSITORY
from trainer.images import ImageSpec

WARM_UP = 2  # steps
MISSING = (
    "our diffusion step / theirs: not measured; `make bench-peers` installs diffusers and "
    "denoising-diffusion-pytorch into .venv-bench (or give --peers PYTHON)"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.diffusion", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--peers", default=str(REPOSITORY / ".venv-bench/bin/python"), help="python that has the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--channels", type=int, default=64, help="of the U-Nets at full resolution")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--serve", metavar="PEER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        ours(options.serve, options.channels, options.batch)
        return
    if not Path(options.peers).exists():
        print(MISSING)
        return
    for peer in PEERS:
        compare(peer, options)


def compare(peer: str, options: argparse.Namespace) -> None:
    """A line for the screen: the median ratio, and the figures behind it."""
    size = (str(options.channels), str(options.batch))
    own = ("--serve", peer, "--channels", size[0], "--batch", size[1])
    systems = [
        System([sys.executable, "-m", "tests.benchmarks.diffusion", *own]),
        System([options.peers, "-m", "tests.benchmarks.diffusion_peers", peer, *size]),
    ]
    rounds = compared(systems, WARM_UP, options.rounds, options.steps, options.clock)
    ratios = [mine / theirs for mine, theirs in rounds]
    mine, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    sizes = " / ".join(f"{system.facts['parameters'] / 1e6:.2f}" for system in systems)
    print(
        f"our training step / {peer}'s, {options.clock} time: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds; {mine * 1e3:.0f} / {theirs * 1e3:.0f} ms a "
        f"step of {options.batch} images; {sizes} million parameters)",
        flush=True,
    )


class Noisy(InMemory):
    """512 images of noise, the hardest to decode."""

    meta = Meta(channels=3, height=32, width=32, source="noise")

    def count(self, split: str) -> int:
        return 512 if split == "train" else 0

    def example(self, split: str, i: int) -> Example:
        return Example(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8), None)


def configuration(folder: str, peer: str, channels: int, batch: int) -> dict[str, Any]:
    """A run with the network that the peer's is like, and a budget that is not reached."""
    never = 1 << 40
    return {
        "run": f"{folder}/run",
        "model": our_model(peer, channels),
        "data": {"shards": f"{folder}/images/train", "streams": 8},
        "trainer": {"images": never, "batch": batch, "threads": 1, "precision": "fp32", "log_every": 100 * batch}
        | {"evaluate_every": never, "checkpoint_every": never},
        "tracking": {"mode": "off"},
    }


def ours(peer: str, channels: int, batch: int) -> None:
    """Serve: a run whose question whether to stop waits for the next turn."""
    served = Served()
    with tempfile.TemporaryDirectory() as folder:
        pack(Noisy(), f"{folder}/images")
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(configuration(folder, peer, channels, batch)))
        config = load_config(str(path))
        with torch.device("meta"):
            parameters = sum(p.numel() for p in config.model.build(ImageSpec(*Noisy.meta.format[:5])).parameters())
        train_rank(config, served.between_steps(parameters=parameters))


if __name__ == "__main__":
    main()
