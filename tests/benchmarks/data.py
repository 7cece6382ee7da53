"""How fast images come, against the decode limit and peers: python -m tests.benchmarks.data [--peers PYTHON]

Sets: CIFAR-10 images as 32x32 PNG, and enlarged to 256x256 JPEG of some 8 KB. Every cell is a process of its own, under
the same malloc settings; the systems take turns, round after round, and medians are told: on a busy machine one
configuration moves by 5 to 40% between runs. `--peers` is the python of an environment with mosaicml-streaming and
litdata (they replace a CPU torch by a CUDA build: keep them apart).

Measured (2026-11-24, 2 CPU cores, load 1 to 2, --seconds 3), images/s as a share of the decode limit's; ours in 5
rounds after the last change, the others in 3 rounds half an hour before it:

| | ours | webdataset | mosaicml-streaming | litdata |
|---|---|---|---|---|
| PNG, 1 worker | 0.77 | 0.29 | 0.09 | 0.54 |
| PNG, 2 workers | 0.78 | 0.27 | 0.18 | 0.40 |
| JPEG, 1 worker | 0.92 | 0.24 | 0.15 | 0.27 |
| JPEG, 2 workers | 0.79 | 0.22 | 0.15 | 0.22 |

With 2 workers the process that takes the batches is a third one on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.packing.encoding import encode as encode_image
from datasets.shards.indexing import index_shards

ROOT = Path(__file__).parents[2]
CELLS = Path(__file__).with_name("data_cells.py")
SETTINGS = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(256 << 20), "OMP_NUM_THREADS": "1"}
# As many as CIFAR-10 has to train on, and so many JPEG that the streams have whole windows to read.
IMAGES = {"png": 50_000, "jpg": 20_000}
SHARDS = 8
PEERS = "python -m venv /tmp/peers; /tmp/peers/bin/pip install torch==2.13.0 pillow psutil mosaicml-streaming litdata"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", default="", help="python with mosaicml-streaming and litdata")
    parser.add_argument("--folder", default="/tmp/bench-data", help="where the sets are made, once")
    parser.add_argument(
        "--cifar", default=str(ROOT / "../shared/data/cifar10"), help="folder of CIFAR-10, binary version"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--formats", default="png,jpg")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--systems", default="")
    parser.add_argument(
        "--bounds", action=argparse.BooleanOptionalAction, default=True, help="time to a batch, bytes, memory"
    )
    options = parser.parse_args()
    systems = options.systems.split(",") if options.systems else ["limit", "ours", "webdataset"]
    if options.peers and not options.systems:
        systems += ["streaming", "litdata"]
    for format in options.formats.split(","):
        make_set(Path(options.folder), format, options.cifar)
        if options.peers:
            subprocess.run([options.peers, CELLS, "convert", format, options.folder], check=True, capture_output=True)
        for workers in options.workers.split(","):
            compare(systems, format, workers, options)
    if options.bounds:
        bounds = [sys.executable, "-m", "tests.benchmarks.data_bounds", options.folder]
        subprocess.run(bounds, cwd=ROOT, env=os.environ | SETTINGS, check=True)
    if not options.peers:
        print(f"\nfor mosaicml-streaming and litdata: {PEERS}, then --peers /tmp/peers/bin/python")


def compare(systems: list[str], format: str, workers: str, options: argparse.Namespace) -> None:
    """Measure the systems in turns and print a table of medians."""
    found: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
    for _ in range(options.rounds):
        for system in systems:
            found[system].append(run_cell(system, format, workers, options))
    medians = {s: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for s, rows in found.items()}
    top = medians.get("limit", {}).get("images_per_s", float("nan"))
    size = "32x32 PNG" if format == "png" else "256x256 JPEG"
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"\n{size}, {workers} worker(s): medians of {options.rounds} interleaved runs (lowest - highest), {load}")
    for system, row in medians.items():
        rates = sorted(run["images_per_s"] for run in found[system])
        print(
            f"  {system:11s} {row['images_per_s']:8.0f} images/s ({rates[0]:.0f} - {rates[-1]:.0f})"
            f"  {row['images_per_s'] / top:5.2f} of the limit  {row['cpu_s_per_1000']:7.3f} CPU-s/1000"
            f"  first batch {row['first_batch_s']:5.2f} s  peak {row['peak_rss_MB']:5.0f} MB",
            flush=True,
        )


def run_cell(system: str, format: str, workers: str, options: argparse.Namespace) -> dict[str, float]:
    peer = system in ("streaming", "litdata")
    python = options.peers if peer else sys.executable
    environment = os.environ | SETTINGS | {"PYTHONPATH": "" if peer else str(ROOT)}
    command = [python, str(CELLS), system, format, workers, options.folder, str(options.seconds)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if ran.returncode:
        raise SystemExit(f"{system} failed:\n{ran.stderr[-2000:]}")
    return json.loads(ran.stdout.strip().rpartition("\n")[2])


def make_set(folder: Path, format: str, cifar: str) -> None:
    """Write a set's shards and index, once."""
    from datasets.packing.sources.cifar10 import Cifar10
    from tests.datasets.small_sets import write_members

    if (folder / format / "index" / "index.json").exists():
        return
    source = Cifar10(cifar)
    examples = [source.example("train", i) for i in range(source.count("train"))]
    count = IMAGES[format]
    for shard in range(SHARDS):
        members = []
        for number in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
            members.append((f"{number:06d}.{format}", encode(examples[number % len(examples)].image, format)))
            members.append((f"{number:06d}.cls", str(number % 10).encode()))
        write_members(folder / format / f"{shard:04d}.tar", members)
    index_shards(str(folder / format), str(folder / format / "index"))


def encode(image: np.ndarray, format: str) -> bytes:
    if format == "png":
        return encode_image(image, "png")
    import io

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).resize((256, 256), Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=75
    )
    return stream.getvalue()


if __name__ == "__main__":
    main()
