"""The state of a run: what is saved, restored and advanced."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.checkpoints.bounds import Bounds
from trainer.checkpoints.reading import SavedState
from trainer.checkpoints.staging import State
from trainer.distributed.device import to_device
from trainer.distributed.ranks import rank, world_size
from trainer.distributed.sharding import Parallel, gathered_tensor
from trainer.models.base import Model
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.flops import utilisation
from trainer.training.clipping import Clipping
from trainer.training.compilation import compile_model
from trainer.training.ema import Ema
from trainer.training.guard import Guard
from trainer.training.metrics import Metrics
from trainer.training.optimizer import OptimConfig, adamw, allocated_optimizer_state, learning_rate, optimizer_state
from trainer.training.posthoc_ema import PosthocEma
from trainer.training.recomputation import recompute, recomputed_units

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.training.config import TrainerConfig


@dataclass
class TrainState:
    """Everything that changes while a run trains, and the constants that it is saved with."""

    model: Model
    parallel: Parallel
    """The model as the ranks train it together."""
    optimizer: torch.optim.AdamW
    ema: Ema
    posthoc: PosthocEma | None
    guard: Guard
    metrics: Metrics
    clipping: Clipping
    optim: OptimConfig
    budget: int
    """Images after which training ends: the learning rate's horizon."""
    seed: int
    fingerprint: dict[str, Any]
    """What must not change when the run is resumed."""
    utilisation: float | None = None
    """Share of the device's peak FLOP/s at one image a second; None where it is unknown."""
    noise_salt: int = 0
    """Other than 0 after a rollback: selects other noise for all that follows."""
    lr_factor: float = 1.0
    """Learning-rate multiplier after a rollback."""
    images: int = 0
    """Images seen."""
    seen: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """`images` on the device, for the model."""
    bounds: Bounds = field(default_factory=Bounds)
    """Of the run's evaluations so far."""
    evaluation_owed: bool = False
    """An evaluation was due and has not been made: a commit came first, or a request to stop."""

    @classmethod
    def create(
        cls,
        model: Model,
        config: TrainerConfig,
        optim: OptimConfig,
        accelerator: Accelerator,
        seed: int,
        fingerprint: dict[str, Any],
    ) -> TrainState:
        """The state before the first step, of a model with its initial weights; moves it to the device."""
        to_device(model, accelerator.device, config.channels_last, config.sharding)
        bf16 = accelerator.mixed_precision == "bf16"
        image_utilisation = utilisation(model, bf16, config.peak_flops, say_on_rank_zero)
        prepare_units(model, config, torch.bfloat16 if bf16 else torch.float32)
        return cls(
            model=model,
            parallel=Parallel(model, accelerator, config.sharding, config.shard_over, say_on_rank_zero),
            optimizer=adamw(model, optim),
            ema=Ema(model, optim.ema),
            posthoc=PosthocEma(model) if optim.posthoc else None,
            guard=Guard(config.guard, accelerator.device),
            metrics=Metrics(accelerator.device),
            clipping=Clipping(optim.clip, accelerator.device),
            optim=optim,
            budget=config.images,
            seed=seed,
            fingerprint=fingerprint,
            utilisation=image_utilisation,
            seen=torch.zeros((), dtype=torch.float64, device=accelerator.device),
        )

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def noise_seed(self) -> int:
        """Of the training noise."""
        return self.seed + (self.noise_salt << 32)

    @property
    def learning_rate(self) -> float:
        """Of the step that was made last."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin_step(self) -> None:
        """Set the learning rate of the step that begins now, and clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_factor * learning_rate(self.optim, self.images, self.budget)
        self.parallel.own_time.begin_step()
        self.optimizer.zero_grad(set_to_none=True)

    def end_step(self, batch: int) -> None:
        """Step with the gradients of `batch` images, unless the guard skips them, and update the averages."""
        self.parallel.own_time.end_step(batch)
        norm = self.guard.step(self.optimizer, self.parameters, self.optim.clip)
        self.metrics.add_norm(norm)
        self.clipping.add(norm)
        self.images += batch
        self.seen += batch
        self.ema.update(self.images, batch)
        if self.posthoc:
            self.posthoc.update(self.images, batch)

    # ---- saved and restored

    def sections(self) -> State:
        """All that a checkpoint stores, by section: tensors (this rank's parts of sharded ones), or JSON."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            **({"posthoc": self.posthoc.state_dict()} if self.posthoc else {}),
            "optimizer": optimizer_state(self.optimizer, self.model),
            "progress": {
                "images": self.images,
                "evaluation_owed": self.evaluation_owed,
                "healthy": self.guard.healthy,
                "guard": self.guard.state.tolist(),
                "sums": self.metrics.state_dict(),
                "posthoc_start": self.posthoc.start if self.posthoc else 0,
                "noise_salt": self.noise_salt,
                "lr_factor": self.lr_factor,
            },
            "fingerprint": self.fingerprint,
        }

    def restore(self, saved: SavedState) -> None:
        """Continue from a commit of what `sections` gave. All ranks together.

        Raises DamagedError if a checksum fails, TrainingError if it is another model's.
        """
        moments = allocated_optimizer_state(self.optimizer, self.model, saved.names("optimizer"))
        into = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizer": moments}
        progress = saved.sections["progress"]
        if self.posthoc and saved.names("posthoc"):
            into["posthoc"] = self.posthoc.state_dict()
            self.posthoc.start = progress.get("posthoc_start", 0)
        elif self.posthoc:
            self.posthoc.start = progress["images"]
            say_on_rank_zero(f"optim.posthoc: averaging starts after {self.posthoc.start:,} images")
        saved.fill(into, whole=("model", "optimizer"))  # older versions also averaged what is not trained
        self.images = progress["images"]
        self.seen.fill_(self.images)
        self.evaluation_owed = progress.get("evaluation_owed", False)
        self.guard.state = torch.tensor(progress["guard"], device=self.guard.state.device)
        self.metrics.load_state_dict(progress["sums"])

    def averaged(self) -> dict[str, Tensor]:
        """The model's tensors with averaged weights, whole, in host memory; empty on ranks other than 0. All ranks
        together.
        """
        whole = {}
        for name, value in (self.model.state_dict() | self.ema.state_dict()).items():
            tensor = gathered_tensor(value)
            if rank() == 0:
                whole[name] = tensor.cpu()
        return whole


def prepare_units(model: Model, config: TrainerConfig, precision: torch.dtype) -> None:
    """Compile and recompute units as configured, in place, before they are sharded."""
    images = -(-config.batch // world_size())
    at_once = min(config.images_at_once or images, images)
    again, line = recomputed_units(model, config.activation_checkpointing, at_once, precision)
    if line:
        say_on_rank_zero(line)
    compile_model(model, config.compile, config.sharding)
    for unit in again:  # outside of what is compiled: FSDP2's hooks and checkpointing see plain calls
        recompute(unit)
