"""One call for each of many items: on the Ray cluster that RAY_ADDRESS names, else in processes of this machine."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_ROOT = Path(__file__).parents[2]
_FEW = 8  # items that are not worth other processes


def each(call: Callable[[T], R], items: Sequence[T], processes: int | None = None, gpu: bool = False) -> Iterator[R]:
    """The results, in the order in which they come. `call` has to be a function of a module.

    `processes`: None for the cores of this machine. `gpu`: on a cluster each call has one, where the cluster has any.
    The first exception is raised and what has not begun is dropped.
    """
    if os.environ.get("RAY_ADDRESS"):
        yield from _on_ray(call, items, gpu)
        return
    processes = min(processes or os.cpu_count() or 1, len(items))
    if processes <= 1 or len(items) < _FEW:
        yield from map(call, items)
        return
    # Forks of one process that has imported the module, so that many cores do not import PyTorch many times.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_module(call)])
    with ProcessPoolExecutor(processes, context) as pool:
        try:
            for future in as_completed([pool.submit(call, item) for item in items]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


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
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT)}}, log_to_driver=False)
    gpus, places = share(ray.cluster_resources(), gpu)
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
