"""Train with Ray Train, on a cluster or on a local Ray: the same run as `jobs.train_local`.

    python -m jobs.train CONFIG [key=value ...]
    ray job submit --working-dir . -- python -m jobs.train CONFIG [key=value ...]

Ray places and restarts the ranks and is notified of every commit; the trainer reads and writes the checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.cli import config_parser, run
from jobs.config.loading import load_config
from jobs.config.resolved import with_absolute_paths
from jobs.ray.cluster import ray_cluster


def main(arguments: Sequence[str]) -> int | None:
    """Train; exit code 0 also after a requested stop, which commits."""
    parser = config_parser("train", __doc__)
    parsed = parser.parse_args(arguments)
    config = with_absolute_paths(load_config(parsed.config, parsed.overrides))
    from jobs.run.ending import finished  # after the arguments were checked: imports torch

    if finished(config):  # without starting a cluster
        return 0
    most = config.ray.workers if isinstance(config.ray.workers, int) else config.ray.workers[1]
    with ray_cluster(most * config.ray.cpus_per_worker):
        from jobs.ray.driver import train  # Ray reads its settings when it is imported

        train(config)
    return 0


if __name__ == "__main__":
    run(main)
