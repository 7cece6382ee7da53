"""Train on a Ray cluster, or on a Ray of this machine's own: the same run as `jobs.train_local`.

    python -m jobs.train CONFIG [key=value ...]
    ray job submit --working-dir . -- python -m jobs.train CONFIG [key=value ...]

Ray places the ranks, restarts them and is told of every commit; checkpoints are the trainer's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointUploadMode, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.storage import absolute, is_local, join
from jobs.cli import MENDABLE, run
from jobs.config import RunConfig, load_config
from jobs.desk import POLL_SECONDS, Desk, StopFromDesk
from jobs.ray_storage import filesystem_of
from jobs.worker import work
from trainer.lineage import Commit

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str]) -> int | None:
    """Train; 0 also after a stop that was asked for and committed."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description="Train by Ray Train.")
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, optim.lr=1e-4")
    parsed = parser.parse_args(arguments)
    config = with_absolute_paths(load_config(parsed.config, parsed.overrides))
    with ray_cluster(config):
        train(config)
    return 0


def train(config: RunConfig) -> None:
    """Run the job on the Ray that this process is connected to. SIGINT and SIGTERM make it commit and leave.

    Raises ConfigError, DataError, StorageError or TrainingError in one line, whichever rank found it.
    """
    desk = Desk.remote()  # type: ignore[attr-defined]
    # Ray's own records of this launch; resuming does not need them, so each launch has its own.
    storage_path, filesystem = join(config.run, "ray"), None
    if not is_local(config.run):
        filesystem, storage_path = filesystem_of(storage_path)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"config": config.model_dump(mode="json"), "desk": desk},
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(
            name=f"launch-{uuid.uuid4().hex[:8]}",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
        ),
    )
    # Ray's fit() takes SIGINT for itself when it runs in the main thread; there our own handlers stay.
    outcome: list[BaseException | None] = []

    def launch() -> None:
        try:
            trainer.fit()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: desk.ask_to_stop.remote())
    thread = threading.Thread(target=launch, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        # What only a person can mend is told at once, instead of being tried again and again.
        if failure := ray.get(desk.reported_failure.remote()):
            raise failure
    if error := outcome[0]:
        raise error


def _rank(settings: dict[str, Any]) -> None:
    """One rank, in a process that Ray has joined to the others."""
    desk: ActorHandle = settings["desk"]
    try:
        config = RunConfig.model_validate(settings["config"])
        work(config, should_stop=StopFromDesk(desk), on_commit=lambda commit: _tell_ray(config.run, commit))
    except MENDABLE as error:
        ray.get(desk.report_failure.remote(error))
        raise


def _tell_ray(run_url: str, commit: Commit) -> None:
    """Register a commit that we wrote ourselves; a barrier of all ranks."""
    folder, filesystem = join(run_url, "checkpoints", commit.name), None
    if not is_local(folder):
        filesystem, folder = filesystem_of(folder)
    ray.train.report(
        {"images": commit.images},
        checkpoint=Checkpoint(path=folder, filesystem=filesystem),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _scaling(config: RunConfig) -> ScalingConfig:
    gpus = config.ray.gpus_per_worker
    if gpus is None:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    resources = {"CPU": config.ray.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    workers: Any = config.ray.workers
    return ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Relative local paths made absolute: ranks have working directories of their own."""
    data = config.data
    paths = {"shards": absolute(data.shards), "validation": data.validation and absolute(data.validation)}
    data = data.model_copy(update=paths | {"index": data.index and absolute(data.index)})
    return config.model_copy(update={"run": absolute(config.run), "data": data})


@contextlib.contextmanager
def ray_cluster(config: RunConfig) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names (a submitted job has it), else one of this process's own, ended after it."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lb-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
        most = config.ray.workers if isinstance(config.ray.workers, int) else config.ray.workers[1]
        cpus = max(os.cpu_count() or 1, most * config.ray.cpus_per_worker)
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        try:
            yield
        finally:
            ray.shutdown()


if __name__ == "__main__":
    run(main)
