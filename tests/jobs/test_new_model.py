"""A new model is one new file: it trains, is evaluated by a bound of its own, sampled with an option of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from PIL import Image

from tests.jobs.conftest import BATCH
from tests.testbed.processes import REPOSITORY

TOY = '''
"""Independent pixels: p(x) = prod_i softmax(logits)_i, and no latents."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.models.base import Bound, Model, ModelConfigBase, Picture


class Options(Config):
    sharpness: float = 1.0


class ToyConfig(ModelConfigBase):
    SamplingOptions: ClassVar[type[Config]] = Options

    kind: Literal["toy"]
    sampling: Options = Options()

    def build(self, spec: ImageSpec) -> "Toy":
        return Toy(self, spec)


class Toy(Model):
    def __init__(self, config: ToyConfig, spec: ImageSpec):
        super().__init__()
        self.spec, self.config = spec, config
        self.logits = nn.Parameter(torch.zeros(*spec.shape, spec.levels))

    def cost(self, images: Tensor) -> Tensor:
        logits = self.logits.log_softmax(-1).expand(len(images), *self.logits.shape)
        return -logits.gather(-1, images.long()[..., None]).flatten(1).sum(1)

    def forward(self, images, condition, noise, progress) -> Elbo:
        return Elbo(self.cost(images), {})

    def sample(self, noise, condition=None, temperature=1.0, **options) -> Tensor:
        *_, last = self.trajectory(noise, condition, temperature, **options)
        return last

    def reconstruct(self, images, condition, noise) -> Tensor:
        return images

    @property
    def sampling(self) -> Options:
        return self.config.sampling

    def trajectory(self, noise, condition=None, temperature=1.0, **options) -> Iterator[Tensor]:
        sharpness = Options.model_validate(self.sampling.model_dump() | options).sharpness
        u = noise.normal("x", self.spec.shape).mul(0.7071).erf().add(1).div(2)[..., None]
        for share in (0.5, 1.0):
            p = (share * sharpness * self.logits).softmax(-1).cumsum(-1)
            yield (u > p).sum(-1).clamp(max=self.spec.levels - 1).to(torch.uint8)

    @property
    def bounds(self) -> Mapping[str, Bound]:
        exact = Bound("exact likelihood", lambda images, *_: {"exact": self.cost(images)})
        return {"elbo": super().bounds["elbo"], "exact": exact}

    def pictures(self, images, condition, noise) -> dict[str, Picture]:
        mean = self.logits.argmax(-1)[None].to(torch.uint8)
        return super().pictures(images, condition, noise) | {"mode": Picture(mean)}
'''

SCRIPT = """
import sys
from jobs import evaluate, sample
from jobs.config.loading import load_config
from jobs.run.training import train_rank

config, out = sys.argv[1:]
run = load_config(config).run
assert train_rank(load_config(config)).finished
for bound in ("elbo", "exact"):
    evaluate.main([run, "--bound", bound])
sample.main([run, "--count", "4", "--sharpness", "100", "--out", out])
sample.main([run, "--count", "4", "--sharpness", "100", "--trajectory", "strip", "--out", out])
"""


def test_a_new_model_is_one_file(config_file, tmp_path):
    house, out = tmp_path / "house", tmp_path / "out"
    for package in ("cluster", "datasets", "jobs", "trainer"):
        shutil.copytree(REPOSITORY / package, house / package, ignore=shutil.ignore_patterns("__pycache__"))
    (house / "trainer/models/toy.py").write_text(TOY)
    path = config_file(model={"kind": "toy"}, trainer={"images": 10 * BATCH}, optim={"lr": 0.3})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(out)],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    files = (run / f"evaluations/validation-{bound}-1-ema-{10 * BATCH}.json" for bound in ("elbo", "exact"))
    elbo, exact = (json.loads(file.read_text())["figures"]["evaluation/nats"] for file in files)
    assert exact == elbo
    pictures = {path.name.partition("-")[0] for path in (run / "pictures").iterdir()}
    assert pictures == {"samples", "reconstructions", "mode"}
    with Image.open(out / "grid.png") as grid, Image.open(out / "trajectory.png") as strip:
        assert grid.size == (2 * 50 + 2, 2 * 50 + 2)
        assert strip.size == (2 * 50 + 2, 4 * 50 + 2)
        assert len(grid.crop((2, 2, 50, 50)).getcolors()) > 1


def test_every_kind_samples_with_the_options_that_its_configuration_declares():
    from tests.trainer.models import ALL_MODELS, build
    from trainer.models import KINDS

    declared = {kind.model_fields["kind"].annotation.__args__[0]: kind.SamplingOptions for kind in KINDS}
    for name, (_, config) in ALL_MODELS.items():
        assert type(build(name).sampling) is declared[config["kind"]]
