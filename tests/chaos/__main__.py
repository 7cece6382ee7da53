"""Do all the fault of the matrix to real processes and print what came of it.

    python -m tests.chaos [--only ranks,sharded,stores,tracker,ray,hosts,ray-stores] [--runs N] [--kills N]
                          [--folder FOLDER] [--out TABLE.md]

Each of the N runs of a line is killed N times (a third of the runs under Ray). Comparisons are bitwise up to
two ranks, with fixed threads; three ranks with fsdp are compared within a tolerance.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost")
os.environ.update(NETRC=os.devnull, WANDB_ERROR_REPORTING="false", WANDB_CONFIG_DIR=tempfile.gettempdir())

from cluster.local import namespaces
from datasets.packing.pack import pack
from datasets.packing.sources.digits import Digits
from tests.chaos.matrix import MOMENTS, Bench, Result, table
from tests.chaos.outage import tracker_outage
from tests.chaos.ray_bed import RayBed
from tests.chaos.ray_matrix import ELASTIC, FIXED, RayBench
from tests.chaos.stores import StoreBench, object_store, troubles
from tests.testbed.wandb_server import WandbServer


def main() -> int:
    """Status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        default=",".join(part for part in PARTS if part != "sharded"),
        help="of these parts of the matrix (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="lowerbound-chaos-"))
    digits = folder / "digits"
    if not digits.exists():
        pack(Digits(), str(digits))
    bench, results = Bench(folder / "runs", digits, asked.seed), []
    for part in asked.only.split(","):
        for result in PARTS[part](bench, asked):
            results.append(result)
            print(table([result]).splitlines()[-1], flush=True)
            if asked.out:
                asked.out.write_text(table(results))
    print(table(results))
    kills = sum(result.injected for result in results if "SIGKILL" in result.fault)
    print(f"{kills} kills, {sum(len(result.wrong) for result in results)} things wrong")
    return int(any(result.wrong for result in results))


def ranks(bench: Bench, asked: argparse.Namespace) -> Iterator[Result]:
    """Local processes: one, two as torchrun starts them, and three that share the state."""
    for number in (1, 2):
        yield bench.kills(number, MOMENTS[:1], asked.runs, asked.kills)
        yield bench.kills(number, MOMENTS[1:], asked.runs, asked.kills)
        yield bench.terminations(number, 2, 3)
        yield bench.full_disk(number)
    for how in ("flipped byte", "truncated file"):
        yield bench.damage(1, how)
    yield from sharded(bench, asked)


def sharded(bench: Bench, asked: argparse.Namespace) -> Iterator[Result]:
    """Three ranks that share the state unevenly, as they do the batch."""
    of_three = Bench(bench.folder / "fsdp", bench.digits, asked.seed, sharding="fsdp")
    yield of_three.kills(3, MOMENTS[:1], asked.runs, asked.kills)
    yield of_three.kills(3, MOMENTS[1:], asked.runs, asked.kills)
    yield of_three.terminations(3, 1, 2)


def stores(bench: Bench, asked: argparse.Namespace) -> Iterator[Result]:
    with object_store(bench) as server:
        for number in (1, 2):
            for trouble in troubles():
                yield StoreBench(bench, server).trouble(number, trouble)


def tracker(bench: Bench, asked: argparse.Namespace) -> Iterator[Result]:
    with WandbServer() as server:
        for until_the_end in (False, True):
            yield tracker_outage(bench, server, 1, until_the_end)


def ray(bench: Bench, asked: argparse.Namespace) -> Iterator[Result]:
    """A cluster of three hosts in network namespaces (root, Linux): its workers and drivers."""
    runs = max(asked.runs // 3, 1)
    with RayBed() as bed:
        matrix = RayBench(bench, bed)
        for workers in (FIXED, ELASTIC):
            yield matrix.kills(workers, MOMENTS[:1], runs, asked.kills)
            yield matrix.kills(workers, MOMENTS[1:], runs, asked.kills)
            yield matrix.driver(workers, signal.SIGTERM, 1, 2)
            yield matrix.driver(workers, signal.SIGKILL, 1, 2)


def hosts(bench: Bench, asked: argparse.Namespace) -> Iterator[Result]:
    """Such a cluster: its hosts and their links."""
    runs = max(asked.runs // 3, 1)
    with RayBed() as bed:
        matrix = RayBench(bench, bed)
        yield matrix.drained_host(runs)
        yield matrix.lost_host(cut=False, runs=runs)
        yield matrix.lost_host(cut=True, runs=runs)


def ray_stores(bench: Bench, asked: argparse.Namespace) -> Iterator[Result]:
    """Such a cluster, and a store that fails."""
    with RayBed() as bed, object_store(bench) as server:
        for trouble in troubles():
            yield RayBench(bench, bed).store(StoreBench(bench, server, host=namespaces.HERE), trouble)


PARTS = {
    "ranks": ranks,
    "sharded": sharded,  # part of "ranks"
    "stores": stores,
    "tracker": tracker,
    "ray": ray,
    "hosts": hosts,
    "ray-stores": ray_stores,
}


if __name__ == "__main__":
    sys.exit(main())
