"""The GPUs that the calls of jobs.parallel have on a Ray of two. `python -m tests.testbed.gpus` prints them as JSON."""

from __future__ import annotations

import json
import os

from jobs.parallel import each
from jobs.train import ray_cluster


def mine(item: int) -> list[int]:
    """The GPUs that Ray has given to this call."""
    import ray

    return ray.get_gpu_ids()


if __name__ == "__main__":
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 2, "GPU": 2})
    with ray_cluster(2):
        os.environ["RAY_ADDRESS"] = "local"  # joined already
        print(json.dumps({str(gpu): list(each(mine, range(4), gpu=gpu)) for gpu in (True, False)}))
