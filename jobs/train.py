"""Train on a Ray cluster, or on a Ray of this machine's own: the same run as `jobs.train_local`.

    python -m jobs.train CONFIG [key=value ...]
    ray job submit --working-dir . -- python -m jobs.train CONFIG [key=value ...]

Ray places the ranks, restarts them and is told of every commit; checkpoints are the trainer's own.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.storage import absolute
from jobs.cli import MENDABLE, run
from jobs.config import RunConfig, load_config
from trainer.models import LatentConfig

ROOT = Path(__file__).parents[1]

# So that a lost node costs seconds: a silent one is dead after about 8 s (Ray: 64 s) ...
PROMPT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
# ... and ranks that cannot be placed are given up after so many seconds, to try with fewer.
PATIENCE = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}


def main(arguments: Sequence[str]) -> int | None:
    """Train; 0 also after a stop that was asked for and committed."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description="Train by Ray Train.")
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, optim.lr=1e-4")
    parsed = parser.parse_args(arguments)
    config = with_absolute_paths(load_config(parsed.config, parsed.overrides))
    from jobs.worker import finished  # not before the arguments are known to be right

    if finished(config):  # no need of a cluster
        return 0
    most = config.ray.workers if isinstance(config.ray.workers, int) else config.ray.workers[1]
    with ray_cluster(most * config.ray.cpus_per_worker):
        from jobs.driver import train  # Ray reads its settings when it is imported

        train(config)
    return 0


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Relative local paths made absolute: ranks have working directories of their own."""
    changed: dict[str, Any] = {"run": absolute(config.run), "data": config.data.absolute()}
    if config.init_from:
        changed["init_from"] = absolute(config.init_from)
    if isinstance(config.model, LatentConfig):
        changed["model"] = config.model.model_copy(update={"vae": absolute(config.model.vae)})
    return config.model_copy(update=changed)


@contextlib.contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names (a submitted job has it), else one of this process's own, ended after it.

    One of our own offers `cpus` CPUs, or as many as the machine has if those are more.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        import ray

        ray.init()
        yield
        return
    with contextlib.ExitStack() as after:
        folder = after.enter_context(tempfile.TemporaryDirectory(prefix="lb-", ignore_cleanup_errors=True))
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        # before Ray is imported; its workers would otherwise run at a low priority
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
        os.environ |= {name: value for name, value in PROMPT.items() if name not in os.environ}
        import ray

        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cpus),
            include_dashboard=True,  # Ray Train asks it for the state of its actors
            dashboard_host="127.0.0.1",
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        after.callback(ray.shutdown)
        try:
            yield
        except MENDABLE:
            # A thread may still wait for the ranks, and Ray ends a process that asks for them after the shutdown: not
            # before the error has been said.
            atexit.register(after.pop_all().close)
            raise


if __name__ == "__main__":
    run(main)
