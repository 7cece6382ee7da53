"""The `trainer:` section of a run's YAML."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from trainer.checkpoints.retention import CheckpointConfig
from trainer.config import Config, MayChange
from trainer.distributed.device import ChannelsLast, Precision
from trainer.distributed.sharding import Sharding, ShardOver
from trainer.training.compilation import Compile
from trainer.training.guard import GuardConfig
from trainer.training.recomputation import ActivationCheckpointing


class TrainerConfig(Config):
    """The training loop. Everything is counted in images."""

    images: Annotated[PositiveInt, MayChange] = 200_000
    """Training budget: images after which training ends. A larger budget extends a finished run."""
    batch: PositiveInt = 128
    """Global batch size: images per optimizer step, over all ranks. Independent of the number of ranks."""
    micro_batch: Annotated[PositiveInt | Literal["auto"] | None, MayChange] = None
    """Largest number of images in one forward pass of a rank; gradients accumulate to the global batch. null: the
    rank's whole share. auto: as many as fit the memory, as predicted and tried once when a process starts."""
    precision: Annotated[Precision, MayChange] = "auto"
    """auto: bf16 autocast on GPU, fp32 on CPU. tf32: fp32 with TF32 matrix products and convolutions on GPU. If auto
    means another precision when a run is resumed on another machine, the run is refused until this key is set."""
    channels_last: Annotated[ChannelsLast, MayChange] = "auto"
    """Memory format of convolutional models. auto: channels_last on GPU for models without GroupNorm."""
    threads: Annotated[PositiveInt | None, MayChange] = None
    """CPU threads of each rank; null: PyTorch's default. With a fixed number a resumed run on CPU is bitwise equal to
    an uninterrupted one."""
    sharding: Annotated[Sharding, MayChange] = "ddp"
    """ddp: each rank holds the whole state. fsdp: each rank holds a shard of weights, gradients, averages and
    optimizer state (FSDP2); the weights of one block or stage at a time are gathered."""
    shard_over: Annotated[ShardOver, MayChange] = "auto"
    """With fsdp: the number of ranks, neighbours, that share one copy of the state; there are as many copies as fit
    (HSDP). Divides the number of ranks. auto: the ranks of a machine, where all machines have as many and more than
    one; else all ranks."""
    hang_timeout: Annotated[PositiveFloat, MayChange] = 600.0
    """Seconds without progress (a hanging rank, a lost network) after which a rank prints the stack traces of its
    threads and exits. Must exceed the longest outage of the store that is waited for (LOWERBOUND_PATIENCE)."""
    compile: Annotated[Compile, MayChange] = False
    """Compile the model with torch.compile: as a whole (true; with fsdp as units), or its blocks and stages one by one
    (units), which compiles blocks that are alike once."""
    activation_checkpointing: Annotated[ActivationCheckpointing, MayChange] = "none"
    """Blocks and stages of the model whose activations the backward pass computes again instead of keeping them: less
    memory, up to a third more time, the same results. none, all, {every: n}, or {budget: 20GiB}: as few as keep the
    activations of a micro-batch below so many bytes."""
    peak_flops: Annotated[PositiveFloat | None, MayChange] = None
    """Peak FLOP/s of a device, for the MFU. null: from a table of GPUs; no MFU on CPU."""
    profile: Annotated[NonNegativeInt, MayChange] = 0
    """Steps to profile after warm-up; the trace is written to <run>/profiles/."""
    log_every: Annotated[PositiveInt, MayChange] = 5_000
    """Images between rows of metrics."""
    evaluate_every: Annotated[PositiveInt, MayChange] = 50_000
    """Images between evaluations of the held-out set."""
    patience: Annotated[PositiveInt | None, MayChange] = None
    """Evaluations in a row without a better bound on the held-out set after which training ends. null: never. The run
    can be continued with a larger number."""
    checkpoint_every: Annotated[PositiveInt, MayChange] = 50_000
    """Images between checkpoints."""
    pictures: Annotated[NonNegativeInt, MayChange] = 64
    """Samples in the picture of an evaluation, which also has half as many reconstructions."""
    prompts: Annotated[tuple[str, ...], MayChange] = ()
    """Captions of which an evaluation draws a row of 8 images each, with the guidance of `model.sampling`. NAME=caption
    for models with several kinds of captions."""
    checkpoints: Annotated[CheckpointConfig, MayChange] = CheckpointConfig()
    """Which checkpoints are kept."""
    guard: Annotated[GuardConfig, MayChange] = GuardConfig()
    """When a step is skipped and when the run is rolled back."""

    @property
    def draws(self) -> bool:
        """Whether evaluations draw pictures."""
        return self.pictures > 0 or bool(self.prompts)

    @property
    def images_at_once(self) -> int | None:
        """`micro_batch`; None where it is the rank's whole share, or not decided yet."""
        return None if self.micro_batch == "auto" else self.micro_batch

    @model_validator(mode="after")
    def _contiguous_shards(self) -> Self:
        if self.channels_last is True and self.sharding == "fsdp":
            raise ValueError("channels_last: true needs sharding: ddp; FSDP2 shards contiguous parameters only")
        return self
