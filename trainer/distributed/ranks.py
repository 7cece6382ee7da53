"""Collectives of the ranks beyond the model's own: sums, objects, errors."""

from __future__ import annotations

import contextlib
import gc
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from trainer.errors import TrainingError

T = TypeVar("T")


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over the ranks, as a new tensor."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def new_gloo_group(timeout: float, ranks: list[int] | None = None) -> dist.ProcessGroup | None:
    """A gloo group of all ranks, or of some, with a timeout in seconds; None for a single rank. All ranks together."""
    if world_size() == 1:
        return None
    group: dist.ProcessGroup = dist.new_group(ranks, backend="gloo", timeout=timedelta(seconds=timeout))
    return group


def gather_object(mine: T, group: dist.ProcessGroup | None) -> list[T]:
    """The objects of all ranks as a list on rank 0; an empty list on the others."""
    if group is None:
        return [mine]
    parts: list[T] | None = [mine] * world_size() if rank() == 0 else None
    dist.gather_object(mine, parts, dst=0, group=group)
    return parts or []


def all_gather_object(mine: T, group: dist.ProcessGroup | None) -> list[T]:
    """The objects of all ranks, as a list on every rank."""
    if world_size() == 1:
        return [mine]
    parts: list[T] = [mine] * world_size()
    dist.all_gather_object(parts, mine, group=group)
    return parts


def broadcast_object(value: T, group: dist.ProcessGroup | None) -> T:
    """The object of rank 0, on every rank."""
    if group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def on_rank_zero(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run `action` on rank 0 and return its result on every rank; an error of rank 0 is raised by all of them.

    The others wait in `group`; None: in the default group, whose timeout follows from `trainer.hang_timeout`.
    """
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, None]  # result, error
    failure: Exception | None = None
    if rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            failure, outcome[1] = error, portable(error)
    dist.broadcast_object_list(outcome, src=0, group=group)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def portable(error: Exception) -> Exception:
    """The error as another rank can raise it: the same class, so that a caller who retries an outage retries it on
    every rank; a TrainingError with its message if the class cannot be pickled.
    """
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    return TrainingError(str(error) or type(error).__name__)


def shutdown() -> None:
    """Destroy the process group, all ranks together, and join its threads; a no-op without one.

    A gloo thread that still holds a tensor while the interpreter shuts down would abort the process after all work was
    done ("terminate called without an active exception").
    """
    if not dist.is_initialized():
        return
    # A DistributedDataParallel in a cycle must not be the last to hold the group: its destructor would join the group's
    # threads without releasing the interpreter's lock, for which a thread may wait that drops a finished collective.
    gc.collect()
    with contextlib.suppress(RuntimeError):  # another rank has died: that is its own failure
        dist.barrier()
    dist.destroy_process_group()
    gc.collect()  # drops the group's last references, which sit in cycles; its threads are joined with them
