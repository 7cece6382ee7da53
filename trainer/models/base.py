"""The interface of models: all that training, evaluation and sampling know of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from trainer.condition_values import Condition, TokenArrays, as_condition
from trainer.conditions import ConditionUses, all_given, in_words, none_given
from trainer.config import Config
from trainer.elbo import Elbo
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.noise import Noise

DISTORTION = "distortion"  # the term of a bound beside its rates


class Picture(NamedTuple):
    """Images to show as a grid."""

    images: Tensor  # uint8 levels [N, C, H, W]
    columns: int | None = None  # None: about a square
    of: str = ""  # a caption: what they are and what they are conditional on


class Bound(NamedTuple):
    """A bound, or another estimate, of -log p(x) that a model can be evaluated by."""

    title: str
    """For reports; `{draws}` stands for the number of draws of the latents of an image."""
    terms: Callable[[Tensor, Condition, Noise, int], dict[str, Tensor]]
    """(images, condition, noise, draws) -> [B] nats each; their sum is the estimate."""


class Refinement(NamedTuple):
    """What a decoder has of images when it has received a level of their latents and all above it."""

    name: str
    rate: Tensor  # [B] nats: of this level alone
    images: Tensor  # uint8 levels [B, C, H, W]: the estimate of the images


class NoiseLevels(NamedTuple):
    """The noise levels of a model whose latents are noisy versions of some x; gamma = -log SNR rises with t."""

    ends: tuple[float, float]  # gamma at t = 0 and t = 1
    dimensions: Callable[[Tensor], Tensor]
    """Images -> number of values of x of each, float64 [B]."""
    level: Callable[[Tensor], tuple[Tensor, Tensor]]
    """t [B] -> gamma [B] and the weight w [B], so that the bound has E[w |eps - eps'|^2 / 2] over t ~ U(0, 1)."""
    squared_error: Callable[[Tensor, Condition, Noise, Tensor], Tensor]
    """(images, condition, noise, gamma [B]) -> |eps - eps'|^2 [B], of the noise that the bound draws."""


class ModelConfigBase(Config):
    """Section `model` of a run. A subclass with a `kind: Literal[...]` in a module of `trainer.models` is a choice."""

    SamplingOptions: ClassVar[type[Config]] = Config
    """Type of the options of the model's `sample` besides condition and temperature; Config: it has none."""
    CONDITIONS: ClassVar[str] = "conditions"
    """Dotted key of the section that names the model's conditions, if it takes some."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of `data.conditions` of kind vector that come from the image, in place of a part of the model."""
        return ()

    @property
    def takes_patches(self) -> bool:
        """Whether the model takes images of any shape, in patches (`ImageSpec.patches`)."""
        return False

    def build(self, spec: ImageSpec) -> Model:
        """The model with initial weights, from nothing but this configuration and the images.

        Raises ValueError, named by the key, where it does not fit the images.
        """
        raise NotImplementedError

    def build_new(self, spec: ImageSpec, load: Callable[[str], Model]) -> Model:
        """The model at the start of a run. `load` opens trained models that it is made of, named by URL; only here.

        Raises ValueError like `build`, and what `load` raises.
        """
        return self.build(spec)

    def rebuild(self, spec: ImageSpec, recorded: ModelConfigBase | None) -> Model | None:
        """The model with arbitrary weights, to be restored; `recorded`: what the run folder says of it.

        None if the model is made of parts named by URL that `recorded` lacks.
        """
        return self.build(spec)

    def self_contained(self, model: Model) -> Self:
        """This configuration with all that `build` needs to rebuild `model`, parts named by URL included."""
        return self


class Model(nn.Module):
    """A model that maximises an evidence lower bound.

    `forward` is the one entry in training, so that DDP and FSDP see every parameter. Nothing in it may depend on how
    the batch is split (no BatchNorm). What only some models have (conditions, bounds besides the ELBO, options of
    `sample`, trajectories, pictures) a model declares by overriding the methods below `log_weights`.
    """

    spec: ImageSpec
    class_names: tuple[str, ...] = ()
    """Names of the classes 0, 1, ... of the training set, where it has some."""
    tokenizers: Mapping[str, str] = MappingProxyType({})
    """For each condition that is text: the contents of its tokenizer.json."""
    columns: tuple[str, ...] = ()
    """What `forward` is given beside the conditions: `ModelConfigBase.columns`."""
    measured_images = 0
    """Training images that `measure` is given when a run starts; 0: it is not called."""
    is_density = False  # True: x is continuous, so the bound is of a density: nats, never bits per dimension

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        """The bound of `images` (uint8 levels [B, C, H, W]); `progress` is the number of images seen, a scalar."""
        raise NotImplementedError

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Set buffers that depend on the training set, before the first step, from uint8 images [B, C, H, W] of it.

        Each rank has other images; all ranks together. With `init_from` it is not called: they are taken from there.
        """

    def sample(self, noise: Noise, condition: Condition = None, temperature: float = 1.0) -> Tensor:
        """New images, uint8 levels [B, C, H, W], one for each position of `noise`."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """Decoded from the images' own latents, uint8 levels [B, C, H, W]."""
        raise NotImplementedError

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        """[B, k] nats: log p(x, z) - log q(z | x) for k draws of z (Burda et al. 2016, equation 8)."""
        raise NotImplementedError

    @property
    def conditions(self) -> Collection[str]:
        """Names of what the model can be conditioned on."""
        return ()

    @property
    def hidden_in_training(self) -> Mapping[str, float]:
        """The probability with which training hides each condition from an image. Without a condition that is never
        hidden, a bound or a sample means little.
        """
        return dict.fromkeys(self.conditions, 0.0)

    @property
    def bounds(self) -> Mapping[str, Bound]:
        """The estimates of -log p(x), by name."""
        return {
            "elbo": Bound("-ELBO, mean of {draws} draws", self._elbo),
            "iw": Bound("importance-weighted bound of {draws} draws", self._importance_weighted),
        }

    @property
    def noise_levels(self) -> NoiseLevels | None:
        """The noise levels that a part of the bound is an integral over; None: the model has none."""
        return None

    def set_steps(self, steps: int) -> None:
        """From now on evaluate bounds with T = `steps` latents. Raises TrainingError if T is not a choice."""
        raise TrainingError(f"a {type(self).__name__} has a fixed number of latents")

    @property
    def sampling(self) -> Config:
        """The options of `sample` that the run's configuration chooses, of type SamplingOptions."""
        return Config()

    @property
    def picture_options(self) -> Mapping[str, Any]:
        """Options of `sample` for pictures, where they differ from `sampling`."""
        return {}

    def sampling_with(self, options: Mapping[str, Any], conditioned: bool) -> Config:
        """`sampling` with some `options` changed, which become keyword arguments of `sample` and `trajectory`.

        Raises ValueError, named by the option, for what the model does not have or cannot do.
        """
        for name in options:
            if name not in type(self.sampling).model_fields:
                raise ValueError(f"{name}: a {type(self).__name__} has no such option")
        return self.sampling.model_validate(self.sampling.model_dump() | dict(options))

    def trajectory(
        self, noise: Noise, condition: Condition = None, temperature: float = 1.0, **options: Any
    ) -> Iterator[Tensor]:
        """Estimates of the samples on the way to them, the samples last: uint8 levels [B, C, H, W] each.

        Raises TrainingError if the model samples in one step.
        """
        raise TrainingError(f"a {type(self).__name__} samples in one step and has no trajectory")

    def refinements(self, images: Tensor, condition: Condition, noise: Noise) -> Iterator[Refinement]:
        """The levels of latents in the order in which a decoder receives them, at last the image itself (DISTORTION).

        The rates add up to the bound.

        Raises TrainingError if the model has one level.
        """
        raise TrainingError(f"a {type(self).__name__} has one level of latents: its bits come all at once")

    def pictures(self, images: Tensor | None, condition: Condition, noise: Noise) -> dict[str, Picture]:
        """Pictures to look at: samples, one for each position of `noise`, and held-out `images` beside their
        reconstructions, if given.

        A model with more to show (levels of a hierarchy, steps of a diffusion) adds to it.
        """
        options = self.picture_options
        of = self.samples_in_words(options, none_given(known_conditions(self)))
        shown = {"samples": Picture(self.sample(noise, **options), of=of)}
        if images is not None:
            made = self.reconstruct(images, condition, replace(noise, positions=noise.positions[: len(images)]))
            given = all_given(name for name in condition or () if name not in self.columns)
            of = f"held-out images, each with its reconstruction, {in_words(given)}"
            shown["reconstructions"] = Picture(torch.stack([images, made], dim=1).flatten(0, 1), of=of)
        return shown

    def samples_in_words(self, options: Mapping[str, Any], uses: ConditionUses) -> str:
        """What samples made with `options` of `sample` are, for captions and reports: "samples, unconditional"."""
        return f"samples, {in_words(uses)}"

    def _elbo(self, images: Tensor, condition: Condition, noise: Noise, draws: int) -> dict[str, Tensor]:
        """[B] nats each: distortion and rates, averaged over the draws."""
        progress = torch.zeros((), device=images.device)
        total: dict[str, Tensor] = {}
        for draw in range(draws):
            elbo = self(images, condition, noise.with_draw(draw, draws), progress)
            for name, value in {DISTORTION: elbo.distortion, **elbo.rates}.items():
                total[name] = total[name] + value / draws if draw else value / draws
        return total

    def _importance_weighted(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> dict[str, Tensor]:
        """[B] nats: -log 1/k sum w (Burda et al. 2016, equation 8)."""
        return {"iw": math.log(k) - torch.logsumexp(self.log_weights(images, condition, noise, k), dim=1)}


def takes_labels(model: Model) -> bool:
    """Whether the model is conditioned on the classes of its data set."""
    return "label" in model.conditions and bool(model.spec.classes)


def known_conditions(model: Model) -> list[str]:
    """Names of the conditions that the model takes and its data set has."""
    return [name for name in model.conditions if name != "label" or model.spec.classes]


def condition(model: Model, given: Mapping[str, Tensor | TokenArrays], uses: ConditionUses | None = None) -> Condition:
    """The columns of a batch, and the conditions that the model takes and `uses` (None: all) does not leave out."""
    names = {name for name in known_conditions(model) if uses is None or uses[name] != "none"}
    return as_condition(given, names.union(model.columns))
