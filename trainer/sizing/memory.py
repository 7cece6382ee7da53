"""The peak memory of a rank in training: the step itself, traced with tensors that have shapes and no data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.distributed.sharding import gathered_weights, local, shard, shard_mesh
from trainer.models.base import Model
from trainer.models.example import example
from trainer.sizing.tracker import KINDS, MemoryTracker
from trainer.training.ema import Ema
from trainer.training.optimizer import OptimConfig, adamw
from trainer.training.posthoc_ema import WIDTHS


class Pass(NamedTuple):
    """What a rank computes at once, and how the state is placed."""

    ranks: int
    shard_over: int | None  # ranks that share a copy of the state; None: each has the whole (DDP)
    images: int  # in one forward and backward pass
    bf16: bool
    accumulates: bool = False  # whether a step has several such passes, so that gradients are held meanwhile


class PeakMemory(NamedTuple):
    """Bytes of a rank by kind, when the sum is largest."""

    weights: int  # this rank's part, and buffers
    gradients: int
    moments: int  # of the optimizer
    averages: int  # the EMA, and those of `optim.posthoc`
    activations: int  # what autograd keeps
    gathered: int  # whole weights of the units in use
    buckets: int  # of collectives
    temporary: int  # whatever else an operation has in use

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self)


def peak_memory(build: Callable[[], Model], at_once: Pass, optim: OptimConfig) -> PeakMemory:
    """The peak over two steps (the first one allocates the moments). `build` makes the model, before it is sharded.

    The step is the real one: autocast, the backward pass, collectives on a group of ranks that do nothing, the norm of
    the gradients, the optimizer and the averages. Left out: the CUDA context, libraries' workspaces, and memory that
    the allocator holds in pieces.
    """
    with _group_of(at_once.ranks), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about speed, of tensors without data
        mesh = None if at_once.shard_over is None else shard_mesh("cpu", at_once.shard_over)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = build()
            if mesh is not None:
                shard(model, mesh, torch.bfloat16 if at_once.bf16 else None)
            return _traced(model, at_once, optim)


def _traced(model: Model, at_once: Pass, optim: OptimConfig) -> PeakMemory:
    """Two steps of a model of fake tensors."""
    optimizer, averages = adamw(model, optim), Ema(model, 1)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tracker = MemoryTracker()
    tracker.label(map(local, [*model.parameters(), *model.buffers()]), "weights")
    if at_once.shard_over is None:
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.label([p.grad], "gradients"))
    for last in (False, True, True) if at_once.accumulates else (False, True):
        inputs = example(model, at_once.images)
        tracker.restart()
        with tracker:
            tracker.default = "activations"
            with torch.autocast("cpu", torch.bfloat16, at_once.bf16):
                loss = model(*inputs).loss.sum()
            tracker.default = "temporary"
            loss.backward()
            del loss
        tracker.label(gathered_weights(model), "gathered")
        if last:
            continue
        optimizer.step()  # in place: allocates nothing but the moments, once
        moments = [value for state in optimizer.state.values() for value in state.values()]
        tracker.label(map(local, moments), "moments")
        optimizer.zero_grad(set_to_none=True)
    peak = tracker.peak
    if at_once.shard_over is None and at_once.ranks > 1:
        peak["gradients"] = sum(map(_bytes, parameters))  # DDP's buckets hold them between steps too
    held = sum(map(_bytes, averages.average.values()))
    peak["averages"] = held * (1 + len(WIDTHS) * bool(optim.posthoc))
    return PeakMemory(*(peak[kind] for kind in KINDS))


def _bytes(value: torch.Tensor) -> int:
    return local(value).numel() * value.element_size()


@contextlib.contextmanager
def _group_of(ranks: int) -> Iterator[None]:
    """A process group of `ranks`, of which this process is the first and the others do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
