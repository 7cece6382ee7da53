"""The commands and configurations of docs/your-images.md work, in the order of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cluster.storage.storage import Storage
from datasets.config import DataConfig
from datasets.packing.encoding import encode
from datasets.shards.indexing import index_shards
from tests.datasets.small_sets import write_members
from tests.testbed.jobs import Finished, call_job
from tests.testbed.processes import REPOSITORY
from trainer.checkpoints.journal import read_metrics

PAGE = (REPOSITORY / "docs/your-images.md").read_text()
CONFIGURATIONS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^python -m jobs\.(\w+) (.*)$", PAGE, re.MULTILINE)


def image(number: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_tars(folder: Path, shards: int, first: int = 0) -> None:
    """Shards of 40 images of 16 x 16 pixels."""
    for shard in range(shards):
        numbers = range(first + 40 * shard, first + 40 * shard + 40)
        write_members(folder / f"{shard:06d}.tar", [(f"{n:06d}.png", encode(image(n), "png")) for n in numbers])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos of different sizes and the tars that the page names."""
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        path = tmp_path / "photos" / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number, 20 + number % 7, 24)).save(path)
    write_tars(tmp_path / "data/tars", 4)
    for name, first in (("more", 1000), ("damaged", 2000)):
        write_tars(tmp_path / "data" / name, 2, first)
        index_shards(f"data/{name}", f"data/{name}/index")
    damaged = tmp_path / "data/damaged/000001.tar"
    data = bytearray(damaged.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    damaged.write_bytes(data)
    return tmp_path


@pytest.fixture
def run(here: Path) -> Callable[[str, str], Finished]:
    """Run a command of the page."""

    def call(job: str, arguments: str) -> Finished:
        finished = call_job(job, *arguments.split())
        assert finished.status == 0, finished.stderr
        return finished

    return call


def test_the_page_runs_from_top_to_bottom(here: Path, run: Callable[[str, str], Finished]) -> None:
    jobs = [job for job, _ in COMMANDS]
    assert jobs == ["pack", "index", "verify", "train_local"]
    (here / "photos.yaml").write_text(CONFIGURATIONS[0])
    printed = [run(job, arguments).stdout for job, arguments in COMMANDS]
    assert printed[0].startswith("found in photos:\n  train: 48 images (48 jpeg), 2 classes: cats ")
    assert "\npacked 48 images in 8 shards" in printed[0]
    assert printed[1].startswith("indexed 160 images, 16 x 16, 3 channels, 0 classes, in 4 shards")
    assert printed[2] == "verified 160 images in 4 shards: all good\n"
    assert "finished after 256 images" in printed[3]
    for configuration in CONFIGURATIONS[1:4]:
        name = yaml.safe_load(configuration)["run"]
        (here / "run.yaml").write_text(configuration)
        assert "finished after 256 images" in run("train_local", "run.yaml").stdout
        rows = read_metrics(Storage(str(here / name)))
        assert any("validation/bpd" in row for row in rows) == ("quarantine" not in name)
    quarantined = [entry for row in rows for entry in row.get("quarantined", [])]
    assert {entry["key"] for entry in quarantined} == {"002040"}
    assert {entry["shard"] for entry in quarantined} == {str(here / "data/damaged/000001.tar")}


def test_the_configuration_of_a_bucket_has_a_disk_cache() -> None:
    (configuration,) = CONFIGURATIONS[4:]
    config = DataConfig.model_validate(yaml.safe_load(configuration)["data"])
    assert config.disk_cache is not None
    assert config.disk_cache.size == 100 << 30
