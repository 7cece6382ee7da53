"""First stages that were trained here: a VAE, or a ladder whose topmost prior the diffusion replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field
from torch import Tensor

from cluster.storage.storage import absolute
from trainer.config import Config, MayChange
from trainer.images import ImageSpec
from trainer.models.base import Model
from trainer.models.ladder.group import Draw, Group
from trainer.models.ladder.model import Features, Ladder, LadderConfig
from trainer.models.latent.first_stages.base import Decoded, Encoding, FirstStage, reshaped
from trainer.models.vae import Vae, VaeConfig
from trainer.noise import Noise
from trainer.normal import Normal


class RunStageConfig(Config):
    """A VAE or a ladder that was trained here, with averaged weights."""

    kind: Literal["run"]
    url: Annotated[str, AfterValidator(absolute), MayChange]
    """URL of its run or export. Read when a run starts, never again: its weights are part of checkpoints and
    exports."""
    model: Annotated[VaeConfig | LadderConfig, Field(discriminator="kind")] | None = None
    """Its architecture, recorded in run folders and exports. Do not set."""

    def build(self, spec: ImageSpec) -> FirstStage:
        """From the recorded architecture, with arbitrary weights. Raises ValueError if none is recorded."""
        if self.model is None:
            raise ValueError("first_stage.model: is missing; run folders and exports have it")
        return stage_of(self.model.build(spec))

    def open(self, spec: ImageSpec, load: Callable[[str], Model]) -> FirstStage:
        """With the weights at `url`. Raises ValueError if it does not fit the images, and what `load` raises."""
        model = load(self.url)
        if not isinstance(model, Vae | Ladder):
            kind = type(model).__name__
            raise ValueError(f"first_stage.url: {self.url} is a {kind}; a first stage is a vae or a ladder")
        if model.conditions:
            known = ", ".join(model.conditions)
            raise ValueError(f"first_stage.url: {self.url} is conditioned on {known}; a first stage must not be")
        if model.spec[:4] != spec[:4]:
            sizes = f"{tuple(model.spec[:4])}, these are {tuple(spec[:4])}"
            raise ValueError(f"first_stage.url: {self.url} is for images of {sizes} (channels, height, width, levels)")
        return stage_of(model)

    def recorded(self, stage: FirstStage) -> Self:
        """This configuration with all that `build` needs to rebuild `stage`."""
        assert isinstance(stage, VaeStage | LadderStage)
        return self.model_copy(update={"model": stage.model.config})

    def rebuilt_as(self, other: Config) -> Self | None:
        """This configuration with the architecture that `other` has recorded; None if it has not."""
        if not isinstance(other, RunStageConfig) or other.model is None:
            return None
        return self.model_copy(update={"model": other.model})


def stage_of(model: Vae | Ladder) -> FirstStage:
    """A model as a first stage."""
    return VaeStage(model) if isinstance(model, Vae) else LadderStage(model)


class VaeStage(FirstStage):
    """z is the latent of a VAE."""

    model: Vae

    def __init__(self, model: Vae):
        super().__init__(model, model.spec, model.likelihood, model.latent_shape)

    def encode(self, images: Tensor, noise: Noise) -> Encoding:
        return Encoding(reshaped(self.model.encode(images, noise), self.shape))

    def decode(self, z: Tensor, noise: Noise, encoding: Encoding | None = None) -> Decoded:
        return Decoded(self.model.decode(z if len(self.model.latent_shape) == 3 else z.flatten(1)), {})

    @property
    def takes_tiles(self) -> bool:
        _, height, width = self.shape
        in_maps = len(self.model.latent_shape) == 3
        return in_maps and not self.spec.height % height and not self.spec.width % width


class LadderStage(FirstStage):
    """z is the topmost level of a ladder; the levels below keep their priors."""

    model: Ladder
    posterior_suffices = False

    def __init__(self, model: Ladder):
        super().__init__(model, model.spec, model.likelihood, model.shapes[-1])
        top, _ = model.enter_top(1)
        top.is_unit = False  # its parts are called one by one

    def encode(self, images: Tensor, noise: Noise) -> Encoding:
        features = self.model.encode(images, noise)
        group, h = self.model.enter_top(len(images))
        p, h = group.prior(h, noise.normal("z", self.model.shapes[-1]))
        assert features[0] is not None
        return Encoding(reshaped(group.posterior(h, features[0], p), self.shape), features)

    def decode(self, z: Tensor, noise: Noise, encoding: Encoding | None = None) -> Decoded:
        shapes, below = self.model.shapes, dict[str, Draw]()
        features: Features | None = None if encoding is None else encoding.features
        top, levels = z.reshape(-1, *shapes[-1]), iter(range(len(shapes), 0, -1))

        def latents(group: Group, h: Tensor, seen: Tensor | None) -> Tensor:
            level = next(levels)
            if level == len(shapes):
                return group.below(group.prior(h, top)[1], top)
            h, below[f"z{level}"] = group(h, noise.normal(f"z{level}", shapes[level - 1]), seen)
            return h

        output = self.model.descend(len(z), None, features, latents).to(z.dtype)
        return Decoded(output, below)

    def prior(self, like: Tensor) -> Normal:
        group, h = self.model.enter_top(len(like))
        return reshaped(group.prior(h, like.reshape(-1, *self.model.shapes[-1]))[0], self.shape)
