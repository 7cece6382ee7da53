"""A job that is killed repeatedly, over a faulty network: its commits have each image of the order once."""

from __future__ import annotations

import random
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.storage.storage import Storage
from datasets.order.shuffled import ShuffledOrder
from datasets.shards.index import Index
from tests.datasets.consumed import Ranks, consumed, newest
from tests.datasets.small_sets import locate, write_set
from tests.testbed.faults import Fault, FaultProxy

COUNTS = [40, 25, 60, 10, 0, 55, 33, 47, 30, 20, 13, 27]  # 360 images: uneven shards, one empty
BATCH, STREAMS, WINDOW, SEED = 24, 6, 16, 3
FAULTS = [
    Fault("status", status=503, share=0.04),
    Fault("refuse", share=0.02),
    Fault("reset", method="GET", after=300, share=0.03),
    Fault("truncate", method="GET", after=300, share=0.03),
    Fault("stall", method="GET", after=300, share=0.02, seconds=1.0),
    Fault("corrupt", method="GET", path=r"\.tar", after=700, share=0.15),
]


def write_config(path: Path, shards: str, run: str) -> None:
    network = {"kind": "mlp", "hidden": [8]}
    budget = {"images": 10**9, "batch": BATCH, "checkpoint_every": 2 * BATCH, "log_every": BATCH}
    values = {
        "run": run,
        "seed": SEED,
        "model": {"kind": "vae", "latent": 2, "encoder": network, "decoder": network},
        "data": {"shards": shards, "streams": STREAMS, "window": WINDOW, "cache": 0},
        "trainer": budget | {"threads": 1, "pictures": 0, "evaluate_every": 10**9, "hang_timeout": 240},
        "tracking": {"mode": "off"},
    }
    path.write_text(yaml.safe_dump(values))


def steps_of_the_order(index: Index, steps: int) -> list[list[int]]:
    """The numbers of the images of each step; sorted within a step."""
    located = locate(ShuffledOrder(index.counts, SEED, STREAMS, WINDOW), np.arange(steps * BATCH))
    numbers = (np.cumsum(index.counts) - index.counts)[located.shard] + located.index
    return np.sort(numbers.reshape(steps, BATCH), axis=1).tolist()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_the_images_up_to_each_commit_follow_the_order_through_kills_and_faults(tmp_path, s3_environment, kills):
    index = write_set(tmp_path / "set", COUNTS)
    bucket = f"{s3_environment.bucket('history')}/{uuid.uuid4()}"
    for path in sorted((tmp_path / "set").rglob("*")):
        if path.is_file():
            Storage(f"{bucket}/set").write(str(path.relative_to(tmp_path / "set")), path)
    began = time.monotonic()
    run, draw = f"{bucket}/run", random.Random(kills)
    write_config(tmp_path / "run.yaml", f"{bucket}/set", run)
    with FaultProxy(s3_environment.endpoint, seed=kills) as proxy:
        for fault in FAULTS:
            proxy.add(fault)
        environment = s3_environment.environment | {"AWS_ENDPOINT_URL": proxy.url, "LOWERBOUND_PATIENCE": "120"}
        for kill in range(kills):
            ranks, workers = (2, 1, 2, 3)[kill % 4], draw.choice([0, 0, 1, 2])
            job = Ranks(ranks, tmp_path / "run.yaml", [f"data.workers={workers}"], tmp_path, environment)
            enough = newest(run) + draw.randrange(1, 3) * 2 * BATCH
            job.kill(lambda enough=enough: newest(run) >= enough, draw.random(), draw)
            made = consumed(run, tmp_path)
            assert made == steps_of_the_order(index, len(made))
            happened = f"kill {kill + 1}, {ranks} ranks, {workers} loader processes, {proxy.faults} faults"
            print(f"{time.monotonic() - began:.0f} s: {len(made)} steps, {happened}")
        steps = len(made) + 3
        rest = ["data.workers=0", f"trainer.images={steps * BATCH}"]
        status = Ranks(2, tmp_path / "run.yaml", rest, tmp_path, environment).wait(180)
    assert status == [0, 0], (tmp_path / "log-0.txt").read_text()[-3000:]
    assert consumed(run, tmp_path) == steps_of_the_order(index, steps)
    assert {request.fault for request in proxy.requests} >= {"status", "corrupt"}
