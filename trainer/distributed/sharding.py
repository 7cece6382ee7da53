"""A model's state on the ranks: replicated (DDP), or sharded (FSDP2, Zhao et al. 2023)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch.distributed as dist
from torch import Tensor, nn

from trainer.elbo import Elbo
from trainer.errors import TrainingError

if TYPE_CHECKING:  # they take seconds to import
    from accelerate import Accelerator
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from trainer.models.base import Model

Sharding = Literal["ddp", "fsdp"]


class Parallel:
    """A model wrapped for data-parallel training: called like the model, exchanges gradients in the backward pass.

    "fsdp" shards weights, gradients, averages and optimizer state, and gathers the weights for the forward and again
    for the backward pass, as one unit. It needs a process group; one rank is enough.
    """

    def __init__(self, model: Model, accelerator: Accelerator, sharding: Sharding):
        self.accelerator = accelerator
        if sharding == "fsdp" and dist.is_initialized():
            from torch.distributed.fsdp import fully_shard

            _refuse_scalars(model)
            # Without resharding the parameters would be gathered copies after an evaluation.
            fully_shard(model, reshard_after_forward=True)  # in place
            self.forward: nn.Module = model
        else:
            self.forward = accelerator.prepare(model)
            # Accelerate patches `model.forward` with its autocast, which evaluation in float32 could not switch off.
            accelerator.unwrap_model(self.forward, keep_fp32_wrapper=False)

    def __call__(self, *inputs: Any) -> Elbo:
        with self.accelerator.autocast():
            return self.forward(*inputs)

    @contextlib.contextmanager
    def exchanging(self, exchange: bool) -> Iterator[None]:
        """Whether the backward passes in the block exchange gradients; until one does they accumulate."""
        if _gathers(self.forward):
            self.forward.set_requires_gradient_sync(exchange)
            yield
        else:
            with contextlib.nullcontext() if exchange else self.accelerator.no_sync(self.forward):
                yield


def _refuse_scalars(model: nn.Module) -> None:
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise TrainingError(f"trainer.sharding: fsdp cannot shard the scalar parameter {scalars[0]}; use ddp")


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gathers the weights inside the block, for calls other than `forward`. All ranks together."""
    if not _gathers(model):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def _gathers(model: nn.Module) -> TypeGuard[FSDPModule]:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # nothing is an FSDPModule before the import
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def is_sharded(value: Tensor) -> TypeGuard[DTensor]:
    """Whether this rank holds only a part of the tensor."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def local_part(value: Tensor) -> tuple[Tensor, list[int]]:
    """This rank's part of a sharded tensor, and its offset in the whole."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert is_sharded(value)
    _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return value.to_local(), list(offset)


def local(value: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return value.to_local() if is_sharded(value) else value


def gathered_tensor(value: Tensor) -> Tensor:
    """The whole tensor. All ranks together."""
    return value.full_tensor() if is_sharded(value) else value
