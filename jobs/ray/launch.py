"""Short tasks on several ranks with Ray: joined in a process group, run once, not restarted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.cli import USER_ERRORS
from jobs.ray.cluster import has_gpus, ray_cluster


def on_ray(task: Callable[[dict[str, Any]], None], settings: dict[str, Any], workers: int) -> None:
    """Run `task(settings)` on `workers` ranks, each with a GPU if the cluster has any; returns when all have finished.

    Raises a rank's user error as the rank raised it.
    """
    with ray_cluster(workers):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import WorkerGroupError

        from jobs.ray.storage import for_ray

        filesystem, folder = for_ray("/lowerbound")  # Ray stores nothing
        trainer = TorchTrainer(
            task,
            train_loop_config=settings,
            # ranks beyond the number of GPUs wait
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=has_gpus()),
            run_config=RunConfig(name="task", storage_path=folder, storage_filesystem=filesystem),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if isinstance(failure, USER_ERRORS):
                    raise failure from None
            raise
