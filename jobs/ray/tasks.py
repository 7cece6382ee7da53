"""One call per item: on the Ray cluster of RAY_ADDRESS, else in processes of this machine, one per GPU or core."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

T = TypeVar("T")
R = TypeVar("R")

_ROOT = Path(__file__).parents[2]
_FEW = 8  # items that are not worth more processes on CPU


def each(call: Callable[[T], R], items: Sequence[T], processes: int | None = None, gpu: bool = False) -> Iterator[R]:
    """The results, in the order of completion. `call` has to be a function of a module.

    `gpu`: each process, or on a cluster each call, has a GPU of its own, its current CUDA device, where there are any.
    `processes` on this machine: None for one per GPU, else one per core. The first exception is raised; calls that
    have not started are dropped.
    """
    if os.environ.get("RAY_ADDRESS"):
        yield from _on_ray(call, items, gpu)
        return
    cores = os.cpu_count() or 1
    devices = place(processes, _gpus() if gpu else 0, cores, len(items))
    if len(devices) == 1:
        _set_device(devices[0])
        yield from map(call, items)
        return
    # Forks of one process that has imported the module, so that many cores do not import PyTorch many times.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_module(call)])
    free = context.SimpleQueue()
    for device in devices:
        free.put(device)
    with ProcessPoolExecutor(len(devices), context, _take_device, (free,)) as pool:
        try:
            for future in as_completed([pool.submit(call, item) for item in items]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def place(processes: int | None, gpus: int, cores: int, items: int) -> list[int | None]:
    """The GPU of each process that should run `items` calls; None for a process on CPU.

    One process per GPU; more than that, if requested, share them evenly. Without GPUs one process per core, but only
    one for a few items.
    """
    if gpus:
        return [i % gpus for i in range(max(1, min(processes or gpus, items)))]
    count = min(processes or cores, items)
    return [None] * (count if items >= _FEW else 1)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _take_device(free: SimpleQueue[int | None]) -> None:
    _set_device(free.get())


def _set_device(device: int | None) -> None:
    if device is not None:
        import torch

        torch.cuda.set_device(device)


def _module(call: Callable[..., object]) -> str:
    return _module(call.func) if isinstance(call, partial) else call.__module__


def share(cluster: dict[str, float], gpu: bool) -> tuple[int, int]:
    """The GPUs that a call asks for, and how many calls a cluster of such resources runs at once."""
    gpus = int(gpu and cluster.get("GPU", 0) > 0)
    return gpus, max(int(cluster.get("GPU" if gpus else "CPU", 1)), 1)


def _call(call: Callable[[T], R], item: T) -> R:
    return call(item)


def _on_ray(call: Callable[[T], R], items: Sequence[T], gpu: bool) -> Iterator[R]:
    import ray

    if not ray.is_initialized():
        paths = os.pathsep.join(dict.fromkeys([str(_ROOT), os.getcwd()]))  # here are encoders of users
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False)
    resources: Callable[[], dict[str, float]] = ray.cluster_resources  # untyped in Ray
    gpus, places = share(resources(), gpu)
    remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_call)
    shared = ray.put(call)  # sent once; it may be a partial, of which Ray makes no task
    at_once = 4 * places
    left = iter(items)
    running: list[ray.ObjectRef[R]] = []
    try:
        while True:
            running += [remote.remote(shared, item) for item in itertools.islice(left, at_once - len(running))]
            if not running:
                return
            (done,), running = ray.wait(running)
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    finally:
        for task in running:
            ray.cancel(task)
