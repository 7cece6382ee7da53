"""How large a run is, before it is begun: parameters, memory, steps, bytes. Nothing is computed but shapes."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.config import in_words
from datasets.order.order import deal, largest_share
from datasets.reading.reader import memory_needed
from jobs.config.resolved import ResolvedRun
from trainer.models import Model
from trainer.tracking.flops import measure


def report(run: ResolvedRun) -> str:
    """The run's sizes, for a person. Raises ConfigError in one line if the model does not fit the images."""
    config, index, all_streams = run.config, run.index, run.streams
    with FakeTensorMode():
        model = run.build_model()
    tensors = [tensor for tensor in model.parameters() if tensor.requires_grad]
    trained = sum(tensor.numel() for tensor in tensors)
    own = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    averages = 4 * sum(tensor.numel() for tensor in model.parameters())
    optimizer = 2 * gradients  # AdamW's two moments

    least, most = (config.ray.workers,) * 2 if isinstance(config.ray.workers, int) else config.ray.workers
    bf16 = run.precision == "bf16"
    share = largest_share(config.trainer.batch, all_streams, least)
    at_once = min(config.trainer.micro_batch or share, share)
    taken = measure(model, torch.bfloat16 if bf16 else torch.float32)
    activations = at_once * taken.activations

    steps = -(-config.trainer.images // config.trainer.batch)
    streams = len(deal(all_streams, least, least - 1))
    loader = memory_needed(index, streams, config.data.window)
    within = "within" if loader <= config.data.memory else "above: images are then requested one by one; allowed are"
    ranks = f"{least} rank{'s' * (least > 1)}" if least == most else f"{least} to {most} ranks"
    epochs = config.trainer.images / index.images
    lines = {
        "parameters": f"{trained:,} trained" + (f" of {_count(model):,}" if _count(model) != trained else ""),
        "memory": f"{in_words(own + gradients + optimizer + averages + activations)} a rank: "
        f"weights {in_words(own)}, gradients {in_words(gradients)}, optimiser {in_words(optimizer)}, "
        f"averages {in_words(averages)}, activations about {in_words(activations)}",
        "": f"(activations estimated: what autograd keeps of {at_once} images at once in "
        f"{'bfloat16 autocast' if bf16 else 'float32'}; workspaces of kernels come on top)",
        "compute": f"{taken.flops / 1e9:.3g} GFLOP an image, forward and backward (matrix products, convolutions); "
        f"{taken.flops * config.trainer.images:.3g} FLOP in all",
        "images": f"{index.images:,} an epoch; {config.trainer.images:,} in all, {epochs:.3g} epochs",
        "steps": f"{steps:,} of {config.trainer.batch} images; {ranks}, at most {share} images a rank",
        "checkpoint": f"{in_words(own + optimizer + averages)}, every {config.trainer.checkpoint_every:,} images; "
        f"{max(config.trainer.checkpoints.keep, 2)} are kept",
        "loader": f"{in_words(loader)} of encoded images a rank, {within} data.memory {in_words(config.data.memory)}",
    }
    return "".join(f"{name:11} {text}\n" for name, text in lines.items())


def _count(model: Model) -> int:
    return sum(tensor.numel() for tensor in model.parameters())
