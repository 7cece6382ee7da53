"""An AutoencoderKL of `diffusers` as a first stage: a tiny random one, saved by diffusers itself."""

from __future__ import annotations

import shutil

import pytest
import torch

from cluster.storage.storage import Storage
from jobs.diffusers_format.write import write_pipeline
from tests.trainer.models import batch
from trainer.images import ImageSpec
from trainer.models.latent import LatentConfig
from trainer.noise import Noise

diffusers = pytest.importorskip("diffusers")

SPEC = ImageSpec(3, 16, 16, 256)
START = torch.tensor(0.0)
DENOISER = {"network": {"kind": "mlp", "width": 16, "depth": 1}, "prediction": {"kind": "mixture", "components": 1}}


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    blocks = 2
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 12),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    return model.eval()


@pytest.fixture
def path(autoencoder, tmp_path):
    autoencoder.save_pretrained(tmp_path / "autoencoder")
    return str(tmp_path / "autoencoder")


def config(path: str, **settings: object) -> LatentConfig:
    stage = {"kind": "diffusers", "path": path}
    return LatentConfig.model_validate({"kind": "latent", "first_stage": stage, "denoiser": DENOISER} | settings)


def built(path: str, **settings: object):
    return config(path, **settings).build_new(SPEC, lambda url: pytest.fail("no run is named"))


def test_latents_and_images_are_those_of_diffusers(autoencoder, path):
    model, images = built(path), batch(SPEC, 3)
    noise = Noise(0, "evaluate", torch.arange(3))
    with torch.no_grad():
        expected = autoencoder.encode(2 * images.float() / 255 - 1).latent_dist
        q = model.first_stage.encode(images, noise).q
        torch.testing.assert_close(q.mean, expected.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(q.log_scale.exp(), expected.std, rtol=1e-5, atol=1e-5)
        z = torch.randn(3, 4, 8, 8)
        output = model.first_stage.decode(z, noise).output
        torch.testing.assert_close(output, (255 * (autoencoder.decode(z).sample + 1) + 1) / 256 - 1, rtol=0, atol=1e-5)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    exact = ((2 * levels.float() / 255 - 1 + 1) * 255 + 1) / 256 - 1  # a decoder that is exact
    assert torch.equal(model.likelihood.mean(exact), levels)


def test_the_vae_of_a_pipelines_folder_is_found(path, tmp_path):
    shutil.copytree(path, tmp_path / "pipeline" / "vae")
    assert built(str(tmp_path / "pipeline")).first_stage.shape == (4, 8, 8)


@pytest.mark.parametrize("likelihood", ["discretised_logistic", "discretised_gaussian"])
def test_the_scale_of_the_pixels_is_the_best_of_each_channel(path, likelihood):
    model = built(path, first_stage={"kind": "diffusers", "path": path, "likelihood": likelihood})
    images, noise = batch(SPEC, 12), Noise(0, "evaluate", torch.arange(12))
    model.measure([images[:8], images[8:]])

    def cost(shift: float) -> float:
        before = model.likelihood.log_scale.clone()
        model.likelihood.log_scale += shift
        nats = sum(model.bounds["first_stage"].terms(images, None, noise, 8).values()).mean().item()
        model.likelihood.log_scale.copy_(before)
        return nats

    with torch.no_grad():
        best = cost(0.0)
        assert best < cost(0.05)
        assert best < cost(-0.05)
    probabilities = torch.stack(
        [
            model.likelihood.kind.log_prob_values(
                torch.tensor(0.1), model.likelihood.log_scale[0, 0, 0], torch.tensor(v, dtype=torch.uint8)
            )
            for v in range(256)
        ]
    )
    assert probabilities.double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_the_bound_counts_density_of_latents_on_any_scale(path):
    """An untrained prior is N(m, s^2) of the measured latents; its bound is reported as the first stage's own."""
    model = built(path, schedule={"kind": "linear", "gamma_0": -12, "gamma_1": 9})
    images = batch(SPEC, 64)
    model.measure([images])
    noise = Noise(0, "evaluate", torch.arange(64))
    with torch.no_grad():
        whole = model.bounds["elbo"].terms(images, None, noise, 16)
        alone = model.bounds["first_stage"].terms(images, None, noise, 16)
    gap = sum(whole.values()) - sum(alone.values())
    assert gap.mean().item() == pytest.approx(0, abs=4 * gap.std().item() / 8 + 0.5)
    torch.testing.assert_close(whole["distortion"], alone["distortion"])


def test_only_the_diffusion_is_trained_and_the_folder_is_read_once(path):
    model = built(path, schedule={"kind": "linear", "gamma_0": -9, "gamma_1": 6})
    model.measure([batch(SPEC, 8)])
    recorded = config(path).self_contained(model)
    shutil.rmtree(path)
    again = recorded.build(SPEC)
    again.load_state_dict(model.state_dict())
    images, noise = batch(SPEC, 4), Noise(0, "evaluate", torch.arange(4))
    with torch.no_grad():
        assert torch.equal(again(images, None, noise, START).negative_bound, model(images, None, noise, START).loss)
    rebuilt = config(path).rebuild(SPEC, LatentConfig.model_validate(recorded.model_dump(mode="json")))
    assert rebuilt is not None
    assert rebuilt.state_dict().keys() == model.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in model.first_stage.parameters())
    with pytest.raises(ValueError, match=r"first_stage\.architecture: is missing"):
        config(path).build(SPEC)


def test_an_export_for_diffusers_has_the_autoencoder_in_its_own_layout(autoencoder, path, tmp_path):
    write_pipeline(Storage(str(tmp_path / "out")), built(path))
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out", subfolder="vae")
    assert all(torch.equal(value, autoencoder.state_dict()[name]) for name, value in again.state_dict().items())
    assert built(str(tmp_path / "out")).first_stage.shape == (4, 8, 8)


def test_decoding_in_tiles_is_close_and_in_rows_the_same(path):
    model, noise = built(path, sampling={"steps": 2}), Noise(0, "sample", torch.arange(3))
    with torch.no_grad():
        whole = model.sample(noise, decode="mean")
        assert (whole.int() - model.sample(noise, decode="mean", decode_rows=2).int()).abs().max() <= 1
        tiled = model.sample(noise, decode="mean", tile=6)
    assert tiled.shape == whole.shape
    both = torch.stack([tiled.float().flatten(), whole.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.6  # its normalisation sees a part of the image


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ImageSpec(1, 16, 16), r"first_stage\.path: .* takes images of 3 channels, these have 1"),
        (ImageSpec(3, 15, 16), r"first_stage\.path: .* reduces images by 2, which does not divide 15 x 16"),
    ],
)
def test_images_that_do_not_fit_are_refused(path, spec, message):
    with pytest.raises(ValueError, match=message):
        config(path).build_new(spec, lambda url: pytest.fail("no run is named"))


def test_a_folder_that_is_no_autoencoder_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"first_stage\.path: .* cannot be read") as error:
        built(str(tmp_path))
    assert "\n" not in str(error.value)
