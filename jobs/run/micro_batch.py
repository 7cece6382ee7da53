"""`trainer.micro_batch: auto`: the largest micro-batch that fits, predicted from shapes and tried once; and what would
have fitted where memory ran out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cluster.storage.sizes import format_bytes
from datasets.order.dealing import largest_share
from jobs.config.resolved import ResolvedRun
from jobs.sizing.prediction import FREE, state_bytes
from trainer.distributed.node import ranks_per_node
from trainer.distributed.ranks import all_gather_object, world_size
from trainer.errors import TrainingError
from trainer.models.example import example
from trainer.networks.unit import units
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.flops import measure
from trainer.training.recomputation import recompute, recomputed_units
from trainer.training.state import TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator


def predicted_micro_batch(run: ResolvedRun, device: torch.device) -> int:
    """The largest micro-batch whose predicted bytes leave the share FREE of the memory free, in equal parts of the
    rank's share; the least of all ranks. All ranks together.

    Raises TrainingError if not one image fits.
    """
    share = largest_share(run.config.trainer.batch, run.streams, world_size())
    fixed, each = _costs(run, share)
    memory = free_memory(device)
    fits = min(all_gather_object(_fitting(memory, fixed, each), None))
    text = f"{format_bytes(fixed)} of state and {format_bytes(each)} per image in {format_bytes(memory)}"
    if fits < 1:
        raise TrainingError(f"trainer.micro_batch: auto: not one image fits: {text}; {_REMEDIES}")
    images = _in_equal_parts(share, fits)
    say_on_rank_zero(f"trainer.micro_batch: {images} images at once (predicted: {text})")
    return images


def tried_micro_batch(state: TrainState, images: int, accelerator: Accelerator) -> int:
    """The largest of `images`, half of it, ... with which a forward and backward pass succeeds on all ranks. The state
    stays as it is. All ranks together. Raises TrainingError if one image is too much.
    """
    while images:
        if not any(all_gather_object(_runs_out(state, images, accelerator), None)):
            return images
        images //= 2
        say_on_rank_zero(f"trainer.micro_batch: out of memory; trying {images}")
    raise TrainingError(f"trainer.micro_batch: auto: a pass over one image ran out of memory; {_REMEDIES}")


def out_of_memory(run: ResolvedRun, device: torch.device) -> TrainingError:
    """One line about a step that ran out of memory, with what would fit."""
    share = largest_share(run.config.trainer.batch, run.streams, world_size())
    fixed, each = _costs(run, share)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else free_memory(device)
    fits = min(share, _fitting(memory, fixed, each))
    at_once = min(run.config.trainer.images_at_once or share, share)
    if not 0 < fits < at_once:
        advice = f"lower trainer.micro_batch, or {_REMEDIES}" if at_once > 1 else _REMEDIES
    else:
        advice = f"trainer.micro_batch={_in_equal_parts(share, fits)} would fit by prediction, auto chooses it"
    needed = format_bytes(fixed + at_once * each)
    images = f"{at_once} image{'s' * (at_once > 1)}"
    return TrainingError(f"out of memory: {images} at once take about {needed} of {format_bytes(memory)}; {advice}")


def free_memory(device: torch.device) -> int:
    """Bytes that this rank may use now: of its GPU, or its part of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages // ranks_per_node()


_REMEDIES = "use trainer.activation_checkpointing, trainer.sharding: fsdp or more ranks"


def _costs(run: ResolvedRun, share: int) -> tuple[int, float]:
    """Bytes of a rank whatever the micro-batch, and of each image of it."""
    trainer, ranks = run.config.trainer, world_size()
    low = torch.bfloat16 if run.precision == "bf16" else torch.float32
    with FakeTensorMode():
        model = run.build_model()
    again, _ = recomputed_units(model, trainer.activation_checkpointing, trainer.images_at_once or share, low)
    for unit in again:
        recompute(unit)
    state = sum(state_bytes(model, run.config.optim.posthoc > 0))
    if trainer.sharding == "fsdp" and ranks > 1:
        over = ranks if trainer.shard_over == "auto" else trainer.shard_over
        sizes = sorted(sum(value.nbytes for value in unit.parameters()) for unit in units(model)) or [0]
        root = sum(value.nbytes for value in model.parameters()) - sum(sizes)
        state = state // over + 3 * sum(sizes[-2:]) + 2 * root  # gathered weights, gradients and buffers
    costs = measure(model, low)
    largest = max((unit.kept for unit in costs.units), default=0.0)  # computed again, or its gradients
    return state, costs.activations + 2 * largest


def _fitting(memory: int, fixed: int, each: float) -> int:
    return max(0, int(((1 - FREE) * memory - fixed) / max(each, 1)))


def _in_equal_parts(share: int, most: int) -> int:
    """The size of the least number of equal parts of a share that are no larger than `most`."""
    return -(-share // -(-share // min(most, share)))


def _runs_out(state: TrainState, images: int, accelerator: Accelerator) -> bool:
    with torch.device(accelerator.device):
        inputs = example(state.model, images)
    try:
        with state.parallel.exchanging(False):
            state.parallel(*inputs).loss.sum().backward()
        return False
    except torch.OutOfMemoryError:
        return True
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        state.parallel.reset()
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
