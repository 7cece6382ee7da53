"""The driver of a Ray job: launches the ranks, relays requests to stop or save, reports fatal errors."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, cast

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
from jobs.ray.cluster import has_gpus
from jobs.ray.control import POLL_SECONDS, ControlActor, ControlPoller
from jobs.ray.metrics import RayMetricsTracker
from jobs.ray.storage import for_ray
from jobs.run.training import train_rank
from trainer.checkpoints.commit import Commit
from trainer.distributed.device import MARGIN
from trainer.distributed.ranks import rank, world_size
from trainer.distributed.requests import Requests
from trainer.tracking.listener import Listener

PREEMPTION_SECONDS = 600.0  # after a notice of preemption; a machine that is still there is kept
FAREWELL_SECONDS = 60.0
GROWTH_SECONDS = 5.0  # between two checks for free resources, and between the commits before Ray uses them
RESIZE_SECONDS = 30.0  # between Ray's own checks for more machines


def train(config: RunConfig) -> None:
    """Train on the Ray cluster that this process is connected to. SIGINT and SIGTERM make the run commit and exit.

    Raises ConfigError, DataError, StorageError or TrainingError in one line, whichever rank raised it.
    """
    # On the driver's node, like Ray's controller: it must not be lost with a machine of the ranks.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    control = ControlActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    # Ray accepts a checkpoint only below its experiment's folder, which therefore is the run folder.
    above, _, name = config.run.rpartition("/")
    filesystem, above = for_ray(above)
    trainer = AbortableTrainer(
        _rank,
        train_loop_config={"config": config.model_dump(mode="json"), "control": control},
        torch_config=TorchConfig(timeout_s=round(config.trainer.hang_timeout + MARGIN)),
        scaling_config=_scaling(config),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=above,
            storage_filesystem=filesystem,
            # preemptions have their own budget, unlimited
            failure_config=FailureConfig(
                max_failures=config.ray.max_failures,
                max_preemption_failures=-1,  # type: ignore[call-arg]
            ),
        ),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: control.request_stop.remote())
    watch = Watch(config, control, trainer)
    try:
        with watch:
            trainer.fit()
    except Exception:
        if watch.failure is None:
            raise
    if watch.failure is not None:
        raise watch.failure


class AbortableTrainer(TorchTrainer):
    """Ray's trainer, with a way to end `fit` from another thread; it leaves our signal handlers as they are."""

    _controller: ActorHandle[Any] | None = None

    def _register_sigint_handler(self, controller: ActorHandle[Any]) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the ranks; `fit` raises."""
        if self._controller is not None:
            self._controller.abort.remote()


class Watch:
    """A thread beside `fit`: ends it at once on a user error, which a restart would only repeat, and requests commits.

    `failure`: what ended it. When `fit` has returned, nothing waits for the ranks any longer and Ray can be shut down.
    """

    def __init__(self, config: RunConfig, control: ActorHandle[Any], trainer: AbortableTrainer):
        self.growth, self.control, self.trainer = Growth(config, control), control, trainer
        self.failure: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while self.failure is None and not self._ended.wait(POLL_SECONDS):
                self.failure = cast(Exception | None, ray.get(self.control.reported_failure.remote()))
                if self.growth.is_near():
                    self.control.request_save.remote()
        except Exception as error:
            self.failure = error
        if self.failure is not None:
            self.trainer.abort()


def _rank(settings: dict[str, Any]) -> None:
    """One rank, in a process that Ray has joined to the process group."""
    control: ActorHandle[Any] = settings["control"]
    try:
        config = RunConfig.model_validate(settings["config"])
        requests = RayRequests(ControlPoller(control))
        listeners: list[Listener] = [CommitReport(config.run)]
        if rank() == 0:
            ray.get(control.report_ranks.remote(world_size()))
            listeners.append(RayMetricsTracker(config.run.rsplit("/", 1)[-1]))
        train_rank(config, requests, listeners)
        if requests.preempted and not requests.stop():
            # Returning would end the run. Ray stops the ranks when the machine goes, and starts them elsewhere.
            time.sleep(PREEMPTION_SECONDS)
            raise RuntimeError("the machine announced as preempted is still there; restarting")
    except UnavailableError:
        raise  # the store may come back: Ray restarts the ranks
    except USER_ERRORS as error:
        ray.get(control.report_failure.remote(error))
        time.sleep(FAREWELL_SECONDS)  # the driver reports it and ends us; raising would add a traceback to its log
        raise


class RayRequests(Requests):
    """What the driver asks of a rank, and Ray's notices of preemption."""

    def __init__(self, control: ControlPoller):
        self.control = control
        self.preempted = False

    def stop(self) -> bool:
        return self.control.stop

    def save(self) -> bool:
        return self.control.take_save()

    def notice(self) -> bool:
        """Whether the machine of any rank is about to be taken away; a barrier of all ranks."""
        self.preempted = self.preempted or ray.train.get_preemption_info() is not None
        return self.preempted


class CommitReport(Listener):
    """Registers every commit with Ray, which neither writes nor reads it; a barrier of all ranks."""

    def __init__(self, run_url: str):
        self.run_url = run_url

    def on_commit(self, commit: Commit) -> None:
        filesystem, folder = for_ray(join(self.run_url, "checkpoints", commit.name))
        ray.train.report(
            {"images": commit.images},
            checkpoint=Checkpoint(path=folder, filesystem=filesystem),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )


class Growth:
    """Notices that an elastic run is about to be restarted with more ranks, so that it can commit first."""

    def __init__(self, config: RunConfig, control: ActorHandle[Any]):
        self.most: int = 0 if isinstance(config.ray.workers, int) else config.ray.workers[1]
        self.control, self.needed = control, _resources(config)
        self.looked = time.monotonic()

    def is_near(self) -> bool:
        """Whether the cluster has room for another rank; checked every GROWTH_SECONDS."""
        if not self.most or time.monotonic() < self.looked + GROWTH_SECONDS:
            return False
        self.looked = time.monotonic()
        ranks: int = ray.get(self.control.reported_ranks.remote())  # type: ignore[assignment]
        if not 0 < ranks < self.most:
            return False
        free = ray.available_resources()
        return all(free.get(name, 0) >= count for name, count in self.needed.items())


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
    """The resources of a rank."""
    gpus = config.ray.gpus_per_worker
    if gpus is None:
        gpus = int(has_gpus())
    return {"CPU": float(config.ray.cpus_per_worker)} | ({"GPU": float(gpus)} if gpus else {})
