"""A model's state on the ranks: replicated (DDP), or sharded unit by unit (FSDP2, Zhao et al. 2023)."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

import torch
import torch.distributed as dist
from pydantic import PositiveInt
from torch import Tensor, nn

from trainer.distributed.node import ranks_per_node
from trainer.distributed.ranks import world_size
from trainer.distributed.stragglers import OwnTime
from trainer.elbo import Elbo
from trainer.errors import TrainingError
from trainer.networks.unit import units

if TYPE_CHECKING:  # they take seconds to import
    from accelerate import Accelerator
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from trainer.models.base import Model

Sharding = Literal["ddp", "fsdp"]
ShardOver = Annotated[Literal["auto"] | PositiveInt, "ranks that share one copy of the state"]


class Parallel:
    """A model wrapped for data-parallel training: called like the model, exchanges gradients in the backward pass.

    "fsdp" shards weights, gradients, averages and optimizer state. The weights of one unit (`trainer.networks.unit`)
    at a time are gathered for its forward and again for its backward pass, in bfloat16 under autocast to it, while
    the ranks compute the unit before. Gradients are reduced in float32. It needs a process group; one rank is enough.
    """

    def __init__(
        self,
        model: Model,
        accelerator: Accelerator,
        sharding: Sharding,
        shard_over: ShardOver = "auto",
        say: Callable[[str], None] = lambda line: None,
    ):
        """`say` prints which rank is slow. Raises TrainingError if `shard_over` does not divide the number of ranks."""
        self.accelerator, self.own_time = accelerator, OwnTime(accelerator.device, say)
        if sharding == "fsdp" and dist.is_initialized():
            mesh = shard_mesh(accelerator.device.type, shard_over)
            shard(model, mesh, torch.bfloat16 if accelerator.mixed_precision == "bf16" else None)  # in place
            self.forward: nn.Module = model
        else:
            self.forward = accelerator.prepare(model)
            # Accelerate patches `model.forward` with its autocast, which evaluation in float32 could not switch off.
            accelerator.unwrap_model(self.forward, keep_fp32_wrapper=False)

    def __call__(self, *inputs: Any) -> Elbo:
        sharded = _gathers(self.forward)
        if sharded:
            self.own_time.meets_others()
        with self.accelerator.autocast():
            elbo: Elbo = self.forward(*inputs)
        if not sharded:
            self.own_time.meets_others()
        return elbo

    @contextlib.contextmanager
    def exchanging(self, exchange: bool) -> Iterator[None]:
        """Whether the backward passes in the block exchange gradients; until one does they accumulate.

        Sharded gradients are summed within a copy of the state each time: whole ones might not fit. Only the sum over
        the copies waits.
        """
        if _gathers(self.forward):
            self.forward.set_requires_all_reduce(exchange)
            yield
        else:
            with contextlib.nullcontext() if exchange else self.accelerator.no_sync(self.forward):
                yield

    def reset(self) -> None:
        """Forget a pass that was not completed, with its gradients. All ranks together."""
        if _gathers(self.forward):
            self.forward.reset_iter_state()


def shard_mesh(device: str, shard_over: ShardOver) -> DeviceMesh:
    """The ranks as copies of the state, each sharded over neighbouring ranks ("replicate", "shard"), or as one copy.

    auto: a copy on each machine where all machines have as many ranks, more than one; else one copy over all. All
    ranks together. Raises TrainingError if `shard_over` does not divide the number of ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh

    ranks = world_size()
    over = ranks_per_node() if shard_over == "auto" else shard_over
    if ranks % over:
        raise TrainingError(f"trainer.shard_over: {over} does not divide the {ranks} ranks; use a divisor, or auto")
    if over in (1, ranks) and shard_over in ("auto", ranks):
        return init_device_mesh(device, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (ranks // over, over), mesh_dim_names=("replicate", "shard"))


def shard(model: Model, mesh: DeviceMesh, gathered_in: torch.dtype | None) -> None:
    """Shard a model in place: its units one by one, then what is left of it.

    The weights of units are gathered in `gathered_in` (None: as they are), those between units as they are, since a
    denoiser's first and last layers compute in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise TrainingError(f"trainer.sharding: fsdp cannot shard the scalar parameter {scalars[0]}; use ddp")
    # No part of a model changes in place what a unit returns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    low = MixedPrecisionPolicy(gathered_in, torch.float32, cast_forward_inputs=False)
    for unit in units(model):
        fully_shard(unit, mesh=mesh, mp_policy=low, reshard_after_forward=True)
    # Without resharding the parameters would be gathered copies after an evaluation.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


@contextlib.contextmanager
def gathered(model: nn.Module, needed: bool = True) -> Iterator[None]:
    """Inside the block all weights are gathered if `needed`, in full precision, for calls that not all ranks make. All
    ranks together.
    """
    if not needed:
        yield
        return
    sharded = [module for module in model.modules() if _gathers(module)]
    with whole_precision(model):
        for module in sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in sharded:
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()


@contextlib.contextmanager
def whole_precision(model: nn.Module) -> Iterator[None]:
    """Inside the block sharded weights are gathered with the precision that they have, not in bfloat16, and passes
    leave no trace: FSDP2 records the order of the units in all passes, by which it prefetches in the next backward
    pass, and ranks with other records would wait for each other forever. All ranks together, between steps.
    """
    modules = list(model.modules())
    if not _gathers(model):
        yield
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    groups = [
        (group, group.mp_policy)
        for module in modules
        if _gathers(module)
        for group in module._get_fsdp_state()._fsdp_param_groups
        if group.mp_policy.param_dtype is not None
    ]
    for group, _ in groups:
        _gather_with(group, MixedPrecisionPolicy())
    try:
        yield
    finally:
        for group, policy in groups:
            _gather_with(group, policy)
        model.reset_iter_state()


def gathered_weights(model: nn.Module) -> list[Tensor]:
    """The buffers that hold the weights of sharded units while they are gathered; empty in between."""
    return [
        buffer
        for module in model.modules()
        if _gathers(module)
        for group in module._get_fsdp_state()._fsdp_param_groups
        for parameter in group.fsdp_params
        for buffer in parameter.all_gather_outputs
    ]


def _gather_with(group: Any, policy: Any) -> None:
    """Let the weights of an FSDP2 group be gathered with another policy. torch 2.13 has no public way."""
    group.lazy_init()
    group.reshard()
    group.mp_policy = policy
    for parameter in group.fsdp_params:
        parameter.all_gather_outputs = []  # the buffer that the gathered parameter is a view of: made anew
        if hasattr(parameter, "_unsharded_param"):
            del parameter._unsharded_param
    group._init_mp_dtypes()


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


def copy_of(value: Tensor) -> tuple[int, int]:
    """Which copy of a sharded tensor this rank holds a part of, and the number of copies."""
    assert is_sharded(value)
    mesh = value.device_mesh
    return (mesh.get_local_rank(0), mesh.size(0)) if mesh.ndim == 2 else (0, 1)


def local(value: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return value.to_local() if is_sharded(value) else value


def gathered_tensor(value: Tensor) -> Tensor:
    """The whole tensor. All ranks together."""
    return value.full_tensor() if is_sharded(value) else value
