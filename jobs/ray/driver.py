"""The driver of a Ray job: launches the ranks, hands on the wish to stop, tells what went wrong."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointUploadMode, FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.storage.errors import UnavailableError
from cluster.storage.storage import join
from jobs.cli import USER_ERRORS
from jobs.config.schema import RunConfig
from jobs.ray.control import POLL_SECONDS, ControlActor, ControlPoller
from jobs.ray.metrics import RayMetricsTracker
from jobs.ray.storage import as_ray_sees
from jobs.run.training import work
from trainer.checkpoints.lineage import Commit
from trainer.distributed.device import MARGIN
from trainer.distributed.ranks import rank, world_size

PREEMPTION_SECONDS = 600.0  # a machine that was to go and is still there after so long stays
FAREWELL_SECONDS = 60.0
GROWTH_SECONDS = 5.0  # between looks for room, and between the commits before Ray makes use of it
RESIZE_SECONDS = 30.0  # between Ray's looks for more machines


def train(config: RunConfig) -> None:
    """Run the job on the Ray that this process is connected to. SIGINT and SIGTERM make it commit and leave.

    Raises ConfigError, DataError, StorageError or TrainingError in one line, whichever rank found it.
    """
    # Beside this process, as Ray's controller: it must not be lost with a machine of the ranks.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ControlActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    # Ray takes a checkpoint for its own only below its experiment's folder, which therefore is the run folder.
    above, _, name = config.run.rpartition("/")
    filesystem, above = as_ray_sees(above)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"config": config.model_dump(mode="json"), "desk": desk},
        torch_config=TorchConfig(timeout_s=round(config.trainer.hang_timeout + MARGIN)),
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=above,
            storage_filesystem=filesystem,
            # pre-emptions have a budget of their own, without end
            failure_config=FailureConfig(
                max_failures=config.ray.max_failures,
                max_preemption_failures=-1,  # type: ignore[call-arg]
            ),
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
        signal.signal(number, lambda number, frame: desk.request_stop.remote())
    thread = threading.Thread(target=launch, daemon=True)
    thread.start()
    growth = Growth(config, desk)
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        # What only a person can mend is told at once, instead of being tried again and again.
        if failure := ray.get(desk.reported_failure.remote()):
            raise failure
        if growth.is_near():
            desk.request_save.remote()
    if error := outcome[0]:
        raise error


def _rank(settings: dict[str, Any]) -> None:
    """One rank, in a process that Ray has joined to the others."""
    desk: ActorHandle = settings["desk"]
    try:
        config = RunConfig.model_validate(settings["config"])
        wishes, preemption = ControlPoller(desk), Preemption()
        if rank() == 0:
            ray.get(desk.report_ranks.remote(world_size()))
        work(
            config,
            should_stop=wishes.should_stop,
            should_save=wishes.should_save,
            notice=preemption.is_near,
            on_commit=lambda commit: _tell_ray(config.run, commit),
            more_trackers=[RayMetricsTracker(config.run.rsplit("/", 1)[-1])],
        )
        if preemption.noticed and not wishes.stop:
            # To return would end the run. Ray takes the ranks down when the machine goes and starts them elsewhere.
            time.sleep(PREEMPTION_SECONDS)
            raise RuntimeError("the machine whose end was announced is still there; starting again")
    except UnavailableError:
        raise  # a store that is away may come back: Ray starts the ranks again
    except USER_ERRORS as error:
        ray.get(desk.report_failure.remote(error))
        time.sleep(FAREWELL_SECONDS)  # the driver says it and ends us; what we raise would be a traceback in its log
        raise


class Preemption:
    """Ray's notice that the machine of a rank will be taken away."""

    def __init__(self) -> None:
        self.noticed = False

    def is_near(self) -> bool:
        """A barrier of all ranks."""
        self.noticed = self.noticed or ray.train.get_preemption_info() is not None
        return self.noticed


class Growth:
    """Looks whether an elastic run is about to be started again with more ranks, so that it commits before."""

    def __init__(self, config: RunConfig, desk: ActorHandle):
        self.most: int = 0 if isinstance(config.ray.workers, int) else config.ray.workers[1]
        self.desk, self.needed = desk, _resources(config)
        self.looked = time.monotonic()

    def is_near(self) -> bool:
        """Whether there is room for another rank; asked again only after a while."""
        if not self.most or time.monotonic() < self.looked + GROWTH_SECONDS:
            return False
        self.looked = time.monotonic()
        ranks: int = ray.get(self.desk.reported_ranks.remote())  # type: ignore[assignment]
        if not 0 < ranks < self.most:
            return False
        free = ray.available_resources()
        return all(free.get(name, 0) >= count for name, count in self.needed.items())


def _tell_ray(run_url: str, commit: Commit) -> None:
    """Register a commit that we wrote ourselves; a barrier of all ranks."""
    filesystem, folder = as_ray_sees(join(run_url, "checkpoints", commit.name))
    ray.train.report(
        {"images": commit.images},
        checkpoint=Checkpoint(path=folder, filesystem=filesystem),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _scaling(config: RunConfig) -> ScalingConfig:
    resources = _resources(config)
    workers: Any = config.ray.workers
    return ScalingConfig(
        num_workers=workers,
        use_gpu="GPU" in resources,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,  # type: ignore[call-arg]
    )


def _resources(config: RunConfig) -> dict[str, float]:
    """What a rank takes."""
    gpus = config.ray.gpus_per_worker
    if gpus is None:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    return {"CPU": float(config.ray.cpus_per_worker)} | ({"GPU": float(gpus)} if gpus else {})
