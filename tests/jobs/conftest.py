"""What tests of whole runs share: packed digits and a tiny configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from datasets.packing.pack import pack
from datasets.packing.sources.digits import Digits

BATCH = 64


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digit scans, packed."""
    folder = tmp_path_factory.mktemp("digits")
    pack(Digits(), str(folder))
    return folder


@pytest.fixture
def config_file(tmp_path: Path, digits: Path) -> Callable[..., Path]:
    """Writes the YAML of a run of 20 steps of 64 images of a tiny VAE, with the sections given laid over it."""

    def write(name: str = "run", **sections: object) -> Path:
        network = {"kind": "mlp", "hidden": [32]}
        values: dict[str, object] = {
            "run": str(tmp_path / name),
            "model": {"kind": "vae", "latent": 4, "encoder": network, "decoder": network},
            "data": {"shards": str(digits / "train"), "validation": str(digits / "validation"), "streams": 4},
            "optim": {"lr": 0.002, "schedule": "constant", "ema": 500},
            "trainer": {
                "images": 20 * BATCH,
                "batch": BATCH,
                "threads": 1,
                "pictures": 4,
                "log_every": 2 * BATCH,
                "evaluate_every": 10 * BATCH,
                "checkpoint_every": 8 * BATCH,
            },
            "tracking": {"mode": "off"},
        }
        for section, content in sections.items():
            below = values.get(section)
            laid_over = isinstance(below, dict) and isinstance(content, dict) and "kind" not in content
            values[section] = below | content if laid_over else content
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
