"""The driver of a Ray job: launches the ranks, hands on the wish to stop, tells what went wrong."""

from __future__ import annotations

import signal
import threading
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointUploadMode, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.storage import join
from jobs.cli import MENDABLE
from jobs.config import RunConfig
from jobs.desk import POLL_SECONDS, Desk, StopFromDesk
from jobs.ray_storage import filesystem_of
from jobs.worker import work
from trainer.lineage import Commit


def train(config: RunConfig) -> None:
    """Run the job on the Ray that this process is connected to. SIGINT and SIGTERM make it commit and leave.

    Raises ConfigError, DataError, StorageError or TrainingError in one line, whichever rank found it.
    """
    desk = Desk.remote()  # type: ignore[attr-defined]
    # Ray accepts our checkpoints as its own only below its experiment's folder, which therefore is the run folder.
    above, _, name = config.run.rpartition("/")
    filesystem, above = filesystem_of(above)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"config": config.model_dump(mode="json"), "desk": desk},
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=above,
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
    filesystem, folder = filesystem_of(join(run_url, "checkpoints", commit.name))
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
