"""How much memory, compute and data a run takes, before it starts. Only shapes are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cluster.storage.sizes import format_bytes
from datasets.order.dealing import deal, largest_share
from datasets.order.streams import memory_needed
from jobs.config.resolved import ResolvedRun
from trainer.images import PatchSpec
from trainer.models import Model
from trainer.tracking.flops import Pass, measure
from trainer.training.posthoc_ema import WIDTHS

SHAPES = 3  # of the images that are listed, the most frequent


class StateBytes(NamedTuple):
    """Bytes of a run's state, of all ranks together when it is sharded."""

    weights: int
    gradients: int
    optimizer: int  # AdamW's two moments
    averages: int  # float32: the EMA, and those of `optim.posthoc`

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return self.weights + self.optimizer + self.averages


def state_bytes(model: Model, posthoc: bool) -> StateBytes:
    """Bytes of the state of a model in training, with the averages of `optim.posthoc` or without."""
    trained = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters() if tensor.requires_grad)
    average = 4 * sum(tensor.numel() for tensor in model.parameters())
    return StateBytes(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
        gradients=trained,
        optimizer=2 * trained,
        averages=average * (1 + len(WIDTHS) * posthoc),
    )


def size_report(run: ResolvedRun) -> str:
    """The sizes of a run, as text. Raises ConfigError in one line if the model does not fit the images."""
    with FakeTensorMode():
        model = run.build_model()
    costs = measure(model, torch.bfloat16 if run.precision == "bf16" else torch.float32)
    state = state_bytes(model, run.config.optim.posthoc > 0)
    trainer, (least, most) = run.config.trainer, _ranks(run)
    share = largest_share(trainer.batch, run.streams, least)
    ranks = f"{least} rank{'s' * (least > 1)}" if least == most else f"{least} to {most} ranks"
    epochs = trainer.images / run.index.images
    lines = {
        "parameters": _parameters(model),
        "memory": _memory(run, state, costs, least),
        "compute": f"{costs.flops / 1e9:.3g} GFLOP per image, forward and backward (matrix products, convolutions); "
        f"{costs.flops * trainer.images:.3g} FLOP in total",
        "images": f"{run.index.images:,} per epoch; {trainer.images:,} in total, {epochs:.3g} epochs",
        "steps": f"{-(-trainer.images // trainer.batch):,} of {trainer.batch} images; {ranks}, at most {share} images "
        "per rank",
        "patches": "" if run.spec.patches is None else _patches(run.spec.patches),
        "checkpoint": f"{format_bytes(state.checkpoint)}, every {trainer.checkpoint_every:,} images; "
        f"{max(trainer.checkpoints.keep, 2)} are kept",
        "loader": _loader(run, least),
    }
    return "".join(f"{name:11} {text}\n" for name, text in lines.items() if text)


def _patches(patches: PatchSpec) -> str:
    """The shapes of the training images, and the share of the tokens that is padding."""
    images = sum(count for *_, count in patches.grids)
    used = sum(rows * columns * count for rows, columns, count in patches.grids)
    listed = ", ".join(
        f"{rows * patches.side} x {columns * patches.side}" for rows, columns, _ in patches.grids[:SHAPES]
    )
    more = f" and {len(patches.grids) - SHAPES:,} more" if len(patches.grids) > SHAPES else ""
    padding = 1 - used / (images * patches.most)
    each = f"{patches.side} x {patches.side}"
    return f"up to {patches.most:,} of {each} pixels an image, {padding:.1%} padding; {listed}{more}"


def _ranks(run: ResolvedRun) -> tuple[int, int]:
    """The least and the largest number of ranks."""
    workers = run.config.ray.workers
    return (workers, workers) if isinstance(workers, int) else workers


def _parameters(model: Model) -> str:
    trained = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    total = sum(tensor.numel() for tensor in model.parameters())
    return f"{trained:,} trained" + (f" of {total:,}" if total != trained else "")


def _memory(run: ResolvedRun, state: StateBytes, costs: Pass, ranks: int) -> str:
    """The device memory of a rank, when there are `ranks` of them."""
    trainer = run.config.trainer
    share = largest_share(trainer.batch, run.streams, ranks)
    at_once = min(trainer.micro_batch or share, share)
    sharded = trainer.sharding == "fsdp" and ranks > 1
    parts = {name: -(-size // ranks) if sharded else size for name, size in state._asdict().items()}
    if sharded:  # the whole model is one unit, gathered for the forward and the backward pass
        parts["gathered weights and gradients"] = state.weights + state.gradients
    parts["activations about"] = round(at_once * costs.activations)
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
    precision = "bfloat16 autocast" if run.precision == "bf16" else run.precision
    note = f"activations: what autograd keeps for {at_once} images in {precision}; kernels' workspaces not included"
    return f"{format_bytes(sum(parts.values()))} per rank: {listed}\n{'':11} ({note})"


def _loader(run: ResolvedRun, ranks: int) -> str:
    """The host memory of a rank's loader, when there are `ranks` of them."""
    data = run.config.data
    streams = len(deal(run.streams, ranks, ranks - 1))
    needed = memory_needed(run.index, streams, data.window)
    within = "within" if needed <= data.memory else "above (so that each image is a request of its own)"
    return f"{format_bytes(needed)} of encoded images per rank, {within} data.memory {format_bytes(data.memory)}"
