"""A diffusion of images in patches is the same diffusion: of each image alone, whatever it is padded with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from tests.trainer.models import batch
from trainer.coding.streams import coder_of
from trainer.errors import TrainingError
from trainer.images import ImageSpec, PatchSpec
from trainer.models import Model, ModelConfig
from trainer.noise import Noise
from trainer.patches import Patches, as_batch, by_shape, grid_for, sampled_grids, strips, whole_images
from trainer.training.evaluation import evaluate

MOST, SIDE = 16, 2
GRIDS = [(4, 4), (2, 7), (5, 2), (1, 1)]
SPEC = ImageSpec(3, 0, 0, 256, patches=PatchSpec(MOST, SIDE, tuple((*grid, 1) for grid in GRIDS)))


def config(**changes: Any) -> dict[str, Any]:
    network = {"kind": "dit", "patch": SIDE, "width": 16, "depth": 2, "heads": 2}
    network |= changes.pop("network", {})
    denoiser = {"network": network, "prediction": {"kind": "mixture", "components": 2}, "embedding": 16, "fourier": [7]}
    return {"kind": "diffusion", "denoiser": denoiser, "sampling": {"steps": 3}, **changes}


def build(spec: ImageSpec, **changes: Any) -> Model:
    torch.manual_seed(0)
    model = TypeAdapter(ModelConfig).validate_python(config(**changes)).build(spec)
    with torch.no_grad():
        for parameter in model.parameters():  # gates and the last layer start at zero
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def image_of(grid: tuple[int, int], channels: int = 3) -> Tensor:
    return batch(ImageSpec(channels, grid[0] * SIDE, grid[1] * SIDE), 1, seed=grid[0])


def packed(images: list[Tensor], most: int = MOST) -> Tensor:
    """A batch in patches, made by hand."""
    found = torch.zeros(len(images), most, 2 + images[0].shape[1] * SIDE**2, dtype=torch.uint8)
    for row, image in zip(found, images, strict=True):
        patches = image[0].unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)  # [C, rows, columns, P, P]
        rows, columns = patches.shape[1:3]
        for i in range(rows * columns):
            row[i, :2] = torch.tensor([1 + i // columns, 1 + i % columns])
            row[i, 2:] = patches[:, i // columns, i % columns].permute(1, 2, 0).flatten()
    return found


def terms(model: Model, images: Tensor, positions: list[int], purpose: str = "train") -> Tensor:
    """float64 [B, terms], with gradients of their sum in the parameters."""
    noise = Noise(3, purpose, torch.tensor(positions), batch=8)
    elbo = model(images, None, noise, torch.zeros(()))
    model.zero_grad()
    elbo.loss.sum().backward()
    return torch.stack([elbo.distortion, *elbo.rates.values(), elbo.loss], 1).detach().double()


def test_a_batch_holds_images_of_any_shape():
    images = [image_of(grid) for grid in GRIDS]
    batch = packed(images)
    for mine, image in zip(whole_images(batch, SPEC), images, strict=True):
        assert torch.equal(mine, image[0])
    patches = Patches.of_images(batch)
    assert torch.equal(as_batch(strips(batch, SPEC), patches), batch)
    rows, columns = torch.tensor(GRIDS).T
    assert all(map(torch.equal, Patches.of_grids(rows, columns, MOST), patches))
    assert [(numbers.tolist(), len(found)) for numbers, found in by_shape(torch.cat([batch, batch[1:2]]), SPEC)] == [
        ([0], 1),
        ([1, 4], 2),
        ([2], 1),
        ([3], 1),
    ]
    assert SPEC.dimensions_of(batch).tolist() == [12.0 * rows * columns for rows, columns in GRIDS]


@pytest.mark.parametrize("shape", GRIDS)
def test_the_noise_of_a_patch_is_that_of_its_place_in_the_image(shape):
    rows, columns = torch.tensor([shape]).T
    noise = Noise(1, "train", torch.tensor([5]), batch=8, patches=Patches.of_grids(rows, columns, 20))
    found = noise.normal("eps", (3, 20 * SIDE, SIDE))[:, :, : rows * columns * SIDE]
    whole = Noise(1, "train", torch.tensor([5]), batch=8).normal("eps", (3, shape[0] * SIDE, shape[1] * SIDE))
    tiles = found.reshape(1, 3, *shape, SIDE, SIDE).transpose(3, 4).reshape(whole.shape)
    assert torch.equal(tiles, whole)
    assert not noise.normal("eps", (3, 20 * SIDE, SIDE))[:, :, rows * columns * SIDE :].any()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": {"positions": "rotary", "qk_norm": True, "dropout": 0.2}},
        {"schedule": {"kind": "learned", "pieces": 8}},
        {"weighting": {"kind": "sigmoid"}},
        {"steps": 5},
    ],
    ids=["sincos", "rotary", "learned", "weighted", "discrete"],
)
def test_an_image_trains_as_through_the_path_of_one_size(grid, changes):
    height, width = grid[0] * SIDE, grid[1] * SIDE
    one_size, any_size = build(ImageSpec(3, height, width), **changes), build(SPEC, **changes)
    image = image_of(grid)
    assert torch.allclose(terms(one_size, image, [5]), terms(any_size, packed([image]), [5]), rtol=1e-5, atol=1e-4)
    for mine, other in zip(any_size.parameters(), one_size.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-3 * float(other.grad.abs().max()) + 1e-6)


def test_neither_padding_nor_other_images_change_anything():
    model, wide = build(SPEC), build(SPEC._replace(patches=PatchSpec(24, SIDE)))
    images = [image_of(grid) for grid in GRIDS]
    together = terms(model, packed(images), [3, 4, 5, 6])
    alone = torch.cat([terms(model, packed([image]), [3 + i]) for i, image in enumerate(images)])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-4)
    assert torch.allclose(together, terms(wide, packed(images, 24), [3, 4, 5, 6]), rtol=1e-5, atol=1e-4)


def test_an_image_without_patches_weighs_nothing_and_spoils_nothing():
    model = build(SPEC)
    images = torch.cat([packed([image_of((4, 4))]), torch.zeros_like(packed([image_of((4, 4))]))])
    found = terms(model, images, [1, 0])
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    assert not found[1].any()
    terms(model, images[:1], [1])
    assert all(
        torch.allclose(mine, parameter.grad, rtol=1e-4, atol=1e-5)
        for mine, parameter in zip(gradients, model.parameters(), strict=True)
    )


@pytest.mark.parametrize("bound", ["elbo", "iw", "flow"])
def test_every_bound_of_an_image_is_that_of_the_path_of_one_size(bound):
    values = []
    for grid in GRIDS[:3]:
        one_size = build(ImageSpec(3, grid[0] * SIDE, grid[1] * SIDE), steps=4)
        noise = Noise(0, "evaluate", torch.tensor([7]))
        values.append(sum(one_size.bounds[bound].terms(image_of(grid), None, noise, 2).values()))
    any_size = build(SPEC, steps=4)
    noise = Noise(0, "evaluate", torch.tensor([7, 7, 7]))
    images = packed([image_of(grid) for grid in GRIDS[:3]])
    found = sum(any_size.bounds[bound].terms(images, None, noise, 2).values())
    assert torch.allclose(found, torch.cat(values), rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ancestral", "heun", "dpm_solver"])
def test_samples_of_a_size_are_those_of_the_path_of_one_size(sampler):
    any_size = build(SPEC).eval()
    noise = Noise(0, "sample", torch.arange(4))
    with torch.no_grad():
        for grid in GRIDS[:3]:
            size = grid[0] * SIDE, grid[1] * SIDE
            one_size = build(ImageSpec(3, *size)).eval()
            found = torch.stack(whole_images(any_size.sample(noise, size=size, sampler=sampler), SPEC))
            assert (found.int() - one_size.sample(noise, sampler=sampler).int()).abs().max() <= 1


def test_samples_have_the_shapes_of_the_training_set_in_proportion():
    spec = SPEC._replace(patches=PatchSpec(MOST, SIDE, ((4, 4, 30), (2, 8, 10))))
    patches = sampled_grids(spec, Noise(0, "sample", torch.arange(4000)).uniform("grid"), None)
    wide = int((patches.columns.amax(1) == 7).sum())
    assert abs(wide - 1000) < 4 * 750**0.5
    few = build(spec).sample(Noise(0, "sample", torch.arange(3, 6)), steps=1)
    many = build(spec).sample(Noise(0, "sample", torch.arange(8)), steps=1)
    assert torch.equal(few, many[3:6])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((4, 5), "size: 4 x 5: height and width are multiples of the patch, 2"),
        ((10, 10), "size: 10 x 10: has 25 patches; the model has images of up to 16"),
    ],
)
def test_sizes_that_a_model_cannot_draw(size, message):
    with pytest.raises(ValueError, match=message):
        grid_for(SPEC, size)
    with pytest.raises(ValueError, match=message):
        build(SPEC).sampling_with({"size": size}, conditioned=False)
    with pytest.raises(ValueError, match=rf"sampling.{message}"):
        build(SPEC, sampling={"size": size})
    with pytest.raises(ValueError, match="size: all images of the model are 8 x 8"):
        build(ImageSpec(3, 8, 8)).sampling_with({"size": size}, conditioned=False)


def test_other_networks_and_patches_of_another_size_are_refused():
    unet = {"kind": "diffusion", "denoiser": {"network": {"kind": "unet", "channels": 4, "multipliers": [1]}}}
    with pytest.raises(ValueError, match=r"network.kind: unet takes images of one size; set data.transform.size"):
        TypeAdapter(ModelConfig).validate_python(unet).build(SPEC)
    with pytest.raises(ValueError, match=r"denoiser.network.patch: is 4; data.transform.patch is 2"):
        build(SPEC, network={"patch": 4})
    with pytest.raises(ValueError, match=r"denoiser.network.layout: needs images of one size"):
        build(SPEC, network={"layout": True})


def test_bits_per_dimension_of_a_set_are_total_bits_over_total_dimensions():
    class Part:
        def __init__(self, rows: slice):
            self.images, self.positions = images[rows], torch.arange(len(images))[rows]
            self.weights, self.conditions = torch.ones(len(self.images)), {}

    model = build(SPEC)
    images = packed([image_of(grid) for grid in GRIDS * 3])
    found = evaluate(model, [Part(slice(0, 6)), Part(slice(6, 12))], 0)
    noise = Noise(0, "evaluate", torch.arange(12))
    with torch.no_grad():
        elbo = model.eval()(images, None, noise, torch.zeros(()))
    nats, sizes = elbo.negative_bound.double(), SPEC.dimensions_of(images)
    ratio = nats.sum() / sizes.sum()
    assert found.bpd == pytest.approx(ratio.item() / 0.6931471805599453, rel=1e-6)
    assert found.nats == pytest.approx(nats.mean().item(), rel=1e-6)
    residual = (nats - ratio * sizes).square().sum().sqrt() / sizes.sum()
    assert found.bpd_error == pytest.approx(residual.item() / 0.6931471805599453, rel=1e-4)


def test_scaled_positions_span_the_same_range():
    plain, scaled = (build(SPEC, network={"scale_positions": value}) for value in (False, True))
    square, small = packed([image_of((4, 4))]), packed([image_of((2, 2))])
    assert torch.equal(terms(plain, square, [1]), terms(scaled, square, [1]))
    assert not torch.equal(terms(plain, small, [1]), terms(scaled, small, [1]))


def test_images_of_any_shape_cannot_be_compressed_yet():
    with pytest.raises(TrainingError, match="no coder takes them yet"):
        coder_of(build(SPEC), torch.device("cpu"))
